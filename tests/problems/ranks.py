"""Training in several processes: what each of them does, and what it found. Run as a script by torchrun."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from hashgrid.data.scene import load_scene
from hashgrid.train import ranks
from hashgrid.train.checkpoint import load_checkpoint
from problems.nerf import TINY, nerf_trainer


def run_ranks(n: int, *words: str, wait: bool = True, **environment: str) -> list[subprocess.Popen[str]]:
    """``python *words`` in ``n`` processes, with the variables that torchrun sets, and not its second of start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    base |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(n), **environment}
    processes = []
    for rank in range(n):
        variables = {**base, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        pipe = subprocess.PIPE
        process = subprocess.Popen([sys.executable, *words], env=variables, stdout=pipe, stderr=pipe, text=True)
        processes.append(process)
    if wait:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    return processes


def trace(scene: Path, steps: int, out: Path, changes: dict, checkpoint: Path | None = None) -> None:
    """Trains, and writes losses, rays of each step, parameters and occupancy to ``out`` of this rank."""
    with ranks.joined("cpu", changes.pop("reduce_dtype", "float32")):
        trainer = nerf_trainer(load_scene(scene), steps, **changes)
        if checkpoint is not None:
            trainer.load(*load_checkpoint(checkpoint))
        losses, n_rays = [], []

        def note(progress) -> None:
            losses.append(trainer.stepper.read().loss)
            n_rays.append(int(trainer.task.n_rays))

        trainer.train(note)
        state = {name: x.clone() for name, x in trainer.task.model.state_dict().items()}
        facts = {"rank": ranks._team.rank, "bytes": ranks._team.bytes, "step": trainer.progress.step}
        sampler = trainer.task.sampler.state_dict()
        found = {"losses": losses, "n_rays": n_rays, "model": state, "sampler": sampler, **facts}
        found["counts"] = trainer.progress.counts
        torch.save(found, out / f"rank{ranks._team.rank}.pt")
        if ranks.is_first():
            trainer.save(out / "checkpoint.safetensors")
    if sys.platform.startswith("linux"):  # none of gloo's threads may see Python end
        threads = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
        assert not any("gloo" in name for name in threads), threads


if __name__ == "__main__":
    scene, steps, out, *pairs = sys.argv[1:]
    values = dict(pair.split("=") for pair in pairs)
    at = values.pop("checkpoint", None)
    numbers = {}
    for name, text in values.items():
        numbers[name] = text
        with contextlib.suppress(ValueError):
            numbers[name] = float(text) if "." in text else int(text)
    assert TINY
    trace(Path(scene), int(steps), Path(out), numbers, None if at is None else Path(at))
