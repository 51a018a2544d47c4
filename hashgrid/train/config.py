"""What every run is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch

from hashgrid.util.config import Config
from hashgrid.util.device import choose_device

R = TypeVar("R", bound="RunConfig")


@dataclass(frozen=True)
class RunConfig(Config):
    """What every task is told. Schedules run over the *progress* of a run: the larger of ``step / steps`` and
    ``seconds / time_limit``."""

    steps: int | None = None  # training steps; with a time limit, too, whatever ends first
    time_limit: float | None = None  # seconds of everything but the final evaluation
    seed: int = 0  # of everything random
    device: str = "auto"  # cpu, cuda, cuda:1; auto is a GPU where there is one
    backend: Literal["native", "reference"] = "native"  # kernels, or plain PyTorch
    checkpoint_seconds: float = 30.0  # between two checkpoints
    weight_decay: float = 1e-6  # of networks

    default_steps: ClassVar[int | None] = None  # when no budget is given
    default_seconds: ClassVar[float | None] = None

    @classmethod
    def for_device(cls: type[R], device: torch.device) -> R:
        """Defaults for ``device``."""
        return cls()

    def with_budget(self: R) -> R:
        """With the task's default budget where none is given."""
        if self.steps is not None or self.time_limit is not None:
            return self
        return self.replace(steps=self.default_steps, time_limit=self.default_seconds)

    def on_device(self: R) -> R:
        """With the device that "auto" stands for, and what a field decides by it.

        Raises:
            ValueError: there is no such device.
        """
        device = choose_device(self.device, self.backend)
        field: Any = getattr(self, "field", None)
        resolved = {"field": field.resolved(self.backend, device)} if hasattr(field, "resolved") else {}
        return self.replace(device=str(device), **resolved)

    def check(self) -> None:
        super().check()
        if self.steps is not None and self.steps < 0:
            raise ValueError(f"`steps` must be at least 0, got {self.steps}")
        if self.time_limit is not None and not self.time_limit > 0:
            raise ValueError(f"`time_limit` must be positive, got {self.time_limit}")
