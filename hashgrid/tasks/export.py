"""``hashgrid export``: a coloured mesh, points or cameras of what was trained, in the coordinates of its input."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hashgrid.data.mesh_files import write_mesh, write_ply
from hashgrid.rendering.label_scores import label_colors
from hashgrid.rendering.mesh_facts import mesh_facts, vertex_normals
from hashgrid.rendering.texture import bake
from hashgrid.tasks.export_cameras import write_cameras
from hashgrid.tasks.render import corners
from hashgrid.tasks.surfaces import ALL_METHODS, UNSEEN, Surface, nerf_surface, sdf_surface, seen_cloud
from hashgrid.tasks.trained import OF_SCENES, seen_at, task_of, trained_nerf
from hashgrid.util.files import atomic_write_json
from hashgrid.util.optional import optional_import
from hashgrid.util.pictures import hex_color
from hashgrid.util.threads import threads_for

WHAT = ("mesh", "points", "cameras")
FACTS = "export.json"
# Options that count for some exports only: their values if none, and for which exports.
MESHES = (*ALL_METHODS, "sdf")
OPTIONS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "resolution": (192, MESHES), "threshold": (30.0, ("density",)), "views": (100, ("tsdf", "poisson", "points")),
    "size": (400, ("tsdf", "poisson", "points")), "points": (None, ("poisson", "points")),
    "crop": (None, (*MESHES, "points")), "texture": (None, MESHES), "keep": (None, MESHES),
    "faces": (None, MESHES), "method": ("tsdf", ALL_METHODS), "unseen": ("drop_parts", ("distance",)),
    "speck": (1e-3, ("distance",)), "time": (None, (*ALL_METHODS, "points")), "semantic": (None, ALL_METHODS),
}  # fmt: skip
MOST_POINTS = 1_000_000


def make_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="hashgrid export", description=(__doc__ or "").partition(": ")[2])
    run_help = "folder of a run of `hashgrid nerf`, `surface` or `sdf`, or its checkpoint"
    parser.add_argument("run", type=Path, metavar="RUN", help=run_help)
    parser.add_argument("out", type=Path, metavar="OUT", help="mesh.ply, .obj or .glb; points.ply; cameras.json")
    parser.add_argument("--what", choices=WHAT, help="by the name of OUT if not given")
    parser.add_argument(
        "--method", choices=ALL_METHODS, help="how a scene becomes a mesh (default: tsdf; of a surface distance)"
    )
    parser.add_argument("--resolution", type=int, help="voxels along the longest side (default: 192)")
    parser.add_argument("--threshold", type=float, help="of `--method density`, per unit of length (default: 30)")
    parser.add_argument("--views", type=int, help="training views to look from, at most (default: 100)")
    parser.add_argument("--size", type=int, help="longer side of their pictures, at most (default: 400)")
    points_help = "points of a cloud, at most (default: 1000000; of `--method poisson` by the resolution)"
    parser.add_argument("--points", type=int, help=points_help)
    parser.add_argument("--crop", type=float, nargs=6, metavar=("X0", "Y0", "Z0", "X1", "Y1", "Z1"), help="box to keep")
    parser.add_argument("--time", type=float, metavar="T", help="the moment, of a field that moves")
    parser.add_argument("--keep", type=int, metavar="N", help="the N largest parts of the mesh only")
    unseen_help = "what no training view sees of the mesh of a surface (default: drop_parts)"
    parser.add_argument("--unseen", choices=UNSEEN, help=unseen_help)
    speck_help = "leave out parts of less area, of that of the largest, of a surface (default: 0.001)"
    parser.add_argument("--speck", type=float, metavar="SHARE", help=speck_help)
    parser.add_argument("--faces", type=int, metavar="N", help="make the mesh simpler, until it has about N faces")
    parser.add_argument("--texture", type=int, metavar="SIZE", help="texels along a side of a texture; OBJ and GLB")
    semantic_help = "colours of classes, of a run with --semantic"
    parser.add_argument("--semantic", action="store_const", const=True, help=semantic_help)
    parser.add_argument("--device", default="auto")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Raises:
        ValueError: the run or an option is unusable.
        ImportError: a package that the export needs is not installed.
    """
    begin, args = time.perf_counter(), make_parser().parse_args(argv)
    what = args.what or next((name for name in WHAT if args.out.stem.startswith(name)), "mesh")
    trained = task_of(args.run)
    if trained not in (*OF_SCENES, "sdf") or (trained == "sdf" and what != "mesh"):
        known = "`hashgrid nerf` or `hashgrid surface`, or of `hashgrid sdf` for a mesh"
        raise ValueError(f"`RUN` must be of {known}, got {trained} for {what}")
    if trained == "surface" and what == "mesh":
        args.method = args.method or "distance"
    kind = what if what != "mesh" else "sdf" if trained == "sdf" else args.method or "tsdf"
    options = settled(args, kind)
    _check(args.out, kind, options["texture"], kind == "poisson" or options["faces"] is not None)
    crop = None if options["crop"] is None else corners(options["crop"])
    if kind == "sdf":
        facts = write_surface(args.out, sdf_surface(args.run, crop, options["resolution"]), options)
    else:
        task, _ = trained_nerf(args.run, args.device)
        with threads_for(task.config.backend):
            if kind == "cameras":
                write_cameras(task, args.out)
                return 0
            seen_at(task, options["time"])
            if kind == "points":
                cloud = seen_cloud(task, options["views"], options["size"], crop, options["points"] or MOST_POINTS)
                if not len(cloud.points):
                    raise ValueError("no pixel ends on a surface: train longer, or choose another `--crop`")
                write_ply(args.out, cloud.points, np.zeros((0, 3), np.int64), cloud.normals, cloud.colors)
                low, high = cloud.points.min(0).tolist(), cloud.points.max(0).tolist()
                facts = {"points": len(cloud.points), "low": low, "high": high}
            else:
                facts = write_surface(args.out, nerf_surface(task, kind, crop, options), options)
                if options["semantic"]:
                    colors = label_colors(torch.arange(task.model.labeler.n_classes))
                    facts["classes"] = {str(number): hex_color(color) for number, color in enumerate(colors.tolist())}
    given = {name: value for name, value in options.items() if value is not None}
    _note(args.out, {**facts, "run": args.run, "kind": kind, "options": given, "seconds": time.perf_counter() - begin})
    print(f"{args.out}: {describe(facts)}", flush=True)
    return 0


