"""A surface through oriented points: fit a signed distance field, then extract a mesh.

    python examples/sdf_from_points.py [POINTS] [SECONDS]

POINTS is a PLY, XYZ or NPZ file; its normals are estimated where it has none. Without POINTS it samples a knotted
tube of its own. No distances are given: the field vanishes at the points, has their normals, and its gradient has
length one everywhere. Writes surface.ply, in the coordinates of the points.
"""

import sys

import numpy as np

from hashgrid.data.mesh_files import write_ply
from hashgrid.data.points import PointCloud, load_points, make_points
from hashgrid.data.shape import Shape
from hashgrid.rendering.extract import to_mesh
from hashgrid.tasks.sdf import Sdf, SdfConfig
from hashgrid.train.loop import Trainer
from hashgrid.train.task import Progress


def knot(n: int = 50_000, radius: float = 0.5) -> PointCloud:
    """Points on a tube around a trefoil knot, with normals."""
    t, angle = 2 * np.pi * np.random.default_rng(0).random((2, n, 1))
    curve = np.hstack([np.sin(t) + 2 * np.sin(2 * t), np.cos(t) - 2 * np.cos(2 * t), -np.sin(3 * t)])
    tangent = np.hstack([np.cos(t) + 4 * np.cos(2 * t), -np.sin(t) + 4 * np.sin(2 * t), -3 * np.cos(3 * t)])
    side = np.cross(tangent, [0.0, 0.0, 1.0])
    up = np.cross(side, tangent)
    side, up = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (side, up))
    normals = np.cos(angle) * side + np.sin(angle) * up
    return make_points(curve + radius * normals, normals, name="knot")


def show(progress: Progress) -> None:
    if progress.step % 100 == 0:
        print(f"step {progress.step:5d}  {progress.seconds:5.1f} s  loss {progress.loss:.4f}")


def main() -> None:
    cloud = load_points(sys.argv[1]) if len(sys.argv) > 1 else knot()
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 30.0
    task = Sdf(SdfConfig.defaults(from_points=True).replace(time_limit=seconds), Shape.of(cloud))
    task.begin()
    trainer = Trainer(task)
    trainer.train(show)
    trainer.take_averages()

    vertices, faces = to_mesh(task.model, resolution=256)
    write_ply("surface.ply", cloud.placement.to_file(vertices).numpy(), faces.numpy())
    print(f"{len(vertices)} vertices, {len(faces)} faces, written to surface.ply")


if __name__ == "__main__":
    main()
