"""Samples of meshes and points: what is drawn, from where, and that it is a function of (seed, step)."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hashgrid.data.distances import CHUNK, DistanceRecipe, make_chunk, make_pool
from hashgrid.data.draws import draw_rows
from hashgrid.data.errors import MeshError
from hashgrid.data.mesh import Mesh, make_mesh
from hashgrid.data.points import PointCloud
from hashgrid.data.pools import DistancePool, PointPool, PointRecipe
from hashgrid.geometry.boxes import Placement

pytest.importorskip("igl")
pytest.importorskip("scipy")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    """A cube."""
    vertices = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=np.float64)
    sides = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    return make_mesh(vertices, np.array([face for a, b, c, d in sides for face in ([a, b, c], [a, c, d])]))


def sphere_cloud() -> PointCloud:
    normals = np.random.default_rng(0).normal(size=(2000, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    return PointCloud(0.5 + 0.4 * normals, normals, Placement(), "sphere")


# ---- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_rows_are_a_function_of_seed_step_and_stream(backend: str) -> None:
    first = draw_rows(3, 8, 500, 10**6, CPU, stream=1, backend=backend)
    assert torch.equal(first, draw_rows(3, 8, 500, 10**6, CPU, stream=1))  # both backends draw the same
    assert torch.equal(first[:70], draw_rows(3, 8, 70, 10**6, CPU, stream=1, backend=backend))
    assert torch.equal(first, draw_rows(torch.tensor(3), torch.tensor([8]), 500, 10**6, CPU, 1, backend))
    for seed, step, stream in ((4, 8, 1), (3, 9, 1), (3, 8, 0), (3, 8, 2)):
        assert (draw_rows(seed, step, 500, 10**6, CPU, stream, backend) == first).sum() <= 1


@pytest.mark.parametrize("n_rows", [1, 10, 3 << 23])
def test_every_row_is_drawn_as_often(n_rows: int) -> None:
    """Of 3 * 2^23 rows, 24 random bits alone never draw the third of three neighbours."""
    rows = draw_rows(0, 0, 1 << 17, n_rows, CPU)
    assert rows.min() >= 0 and rows.max() < n_rows
    n_classes = min(n_rows, 10 if n_rows == 10 else 3)
    counts = (rows % n_classes).bincount(minlength=n_classes).double()
    expected = len(rows) / n_classes
    assert float((counts - expected).square().sum() / expected) < 40  # chi-squared, of 9 degrees of freedom at most
    assert len(draw_rows(0, 0, 0, n_rows, CPU)) == 0


# ---- meshes ----------------------------------------------------------------------------------------------------------


def test_samples_are_on_the_surface_near_it_and_anywhere(mesh: Mesh) -> None:
    points, distances = make_chunk(mesh, DistanceRecipe(), 8000, 0)
    assert points.shape == (8000, 3) and points.min() >= 0 and points.max() <= 1
    assert not distances[:4000].any() and float(np.median(np.abs(distances[4000:7000]))) < 0.02
    assert np.abs(distances[7000:]).mean() > 0.05
    np.testing.assert_allclose(mesh.signed_distance(points[:4000]), 0, atol=1e-6)
    again, other = make_chunk(mesh, DistanceRecipe(), 8000, 0)[0], make_chunk(mesh, DistanceRecipe(), 8000, 1)[0]
    assert (points == again).all() and not (points == other).all(-1).any()


def test_pool_is_kept_on_disk_for_the_next_run(mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = DistanceRecipe(pool=20000, cache=str(tmp_path))
    points, distances = make_pool(mesh, recipe)
    assert len(points) == len(distances) == 20000
    with monkeypatch.context() as patch:
        patch.setattr("hashgrid.data.distances.make_chunk", None)
        again = make_pool(mesh, recipe)
        for other, seed in ((replace(recipe, near_scale=0.1), 0), (recipe, 1)):  # nothing of them is on the disk
            with pytest.raises(TypeError):
                make_pool(mesh, other, seed)
    assert torch.equal(points, again[0]) and torch.equal(distances, again[1])
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(MeshError, match="the samples in `.*npz` are broken, remove it"):
        make_pool(mesh, recipe)


def test_new_samples_replace_the_oldest_in_the_background(mesh: Mesh) -> None:
    recipe = DistanceRecipe(pool=3 * CHUNK, refresh_share=1.0)
    samples = DistancePool(mesh, recipe, seed=5, refreshed=True)
    before = samples.points.clone()
    deadline = time.monotonic() + 300  # its process has the lowest priority
    while samples.n_made < 5 * CHUNK and time.monotonic() < deadline:
        samples.sample(64, 0)
        time.sleep(0.02)
    samples.close()
    assert samples.n_made == 5 * CHUNK and torch.equal(samples.points[2 * CHUNK :], before[2 * CHUNK :])
    for index in range(2):  # the sequence goes on behind the first pool
        expected = make_chunk(mesh, recipe, CHUNK, 3 + index, seed=5)
        rows = slice(index * CHUNK, (index + 1) * CHUNK)
        np.testing.assert_array_equal(samples.points[rows], expected[0])
        np.testing.assert_array_equal(samples.distances[rows], expected[1])


def test_training_begins_before_the_pool_is_full(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only samples that are there are drawn, and in the end the pool is that of the sequence."""
    monkeypatch.setattr("hashgrid.data.pools.FIRST_SECONDS", 0.0)
    recipe = DistanceRecipe(pool=3 * CHUNK + 100, refresh_share=0.01)
    samples = DistancePool(mesh, recipe, refreshed=True)
    assert samples.n_made == CHUNK
    samples.points[CHUNK:], samples.distances[CHUNK:] = math.nan, math.nan
    deadline, step = time.monotonic() + 300, 0
    while samples.n_made < 4 * CHUNK and time.monotonic() < deadline:
        points, distances = samples.sample(512, step)
        assert bool(points.isfinite().all()) and bool(distances.isfinite().all())
        step += 1
        time.sleep(0.02)
    samples.close()
    parts = [make_chunk(mesh, recipe, CHUNK, index)[0] for index in range(4)]
    expected = np.concatenate(parts)
    assert samples.n_made == 4 * CHUNK
    newest = np.concatenate([expected[3 * CHUNK + 100 :], expected[CHUNK - 100 : 3 * CHUNK + 100]])
    np.testing.assert_array_equal(samples.points, newest)


