"""Faces that look the wrong way: what is inside agrees with the shape, or is said to be a guess."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

from hashgrid.data import shape
from hashgrid.data.errors import MeshWarning
from hashgrid.data.mesh import Mesh, make_mesh
from hashgrid.fields.distance import GridDistance, GridDistanceConfig
from hashgrid.rendering.extract import to_mesh
from hashgrid.rendering.measure import measure

pytest.importorskip("igl")
pytest.importorskip("scipy")
pytest.importorskip("skimage")

Shape = tuple[np.ndarray, np.ndarray]
CUBE = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=np.float64)
CUBE_FACES = np.array(
    [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1], [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4],
     [1, 5, 7], [1, 7, 3]]
)  # fmt: skip


def _unit_ball() -> Shape:
    vertices, faces = (x.numpy() for x in to_mesh(lambda p: (p - 0.5).norm(dim=-1) - 0.4, 24))
    vertices = vertices.astype(np.float64) - 0.5
    return vertices / np.linalg.norm(vertices, axis=-1, keepdims=True), faces


BALL = _unit_ball()


def ball(radius: float = 1.0, x: float = 0.0, inside_out: bool = False) -> Shape:
    return radius * BALL[0] + [x, 0, 0], BALL[1][:, ::-1] if inside_out else BALL[1]


def box(low: tuple[float, ...], high: tuple[float, ...], inside_out: bool = False) -> Shape:
    return CUBE * np.subtract(high, low) + low, CUBE_FACES[:, ::-1] if inside_out else CUBE_FACES


def together(*shapes: Shape) -> Shape:
    first = np.cumsum([0] + [len(vertices) for vertices, _ in shapes])
    faces = [faces + n for (_, faces), n in zip(shapes, first, strict=False)]
    return np.concatenate([vertices for vertices, _ in shapes]), np.concatenate(faces)


def flipped(shape: Shape, which: Callable[[np.ndarray], np.ndarray]) -> Shape:
    """The shape with the faces turned around of whose middles [F, 3] ``which`` is true."""
    vertices, faces = shape
    turned = which(vertices[faces].mean(1))
    return vertices, np.where(turned[:, None], faces[:, ::-1], faces)


def at_random(share: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda middles: np.random.default_rng(0).random(len(middles)) < share


def twice(shape: Shape, same_way: bool = False, n: int | None = None) -> Shape:
    """The shape with its faces, or the first ``n`` of them, once more, the other way around or the same way."""
    vertices, faces = shape
    return vertices, np.concatenate([faces, faces[:n] if same_way else faces[:n, ::-1]])


def balls(*parts: tuple[float, float]) -> Callable[[np.ndarray], np.ndarray]:
    """Number of balls, given by radius and x of the middle, that points [N, 3] lie in."""
    return lambda p: sum((np.linalg.norm(p - [x, 0, 0], axis=-1) < radius) * 1 for radius, x in parts)


ONE, TWO, SHELL = balls((1, 0)), balls((1.2, 0), (1, 3)), balls((2, 0), (1, 0))
HOLLOW = together(ball(2), ball(1, inside_out=True))


def inside(mesh: Mesh, points: np.ndarray) -> np.ndarray:
    return mesh.inside(mesh.placement.from_file(torch.from_numpy(points)).numpy())


@pytest.mark.parametrize(
    ("shape", "truth", "message"),
    [
        (flipped(ball(), at_random(0.3)), ONE, "look the other way than their neighbours"),
        (flipped(ball(), at_random(0.5)), ONE, "look the other way than their neighbours"),
        (flipped(ball(), lambda p: p[:, 2] > 0.3), ONE, "look the other way than their neighbours"),
        (flipped(ball(), lambda p: p[:, 2] > -0.3), ONE, "look inwards and are turned around"),
        (twice(ball()), ONE, "lie back to back"),
        (twice(flipped(ball(), at_random(0.3))), ONE, "lie back to back"),
        (twice(ball(), n=900), ONE, "1800 faces lie back to back"),
        (together(ball(1.2), ball(1, 3, inside_out=True)), TWO, "^`mesh`: 1 of 2 parts look inwards"),
        (together(ball(1.2, inside_out=True), ball(1, 3, inside_out=True)), TWO, "the faces look inwards"),
        (together(ball(1.2), ball(1, 1.5, inside_out=True)), balls((1.2, 0), (1, 1.5)), "1 of 2 parts look inwards"),
        (flipped(HOLLOW, lambda p: p[:, 0] < 3), lambda p: SHELL(p) == 1, "the faces look inwards"),
        (flipped(HOLLOW, at_random(0.3)), lambda p: SHELL(p) == 1, "look the other way than their neighbours"),
        (
            flipped(HOLLOW, lambda p: (np.linalg.norm(p, axis=-1) > 1.5) & (p[:, 2] > -1)),
            lambda p: SHELL(p) == 1,
            "look inwards",
        ),
        (
            together(HOLLOW, ball(0.5, inside_out=True)),  # a body in the hollow
            lambda p: (SHELL(p) == 1) | (np.linalg.norm(p, axis=-1) < 0.5),
            "1 of 3 parts look inwards",
        ),
    ],
)
def test_what_is_inside_agrees_with_the_shape(shape: Shape, truth, message: str) -> None:
    with pytest.warns(MeshWarning, match=message) as record:
        mesh = make_mesh(*shape)
    assert len(record) == 1 and mesh.watertight and not mesh.doubt
    low, high = shape[0].min(0) - 0.3, shape[0].max(0) + 0.3
    points = low + np.random.default_rng(1).random((5000, 3)) * (high - low)
    expected = truth(points).astype(bool)
    got = inside(mesh, points)
    assert (got & expected).sum() / (got | expected).sum() > 0.97  # balls of 2000 flat faces


TOUCHING = together(box((0, 0, 0), (1, 1, 1)), box((1, 1, 0), (2, 2, 1)))  # along an edge


@pytest.mark.parametrize(
    "shape",
    [
        ball(),
        together(ball(1.2), ball(1, 3)),
        HOLLOW,
        together(ball(2), ball(1)),  # both look outwards: one body in another
        together(HOLLOW, ball(0.5)),
        TOUCHING,
    ],
)
def test_right_mesh_passes_through(shape: Shape) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mesh = make_mesh(*shape)
    back = mesh.placement.to_file(torch.from_numpy(mesh.vertices)).numpy()
    np.testing.assert_allclose(back[mesh.faces], shape[0][shape[1]], atol=1e-5)  # corners are merged at 1e-6
    assert mesh.watertight and not mesh.doubt


@pytest.mark.parametrize("n", [None, 900])
def test_faces_that_are_there_twice_count_once(n: int | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        once, again = make_mesh(*ball()), make_mesh(*twice(ball(), same_way=True, n=n))
    np.testing.assert_array_equal(once.faces, again.faces)


def test_one_of_two_bodies_that_touch_along_an_edge_is_turned_around() -> None:
    vertices, faces = TOUCHING
    with pytest.warns(MeshWarning, match="1 of 2 parts look inwards"):
        mesh = make_mesh(vertices, np.concatenate([faces[:12], faces[12:, ::-1]]))
    assert mesh.watertight and inside(mesh, np.array([[0.5, 0.5, 0.5], [1.5, 1.5, 0.5]])).all()


def test_wall_between_two_bodies_is_left_out() -> None:
    with pytest.warns(MeshWarning, match="4 faces lie back to back"):
        mesh = make_mesh(*together(box((0, 0, 0), (1, 1, 1)), box((1, 0, 0), (2, 1, 1))))
    assert mesh.watertight and len(mesh.faces) == 20
    point = mesh.placement.from_file(torch.tensor([[1.0, 0.5, 0.5]])).numpy()
    distance = mesh.signed_distance(point) * mesh.placement.unit
    np.testing.assert_allclose(distance, -0.5)


def test_faces_of_an_open_mesh_agree() -> None:
    vertices, faces = box((0, 0, 0), (1, 1, 1))
    with pytest.warns(MeshWarning) as record:
        mesh = make_mesh(vertices, np.concatenate([faces[2:5, ::-1], faces[5:]]))
    assert [str(warning.message).split(":")[0] for warning in record] == ["`mesh`", "`mesh` is not watertight"]
    assert inside(mesh, np.array([[0.5, 0.5, 0.5]])).all() and not mesh.doubt


def moebius(n: int = 40) -> Shape:
    angle = 2 * np.pi * np.arange(n) / n
    across = np.array([-0.3, 0.3])[:, None]
    radius = 1 + across * np.cos(angle / 2)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle), across * np.sin(angle / 2)], axis=-1)
    i = np.arange(n)
    a, b = i, n + i
    c, d = np.where(i < n - 1, i + 1, n), np.where(i < n - 1, n + i + 1, 0)  # the ends meet turned over
    return points.reshape(-1, 3), np.concatenate([np.stack([a, c, d], -1), np.stack([a, d, b], -1)])


PLATE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0.0]]), np.array([[0, 1, 2], [0, 2, 3]])
TWO_BOXES = together(box((0, 0, 0), (1, 1, 1)), box((1, 0, 0), (2, 1, 1), inside_out=True))  # with a common wall
FLAT_BOX = box((0, 0, 0), (1, 1, 0))
THREE_SHEETS = (  # at one edge, along which all of them run the same way
    np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0], [-1, 1, 0], [-1, -1, 0.0]]),
    np.array([[0, 1, 2], [0, 1, 3], [0, 1, 4]]),
)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (moebius(), "one side only"),
        (PLATE, "enclose nothing"),
        (twice(PLATE), "enclose nothing"),
        (FLAT_BOX, "enclose nothing"),
        (THREE_SHEETS, "contradict each other"),
        (TWO_BOXES, "touch do not look the same way"),
    ],
)
def test_guess_is_said_to_be_one(shape: Shape, reason: str) -> None:
    with pytest.warns(MeshWarning, match="guess, and the IoU is not measured") as record:
        mesh = make_mesh(*shape)
    assert reason in mesh.doubt and reason in str(record[-1].message)


TINY = GridDistanceConfig(n_levels=2, log2_hashmap_size=8)


def test_guess_is_not_measured() -> None:
    cube, field = (
        make_mesh(*box((0, 0, 0), (1, 1, 1))),
        GridDistance(TINY),
    )
    with pytest.warns(MeshWarning):
        plate = make_mesh(*PLATE)
    results = measure(field, cube.vertices, cube.faces, shape.Shape.of(plate))
    assert results["iou"] is None and plate.doubt in results["iou_missing"] and results["chamfer"] is not None
