"""Training rays drawn by the native op: the reference's bits, the images' colours, pixels without favourites."""

from __future__ import annotations

import pytest
import torch
from problems.sample_rays import Views, random_views
from torch import Tensor

from hashgrid import reference
from hashgrid.ops import _ngp

pytestmark = pytest.mark.every_kernel


def numbered(sizes: list[tuple[int, int]]) -> Views:
    """Views of which every pixel's colour is its number."""
    _, *cameras = random_views(sizes)
    number = torch.arange(int(cameras[0][-1]))
    data = torch.stack([number >> 8 * channel & 255 for channel in range(4)], dim=1).byte()
    return data, *cameras


def number_of(rgba: Tensor) -> Tensor:
    return ((rgba * 255).round().long() * 256 ** torch.arange(4)).sum(1)


@pytest.mark.parametrize("n_channels", [3, 4])
@pytest.mark.parametrize("sizes", [[(1, 1)], [(40, 30)] * 5, [(7, 3), (1, 1), (500, 2), (2, 500)]], ids=str)
def test_has_the_bits_of_the_reference(sizes: list[tuple[int, int]], n_channels: int) -> None:
    views = random_views(sizes, n_channels)
    for seed, step, n in ((0, 0, 0), (0, 0, 1), (-(2**62) - 5, 2**32 - 1, 63), (3, 9, 5000)):
        ours, theirs = (library.sample_rays(seed, step, n, *views) for library in (_ngp, reference))
        for a, b, columns in zip(ours, theirs, (3, 3, 4, 3), strict=True):
            assert a.shape == (n, columns) and torch.equal(a, b)


def test_seed_and_step_may_be_tensors() -> None:
    views = random_views([(40, 30)] * 5)
    for library in (_ngp, reference):
        from_tensors = library.sample_rays(torch.tensor([3]), torch.tensor(9), 100, *views)
        assert all(torch.equal(a, b) for a, b in zip(from_tensors, library.sample_rays(3, 9, 100, *views), strict=True))


def test_rays_go_through_the_middles_of_their_pixels() -> None:
    """Projected back by a camera matrix, in double precision."""
    views = numbered([(31, 17), (5, 90)])
    _, offsets, sizes, c2w, intrinsics = views
    rays_o, rays_d, rgba, _ = _ngp.sample_rays(1, 2, 3000, *views)
    number = number_of(rgba)
    view = (number >= offsets[1]).long()
    in_view = number - offsets[view]
    expected = torch.stack((in_view % sizes[view, 0], in_view // sizes[view, 0]), dim=1) + 0.5
    torch.testing.assert_close(rays_d.norm(dim=1), torch.ones(3000))
    assert torch.equal(rays_o, c2w[view, :, 3])
    local = (c2w[view, :, :3].double().transpose(1, 2) @ rays_d.double()[:, :, None])[:, :, 0]
    pixel = (
        torch.stack((local[:, 0], -local[:, 1]), dim=1) / -local[:, 2:] * intrinsics[view, :2] + intrinsics[view, 2:]
    )
    torch.testing.assert_close(pixel.float(), expected, rtol=0, atol=1e-2)


def test_pixels_are_drawn_evenly() -> None:
    """Chi-squared over pixels, and over pairs of neighbouring rays; backgrounds are uniform and their own."""
    sizes = [(6, 4), (3, 8)]
    views, n = numbered(sizes), 48 * 2000
    _, _, rgba, noise = _ngp.sample_rays(5, 0, n, *views)
    number = number_of(rgba)
    for counts in (number.bincount(minlength=48), (number[::2] * 48 + number[1::2]).bincount(minlength=48**2)):
        expected = counts.sum() / len(counts)
        chi2 = ((counts - expected) ** 2 / expected).sum()
        assert abs(float(chi2) - len(counts)) < 5 * (2 * len(counts)) ** 0.5
    assert float(noise.min()) >= 0 and float(noise.max()) < 1
    correlation = torch.corrcoef(torch.cat((noise.T, number[None].float())))
    assert float((correlation - torch.eye(4)).abs().max()) < 5 / n**0.5


def test_large_scenes_reach_every_pixel() -> None:
    """24 random bits would leave out pixels of odd number here."""
    n_pixels = 2**25
    data = torch.zeros(n_pixels, 3, dtype=torch.uint8)
    data[1::2] = 255
    camera = random_views([(2**13, 2**12)])[1:]
    rgba = _ngp.sample_rays(0, 0, 4000, data, *camera)[2]
    assert 0.4 < float(rgba[:, 0].mean()) < 0.6


def test_lenses_by_a_table_of_points() -> None:
    sizes = [(7, 3), (4, 5)]
    data, offsets, size, c2w, intrinsics = random_views(sizes)
    # rows longer than the images: a table of a larger camera
    plane_rows = torch.tensor([[3, 9], [40, 6]])
    points = torch.randn(100, 2)
    ours, theirs = (
        library.sample_rays(0, 1, 500, data, offsets, size, c2w, intrinsics, points, plane_rows)
        for library in (_ngp, reference)
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not torch.equal(ours[1], _ngp.sample_rays(0, 1, 500, data, offsets, size, c2w, intrinsics)[1])


def test_bad_input_is_refused(kernels: str) -> None:
    names = ("data", "offsets", "sizes", "c2w", "intrinsics")
    views = dict(zip(names, random_views([(4, 3), (2, 2)]), strict=True))

    def call(n: int = 5, **changed) -> None:
        _ngp.sample_rays(0, 0, n, **views | changed)

    for changed, message in (
        (
            {"data": torch.zeros(16, 2, dtype=torch.uint8)},
            r"`data` must have shape \[P, 3\] or \[P, 4\], got \[16, 2\]",
        ),
        ({"data": torch.zeros(16, 3)}, "`data` must be uint8, got float32"),
        ({"offsets": torch.tensor([0, 16])}, r"`offsets` must have shape \[3\], got \[2\]"),
        ({"c2w": torch.zeros(2, 3, 4).double()}, "`c2w` must be float32, got float64"),
        ({"intrinsics": torch.ones(3, 4)}, r"`intrinsics` must have shape \[2, 4\], got \[3, 4\]"),
        ({"plane_points": torch.zeros(16, 2)}, "`plane_points` and `plane_rows` must be given together"),
        ({"n": -1}, "`n_rays` must not be negative, got -1"),
        ({"data": torch.zeros(0, 3, dtype=torch.uint8)}, r"`data` must have pixels to draw from, got \[0, 3\]"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call(**changed)
    if kernels == "cpu":
        for offsets in ([0, 12, 17], [0, 11, 16], [1, 12, 16]):
            with pytest.raises(RuntimeError, match="`offsets` must be sums of width times height in `sizes`"):
                call(offsets=torch.tensor(offsets))
