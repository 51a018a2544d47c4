"""torch-ngp's layers and ray marching against an independent twin of its formulas (problems/torch_ngp_twin.py)."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from problems import torch_ngp_twin as twin
from torch import Tensor, nn

import hashgrid.compat
from hashgrid.compat import torch_ngp


def assert_same(made: list[Tensor], expected: list[Tensor], rounding: float = 2e-5) -> None:
    for a, b in zip(made, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= rounding * b.abs().max()


# ---- encodings -------------------------------------------------------------------------------------------------------


def positions(n_dims: int, n: int, bound: float, encoder: torch_ngp.GridEncoder) -> Tensor:
    """In and around [-bound, bound], 4e-3 of a cell or more from every border."""
    x = torch.rand(30 * n, n_dims) * 2.2 - 1.1
    keep = torch.ones(len(x), dtype=torch.bool)
    for row in encoder.levels.scales:
        cell = (x / 2 + 0.5) * row[0] + encoder.levels.shift
        keep &= ((cell - cell.round()).abs() > 4e-3).all(dim=1)
    return x[keep][:n] * bound


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("gridtype", ["hash", "tiled"])
@pytest.mark.parametrize("n_dims, features", [(2, 1), (3, 2), (4, 4)])
def test_grid(n_dims: int, features: int, gridtype: str, align: bool, interpolation: str, backend: str) -> None:
    torch.manual_seed(0)
    sizes = {"num_levels": 5, "level_dim": features, "base_resolution": 4, "log2_hashmap_size": 9}
    options = {"gridtype": gridtype, "align_corners": align, "interpolation": interpolation, "backend": backend}
    encoder = torch_ngp.GridEncoder(n_dims, per_level_scale=1.7, **sizes, **options)
    nn.init.uniform_(encoder.embeddings, -1, 1)
    x = positions(n_dims, 100, 2.0, encoder).requires_grad_()
    assert len(x) == 100 and (x.abs() > 2).any()
    y = encoder(x, bound=2)
    x64, table = x.detach().double().requires_grad_(), encoder.embeddings.detach().double().requires_grad_()
    offsets = encoder.offsets.tolist()
    y64 = twin.grid((x64 + 2) / 4, table, offsets, 1.7, 4, gridtype == "tiled", align, interpolation == "smoothstep")
    grad = torch.randn_like(y)
    made = [y, *torch.autograd.grad(y, (x, encoder.embeddings), grad)]
    assert_same(made, [y64, *torch.autograd.grad(y64, (x64, table), grad.double())])
    assert (y[(x.abs() > 2).any(dim=1)] == 0).all()
    again = torch_ngp.grid_encode(
        (x + 2) / 4, encoder.embeddings, encoder.offsets, 1.7, 4, True, encoder.gridtype_id, align, encoder.interp_id
    )
    torch.testing.assert_close(again, y, rtol=0, atol=1e-5)


def test_tiled_level_counts_few_axes() -> None:
    """Where two axes have more vertices than there are entries, the third does not count, as there."""
    encoder = torch_ngp.GridEncoder(3, 1, base_resolution=40, log2_hashmap_size=10, gridtype="tiled")
    nn.init.uniform_(encoder.embeddings, -1, 1)
    x = torch.rand(10, 3)
    torch.testing.assert_close(encoder(x), encoder(x * torch.tensor([1.0, 1, 0])), rtol=1e-5, atol=1e-5)


def test_checkpoint_of_a_grid() -> None:
    """Names, shapes and sizes of the tables, the last one of `-O` in its own scripts."""
    for align, n_entries in ((False, 6_119_864), (True, 6_098_120)):
        with torch.device("meta"):
            encoder = torch_ngp.GridEncoder(desired_resolution=2048, align_corners=align)
        state = encoder.state_dict()
        assert {name: (tuple(t.shape), t.dtype) for name, t in state.items()} == {
            "embeddings": ((n_entries, 2), torch.float32),
            "offsets": ((17,), torch.int32),
        }
    encoder = torch_ngp.GridEncoder(3, 3, base_resolution=4, log2_hashmap_size=8)
    assert encoder.offsets.tolist() == [0, 128, 384, 640] and encoder.n_params == 1280
    state = {"embeddings": torch.rand(640, 2), "offsets": torch.tensor([0, 128, 384, 640], dtype=torch.int32)}
    encoder.load_state_dict(state)
    assert torch.equal(encoder.embeddings, state["embeddings"])


@pytest.mark.parametrize("gridtype", ["hash", "tiled"])
def test_total_variation(gridtype: str) -> None:
    sizes = {"num_levels": 3, "base_resolution": 4, "log2_hashmap_size": 7, "gridtype": gridtype}
    encoder = torch_ngp.GridEncoder(2, **sizes)
    nn.init.uniform_(encoder.embeddings, -1, 1)
    with pytest.raises(ValueError, match="grad"):
        encoder.grad_total_variation()
    encoder.embeddings.grad = torch.ones_like(encoder.embeddings)
    x = torch.rand(50, 2) * 2 - 1
    encoder.grad_total_variation(0.5, x)
    table, expected = encoder.embeddings.detach(), torch.ones_like(encoder.embeddings)
    offsets = encoder.offsets.tolist()
    for level, (begin, end) in enumerate(zip(offsets, offsets[1:], strict=False)):
        scale, size = 4 * 2**level - 1, end - begin

        def row(vertex: Tensor, level: int = level, size: int = size, begin: int = begin) -> int:
            a, b = vertex.tolist()
            side = 4 * 2**level + 1
            is_hashed = gridtype == "hash" and side**2 > size
            return ((a ^ b * 2654435761 & 0xFFFFFFFF) if is_hashed else a + b * side) % size + begin

        for cell in ((x + 1) / 2 * scale + 0.5).floor().long():
            pairs = [cell + step * torch.eye(2, dtype=torch.int64)[a] for a in range(2) for step in (1, -1)]
            near = [v for v in pairs if v.min() >= 0 and v.max() <= scale + 1]
            terms = torch.stack([table[row(cell)] - table[row(v)] for v in near])
            expected[row(cell)] += 0.5 / 4 * terms.sum(0) / (terms.square().sum(0) + 1e-9).sqrt()
    assert_same([encoder.embeddings.grad], [expected])
    encoder.grad_total_variation(B=100)


def test_harmonics_and_frequencies() -> None:
    d = torch.randn(50, 3).requires_grad_()
    y = torch_ngp.SHEncoder(degree=4)(d, size=2)
    x64 = d.detach().double().requires_grad_()
    x, y_, z = (x64 / 2).unbind(1)
    first = [torch.ones_like(x) * 0.28209479177387814, -0.48860251190291987 * y_, 0.48860251190291987 * z]
    first += [-0.48860251190291987 * x, 1.0925484305920792 * x * y_, -1.0925484305920792 * y_ * z]
    first += [0.94617469575755997 * z * z - 0.31539156525251999, -1.0925484305920792 * x * z]
    first += [0.54627421529603959 * (x * x - y_ * y_), 0.59004358992664352 * y_ * (y_ * y_ - 3 * x * x)]
    first += [2.8906114426405538 * x * y_ * z, 0.45704579946446572 * y_ * (1 - 5 * z * z)]
    first += [0.3731763325901154 * z * (5 * z * z - 3), 0.45704579946446572 * x * (1 - 5 * z * z)]
    first += [1.4453057213202769 * z * (x * x - y_ * y_), 0.59004358992664352 * x * (3 * y_ * y_ - x * x)]
    y64, grad = torch.stack(first, dim=1), torch.randn(50, 16)
    assert_same(
        [y, *torch.autograd.grad(y, d, grad)], [y64, *torch.autograd.grad(y64, x64, grad.double())], rounding=1e-6
    )
    encoder = torch_ngp.FreqEncoder(3, 6)
    f64 = torch.cat([x64, *(wave(x64 * 2**k) for k in range(6) for wave in (torch.sin, torch.cos))], dim=1)
    f, grad = encoder(d), torch.randn(50, 39)
    assert encoder.output_dim == 39
    assert_same([f, *torch.autograd.grad(f, d, grad)], [f64, *torch.autograd.grad(f64, x64, grad.double())])


@pytest.mark.parametrize("activation", ["relu", "exponential", "sine", "sigmoid", "squareplus", "softplus", "none"])
def test_ffmlp(activation: str) -> None:
    mlp = torch_ngp.FFMLP(16, 3, 32, 2, activation)
    state = torch.random.get_rng_state()
    assert mlp.weights.shape == (16 * 32 + 32 * 32 + 32 * 16,)
    torch.manual_seed(42)
    assert torch.equal(mlp.weights, torch.empty(2048).uniform_(-math.sqrt(3 / 32), math.sqrt(3 / 32)))
    torch.random.set_rng_state(state)
    functions: dict[str, Callable] = {
        "relu": torch.relu,
        "exponential": torch.exp,
        "sine": torch.sin,
        "sigmoid": torch.sigmoid,
        "squareplus": lambda x: (10 * x + (100 * x * x + 4).sqrt()) / 20,
        "softplus": lambda x: torch.log(1 + torch.exp(10 * x)) / 10,
        "none": lambda x: x,
    }
    x = torch.randn(37, 16).requires_grad_()
    x64, w64 = x.detach().double().requires_grad_(), mlp.weights.detach().double().requires_grad_()
    first, second, last = w64[:512].view(32, 16), w64[512:1536].view(32, 32), w64[1536:].view(16, 32)
    hidden = functions[activation]
    y, y64 = mlp(x), (hidden(hidden(x64 @ first.T) @ second.T) @ last.T)[:, :3]
    grad = torch.randn_like(y)
    made = [y, *torch.autograd.grad(y, (x, mlp.weights), grad)]
    assert_same(made, [y64, *torch.autograd.grad(y64, (x64, w64), grad.double())])


def test_get_encoder() -> None:
    x = torch.rand(5, 3)
    sizes = {"frequency": 39, "sphere_harmonics": 16, "hashgrid": 32, "tiledgrid": 32, "None": 3}
    for name, n in sizes.items():
        encoder, width = torch_ngp.get_encoder(name, log2_hashmap_size=8)
        assert width == n and encoder(x, bound=1).shape == (5, n) if name != "sphere_harmonics" else width == n
    with pytest.raises(NotImplementedError, match="ash"):
        torch_ngp.get_encoder("ash")
    y = torch.tensor([-20.0, 0, 20], requires_grad=True)
    (grad,) = torch.autograd.grad(torch_ngp.trunc_exp(y).sum(), y)
    torch.testing.assert_close(grad, torch.exp(torch.tensor([-15.0, 0, 15])))


def test_names_of_its_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("gridencoder", "gridencoder.grid", "shencoder", "freqencoder", "ffmlp", "raymarching")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    hashgrid.compat.install("torch_ngp")
    import raymarching  # type: ignore[import-not-found]
    from gridencoder.grid import _grid_encode  # type: ignore[import-not-found]

    assert _grid_encode.apply is torch_ngp.grid_encode and raymarching.packbits is torch_ngp.packbits
    for name in names:
        del sys.modules[name]


# ---- rays ------------------------------------------------------------------------------------------------------------


def test_morton_codes_and_bits() -> None:
    cells = torch.randint(0, 128, (1000, 3), dtype=torch.int32)
    codes = torch_ngp.morton3D(cells)
    assert codes.dtype == torch.int32 and codes.tolist() == [twin.morton(cell) for cell in cells.tolist()]
    assert torch.equal(torch_ngp.morton3D_invert(codes), cells)
    values = torch.rand(2, 64)
    bits = torch_ngp.packbits(values, 0.5)
    assert torch.equal(bits, torch.from_numpy(np.packbits((values > 0.5).numpy().reshape(-1), bitorder="little")))
    field = torch.zeros(16, dtype=torch.uint8)
    assert torch_ngp.packbits(values, 0.5, field) is field and torch.equal(field, bits)


def rays(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    o = torch.randn(n, 3, generator=generator)
    o = 3 * o / o.norm(dim=1, keepdim=True)
    d = torch.randn(n, 3, generator=generator) * 0.5 - o
    return o, d / d.norm(dim=1, keepdim=True)


def test_box_and_sphere() -> None:
    o, d = rays(200)
    d[:50] = -d[:50]
    box = torch.tensor([-1, -0.5, -1, 1, 0.5, 1.0])
    near, far = torch_ngp.near_far_from_aabb(o, d, box, 0.2)
    sides = ((box.view(2, 1, 3) - o) / d).sort(dim=0).values
    first, last = sides[0].amax(1), sides[1].amin(1)
    hit, largest = first <= last, torch.finfo(torch.float32).max
    assert 20 < int(hit.sum()) < 195
    assert (near[~hit] == largest).all() and (far[~hit] == largest).all()
    torch.testing.assert_close((near[hit], far[hit]), (first.clamp(min=0.2)[hit], last[hit]))
    coords = torch_ngp.sph_from_ray(o * 0.1, d, 2.0)
    theta, phi = (coords[:, 0] + 1) * math.pi / 2, coords[:, 1] * math.pi
    on = 2 * torch.stack((theta.sin() * phi.cos(), theta.cos(), theta.sin() * phi.sin()), dim=1)
    torch.testing.assert_close(torch.linalg.cross(on - o * 0.1, d), torch.zeros(200, 3), rtol=0, atol=1e-5)
    assert (((on - o * 0.1) * d).sum(1) > 0).all()


SIDE = 16


def scene(bound: float, share: float = 0.1) -> tuple[Tensor, int, Tensor]:
    """Bits of some cells, cascades, and the values that they are of."""
    n = 1 + math.ceil(math.log2(bound))
    values = torch.rand(n, SIDE**3, generator=torch.Generator().manual_seed(1))
    return torch_ngp.packbits(values, 1 - share), n, values


@pytest.mark.parametrize("bound, dt_gamma", [(1.0, 0.0), (1.5, 0.0), (4.0, 1 / 64)])
def test_march(bound: float, dt_gamma: float) -> None:
    bits, n_cascades, _ = scene(bound)
    o, d = rays(60)
    o *= bound
    near, far = torch_ngp.near_far_from_aabb(o, d, torch.tensor([-bound] * 3 + [bound] * 3))
    how = {"dt_gamma": dt_gamma, "max_steps": 256}
    counter = torch.zeros(2, dtype=torch.int32)
    marched = torch_ngp.march_rays_train(o, d, bound, bits, n_cascades, SIDE, near, far, counter, align=128, **how)
    xyzs, dirs, deltas, table = marched
    assert len(xyzs) % 128 == 0 and table.dtype == torch.int32 and counter[1] == 60
    assert int(counter[0]) == int(table[:, 2].sum()) > 200 and (xyzs[int(counter[0]) :] == 0).all()
    arrays = (o.numpy(), d.numpy(), bits.numpy())
    n_wrong = 0
    for ray, (number, offset, count) in enumerate(table.tolist()):
        assert number == ray
        where = (bound, arrays[2], n_cascades, SIDE, float(near[ray]), float(far[ray]), 256, dt_gamma, 256)
        expected = torch.tensor(twin.march(arrays[0][ray], arrays[1][ray], *where)).view(-1, 3)
        if len(expected) != count:  # a position within a rounding of a cell's side
            n_wrong += 1
            continue
        mine = slice(offset, offset + count)
        at = (o[ray] + expected[:, :1] * d[ray]).clamp(-bound, bound)
        torch.testing.assert_close((xyzs[mine], deltas[mine]), (at, expected[:, 1:]), rtol=1e-4, atol=1e-4)
        assert (dirs[mine] == d[ray]).all()
    assert n_wrong <= 2


def test_rays_that_do_not_fit_have_no_samples() -> None:
    bits, n_cascades, _ = scene(1.0)
    o, d = rays(60)
    near, far = torch_ngp.near_far_from_aabb(o, d, torch.tensor([-1.0] * 3 + [1.0] * 3))
    march = torch_ngp.march_rays_train
    everything = march(o, d, 1.0, bits, n_cascades, SIDE, near, far)
    total = len(everything[0])
    xyzs, _, deltas, table = march(o, d, 1.0, bits, n_cascades, SIDE, near, far, mean_count=total // 2, align=16)
    assert len(xyzs) == total // 2 + 16 - total // 2 % 16 and torch.equal(table, everything[3])
    fits = (table[:, 1] + table[:, 2] <= len(xyzs)) & (table[:, 2] > 0)
    opacity, _, image = torch_ngp.composite_rays_train(torch.ones(len(xyzs)), torch.ones(len(xyzs), 3), deltas, table)
    assert torch.equal(opacity > 0, fits) and torch.equal(image[:, 0] > 0, fits)
    forced = march(o, d, 1.0, bits, n_cascades, SIDE, near, far, mean_count=9, force_all_rays=True, perturb=True)
    assert len(forced[0]) > total // 2
    nothing = march(o[:0], d[:0], 1.0, bits, n_cascades, SIDE, near[:0], far[:0])
    assert [len(x) for x in nothing] == [0, 0, 0, 0]


def test_composite() -> None:
    torch.manual_seed(0)
    table = torch.tensor([[2, 5, 4], [0, 0, 5], [1, 9, 0], [3, 12, 9], [4, 9, 3]], dtype=torch.int32)  # in any order
    sigmas, rgbs, deltas = torch.rand(20) * 9, torch.rand(20, 3), torch.rand(20, 2)
    inputs = [t.requires_grad_() for t in (sigmas, rgbs)]
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    expected = [torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64), torch.zeros(5, 3).double()]
    for number, offset, count in table.tolist():
        if offset + count > 20:
            continue
        mine = slice(offset, offset + count)
        outputs = twin.composite(doubles[0][mine], doubles[1][mine], deltas[mine].double(), 0.05)
        for all_rays, one in zip(expected, outputs, strict=True):
            all_rays[number] = one
    made = torch_ngp.composite_rays_train(sigmas, rgbs, deltas, table, 0.05)
    grads = [torch.randn_like(y) for y in made]
    assert_same(
        [*made, *torch.autograd.grad(made, inputs, grads)],
        [*expected, *torch.autograd.grad(expected, doubles, [g.double() for g in grads])],
    )


def test_inference_by_parts_is_training() -> None:
    """As its renderer does it: a few samples of those rays that go on, until none does."""
    bits, n_cascades, _ = scene(2.0, share=0.3)
    o, d = rays(40)
    o *= 2
    near, far = torch_ngp.near_far_from_aabb(o, d, torch.tensor([-2.0] * 3 + [2.0] * 3))

    def field(x: Tensor) -> tuple[Tensor, Tensor]:
        return 3 * x.square().sum(dim=1), x.sin().abs()

    opacity, depth, image, t = torch.zeros(40), torch.zeros(40), torch.zeros(40, 3), near.clone()
    alive = torch.arange(40, dtype=torch.int32)
    n_calls = 0
    while len(alive) > 0:
        marched = torch_ngp.march_rays(
            len(alive), 5, alive, t, o, d, 2.0, bits, n_cascades, SIDE, near, far, align=128, max_steps=128
        )
        sigmas, rgbs = field(marched[0])
        sums = (opacity, depth, image)
        torch_ngp.composite_rays(len(alive), 5, alive, t, sigmas, rgbs, marched[2], *sums, 1e-4)
        alive = alive[alive >= 0]
        n_calls += 1
    xyzs, _, deltas, table = torch_ngp.march_rays_train(o, d, 2.0, bits, n_cascades, SIDE, near, far, max_steps=128)
    sigmas, rgbs = field(xyzs)
    expected = torch_ngp.composite_rays_train(sigmas, rgbs, deltas, table, 1e-4)
    assert n_calls > 3 and int((opacity > 0).sum()) > 30
    torch.testing.assert_close((opacity, image), (expected[0], expected[2]), rtol=1e-3, atol=2e-4)
    # depths of training begin with the ray, those of inference at the origin
    torch.testing.assert_close(depth, expected[1] + expected[0] * near, rtol=1e-3, atol=2e-3)
