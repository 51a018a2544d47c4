"""Cameras of a trained scene as a file of nerfstudio's."""

from __future__ import annotations

from pathlib import Path

from hashgrid.data.camera_files import write_cameras as write_cameras_of
from hashgrid.tasks.nerf import Nerf


def write_cameras(task: Nerf, out: Path) -> None:
    """Writes all views as a `transforms.json` of nerfstudio's, in the coordinates of the scene's file."""
    print(f"{out}: {write_cameras_of(task.scene, out)} cameras", flush=True)
