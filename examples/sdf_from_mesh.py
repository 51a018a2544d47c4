"""A signed distance field from a mesh, from library parts, and a mesh and a picture from the field.

    python examples/sdf_from_mesh.py [MESH] [STEPS]

Without MESH it takes a torus knot. `hashgrid sdf` does the same with a schedule, averages, metrics and more pictures.
"""

import sys

import torch

import hashgrid
from hashgrid.data.distances import DistanceRecipe, make_pool
from hashgrid.data.generated import torus_knot
from hashgrid.data.mesh import load_mesh, make_mesh
from hashgrid.data.mesh_files import write_ply
from hashgrid.fields.distance import GridDistance
from hashgrid.geometry.cameras import framing
from hashgrid.rendering.extract import to_mesh
from hashgrid.rendering.surface import render
from hashgrid.train.groups import adam_groups
from hashgrid.util.files import atomic_write_image


def main() -> None:
    torch.manual_seed(0)
    mesh = load_mesh(sys.argv[1]) if len(sys.argv) > 1 else make_mesh(*torus_knot(), name="torus knot")
    n_steps = int(sys.argv[2]) if len(sys.argv) > 2 else 500

    # Points on the surface, near it and anywhere in the unit cube, and their distances: negative inside.
    points, distances = make_pool(mesh, DistanceRecipe())

    field = GridDistance()  # a HashGrid and a FusedMLP: distances [...] of points [..., 3]
    optimizer = hashgrid.optim.Adam(adam_groups(field, weight_decay=1e-6), lr=5e-3, eps=1e-15)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    for step in range(n_steps):
        index = torch.randint(len(points), (1 << 14,))
        error = (field(points[index]) - distances[index]).abs()
        loss = (error / (distances[index].abs() + 0.01)).mean()  # relative: what is near the surface counts most
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step:5d}  relative error {loss.item():.4f}")

    vertices, faces = to_mesh(field, resolution=256)
    normals = torch.cat([field.normals(part) for part in vertices.split(1 << 18)])
    write_ply("field.ply", mesh.placement.to_file(vertices).numpy(), faces.numpy(), normals.numpy())

    camera = framing(vertices, size=(480, 480))
    picture = render(field, camera, floor=float(vertices[:, 1].min()))
    atomic_write_image("field.png", picture.shading)
    print(f"{len(faces)} faces in field.ply, a picture in field.png")


if __name__ == "__main__":
    main()
