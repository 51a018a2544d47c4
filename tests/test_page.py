"""`report.html`: everything of a run in one file, and nothing from anywhere else."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from problems.nerf import OPTIONS

from hashgrid.cli import main
from hashgrid.data.procedural import write_scene
from hashgrid.train.page import write_page

pytest.importorskip("imageio.v3")


def test_page_of_a_run(tmp_path: Path) -> None:
    """Its figures, curve, configuration and pictures, byte for byte; of test views the worst and the best."""
    scene, out = write_scene(tmp_path / "scene", 6, 3, 24), tmp_path / "run"
    assert main(["nerf", str(scene), "--steps", "60", "--no-video", "--out", str(out), *OPTIONS]) == 0
    page = (out / "report.html").read_text()
    results = json.loads((out / "results.json").read_text())
    assert f"{results['test']['psnr_mean']:.6g}" in page and "log2_hashmap_size" in page
    assert not re.search(r"(src|href)=.?(?!data:)(http|/|\w+\.)", page) and "<script" not in page
    pictures = [base64.b64decode(part) for part in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    scores = dict(re.findall(r"(worst|best) test view, [^:]*: ([\d.]+) dB", page))
    assert float(scores["worst"]) <= results["test"]["psnr_mean"] <= float(scores["best"])
    assert (out / "psnr_over_time.png").read_bytes() in pictures and len(pictures) == 3
    assert sum(picture in {f.read_bytes() for f in (out / "comparisons").iterdir()} for picture in pictures) == 2


def test_page_of_little(tmp_path: Path) -> None:
    """No curve, no pictures; names are text, whatever is in them, and what is large stays outside."""
    (tmp_path / "large.png").write_bytes(bytes(9 << 20))
    write_page(tmp_path, {"task": "<b>&", "nested": {"x": 0.1234567}, "list": [1, 2]}, {"option": "</pre>"}, [])
    page = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;&amp;" in page and "nested.x" in page and "0.123457" in page and "9.4 MB, not in this page" in page
    assert "</pre>" in page and page.count("</pre>") == 1 and "polyline" not in page


def test_page_of_views_of_one_name(tmp_path: Path) -> None:
    """Of a rig's cameras the right one; views without a score and pictures of an earlier run change nothing."""
    rows = ["view,psnr", "front/000.png,20.0", "back/000.png,30.0", "back/001.png,nan", "side/000.png,25.0"]
    (tmp_path / "test_views.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "comparisons").mkdir()
    names = ("front_000", "back_000", "back_001", "side_000", "000")
    for name in names:
        (tmp_path / "comparisons" / f"{name}.png").write_bytes(name.encode())
    write_page(tmp_path, {}, {}, [])
    shown = re.findall(r"base64,([^\"]+)\"><figcaption>(\w+) test view", (tmp_path / "report.html").read_text())
    assert [(base64.b64decode(data).decode(), kind) for data, kind in shown] == [
        ("front_000", "worst"),
        ("back_000", "best"),
    ]
