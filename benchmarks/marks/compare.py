"""Runs `hashgrid compare` on every kind of signal: the tables, plots and strips of docs/compare.md.

    python benchmarks/marks/compare.py                       # all; photos where --data has them
    python benchmarks/marks/compare.py audio video --scale 0.1 --out /tmp

Each comparison is one process of its own; what it wrote is kept as NAME.json, NAME.png and NAME_strip.png in
results/compare.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hashgrid.bench.environment import environment

DATA = Path(os.environ.get("HASHGRID_DATA", Path(__file__).resolve().parents[3] / "shared")) / "data"
SHAPES = "grid,dense,siren,planes,fourier,frequency,mlp"
# of what stands still, in a box and without an end; the papers' sizes take hours
IN_A_BOX = "ngp,plenoxels,tensorf,planes,classic,planes_explicit,tensorf_cp,mip,zip,triplane"
ENDLESS = "ngp,zip,planes,tensorf,mip360"
# name: task, source below --data (None: what the package makes), seconds per field, further options
RUNS: dict[str, tuple[str, str | None, float, list[str]]] = {
    "flower": ("image", "image/flower_foveon.png", 60.0, []),
    "image": ("image", None, 30.0, []),
    "image_equal_size": ("image", None, 30.0, ["--parameters", "100000"]),
    "audio": ("audio", None, 120.0, ["--fields", "hash,mlp,siren,fourier,wire,mfn"]),
    "audio_equal_size": ("audio", None, 120.0, ["--fields", "hash,mlp", "--parameters", "150000"]),
    "video": ("video", None, 120.0, ["--fields", "hash,mlp,siren,planes,vm,coordx"]),
    "video_equal_size": ("video", None, 120.0, ["--fields", "hash,mlp", "--parameters", "500000"]),
    "sdf": ("sdf", None, 30.0, ["--no-video", "--resolution", "96", "--image-size", "320", "--fields", SHAPES]),
    "ct": ("ct", None, 60.0, []),
    "heat": ("pde", "heat", 20.0, []),
    "nerf": ("nerf", None, 600.0, ["--no-video", "--fields", IN_A_BOX]),
    "nerf_chair": ("nerf", "nerf/nerf_synthetic_chair_100/chair", 600.0, ["--no-video", "--fields", IN_A_BOX]),
    "nerf_snowmiku": ("nerf", "nerf/snowmiku_plush_504", 600.0, ["--no-video", "--views", "3", "--fields", ENDLESS]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(RUNS)}; all if none")
    parser.add_argument("--scale", type=float, default=1.0, help="of the seconds")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "compare")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names or RUNS:
        task, source, seconds, options = RUNS[name]
        if source is not None and "/" in source and not (args.data / source).exists():
            print(f"{name}: left out, {args.data / source} is not there")
            continue
        run(name, task, source, seconds * args.scale, options, args)


def run(name: str, task: str, source: str | None, seconds: float, options: list[str], args: argparse.Namespace) -> None:
    load = os.getloadavg()
    words = [] if source is None else [str(args.data / source) if "/" in source else source]
    with tempfile.TemporaryDirectory() as folder:
        command = ["compare", task, *words, "--time-limit", str(seconds), "--out", folder, *options]
        subprocess.run([sys.executable, "-m", "hashgrid", *command], check=True)
        rows: list[dict[str, Any]] = json.loads((Path(folder) / "compare.json").read_text())
        for file, kept in (("compare.png", f"{name}.png"), ("strip.png", f"{name}_strip.png")):
            if (Path(folder) / file).is_file():
                shutil.copy(Path(folder) / file, args.out / kept)
    source_name = None if source is None else Path(source).name
    report = {"source": source_name, "options": options, "rows": rows, "load_before": load}
    (args.out / f"{name}.json").write_text(json.dumps({**report, "environment": environment("cpu")}, indent=1) + "\n")


if __name__ == "__main__":
    main()
