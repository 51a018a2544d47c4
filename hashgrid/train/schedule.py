"""Learning rates over a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """A learning rate that rises over the first steps, stays, and falls exponentially to the end of the run."""

    first: float
    last: float
    decay_start: float = 0.0  # progress in 0..1 at which it begins to fall
    power: float = 1.0  # of the progress of the fall; above 1 it begins slowly
    warmup_steps: int = 32  # steps until it is ``first``

    def __call__(self, fraction: float, step: int) -> float:
        """The rate at ``fraction`` in 0..1 of the run, for step number ``step``."""
        decay = max(0.0, fraction - self.decay_start) / (1 - self.decay_start)
        warmup = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        return self.first * warmup * (self.last / self.first) ** (decay**self.power)
