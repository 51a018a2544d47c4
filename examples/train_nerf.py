"""A radiance field from posed images, from library parts: the whole of Instant-NGP on one page.

    python examples/train_nerf.py [SCENE] [STEPS]

SCENE is a folder with a transforms.json; without it the procedural scene is rendered first. `hashgrid nerf` does the
same with checkpoints, schedules, evaluation of every view and a progress bar.
"""

import sys
from pathlib import Path

import torch

import hashgrid
from hashgrid.data.procedural import write_scene
from hashgrid.data.scene import load_scene
from hashgrid.util.files import atomic_write_image
from hashgrid.util.metrics import psnr


def main() -> None:
    torch.manual_seed(0)
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/procedural_scene")
    n_steps = int(sys.argv[2]) if len(sys.argv) > 2 else 600
    if not path.exists():
        write_scene(path)
    scene = load_scene(path).normalized()
    low, size = scene.outer_aabb[:3], scene.outer_aabb[3:] - scene.outer_aabb[:3]

    grid = hashgrid.HashGrid(3, n_levels=8, n_features_per_level=4, log2_hashmap_size=18, max_resolution=1024)
    density_mlp = hashgrid.FusedMLP(grid.n_output_dims, 16, n_hidden_layers=1)
    directions = hashgrid.SphericalHarmonics(degree=4)
    color_mlp = hashgrid.FusedMLP(32, 3, n_hidden_layers=2, output_activation="sigmoid")
    occupancy = hashgrid.OccupancyGrid(scene.aabb, resolution=128, n_cascades=scene.n_cascades)
    groups = [
        {"params": grid.parameters(), "skip_zero": True},
        {"params": [*density_mlp.parameters(), *color_mlp.parameters()], "weight_decay": 1e-6},
    ]
    optimizer = hashgrid.optim.Adam(groups, lr=1e-2)
    step_size = float(size.max()) / 2 ** (scene.n_cascades - 1) * 3**0.5 / 1024

    def density(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        geometry = density_mlp(grid((x - low) / size))
        return geometry[:, 0].clamp(max=15).exp(), geometry

    def render(rays_o: torch.Tensor, rays_d: torch.Tensor, background: torch.Tensor, seed: int | None) -> torch.Tensor:
        samples = occupancy.march(rays_o, rays_d, step_size, scene.cone_angle, scene.near, seed=seed)
        sigmas, geometry = density(samples.positions(rays_o, rays_d))
        view = directions(rays_d)[samples.ray_indices]
        colors = color_mlp(torch.cat((geometry, view), dim=1))
        return hashgrid.composite(sigmas, colors, samples, background=background)[0]

    for step in range(n_steps):
        if step % 16 == 0:
            with torch.no_grad():
                occupancy.update(lambda x: density(x)[0], step, step_size)
        rays, rgba, background = scene.train.sample_rays(2048, step=step)
        target = torch.lerp(background, rgba[:, :3], rgba[:, 3:])
        loss = torch.nn.functional.huber_loss(
            render(rays.origins, rays.directions, background, step), target, delta=0.1
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step:5d}  loss {loss.item():.5f}")

    width, height = scene.test.sizes[0].tolist()
    with torch.no_grad():
        chunks = [scene.test.view_rays(0, begin, begin + 8192) for begin in range(0, width * height, 8192)]
        image = torch.cat([render(rays.origins, rays.directions, torch.ones(3), None) for rays in chunks])
    image = image.clamp(0, 1).view(height, width, 3)
    atomic_write_image("view.png", image)
    print(f"first test view: {psnr(image, scene.test.image_rgb(0, torch.ones(3))):.2f} dB, written to view.png")


if __name__ == "__main__":
    main()
