"""How close a field and its mesh come to the mesh they were made from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hashgrid.data.mesh import Mesh, euler_characteristic, is_watertight
from hashgrid.fields.distance import Field


@torch.no_grad()
def iou(field: Field, mesh: Mesh, n: int = 1 << 20, seed: int = 1) -> float:
    """Intersection over union of what the field and the mesh call inside, on ``n`` uniform points of the mesh's box."""
    generator = torch.Generator().manual_seed(seed)
    low, high = mesh.bounds
    points = low + torch.rand(n, 3, generator=generator) * (high - low)
    device = field.device
    inside = torch.cat([field(part.to(device)).cpu() < 0 for part in points.split(1 << 18)])
    truth = torch.from_numpy(mesh.inside(points.double().numpy()))
    return float((inside & truth).sum() / (inside | truth).sum().clamp(min=1))


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


def eikonal_error(field: Field, mesh: Mesh, n: int = 1 << 15, distance: float = 0.01) -> float:
    """Mean of \\|1 - \\|grad f\\|\\| at points up to ``distance`` along each axis from the surface."""
    generator = np.random.default_rng(3)
    points = mesh.sample_surface(n, generator)[0] + generator.uniform(-distance, distance, (n, 3))
    x = torch.from_numpy(points).float().clamp(0, 1).to(field.device)
    return float((1 - field.gradient(x)[1].detach().norm(dim=-1)).abs().mean())
