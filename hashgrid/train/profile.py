"""Where the time of training steps goes: ``--profile``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from hashgrid.train.loop import CHECKPOINT
from hashgrid.train.task import Progress
from hashgrid.util.files import atomic_path, atomic_write_json
from hashgrid.util.memory import peak_memory

DATA, OCCUPANCY = "hashgrid data", "hashgrid occupancy update"  # names of ranges that tasks record
PHASES = {
    "data": (DATA,),
    "march": ("hashgrid::march_rays", "hashgrid::ray_aabb"),
    "visible samples": ("hashgrid::window_samples", "hashgrid::visible_samples"),
    "encode": ("hashgrid::hash_encode", "hashgrid::hash_encode_mlp", "hashgrid::sh_encode"),
    "encode, backward": (
        "hashgrid::hash_encode_backward",
        "hashgrid::hash_encode_accumulate_table_gradient",
        "hashgrid::sh_encode_backward",
    ),
    "mlp": ("hashgrid::mlp", "hashgrid::radiance_mlp"),
    "mlp, backward": ("hashgrid::mlp_backward", "hashgrid::radiance_mlp_backward"),
    "composite": ("hashgrid::composite",),
    "composite, backward": ("hashgrid::composite_backward",),
    "loss": ("hashgrid::pixel_loss",),
    "optimiser": ("hashgrid::adam_step", "hashgrid::adam_step_foreach"),
    "occupancy": (OCCUPANCY,),
    "checkpoint": (CHECKPOINT,),
}
_PHASE_OF = {name: phase for phase, names in PHASES.items() for name in names}


class StepProfile:
    """Profiles ``n_steps`` steps of the second half of a run, on the CPU.

    Args:
        folder: for the result.
        n_steps: a multiple of the steps between two updates of the occupancy grid has these in the right proportion.
        begin: progress of the run, 0..1, at which to begin.
    """

    def __init__(self, folder: Path, n_steps: int = 64, begin: float = 0.6) -> None:
        self.folder, self.n_steps, self.begin = folder, n_steps, begin
        self._profile = profile(activities=[ProfilerActivity.CPU])
        self._first: Progress | None = None
        self._start = 0.0
        self.result: dict[str, Any] | None = None

    def step(self, progress: Progress) -> None:
        """To be called after each step."""
        if self._first is None and progress.fraction >= self.begin:
            self._first = Progress(step=progress.step, counts=dict(progress.counts))
            self._profile.start()
            self._start = time.perf_counter()
        elif self._first is not None and self.result is None and progress.step >= self._first.step + self.n_steps:
            self._stop(progress.step - self._first.step, progress.samples - self._first.samples)

    def _stop(self, n_steps: int, n_samples: int) -> None:
        seconds = time.perf_counter() - self._start
        self._profile.stop()
        totals = dict.fromkeys(PHASES, 0.0)
        for event in self._profile.events():
            phase = _PHASE_OF.get(event.name)
            ancestor = event.cpu_parent
            while phase is not None and ancestor is not None:  # the outermost one counts
                phase = None if ancestor.name in _PHASE_OF else phase
                ancestor = ancestor.cpu_parent
            if phase is not None:
                totals[phase] += event.cpu_time_total * 1e-6
        totals["everything else"] = seconds - sum(totals.values())
        self.result = {"steps": n_steps, "samples": n_samples, "seconds": seconds, "phases": totals}

    def close(self) -> None:
        """Prints the table; writes ``profile.json`` and ``trace.json``, for chrome://tracing or Perfetto. A profile
        that is cut short by the end of the run has no result."""
        if self.result is None:
            print(f"no profile: the run ended less than {self.n_steps} steps after {self.begin:.0%} of it", flush=True)
            return
        result, memory = self.result, peak_memory()
        print(f"{'phase':22}{'ms per step':>12}{'ns per sample':>15}{'share':>8}")
        for phase, seconds in (*result["phases"].items(), ("a step", result["seconds"])):
            per_step, per_sample = seconds / result["steps"] * 1e3, seconds / max(result["samples"], 1) * 1e9
            print(f"{phase:22}{per_step:12.2f}{per_sample:15.0f}{seconds / result['seconds']:8.1%}")
        peak = "unknown" if memory is None else f"{memory / 1e9:.2f} GB"
        print(f"peak memory {peak}; trace in {self.folder / 'trace.json'}", flush=True)
        atomic_write_json(self.folder / "profile.json", {**result, "peak_memory_bytes": memory})
        with atomic_path(self.folder / "trace.json") as path:
            self._profile.export_chrome_trace(str(path))
