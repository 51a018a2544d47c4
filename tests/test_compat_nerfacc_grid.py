"""nerfacc's grids, occupancy estimator and lenses against independent programs (problems/nerfacc_grid_twin.py)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from problems import nerfacc_grid_twin as twin
from torch import Tensor

from hashgrid.compat.nerfacc import _traverse, cameras
from hashgrid.compat.nerfacc.estimators.occ_grid import OccGridEstimator
from hashgrid.compat.nerfacc.grid import (
    _enlarge_aabb,
    _query,
    _ray_aabb_intersect,
    ray_aabb_intersect,
    traverse_grids,
)

BASE = torch.tensor([-1.0, -0.5, -1.0, 1.0, 1.5, 1.0], dtype=torch.float64)
APART = torch.tensor([[-1.0, -1, -1, 0, 0, 0], [0.5, 0.5, 0.5, 2, 2, 2], [-2, -0.5, -2, 1, 1, 1]], dtype=torch.float64)


def rays(n: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """From around the boxes and from inside of them, towards their middle; three along the axes."""
    g = torch.Generator().manual_seed(seed)
    o = torch.randn(n, 3, generator=g, dtype=torch.float64) * 1.5
    d = torch.nn.functional.normalize(torch.randn(n, 3, generator=g, dtype=torch.float64) - o, dim=-1)
    d[0], d[1], d[2] = torch.tensor([0, 1.0, 0]), torch.tensor([0, -0.6, 0.8]), torch.tensor([-1.0, 0, 0])
    return o.to(dtype), d.to(dtype)


def scene(levels: int, resolution: tuple[int, int, int], share: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Occupied cells, in runs of three, and boxes that are nested."""
    g = torch.Generator().manual_seed(seed)
    binaries = torch.rand(levels, *resolution, generator=g) < share / 3
    binaries = binaries | binaries.roll(1, dims=1) | binaries.roll(2, dims=1)
    return binaries, torch.stack([_enlarge_aabb(BASE, 2**level) for level in range(levels)])


