"""Fitting a field: schedule, optimiser, averages."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hashgrid.fields.distance import Field, make_field
from hashgrid.nn import HashGrid
from hashgrid.optim import Adam
from hashgrid.sdf.config import SdfConfig
from hashgrid.util.device import choose_device


class TrainingError(RuntimeError):
    """Training cannot go on."""


@dataclass
class Progress:
    """Where a run stands; the loss is smoothed over some steps."""

    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    fraction: float = 0.0
    loss: float = 0.0
    points_per_second: float = 0.0


class Objective(Protocol):
    """What a field is fitted to."""

    loss_name: str  # for the progress bar

    def loss(self, field: Field, progress: Progress, level_weights: Tensor | None) -> tuple[Tensor, int]:
        """The loss of one step as a scalar, and the number of points it was taken over. Everything random is a
        function of the seed and ``progress.step``."""
        ...

    def close(self) -> None:
        """Ends what runs in the background."""
        ...


class Trainer:
    """Fits a field to an objective.

    Args:
        objective: what to fit, for instance :class:`hashgrid.sdf.objectives.DistanceSamples`.
        config: the recipe.
        seconds_before: time of the run spent before, e.g. on loading and samples.
    """

    def __init__(self, objective: Objective, config: SdfConfig, seconds_before: float = 0.0) -> None:
        begin = time.perf_counter() - seconds_before
        if config.steps is None and config.time_limit is None:
            config = config.replace(time_limit=config.default_seconds)
        self.device = choose_device(config.device, config.backend)
        self.config = config.replace(device=str(self.device))
        self.objective = objective
        self.field = make_field(config).to(self.device)
        self._parameters = list(self.field.parameters())
        self._keep_gradients(True)
        self.learning_rate = torch.tensor(self.field.learning_rates[0], device=self.device)
        self.optimizer = Adam(
            self.field.parameter_groups(config.weight_decay),
            lr=self.learning_rate,
            betas=(0.9, 0.99),
            eps=1e-15,
            ema_decay=config.ema_decay,
            zero_grad_in_step=True,
            backend=config.backend,
        )
        self.progress = Progress()
        self._clock = begin

    def tick(self) -> float:
        """Updates the time spent and returns the progress of the run in 0..1."""
        config, progress = self.config, self.progress
        progress.seconds = time.perf_counter() - self._clock
        by_steps = 0.0 if config.steps is None else progress.step / max(config.steps, 1)
        by_time = 0.0 if config.time_limit is None else progress.seconds / config.time_limit
        progress.fraction = min(1.0, max(by_steps, by_time))
        return progress.fraction

    def level_weights(self) -> Tensor | None:
        """Weights [n_levels] of the field's levels for this step, one level after the other; None once all are on."""
        config, n_levels = self.config, self.field.n_levels
        if n_levels == 0 or self.progress.fraction >= config.coarse_to_fine:
            return None
        coarse = min(config.coarse_levels, n_levels)
        on = coarse + self.progress.fraction / config.coarse_to_fine * (n_levels - coarse)
        return (on - torch.arange(n_levels, device=self.device)).clamp(0, 1)

    def step(self) -> None:
        """One step of the optimiser."""
        progress = self.progress
        first, last = self.field.learning_rates
        warmup = min(1.0, (progress.step + 1) / 32)
        self.learning_rate.fill_(first * warmup * (last / first) ** max(0.0, (progress.fraction - 0.2) / 0.8))
        loss, n_points = self.objective.loss(self.field, progress, self.level_weights())
        self.optimizer.zero_grad()
        loss.backward(inputs=self._parameters)  # not of points, whose gradient may be part of the loss
        self.optimizer.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(f"the loss is {value} at step {progress.step}; lower the learning rate ({first})")
        keep = 0.0 if progress.step == 0 else 0.95
        progress.loss = keep * progress.loss + (1 - keep) * value
        progress.step += 1
        progress.samples += n_points
        self.tick()
        progress.points_per_second = progress.samples / max(progress.seconds, 1e-9)

    def train(self, on_step: Callable[[Progress], None] | None = None) -> None:
        """Steps until the budget is spent or the user interrupts; the field holds the averaged weights afterwards."""
        try:
            while self.tick() < 1.0:
                self.step()
                if on_step is not None:
                    on_step(self.progress)
        except KeyboardInterrupt:
            self._take_averages()
            raise
        finally:
            self.objective.close()
            self._keep_gradients(False)
        self._take_averages()
        self.tick()

    def _keep_gradients(self, keep: bool) -> None:
        """Whether the backward of hash grids adds to one buffer that stays: no fresh pages in every step."""
        for module in self.field.modules():
            if isinstance(module, HashGrid):
                module.accumulate_grad = keep

    def _take_averages(self) -> None:
        if self.progress.step == 0:
            return
        averages = self.optimizer.ema_parameters()
        params = [param for group in self.optimizer.param_groups for param in group["params"]]
        with torch.no_grad():
            for param, average in zip(params, averages, strict=True):
                param.copy_(average)
