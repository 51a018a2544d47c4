"""How close a field and its mesh come to the mesh they were made from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.mesh import Mesh, euler_characteristic, is_watertight
from hashgrid.data.shape import Shape
from hashgrid.fields.distance import DistanceField
from hashgrid.rendering.extract import in_parts, n_components


class RunningIou:
    """Intersection over union of what a field and a mesh call inside, on ``n`` uniform points of the mesh's box.

    Args:
        mesh: the truth.
        n: points.
        seed: of the points.
        every: seconds between two looks at the field.
        bounds: corners [2, 3] of another box for the points.
    """

    def __init__(
        self, mesh: Mesh, n: int = 20_000, seed: int = 4, every: float = 4.0, bounds: Tensor | None = None
    ) -> None:
        low, high = mesh.bounds if bounds is None else bounds
        self._points = low + torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)) * (high - low)
        self._mesh, self._every, self._truth = mesh, every, torch.empty(0)
        self._next, self._value = 0.0, float("nan")

    @torch.no_grad()
    def __call__(self, field: DistanceField, seconds: float = 0.0) -> float:
        """What it is, or was at the last look; ``seconds`` have passed since the first one."""
        if len(self._truth) == 0:
            self._truth = torch.from_numpy(self._mesh.inside(self._points.double().numpy()))
        if seconds >= self._next:
            self._next = seconds + self._every
            inside = in_parts(field, self._points, field.device) < 0
            self._value = float((inside & self._truth).sum() / (inside | self._truth).sum().clamp(min=1))
        return self._value


def iou(field: DistanceField, mesh: Mesh, n: int = 1 << 20, seed: int = 1) -> float:
    """Intersection over union of what the field and the mesh call inside, on ``n`` uniform points of the mesh's box."""
    return RunningIou(mesh, n, seed)(field)


def compare_meshes(vertices: np.ndarray, faces: np.ndarray, mesh: Mesh, n: int = 1 << 17) -> dict[str, Any]:
    """Chamfer distance (mean of the two mean distances, from ``n`` points of each surface to the other one, in units of
    the cube), normal consistency (mean of \\|n . n'\\| at these points), and the topology of the extracted mesh."""
    if len(faces) == 0:
        return {"chamfer": None, "normal_consistency": None, "watertight": False, "euler": 0}
    ours = Mesh(vertices, faces, mesh.placement, is_watertight(faces), "extracted")
    distances, cosines = [], []
    for source, target in ((ours, mesh), (mesh, ours)):
        points, face = source.sample_surface(n, np.random.default_rng(2))
        distance, nearest = target.nearest(points)
        distances.append(distance.mean())
        cosines.append(np.abs((source.face_normals[face] * target.face_normals[nearest]).sum(-1)).mean())
    return {
        "chamfer": float(np.mean(distances)),
        "normal_consistency": float(np.mean(cosines)),
        "watertight": ours.watertight,
        "euler": euler_characteristic(faces),
        "euler_input": euler_characteristic(mesh.faces),
    }


def f_score(a: Mesh, b: Mesh, distance: float, n: int = 30_000) -> float:
    """Harmonic mean of precision and recall: of the shares of ``n`` points of each surface that are nearer than
    ``distance`` to the other (Tatarchenko et al. 2019, section 5)."""
    shares = [
        float((target.nearest(source.sample_surface(n, np.random.default_rng(2))[0])[0] < distance).mean())
        for source, target in ((a, b), (b, a))
    ]
    return 2 * shares[0] * shares[1] / max(sum(shares), 1e-12)


def eikonal_error(field: DistanceField, mesh: Mesh, n: int = 1 << 15, distance: float = 0.01) -> float:
    """Mean of \\|1 - \\|grad f\\|\\| at points up to ``distance`` along each axis from the surface."""
    generator = np.random.default_rng(3)
    points = mesh.sample_surface(n, generator)[0] + generator.uniform(-distance, distance, (n, 3))
    x = torch.from_numpy(points).float().clamp(0, 1).to(field.device)
    return float((1 - field.gradient(x)[1].detach().norm(dim=-1)).abs().mean())


def measure(field: DistanceField, vertices: np.ndarray, faces: np.ndarray, shape: Shape) -> dict[str, Any]:
    """The figures of a field and of the mesh extracted from it, vertices [V, 3] in the cube and faces [F, 3]. Those
    without a truth to compare with are None."""
    results: dict[str, Any] = dict.fromkeys(
        ("iou", "iou_missing", "chamfer", "normal_consistency", "eikonal_error", "watertight", "euler", "euler_input")
    )
    ours = Mesh(vertices, faces, shape.placement, is_watertight(faces), "extracted") if len(faces) else None
    if shape.mesh is not None:
        results |= compare_meshes(vertices, faces, shape.mesh)
        results["euler_input"] = euler_characteristic(shape.mesh.faces)
        if shape.mesh.doubt:
            results["iou_missing"] = f"what is inside is a guess: {shape.mesh.doubt}"
        else:
            results["iou"] = iou(field, shape.mesh)
    elif ours is not None:
        results |= {"watertight": ours.watertight, "euler": euler_characteristic(faces)}
    if (surface := shape.mesh or ours) is not None:
        results["eikonal_error"] = eikonal_error(field, surface)
    results["components"] = n_components(faces)
    if shape.cloud is not None and ours is not None:
        distance = ours.nearest(shape.cloud.points)[0]
        results["points_to_surface"] = {"mean": float(distance.mean()), "max": float(distance.max())}
    return results


def describe(results: dict[str, Any], n_faces: int) -> str:
    """Figures of :func:`measure` in one line."""
    if n_faces == 0:
        return "the field has no surface"
    closed = "watertight" if results["watertight"] else "open"
    surface = f"{closed}, {results['components']} part{'s' if results['components'] != 1 else ''}"
    if results["chamfer"] is not None:
        overlap = "no IoU" if results["iou"] is None else f"IoU {results['iou']:.4f}"
        consistency = f"normal consistency {results['normal_consistency']:.4f}"
        return f"{overlap}, Chamfer {results['chamfer']:.2e}, {consistency}; {surface}"
    if "points_to_surface" in results:
        return f"points {results['points_to_surface']['mean']:.2e} from the surface; {surface}"
    return surface
