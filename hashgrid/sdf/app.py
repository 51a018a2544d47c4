"""``hashgrid sdf``: load, train, extract the mesh, measure, write everything down."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from hashgrid.device import choose_device
from hashgrid.files import atomic_write_image, atomic_write_json
from hashgrid.optional import optional_import
from hashgrid.sdf.config import SdfConfig
from hashgrid.sdf.evaluate import compare_meshes, eikonal_error, iou
from hashgrid.sdf.mesh import load_mesh, write_ply
from hashgrid.sdf.model import Field
from hashgrid.sdf.samples import DistanceSamples
from hashgrid.sdf.trainer import Progress, Trainer


def run(path: Path, out: Path | None = None, changes: dict[str, Any] | None = None) -> int:
    """Fits a field to the mesh ``path``; writes ``mesh.ply``, ``slice.png`` and ``results.json`` to ``out``.

    Returns:
        Exit status: 0, or 130 when the user interrupted training.

    Raises:
        ValueError: the mesh or an option is wrong.
    """
    tqdm = optional_import("tqdm", "sdf").tqdm
    begin = time.perf_counter()
    config = SdfConfig().replace(**(changes or {}))
    mesh = load_mesh(path, config.margin)
    out = Path("outputs") / "sdf" / path.stem if out is None else out
    out.mkdir(parents=True, exist_ok=True)
    closed = "watertight" if mesh.watertight else "open"
    print(f"{mesh.name}: {len(mesh.vertices)} vertices, {len(mesh.faces)} faces, {closed}", flush=True)
    samples = DistanceSamples(mesh, config, choose_device(config.device, config.backend))
    trainer = Trainer(samples, config, seconds_before=time.perf_counter() - begin)
    interrupted = False
    with tqdm(total=100.0, bar_format="sdf {percentage:3.0f}%|{bar:20}| {elapsed} {desc}", mininterval=0.2) as bar:

        def show(progress: Progress) -> None:
            bar.set_description_str(
                f"step {progress.step} {samples.loss_name} {progress.loss:.4f}"
                f" {progress.points_per_second / 1e6:.2f} M points/s",
                refresh=False,
            )
            bar.update(100 * progress.fraction - bar.n)

        try:
            trainer.train(show)
        except KeyboardInterrupt:
            interrupted = True
    progress, field = trainer.progress, trainer.field
    vertices, faces = field.to_mesh(config.mesh_resolution)
    normals = field.normals(vertices.to(trainer.device)).cpu() if len(vertices) else vertices
    mesh_path = out / "mesh.ply"
    write_ply(mesh_path, mesh.placement.to_input(vertices.double()).numpy(), faces.numpy(), normals.numpy())
    atomic_write_image(out / "slice.png", slice_image(field))
    results = {
        "input": str(path),
        "mesh": str(mesh_path),
        "iou": iou(field, mesh),
        **compare_meshes(vertices.double().numpy(), faces.numpy(), mesh),
        "eikonal_error": eikonal_error(field, mesh),
        "n_parameters": sum(param.numel() for param in field.parameters()),
        "scale": mesh.placement.scale,
        "offset": mesh.placement.offset.tolist(),
        "train": {
            "seconds": progress.seconds,
            "steps": progress.step,
            "samples": progress.samples,
            "interrupted": interrupted,
        },
        "config": trainer.config.to_dict(),
    }
    atomic_write_json(out / "results.json", results)
    print(f"{_summary(results)}, {progress.step} steps in {progress.seconds:.1f} s; see {out}", flush=True)
    return 130 if interrupted else 0


def _summary(results: dict[str, Any]) -> str:
    if results["chamfer"] is None:
        return f"IoU {results['iou']:.4f}, the field has no surface"
    return (
        f"IoU {results['iou']:.4f}, Chamfer {results['chamfer']:.2e}, normal consistency"
        f" {results['normal_consistency']:.4f}"
    )


@torch.no_grad()
def slice_image(field: Field, resolution: int = 512, z: float = 0.5) -> torch.Tensor:
    """The field in the plane ``z`` as [resolution, resolution, 3]: blue inside, orange outside, a line at every
    twentieth of the cube and a white one at the surface."""
    axis = (torch.arange(resolution) + 0.5) / resolution
    y, x = torch.meshgrid(axis.flip(0), axis, indexing="ij")
    points = torch.stack([x, y, torch.full_like(x, z)], dim=-1).view(-1, 3).to(field.device)
    distance = field(points).cpu().view(resolution, resolution)
    inside = torch.tensor([0.25, 0.45, 0.75]).expand(resolution, resolution, 3)
    outside = torch.tensor([0.95, 0.65, 0.35]).expand(resolution, resolution, 3)
    color = torch.where((distance < 0)[..., None], inside, outside) * (1 - 0.6 * distance.abs().clamp(0, 1))[..., None]
    to_line = (distance / 0.05 - (distance / 0.05).round()).abs() * 0.05 * resolution  # in pixels
    color = color * (0.6 + 0.4 * to_line.clamp(0, 1))[..., None]
    surface = (1 - distance.abs() * resolution / 1.5).clamp(0, 1)[..., None]
    return color * (1 - surface) + surface
