"""Trains on and writes a generated picture of 100 megapixels, and notes the peak of memory of the whole process.

python benchmarks/marks/huge_image.py  # writes results/huge_image.json; the picture is deleted afterwards
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hashgrid.bench.environment import environment
from hashgrid.data.pictures import generated_picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=10_000, help="pixels along each side")
    parser.add_argument("--seconds", type=float, default=120.0, help="of training")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "huge.png", Path(folder) / "out"
        picture = generated_picture(args.side, args.side)
        picture.write(path, picture.signal.values)
        del picture
        begin = time.perf_counter()
        words = ["image", str(path), "--time-limit", str(args.seconds), "--out", str(out), "--device", "cpu"]
        subprocess.run([sys.executable, "-m", "hashgrid", *words], check=True)
        seconds = time.perf_counter() - begin
        results = json.loads((out / "results.json").read_text())
        report = {
            "pixels": args.side**2,
            "file_bytes": path.stat().st_size,
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
            "seconds": seconds,
            "psnr": results["psnr"],
            "ssim": results["ssim"],
            "train": results["train"],
        }
    print(f"{report['psnr']:.2f} dB, {report['peak_memory_bytes'] / 2**30:.2f} GiB, {seconds:.0f} s in all")
    args.out.mkdir(parents=True, exist_ok=True)
    report |= {"load_before": load, "environment": environment("cpu")}
    (args.out / "huge_image.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
