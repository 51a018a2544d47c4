"""The table of what CUDA kernels cost at least."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_every_kernel_is_counted_and_the_table_is_current(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu_limits.py"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "benchmarks" / "gpu_limits.py"), run_name="__main__")
    assert stop.value.code == 0, capsys.readouterr().err
    assert capsys.readouterr().out == (ROOT / "docs" / "gpu_limits.md").read_text()
