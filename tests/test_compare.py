"""`hashgrid compare`: what it trains, for how long, of what size, and what it writes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from hashgrid.cli import main
from hashgrid.data.pictures import generated_picture
from hashgrid.fields import SIGNAL_FIELDS
from hashgrid.rendering.comparison import as_table
from hashgrid.tasks.compare import config_of_size

pytest.importorskip("imageio.v3")
pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def small_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hashgrid.tasks.image.generated_picture", lambda: generated_picture(40, 30))


def test_fields_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "image", "--fields", "hash,siren", "--steps", "30", "--batch", "256", "--device", "cpu"]
    assert main([*words, "--parameters", "9000", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "compare.json").read_text())
    assert [row["field"] for row in rows] == ["hash", "siren"]
    for row in rows:
        assert row["task"] == "image" and row["metric"] == "psnr" and row["steps"] == 30 and row["seconds"] > 0
        results = json.loads((tmp_path / row["field"] / "results.json").read_text())
        assert row["value"] == results["psnr"] and row["parameters"] == results["n_parameters"] <= 9000
        seconds, values = zip(*row["curve"], strict=True)
        assert list(seconds) == sorted(seconds) and len(values) > 5 and all(map(math.isfinite, values))
        assert values[-1] == pytest.approx(results["psnr"], abs=1.0) and values[-1] > values[0]
    assert rows[1]["parameters"] > 8000  # a width is chosen to the unit
    table = (tmp_path / "compare.md").read_text()
    assert table in capsys.readouterr().out and table.count("\n") == 4
    assert all((tmp_path / name).is_file() for name in ("compare.png", "strip.png"))
    checkpoint = str(tmp_path / "hash" / "checkpoint.safetensors")
    assert main(["image", "--eval", checkpoint, "--out", str(tmp_path / "again")]) == 0
    assert json.loads((tmp_path / "again" / "results.json").read_text())["psnr"] == rows[0]["value"]


@pytest.mark.parametrize("name", SIGNAL_FIELDS)
def test_every_field_has_a_size(name: str) -> None:
    kind = SIGNAL_FIELDS[name]
    config = kind.configured(kind.Config(), (256, 256))
    field = kind(config, 2, 3)
    sized = config_of_size(field, config, 20_000)
    count = sum(param.numel() for param in kind(sized, 2, 3).parameters())
    assert 20_000 / 4 < count <= 20_000


def test_tables_put_the_best_first() -> None:
    rows = [
        {"field": name, "metric": metric, "parameters": 1, "steps": 1, "seconds": 1.0, "value": value}
        for metric in ("psnr", "relative_l2") for name, value in (("none", None), ("a", 1.0), ("b", 3.0), ("c", 2.0))
    ]  # fmt: skip
    order = [[line.split(" | ")[0][2:] for line in as_table(part).splitlines()[2:]] for part in (rows[:4], rows[4:])]
    assert order == [["b", "c", "a", "none"], ["a", "c", "b", "none"]]


def test_what_cannot_be_compared_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["image", "--fields", "hash,nothing"], "`--fields` must be of hash, dense"),
        (["image", "--fields", "hash", "--parameters", "10", "--steps", "1"], "`--parameters` must be at least"),
    ):
        assert main(["compare", *words, "--device", "cpu", "--out", str(tmp_path)]) == 1
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    with pytest.raises(SystemExit):
        main(["compare", "nothing"])
    assert "TASK" in capsys.readouterr().err
    assert torch.is_grad_enabled()