def settled(args: argparse.Namespace, kind: str) -> dict[str, Any]:
    """The options that count for a kind of export, with their values if none was given, others as None.

    Raises:
        ValueError: one is given that does not count for it, or is not positive.
    """
    options: dict[str, Any] = {}
    for name, (default, kinds) in OPTIONS.items():
        value = getattr(args, name)
        if value is not None and kind not in kinds:
            raise ValueError(f"`--{name}` is for {', '.join(kinds)}; it has no effect on {kind}")
        options[name] = (default if value is None else value) if kind in kinds else None
        if name != "time" and isinstance(value, (int, float)) and not value > 0:
            raise ValueError(f"`--{name}` must be positive, got {value}")
    return options


def _check(out: Path, kind: str, texture: int | None, simpler: bool) -> None:
    """Raises now what would be raised when everything is done: of the file's name, and packages that are missing."""
    endings = {"cameras": (".json",), "points": (".ply",)}.get(kind, (".obj", ".glb") if texture else ())
    suffix = out.suffix.lower()
    if endings and suffix not in endings:
        what = f"{kind} are" if kind in WHAT else "a mesh with a texture is"
        raise ValueError(f"{what} written as {' or '.join(x[1:] for x in endings)}, got `{out}`")
    if not endings and suffix not in (".ply", ".obj", ".glb"):
        raise ValueError(f"meshes are written as ply, obj or glb, got `{out}`")
    for package, needed in (("xatlas", texture), ("pymeshlab", simpler), ("trimesh", suffix == ".glb")):
        if needed:
            optional_import(package)
    if out.name == FACTS:
        raise ValueError(f"`OUT` must have another name than {FACTS}, which is for what there is to say of it")


def write_surface(out: Path, surface: Surface, options: dict[str, Any]) -> dict[str, Any]:
    """Writes a mesh with its colours; returns its statistics.

    Raises:
        ValueError: there is none, or a texture is wanted of a surface without colours.
    """
    if not len(surface.faces):
        raise ValueError("there is no surface: train longer, or choose another `--crop` or `--threshold`")
    surface = surface.largest(options["keep"]).simplified(options["faces"])
    vertices, faces, size = surface.vertices, surface.faces, options["texture"]
    normals, texture = vertex_normals(vertices, faces), None
    if size is not None:
        if surface.color is None:
            raise ValueError("`--texture` needs colours, the shape that the field was fitted to has none (any more)")
        texture = bake(vertices, faces, normals, surface.color, size)
    write_mesh(out, vertices, faces, normals, None if texture else surface.colors, texture, surface.lit)
    colored = "texture" if texture else "no" if surface.colors is None else "vertices"
    return {**mesh_facts(vertices, faces), "colors": colored}


def describe(facts: dict[str, Any]) -> str:
    """Statistics in one line."""
    box = " x ".join(f"[{a:.5g}, {b:.5g}]" for a, b in zip(facts["low"], facts["high"], strict=True))
    if "points" in facts:
        return f"{facts['points']} points in {box}"
    parts = f"{facts['components']} part{'s' if facts['components'] != 1 else ''}"
    closed = f"watertight, volume {facts['volume']:.5g}" if facts["watertight"] else "open"
    counts = f"{facts['vertices']} vertices, {facts['faces']} faces, {parts}"
    return f"{counts}, {closed}, area {facts['area']:.5g}, in {box}"


def _note(out: Path, facts: dict[str, Any]) -> None:
    """Keeps what there is to say of a file in `export.json` beside it, where other exports have theirs, too."""
    path = out.with_name(FACTS)
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    atomic_write_json(path, {**(known if isinstance(known, dict) else {}), out.name: facts})