def planes(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    near = torch.rand(n, generator=g, dtype=torch.float64) * 2
    far = near + torch.rand(n, generator=g, dtype=torch.float64) * 6
    near[:5], near[12:15], far[5:12] = 0, -1.0, math.inf
    return near, far


def walks(o: Tensor, d: Tensor, binaries: Tensor, aabbs: Tensor, near: Tensor, far: Tensor, **how: Any) -> list:
    arrays = [x.double().numpy() for x in (o, d)]
    cells, boxes = binaries.numpy(), aabbs.double().numpy()
    limits = zip(near.tolist(), far.tolist(), strict=True)
    return [twin.walk(arrays[0][r], arrays[1][r], cells, boxes, *limit, **how) for r, limit in enumerate(limits)]


CASES = {
    "one box": ((1, (8, 8, 8)), 0.05, 0.0, 0),
    "one box of few cells": ((1, (7, 13, 10)), 0.05, 0.0, 0),
    "nested": ((3, (8, 4, 12)), 0.04, 0.0, 0),
    "nested, few samples": ((3, (8, 4, 12)), 0.04, 0.0, 5),
    "nested across cells": ((3, (6, 7, 5)), 0.04, 0.0, 0),
    "long steps": ((2, (8, 8, 8)), 0.9, 0.0, 0),
    "growing steps": ((3, (8, 8, 8)), 0.05, 0.02, 0),
    "growing fast, few samples": ((3, (8, 8, 8)), 0.05, 0.2, 4),
    "apart": (None, 0.05, 0.0, 0),
    "apart, growing steps": (None, 0.05, 0.01, 0),
    "cells": ((3, (8, 4, 6)), 0.0, 0.0, 0),
    "cells, few samples": ((3, (8, 4, 6)), 0.0, 0.0, 3),
    "cells of boxes apart": (None, -1.0, 0.0, 0),
}
ON_KERNEL = ("one box", "one box of few cells", "nested", "nested, few samples")


def grids_of(case: str) -> tuple[Tensor, Tensor, float, float, int]:
    what, step, cone, limit = CASES[case]
    binaries, aabbs = scene(*what) if what else (scene(3, (5, 6, 7))[0], APART)
    return binaries, aabbs, step, cone, limit


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_traverse(case: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    binaries, aabbs, step, cone, limit = grids_of(case)
    (o, d), (near, far) = rays(60, dtype), planes(60)
    # what the twin has to look at in fp64 is what fp32 holds
    near, far, aabbs = (x.to(dtype) for x in (near, far, aabbs))
    for name in ("_step", "_cross_cells") if case in ON_KERNEL else ("_march",):
        monkeypatch.setattr(_traverse, name, None)
    intervals, samples, reached = traverse_grids(o, d, binaries, aabbs, near, far, step, cone, limit or None)
    assert {x.dtype for x in (intervals.vals, samples.vals, reached)} == {dtype} and samples.is_valid.all()
    step = step if dtype == torch.float64 else np.float32(step).item()
    expected = walks(o, d, binaries, aabbs, near, far, step=step, cone=cone, limit=limit)

    counts = torch.tensor([len(walk.samples) for walk in expected])
    right = counts == samples.packed_info[:, 1]  # a middle in fp32 may be on the other side of a border
    assert right.all() if dtype == torch.float64 else right.sum() >= 59
    assert (samples.packed_info[:, 0] == samples.packed_info[:, 1].cumsum(0) - samples.packed_info[:, 1]).all()
    assert len(samples.vals) > 60 or step > 0.5 or limit or step <= 0
    starts, ends = intervals.vals[intervals.is_left], intervals.vals[intervals.is_right]
    torch.testing.assert_close(samples.vals, (starts + ends) / 2)
    of_right = right[samples.ray_indices]
    pairs = torch.tensor([pair for walk, ok in zip(expected, right, strict=True) if ok for pair in walk.samples])
    made = torch.stack((starts, ends), dim=1)[of_right].double()
    error = {torch.float64: 1e-12, torch.float32: 2e-6}[dtype]
    torch.testing.assert_close(made, pairs.double().view(-1, 2), rtol=0, atol=max(error, 2e-7 * float(pairs.max())))
    at = torch.tensor([walk.reached for walk in expected], dtype=torch.float64)
    torch.testing.assert_close(reached[right].double(), at[right], rtol=0, atol=2e-6)
    assert (ends <= reached[samples.ray_indices]).all()
    # edges are shared, at least where nerfacc shares them
    assert (intervals.is_left | intervals.is_right).all() and (intervals.vals.diff()[intervals.is_left[:-1]] > 0).all()
    n_edges = torch.tensor([sum(2 - shared for shared in walk.shared) for walk in expected])
    assert (intervals.packed_info[:, 1] <= n_edges)[right].all()
    assert intervals.ray_indices.bincount(minlength=60).equal(intervals.packed_info[:, 1])


def test_both_ways_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel and plain PyTorch, on more rays than Python walks."""
    binaries, aabbs = scene(3, (32, 32, 32))
    (o, d), (near, far) = rays(2000), planes(2000)
    _, one, reached = traverse_grids(o, d, binaries, aabbs, near, far, 0.01)
    monkeypatch.setattr(_traverse, "_is_nest", lambda *_: False)
    _, other, also = traverse_grids(o, d, binaries, aabbs, near, far, 0.01)
    assert len(one.vals) > 50_000
    assert one.packed_info.equal(other.packed_info)
    torch.testing.assert_close(one.vals, other.vals, rtol=0, atol=1e-10)
    torch.testing.assert_close(reached, also, rtol=0, atol=1e-10)


def test_long_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a step in front of a box is in front of the next larger one, too: this is not for the kernel."""
    binaries, aabbs = scene(1, (4, 4, 4), share=1.0)
    o, d = rays(100)
    d, near, far = d * 7, *(x / 10 for x in planes(100))
    monkeypatch.setattr(_traverse, "_march", None)
    samples = traverse_grids(o, d, binaries, aabbs, near, far, 0.3)[1]
    expected = walks(o, d, binaries, aabbs, near, far, step=0.3)
    assert samples.packed_info[:, 1].tolist() == [len(walk.samples) for walk in expected]
    pairs = torch.tensor(sum((walk.samples for walk in expected), []), dtype=torch.float64)
    assert len(pairs) > 5
    torch.testing.assert_close(samples.vals, pairs.mean(1), rtol=0, atol=1e-10)


def test_no_samples_between_boxes_apart() -> None:
    """nerfacc has them where a ray leaves one box and enters the next one in occupied cells."""
    boxes = torch.tensor([[0.0, 0, 0, 1, 1, 1], [2.0, 0, 0, 3, 1, 1]], dtype=torch.float64)
    binaries = torch.ones(2, 4, 4, 4, dtype=torch.bool)
    o, d = torch.tensor([[-1.0, 0.4, 0.4]], dtype=torch.float64), torch.tensor([[1.0, 0, 0]], dtype=torch.float64)
    near, far = torch.zeros(1, dtype=torch.float64), torch.full((1,), 9.0, dtype=torch.float64)
    vals = traverse_grids(o, d, binaries, boxes, near, far, 0.1)[1].vals
    assert len(vals) == 20 and not ((vals > 2) & (vals < 3)).any()
    assert len(walks(o, d, binaries, boxes, near, far, step=0.1, bridges=True)[0].samples) == 30


def test_rays_in_parts() -> None:
    """A few samples at a time, from where rays got to, as renderers do."""
    binaries, aabbs = scene(2, (16, 16, 16))
    (o, d), limit = rays(50), 8
    whole = traverse_grids(o, d, binaries, aabbs, step_size=0.03)[1]
    crossings = ray_aabb_intersect(o, d, aabbs)
    t_sorted, t_indices = torch.cat(crossings[:2], dim=-1).sort(-1)
    given = {"t_sorted": t_sorted, "t_indices": t_indices, "hits": crossings[2]}
    near, mask, found = torch.zeros(50, dtype=torch.float64), None, [[] for _ in range(50)]
    for _ in range(40):
        n_rays = 50 if mask is None else int(mask.sum())
        how = {"near_planes": near, "traverse_steps_limit": limit, "over_allocate": True, "rays_mask": mask, **given}
        intervals, samples, near = traverse_grids(o, d, binaries, aabbs, step_size=0.03, **how)
        assert samples.vals.shape == samples.is_valid.shape == (limit * n_rays,)
        assert intervals.vals.shape == intervals.is_left.shape == (2 * limit * n_rays,)
        assert (samples.vals[~samples.is_valid] == 0).all()
        starts, ends = intervals.vals[intervals.is_left], intervals.vals[intervals.is_right]
        valid = samples.ray_indices[samples.is_valid]
        torch.testing.assert_close(samples.vals[samples.is_valid], (starts + ends) / 2)
        assert valid.bincount(minlength=50).equal(samples.packed_info[:, 1])
        for ray, t in zip(valid.tolist(), samples.vals[samples.is_valid].tolist(), strict=True):
            found[ray].append(t)
        mask = samples.packed_info[:, 1] == limit
        if not mask.any():
            break
    assert not mask.any()
    assert [len(ts) for ts in found] == whole.packed_info[:, 1].tolist()
    parts = torch.tensor(sum(found, []), dtype=torch.float64)
    torch.testing.assert_close(parts, whole.vals, rtol=0, atol=1e-10)


def test_mask_and_no_rays() -> None:
    binaries, aabbs = scene(2, (8, 8, 8), share=1.0)
    o, d = rays(10)
    mask = torch.arange(10) % 2 == 0
    for how in ({"step_size": 0.05}, {"step_size": 0.05, "cone_angle": 0.01}, {"step_size": 0.0}):
        everything = traverse_grids(o, d, binaries, aabbs, **how)[1]
        _, samples, reached = traverse_grids(o, d, binaries, aabbs, rays_mask=mask, **how)
        kept = mask[everything.ray_indices]
        assert samples.vals.equal(everything.vals[kept]) and 0 < len(samples.vals) < len(everything.vals)
        assert (reached[~mask] == 0).all()
        intervals, samples, reached = traverse_grids(o[:0], d[:0], binaries, aabbs, **how)
        assert intervals.vals.shape == samples.vals.shape == reached.shape == (0,)
        assert samples.packed_info.shape == (0, 2)


@pytest.mark.parametrize("shape", [(1, 4, 4, 4), (3, 4, 8, 12), (1, 4, 4, 1), (2, 1, 1, 1)])
def test_bits(shape: tuple[int, ...]) -> None:
    flags = torch.rand(*shape) < 0.4
    expected = np.packbits(np.concatenate((flags.flatten(), np.zeros(flags[0].numel(), bool))), bitorder="little")
    assert _traverse._bits(flags).tolist() == expected.tolist()


def test_boxes() -> None:
    """Entries and exits, of boxes ahead, around and behind; planes limit distances only."""
    o, d = rays(200)
    boxes = torch.rand(7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    boxes[:, 3:] = boxes[:, :3] + boxes[:, 3:].abs() + 0.5
    t_mins, t_maxs, hits = ray_aabb_intersect(o, d, boxes)
    assert t_mins.shape == t_maxs.shape == hits.shape == (200, 7)
    for r in range(200):
        for k in range(7):
            known = twin.crossing(o[r].numpy(), d[r].numpy(), boxes[k].numpy())
            assert (known is not None) == hits[r, k]
            assert (t_mins[r, k].item(), t_maxs[r, k].item()) == pytest.approx(known or (math.inf, math.inf))
    assert 100 < hits.sum() < 1000 and (t_mins < 0).any()  # around the origin
    limited = ray_aabb_intersect(o, d, boxes, 0.5, 1.5, -7.0)
    assert limited[2].equal(hits) and (limited[0][~hits] == -7).all()
    assert limited[0][hits].equal(t_mins[hits].clamp(min=0.5)) and limited[1][hits].equal(t_maxs[hits].clamp(max=1.5))
    for a, b in zip(_ray_aabb_intersect(o, d, boxes, 0.5, 1.5, -7.0), limited, strict=True):
        assert a.equal(b)
    assert [x.shape for x in ray_aabb_intersect(o, d, boxes[:0])] == [(200, 0)] * 3


def test_values_at_points() -> None:
    data = torch.rand(3, 4, 6, 5)
    x = (torch.rand(500, 3, dtype=torch.float64) * 2 - 1) * 6
    values, inside = _query(x, data, BASE)
    boxes = [_enlarge_aabb(BASE, 2**level) for level in range(3)]
    for point, value, is_in in zip(x, values, inside, strict=True):
        level = next((k for k, box in enumerate(boxes) if ((point > box[:3]) & (point < box[3:])).all()), None)
        assert (level is not None) == is_in
        if level is None:
            assert value == 0
            continue
        low, high = boxes[level][:3], boxes[level][3:]
        i, j, k = ((point - low) / (high - low) * torch.tensor([4, 6, 5])).long().tolist()
        assert value == data[level, i, j, k]
    assert 50 < inside.sum() < 450


def test_errors() -> None:
    binaries, aabbs = scene(2, (4, 4, 4))
    o, d = rays(5)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"rays_o": o[0]}, r"`rays_o` must have shape \[R, 3\], got \[3\]"),
        ({"rays_d": d[:4]}, r"`rays_d` must have shape \[5, 3\], got \[4, 3\]"),
        ({"aabbs": aabbs[0]}, r"`aabbs` must have shape \[m, 6\]"),
        ({"binaries": binaries[:1]}, r"`binaries` must have shape \[2, X, Y, Z\], got \[1, 4, 4, 4\]"),
        ({"binaries": binaries.float()}, "`binaries` must be bool, got torch.float32; compare"),
        ({"near_planes": o}, r"`near_planes` must have shape \[5\]"),
        ({"far_planes": 3.0}, r"`far_planes` must be a tensor of shape \[5\], got float"),
        ({"rays_mask": torch.ones(4)}, r"`rays_mask` must have shape \[5\]"),
        ({"over_allocate": True}, "`traverse_steps_limit` must be positive with `over_allocate`, got None"),
        ({"hits": torch.ones(5, 2)}, "must be given together"),
        ({"cone_angle": -1.0}, "`cone_angle` must be 0 or more"),
        ({"step_size": math.nan}, "`step_size` finite, got 0.0 and nan"),
        ({"aabbs": aabbs.to("meta")}, "`aabbs` must be on the device of the rays, cpu, got meta"),
    ]
    for changed, message in wrong:
        arguments = {"rays_o": o, "rays_d": d, "binaries": binaries, "aabbs": aabbs, **changed}
        with pytest.raises(ValueError, match=message):
            traverse_grids(**arguments)