def test_batches_of_a_complete_pool_are_a_function_of_seed_and_step(mesh: Mesh) -> None:
    recipe = DistanceRecipe(pool=3000)
    pool, again = (DistancePool(mesh, recipe, seed=7) for _ in range(2))
    batches = [pool.sample(1000, step) for step in range(3)]
    for step in (2, 0):  # whatever was drawn before
        points, distances = again.sample(1000, step)
        assert torch.equal(points, batches[step][0]) and torch.equal(distances, batches[step][1])
        np.testing.assert_allclose(mesh.signed_distance(points.double().numpy()), distances, atol=1e-6)
    assert not torch.equal(batches[0][0], batches[1][0])
    other = DistancePool(mesh, recipe, seed=8).sample(1000, 0)[0]
    assert not (other == batches[0][0]).all(-1).any()
    assert pool.n_made == 3000
    numbered = []
    for seed in (7, 8):  # which rows are drawn depends on the seed, too, not only what lies there
        pool = DistancePool(mesh, recipe, seed=seed)
        pool.points[:] = torch.arange(3000.0)[:, None]
        numbered.append(pool.sample(1000, 0)[0][:, 0])
    assert (numbered[0] == numbered[1]).sum() < 10


# ---- points ----------------------------------------------------------------------------------------------------------


def test_batches_of_points_are_a_function_of_seed_and_step() -> None:
    recipe = PointRecipe(point_batch=300, uniform_batch=200, near_pool=1000, uniform_pool=4000)
    pool, again = (PointPool(sphere_cloud(), recipe, seed=2) for _ in range(2))
    batches = [pool.sample(step) for step in range(3)]
    for step in (2, 0):
        assert all(torch.equal(a, b) for a, b in zip(again.sample(step), batches[step], strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(batches[0], batches[1], strict=True))
    other = PointPool(sphere_cloud(), recipe, seed=3).sample(0)
    assert all(not torch.equal(a, b) for a, b in zip(batches[0], other, strict=True))
    x, normals, signs = batches[0]
    assert x.shape == (800, 3) and normals.shape == (300, 3) and signs.shape == (500,)
    radius = (x - 0.5).norm(dim=-1)
    torch.testing.assert_close(x[:300], 0.5 + 0.4 * normals)  # on the surface, with its own normals
    assert 0 < float((radius[300:600] - 0.4).abs().mean()) < 0.1 < float((radius[600:] - 0.4).abs().mean())
    known = signs != 0
    assert float(known.float().mean()) > 0.5
    outside = (radius[300:] > 0.4) * 2.0 - 1
    clear = known & ((radius[300:] - 0.4).abs() > 0.02)
    assert torch.equal(signs[clear], outside[clear])


def test_points_are_drawn_from_their_own_part_of_the_pool() -> None:
    recipe = PointRecipe(point_batch=2000, uniform_batch=2000, near_pool=1000, uniform_pool=1000)
    pool = PointPool(sphere_cloud(), recipe)
    pool.points[:], pool.off[:] = torch.arange(2000.0)[:, None], torch.arange(2000.0)[:, None]
    pool.normals[:], pool.signs[:] = pool.points, pool.off[:, 0]
    x, normals, signs = pool.sample(0)
    on, near, uniform = x[:, 0].split(2000)
    assert torch.equal(normals[:, 0], on) and torch.equal(signs, x[2000:, 0])
    assert on.max() > 1950 and on.min() < 50 and near.max() < 1000 <= uniform.min() and uniform.max() > 1950
    correlation = torch.corrcoef(torch.stack([on, near, uniform])) - torch.eye(3)
    assert float(correlation.abs().max()) < 0.1
