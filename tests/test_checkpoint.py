"""Checkpoints survive what can happen to a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

pytest.importorskip("safetensors")

from hashgrid.train.checkpoint import CheckpointError, load_checkpoint, load_metadata, save_checkpoint  # noqa: E402
from hashgrid.util import files  # noqa: E402


def test_checkpoint_round_trip(tmp_path):
    path = tmp_path / "deep" / "run.safetensors"
    table = torch.rand(100, 2)
    generator = torch.Generator().manual_seed(3)
    tensors = {
        "table": table,
        "same": table,  # shared memory
        "row": table[3:4],  # part of another storage
        "transposed": table.t(),
        "half": table.half(),
        "bfloat16": table.bfloat16(),
        "steps": torch.arange(5, dtype=torch.int32),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.empty(0, 3),
        "generator": generator.get_state(),
        "parameter": torch.nn.Parameter(torch.rand(2)),
    }
    metadata = {"step": 7, "name": "Größe", "losses": [1.5, 0.25], "none": None, "nested": {"a": True}}
    save_checkpoint(path, tensors, metadata)
    loaded = load_checkpoint(path)
    assert loaded.metadata == metadata
    assert loaded.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor.detach()), name
    assert os.listdir(path.parent) == ["run.safetensors"]
    save_checkpoint(path, {}, {})  # the tensors loaded before do not hang on the file
    assert load_checkpoint(path) == ({}, {})
    assert torch.equal(loaded.tensors["table"], table)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1])
def test_checkpoint_truncated(tmp_path, kept):
    path = tmp_path / "run.safetensors"
    save_checkpoint(path, {"table": torch.rand(100, 2)}, {"step": 1})
    content = path.read_bytes()
    path.write_bytes(content[:kept])
    with pytest.raises(CheckpointError, match="truncated or no hashgrid checkpoint"):
        load_checkpoint(path)


def test_checkpoint_foreign_files(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "run.safetensors"
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_checkpoint(path)
    torch.save({"a": torch.rand(3)}, path)  # a pickle is refused, not run
    with pytest.raises(CheckpointError, match="no hashgrid checkpoint"):
        load_checkpoint(path)
    save_file({"a": torch.rand(3)}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="format 'pt'"):
        load_checkpoint(path)
    save_file({"a": torch.rand(3)}, path, metadata={"format": "hashgrid.checkpoint", "version": "2", "metadata": "{}"})
    with pytest.raises(CheckpointError, match="at most 1, got '2'; update hashgrid"):
        load_checkpoint(path)


def test_checkpoint_refuses_what_it_cannot_store(tmp_path):
    path = tmp_path / "run.safetensors"
    save_checkpoint(path, {}, {"step": 1})
    with pytest.raises(TypeError, match="`tensors\\['lr'\\]` must be a tensor, got float"):
        save_checkpoint(path, {"lr": 0.1}, {})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="`metadata` must be JSON"):
        save_checkpoint(path, {}, {"a": torch.rand(2)})
    assert load_checkpoint(path).metadata == {"step": 1}


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    files.atomic_write_json(path, {"step": 1})

    def fail(source, target):
        raise OSError("disk on fire")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="disk on fire"):
        files.atomic_write_json(path, {"step": 2})
    monkeypatch.undo()
    assert path.read_text() == '{\n  "step": 1\n}\n'
    assert os.listdir(tmp_path) == ["value.json"]


def test_json_is_strict(tmp_path):
    path = tmp_path / "value.json"
    files.atomic_write_json(path, {"psnr": float("inf"), "list": (1, float("nan")), "path": path, "t": torch.tensor(2)})
    assert path.read_text().split() == ["{", '"psnr":', "null,", '"list":', "[", "1,", "null", "],", '"path":',
                                        f'"{path}",', '"t":', "2", "}"]  # fmt: skip


def test_checkpoint_survives_sigkill(tmp_path):
    path = tmp_path / "run.safetensors"
    script = (
        "import sys, torch; from hashgrid.train.checkpoint import save_checkpoint\n"
        "step = 0\n"
        "while True:\n"
        "    step += 1\n"
        "    save_checkpoint(sys.argv[1], {'x': torch.full((50000,), float(step))}, {'step': step})\n"
    )
    for delay in (0.0, 0.017):
        path.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", script, str(path)])
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        tensors, metadata = load_checkpoint(path)
        assert bool((tensors["x"] == metadata["step"]).all())
        save_checkpoint(path, tensors, metadata)
        assert os.listdir(tmp_path) == ["run.safetensors"]  # also what safetensors had begun


def test_metadata_alone(tmp_path) -> None:
    """They are what the whole file says, and a file that is cut is told, too."""
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, {"table": torch.ones(1000)}, {"task": "nerf"})
    assert load_metadata(path) == load_checkpoint(path).metadata == {"task": "nerf"}
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="truncated"):
        load_metadata(path)