# ---- the estimator ---------------------------------------------------------------------------------------------------


def test_state_of_an_estimator() -> None:
    """Names, shapes and dtypes of nerfacc's checkpoints."""
    estimator = OccGridEstimator(BASE.tolist(), resolution=[4, 6, 5], levels=3)
    assert {name: (tuple(x.shape), x.dtype) for name, x in estimator.state_dict().items()} == {
        "resolution": ((3,), torch.int32),
        "aabbs": ((3, 6), torch.float32),
        "occs": ((3 * 120,), torch.float32),
        "binaries": ((3, 4, 6, 5), torch.bool),
    }
    assert estimator.aabbs[2].tolist() == [-4.0, -3.5, -4.0, 4.0, 4.5, 4.0]
    assert not estimator.binaries.any() and estimator.cells_per_lvl == 120 and estimator.levels == 3
    assert estimator.grid_indices.tolist() == list(range(120))
    assert estimator.grid_coords.tolist() == [list(cell) for cell in np.ndindex(4, 6, 5)]
    other = OccGridEstimator(torch.tensor(BASE.tolist()), torch.tensor([4, 6, 5]), 3)
    estimator.binaries = torch.rand(3, 4, 6, 5) < 0.5
    other.load_state_dict(estimator.state_dict())
    assert other.binaries.equal(estimator.binaries)
    for arguments, message in (
        (([0.0] * 5,), r"`roi_aabb` must be two corners"),
        (([1.0, 1, 1, 0, 0, 0],), r"`roi_aabb` must be two corners"),
        ((BASE, 0), "must be positive"),
        ((BASE, (3, 3)), "`resolution` must be"),
    ):
        with pytest.raises(ValueError, match=message):
            OccGridEstimator(*arguments)
    with pytest.raises(ValueError, match="contraction_type"):
        OccGridEstimator(BASE, contraction_type="AABB")
    with pytest.raises(TypeError, match="`cells`"):
        OccGridEstimator(BASE, cells=3)


