"""The one training loop: clock, schedule, steps, checkpoints. It knows no field, no ray and no mesh."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from hashgrid.nn import HashGrid
from hashgrid.optim import Adam
from hashgrid.train import ranks
from hashgrid.train.checkpoint import CheckpointError, flatten_state, save_checkpoint, unflatten_state, with_prefix
from hashgrid.train.task import Progress, Task

SMOOTHING = 0.95  # of the loss and its terms, per step
CHECKPOINT = "hashgrid checkpoint"  # name of a range in profiles


class TrainingError(RuntimeError):
    """Training cannot go on; the last checkpoint is intact."""


class Trainer:
    """Trains a task until its budget is spent.

    Args:
        task: what is trained.
        seconds_before: time of the run spent before, e.g. loading images; it counts.
    """

    def __init__(self, task: Task, seconds_before: float = 0.0) -> None:
        config = task.config
        if config.steps is None and config.time_limit is None:
            raise ValueError("give `steps`, `time_limit` or both, got neither")
        self.task = task
        self.learning_rate = torch.tensor(task.schedule.first, device=task.device)
        self._make_optimizer()
        seconds_before = ranks.of_first(seconds_before)
        ranks.tick()
        self.progress = Progress(seconds=seconds_before)
        self.curve: list[dict[str, float]] = []  # of loss and terms over time
        self._unread = 0
        self._clock = ranks.now() - seconds_before
        self._mark: tuple[float, dict[str, int]] = (self.progress.seconds, {})

    def _make_optimizer(self) -> None:
        """A new one, of the parameters that the model has now."""
        task = self.task
        self.optimizer = Adam(
            task.parameter_groups(),
            lr=self.learning_rate,
            betas=(0.9, 0.99),
            eps=1e-15,
            ema_decay=task.ema_decay,
            zero_grad_in_step=True,
            backend=task.config.backend,
        )
        for module in task.model.modules():
            if isinstance(module, HashGrid) and module.half_table is not None:
                self.optimizer.register_half_copy(module.table, module.half_table)
        self.stepper = task.stepper(self.optimizer)

    def update_clock(self) -> float:
        """Notes the time spent; returns the progress of the run in 0..1."""
        config, progress = self.task.config, self.progress
        progress.seconds = ranks.now() - self._clock
        of_steps = progress.step / config.steps if config.steps else float(config.steps == 0)
        of_time = progress.seconds / config.time_limit if config.time_limit else 0.0
        progress.fraction = min(1.0, max(of_steps, of_time))
        return progress.fraction

    @property
    def finished(self) -> bool:
        return self.update_clock() >= 1.0

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside does not count as time of the run."""
        self.read()  # steps that are still under way do count
        begin = ranks.now()
        try:
            yield
        finally:
            self._clock += ranks.now() - begin

    def step(self) -> None:
        """One step of the optimiser."""
        progress = self.progress
        self.update_clock()
        self.learning_rate.fill_(self.task.schedule(progress.fraction, progress.step))
        if self.task.before_step(progress):
            self.read()
            self._make_optimizer()
        self.stepper.run(progress)
        progress.step += 1
        self._unread += 1
        if progress.step % self.stepper.read_every == 0:
            self.read()

    def read(self) -> None:
        """Takes what the stepper has done into ``progress``.

        Raises:
            TrainingError: the loss is not finite.
        """
        if self._unread == 0:
            return
        (loss, terms, counts), n, self._unread = self.stepper.read(), self._unread, 0
        progress = self.progress
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {progress.step - 1}; lower the learning rate"
                f" ({self.task.schedule.first}) or check the data"
            )
        keep = 0.0 if progress.step == n else SMOOTHING**n
        progress.loss = keep * progress.loss + (1 - keep) * loss / n
        for name, total in terms.items():
            progress.terms[name] = keep * progress.terms.get(name, 0.0) + (1 - keep) * total / n
        for name, count in counts.items():
            progress.counts[name] = progress.counts.get(name, 0) + count
        self.update_clock()
        seconds, before = self._mark
        elapsed = progress.seconds - seconds
        if elapsed > 1.0:
            progress.rates = {key: (value - before.get(key, 0)) / elapsed for key, value in progress.counts.items()}
            self._mark = (progress.seconds, dict(progress.counts))
            where = {"seconds": progress.seconds, "step": progress.step}
            self.curve.append({**where, "loss": progress.loss, **progress.terms})

    def train(self, on_step: Callable[[Progress], None] | None = None, checkpoint: Path | None = None) -> None:
        """Steps until the budget is spent; writes ``checkpoint`` every ``checkpoint_seconds``."""
        saved = self.progress.seconds
        if ranks.size() > 1:
            self._check_same()
        while not self.finished:
            self.step()
            if on_step is not None:
                on_step(self.progress)
            if checkpoint is not None and self.progress.seconds - saved > self.task.config.checkpoint_seconds:
                with record_function(CHECKPOINT):
                    self.save(checkpoint)
                saved = self.progress.seconds
            if ranks.interrupted():
                raise KeyboardInterrupt
        self.read()

    def _check_same(self) -> None:
        """Whether all processes begin alike."""
        config = {**self.task.config.to_dict(), "device": "", "checkpoint_seconds": 0}
        state = {**self.task.model.state_dict(), **self.task.state()}
        ranks.check_same("the run", state, json.dumps([config, self.progress.step], sort_keys=True))

    @torch.no_grad()
    def take_averages(self) -> None:
        """The model gets the averaged weights, where there are any; training is over."""
        if self.task.ema_decay is None or self.progress.step == 0:
            return
        params = [param for group in self.optimizer.param_groups for param in group["params"]]
        for param, average in zip(params, self.optimizer.ema_parameters(), strict=True):
            param.copy_(average)

    def save(self, path: Path) -> None:
        """Writes everything a run needs to go on, to one file that is replaced atomically."""
        self.read()
        self.update_clock()
        tensors = {f"model.{name}": value for name, value in self.task.model.state_dict().items()}
        tensors |= {f"state.{name}": value for name, value in self.task.state().items()}
        if self.task.ema_decay is not None:
            with self.optimizer.swap_ema():
                averages = self.task.model.state_dict()
                tensors |= {f"average.{name}": value.clone() for name, value in averages.items()}
        metadata = {
            "task": self.task.name,
            "config": self.task.config.to_dict(),
            "notes": self.task.notes(),
            "progress": asdict(self.progress),
            "curve": self.curve,
            "optimizer": flatten_state(self.optimizer.state_dict(), "optimizer", tensors),
        }
        save_checkpoint(path, tensors, metadata)

    def load(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Takes over what :meth:`save` wrote.

        Raises:
            CheckpointError: it belongs to another task, or to a model of other sizes.
        """
        if metadata.get("task") != self.task.name:
            task, found = self.task.name, metadata.get("task")
            raise CheckpointError(f"the checkpoint must be one of `hashgrid {task}`, got one of {found!r}")
        before = list(self.task.model.parameters())
        load_model(self.task.model, tensors)
        if any(a is not b for a, b in zip(before, self.task.model.parameters(), strict=True)):
            self._make_optimizer()
        self.task.load_state(with_prefix(tensors, "state."))
        self.optimizer.load_state_dict(unflatten_state(metadata["optimizer"], tensors))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.progress = Progress(**metadata["progress"])
        self.curve = list(metadata["curve"])
        self._unread = 0
        self.stepper.forget(self.progress)
        self._clock = ranks.now() - self.progress.seconds
        self._mark = (self.progress.seconds, dict(self.progress.counts))


def load_model(model: nn.Module, tensors: Mapping[str, Tensor], averaged: bool = False) -> None:
    """Gives a model the weights of a checkpoint; with ``averaged`` their averages, where it has them.

    Raises:
        CheckpointError: it belongs to a model of other sizes.
    """
    averages = with_prefix(tensors, "average.")
    try:
        model.load_state_dict(averages if averaged and averages else with_prefix(tensors, "model."))
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint does not fit its own configuration: {error}") from error
