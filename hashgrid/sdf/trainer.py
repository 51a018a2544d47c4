"""Fitting a field to signed distances."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hashgrid.device import choose_device
from hashgrid.optim import Adam
from hashgrid.sdf.config import SdfConfig
from hashgrid.sdf.mesh import Mesh
from hashgrid.sdf.model import SdfField


class TrainingError(RuntimeError):
    """Training cannot go on."""


@dataclass
class Progress:
    """Where a run stands; the loss is smoothed over some steps."""

    step: int = 0
    seconds: float = 0.0
    fraction: float = 0.0
    loss: float = 0.0
    points_per_second: float = 0.0


def make_pool(mesh: Mesh, config: SdfConfig, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points [n, 3] and their signed distances [n], fp32: on the surface, near it, and anywhere in the cube.

    Near the surface points are moved along each axis by a logistic distribution (Müller et al. 2022, section 5.2).
    """
    generator = np.random.default_rng(seed)
    n_surface, n_near = round(n * config.surface), round(n * config.near)
    surface = mesh.sample_surface(n_surface, generator)[0]
    near = mesh.sample_surface(n_near, generator)[0] + generator.logistic(0.0, config.near_scale, (n_near, 3))
    uniform = generator.random((n - n_surface - n_near, 3))
    off = np.concatenate([near.clip(0.0, 1.0), uniform])
    distances = np.concatenate([np.zeros(n_surface), mesh.signed_distance(off)])
    return torch.from_numpy(np.concatenate([surface, off])).float(), torch.from_numpy(distances).float()


class Trainer:
    """Fits an :class:`SdfField` to a mesh.

    Args:
        mesh: what to fit.
        config: the recipe.
        seconds_before: time of the run spent before, e.g. on loading.
    """

    def __init__(self, mesh: Mesh, config: SdfConfig, seconds_before: float = 0.0) -> None:
        begin = time.perf_counter() - seconds_before
        if config.steps is None and config.time_limit is None:
            config = config.replace(time_limit=config.default_seconds)
        self.device = choose_device(config.device, config.backend)
        self.config = config.replace(device=str(self.device))
        torch.manual_seed(config.seed)
        self.field = SdfField(config).to(self.device)
        self.learning_rate = torch.tensor(config.learning_rate, device=self.device)
        self.optimizer = Adam(
            self.field.parameter_groups(config.weight_decay),
            lr=self.learning_rate,
            betas=(0.9, 0.99),
            eps=1e-15,
            ema_decay=config.ema_decay,
            backend=config.backend,
        )
        self.points, self.distances = (x.to(self.device) for x in make_pool(mesh, config, config.pool, config.seed))
        self.progress = Progress()
        self._clock = begin
        self._generator = torch.Generator().manual_seed(config.seed)

    def tick(self) -> float:
        """Updates the time spent and returns the progress of the run in 0..1."""
        config, progress = self.config, self.progress
        progress.seconds = time.perf_counter() - self._clock
        by_steps = 0.0 if config.steps is None else progress.step / max(config.steps, 1)
        by_time = 0.0 if config.time_limit is None else progress.seconds / config.time_limit
        progress.fraction = min(1.0, max(by_steps, by_time))
        return progress.fraction

    def step(self) -> None:
        """One step of the optimiser on the mean absolute percentage error."""
        config, progress = self.config, self.progress
        ratio = config.final_learning_rate / config.learning_rate
        warmup = min(1.0, (progress.step + 1) / 32)
        self.learning_rate.fill_(config.learning_rate * warmup * ratio ** max(0.0, (progress.fraction - 0.2) / 0.8))
        index = torch.randint(len(self.points), (config.batch,), generator=self._generator).to(self.device)
        target = self.distances.index_select(0, index)
        error = (self.field(self.points.index_select(0, index)) - target).abs()
        loss = (error / (target.abs() + config.mape_offset)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {progress.step}; lower the learning rate ({config.learning_rate})"
            )
        keep = 0.0 if progress.step == 0 else 0.95
        progress.loss = keep * progress.loss + (1 - keep) * value
        progress.step += 1
        self.tick()
        progress.points_per_second = progress.step * config.batch / max(progress.seconds, 1e-9)

    def train(self, on_step: Callable[[Progress], None] | None = None) -> None:
        """Steps until the budget is spent; the field holds the averaged weights afterwards."""
        while self.tick() < 1.0:
            self.step()
            if on_step is not None:
                on_step(self.progress)
        averages = self.optimizer.ema_parameters()
        params = [param for group in self.optimizer.param_groups for param in group["params"]]
        with torch.no_grad():
            for param, average in zip(params, averages, strict=True):
                param.copy_(average)
        self.tick()