def test_update() -> None:
    """Values of cells: the larger of the old one, decayed, and the new one; the threshold is their mean or less."""
    estimator = OccGridEstimator([0.0, 0, 0, 1, 1, 1], resolution=8, levels=2)
    estimator.occs[5] = -1
    seen = []

    def value_of(x: Tensor) -> Tensor:  # the same everywhere in a cell of level 0
        seen.append(x)
        return ((x[:, :1] * 8).floor() == 3) * 0.5

    estimator.update_every_n_steps(17, value_of)
    assert not seen
    estimator.update_every_n_steps(16, value_of)
    assert [len(x) for x in seen] == [511, 512]
    order = torch.tensor([i for i in range(512) if i != 5])
    cells = (seen[0] * 8).long()
    assert cells.equal(torch.stack((order // 64, order // 8 % 8, order % 8), dim=1))
    assert (seen[1].amin(0) < -0.3).all() and (seen[1].amax(0) > 1.3).all()
    level = estimator.occs[:512].view(8, 8, 8)
    assert (level[3] == 0.5).all() and level[0, 0, 5] == -1 and (level.sum() == 0.5 * 64 - 1)
    assert estimator.binaries[0, 3].all() and estimator.binaries[0].sum() == 64
    # empty space: all decay, and thresholds are means where those are less
    estimator.update_every_n_steps(32, lambda x: torch.zeros(len(x)), occ_thre=9.0, ema_decay=0.5)
    assert (level[3] == 0.25).all()
    assert estimator.binaries.sum() == (estimator.occs > estimator.occs[estimator.occs >= 0].mean()).sum() > 0
    # later, a quarter of all cells and as many of the occupied ones
    del seen[:]
    estimator.update_every_n_steps(512, value_of)
    assert len(seen) == 2 and all(128 <= len(x) <= 256 for x in seen)
    assert ((seen[0][:, 0] * 8).long() == 3).sum() >= 64
    assert level[0, 0, 5] == -1 and (level[3] == 0.5).all()
    with pytest.raises(ValueError, match="got NaN for 511 of 511"):
        estimator.update_every_n_steps(0, lambda x: x[:, 0] * math.nan)
    with pytest.raises(ValueError, match=r"each of \[511\] positions, got \[511, 3\]"):
        estimator.update_every_n_steps(0, lambda x: x)
    with pytest.raises(RuntimeError, match="training mode"):
        estimator.eval().update_every_n_steps(0, value_of)


def test_invisible_cells() -> None:
    """Corners of cells, stretched over the box, against cameras one by one."""
    estimator = OccGridEstimator([-1.0, -1, -1, 1, 1, 1], resolution=[6, 5, 4], levels=2)
    k = torch.tensor([[[80.0, 0, 50], [0, 80, 40], [0, 0, 1]]])
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    c2w = torch.zeros(2, 3, 4)
    c2w[0, :, :3], c2w[1, :, :3] = torch.eye(3), turn * turn.det()
    c2w[:, :, 3] = torch.tensor([[0.1, 0.2, -2.7], [0.3, -0.2, 0.1]])
    estimator.mark_invisible_cells(k, c2w, 100, 80, near_plane=0.3, chunk=37)
    for level, size in enumerate((1.0, 2.0)):
        for number, cell in enumerate(np.ndindex(6, 5, 4)):
            point = torch.tensor(cell) / torch.tensor([5, 4, 3]) * 2 * size - size
            seen, near = False, False
            for pose in c2w:
                x, y, depth = (k[0] @ (pose[:, :3].T @ (point - pose[:, 3]))).tolist()
                shown = depth > 0 and 0 <= x / depth < 100 and 0 <= y / depth < 80
                seen, near = seen or (shown and depth >= 0.3), near or (shown and depth < 0.3)
            assert estimator.occs[level * 120 + number] == (0 if seen and not near else -1)
    assert 10 < (estimator.occs == 0).sum() < 230
    assert [len(cells) for cells in estimator._get_all_cells()] == [
        int((estimator.occs[:120] == 0).sum()),
        int((estimator.occs[120:] == 0).sum()),
    ]
    with pytest.raises(ValueError, match=r"`K` must be of one camera or of all 2, got 3"):
        estimator.mark_invisible_cells(k.expand(3, 3, 3), c2w, 100, 80)


def test_sampling() -> None:
    estimator = OccGridEstimator(BASE.float(), resolution=16, levels=2)
    estimator.binaries, _ = scene(2, (16, 16, 16))
    (o, d), (low, high) = rays(40, torch.float32), planes(40)
    low, high = low.float(), high.float()
    limits = {"near_plane": 0.3, "far_plane": 5.0, "t_min": low, "t_max": high}
    found = estimator.sampling(o, d, render_step_size=0.05, **limits)
    how = {"near_planes": low.clamp(min=0.3), "far_planes": high.clamp(max=5.0), "step_size": 0.05}
    intervals, samples, _ = traverse_grids(o, d, estimator.binaries, estimator.aabbs, **how)
    assert found[0].equal(samples.ray_indices) and len(found[0]) > 300
    torch.testing.assert_close(found[1], intervals.vals[intervals.is_left])
    torch.testing.assert_close(found[2], intervals.vals[intervals.is_right])
    assert {x.dtype for x in estimator.sampling(o.half(), d.half(), render_step_size=0.05)[1:]} == {torch.float32}
    shifted = estimator.sampling(o, d, render_step_size=0.05, stratified=True, **limits)
    first = torch.stack([shifted[1][shifted[0] == ray][0] for ray in shifted[0].unique()])
    offset = (first - how["near_planes"][shifted[0].unique()]) / 0.05 % 1
    assert 0.1 < offset.std() < 0.5

    # behind a wall nothing is seen
    wall = 2.0
    calls = []

    def density(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor) -> Tensor:
        calls.append(ray_indices)
        return (t_ends > wall) * 1e4

    def opacity(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor) -> Tensor:
        return (t_ends > wall) * 1.0

    seen = estimator.sampling(o, d, sigma_fn=density, render_step_size=0.05)
    assert len(calls) == 1 and len(seen[0]) < len(calls[0])
    everything = estimator.sampling(o, d, render_step_size=0.05)
    kept = []
    for ray in range(40):
        of_ray = (everything[0] == ray).nonzero()[:, 0]
        n_before = int((everything[2][of_ray] <= wall).sum())
        kept += of_ray[: n_before + 1].tolist()  # the first sample of the wall is seen
    assert all(a.equal(b[kept]) for a, b in zip(seen, everything, strict=True))
    also = estimator.sampling(o, d, alpha_fn=opacity, render_step_size=0.05)
    assert all(a.equal(b) for a, b in zip(also, seen, strict=True))
    # an opacity that counts is no larger than the mean of the grid
    estimator.occs.fill_(0.4)
    solid = estimator.sampling(o, d, alpha_fn=opacity, alpha_thre=9.0, render_step_size=0.05)
    assert (solid[2] > wall).all() and 0 < len(solid[0]) <= 40
    with pytest.raises(ValueError, match="`sigma_fn` must return a value for each sample"):
        estimator.sampling(o, d, sigma_fn=lambda a, b, c: a[:, None], render_step_size=0.05)
    with pytest.raises(ValueError, match=r"`t_min` must have shape \[40\]"):
        estimator.sampling(o, d, t_min=low[:3])
    estimator.binaries = torch.zeros_like(estimator.binaries)
    assert [len(x) for x in estimator.sampling(o, d, sigma_fn=density)] == [0, 0, 0]


# ---- lenses ----------------------------------------------------------------------------------------------------------

OPENCV = [0.11, -0.04, 0.013, -0.021, 0.02, 0.03, -0.01, 0.005]  # k1 k2 p1 p2 k3 k4 k5 k6


def distorted(u: float, v: float, params: list[float]) -> tuple[float, float]:
    """OpenCV's formula of `projectPoints`."""
    k1, k2, p1, p2, k3, k4, k5, k6 = params + [0.0] * (8 - len(params))
    r2 = u * u + v * v
    radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    return u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u * u), v * radial + p1 * (r2 + 2 * v * v) + 2 * p2 * u * v


@pytest.mark.parametrize("n", [0, 1, 2, 4, 8])
def test_lens(n: int) -> None:
    ideal = torch.rand(3, 5, 2, dtype=torch.float64) * 1.6 - 0.8
    params = torch.tensor(OPENCV[:n], dtype=torch.float64)
    shown = torch.tensor([distorted(u, v, OPENCV[:n]) for u, v in ideal.view(-1, 2).tolist()]).view(3, 5, 2)
    for undo in (cameras.opencv_lens_undistortion, cameras._opencv_lens_undistortion):
        torch.testing.assert_close(undo(shown, params).double(), ideal, rtol=0, atol=1e-6)
    each = cameras.opencv_lens_undistortion(shown, params.float().expand(3, 5, n))
    assert each.dtype == torch.float32 and each.shape == shown.shape
    if n == 8:
        torch.testing.assert_close(cameras._opencv_lens_distortion(ideal, params).float(), shown)


def test_fisheye_lens() -> None:
    params = torch.tensor([0.05, -0.02, 0.01, -0.003], dtype=torch.float64)
    ideal = torch.rand(40, 2, dtype=torch.float64) * 6 - 3
    ideal[0] = 0
    radius = ideal.norm(dim=-1, keepdim=True)
    angle = radius.atan()
    bent = angle * (1 + sum(float(k) * angle ** (2 * i + 2) for i, k in enumerate(params)))
    shown = torch.where(radius > 0, ideal / radius, 0) * bent
    torch.testing.assert_close(cameras._opencv_lens_distortion_fisheye(ideal, params), shown)
    torch.testing.assert_close(cameras.opencv_lens_undistortion_fisheye(shown, params), ideal, rtol=0, atol=1e-8)
    # the formula has no angle for points this far out
    far = cameras.opencv_lens_undistortion_fisheye(
        torch.tensor([[1.2, 0.3], [0.2, 0.1]]), torch.tensor([-0.5, 0, 0, 0])
    )
    assert far[0].isnan().all() and far[1].isfinite().all()
    # behind 90 degrees it is the one of 90 degrees, lengthened
    wide = torch.tensor([[1.8, 0.0], [math.pi / 2, 0.0]])
    made = cameras.opencv_lens_undistortion_fisheye(wide, torch.tensor([0.3, 0, 0, 0]))
    torch.testing.assert_close(made[0, 0] / made[1, 0], wide[0, 0] / wide[1, 0])
    for undo, n in (
        (cameras.opencv_lens_undistortion, "0 or 1 or 2 or 4 or 8"),
        (cameras.opencv_lens_undistortion_fisheye, "4"),
    ):
        with pytest.raises(ValueError, match=rf"`params` must have shape \[..., n\], n of {n}, got \[3\]"):
            undo(wide, torch.zeros(3))
        with pytest.raises(ValueError, match="`uv` must have shape"):
            undo(torch.zeros(3), torch.zeros(4))
