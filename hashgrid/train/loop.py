"""The one training loop: clock, schedule, steps, checkpoints. It knows no field, no ray and no mesh."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from hashgrid.fields.base import grid_groups
from hashgrid.nn import HashGrid
from hashgrid.optim import Adam
from hashgrid.train.checkpoint import CheckpointError, flatten_state, save_checkpoint, unflatten_state, with_prefix
from hashgrid.train.config import RunConfig
from hashgrid.train.schedule import Schedule

SMOOTHING = 0.95  # of the loss and its terms, per step
CHECKPOINT = "hashgrid checkpoint"  # name of a range in profiles


class TrainingError(RuntimeError):
    """Training cannot go on; the last checkpoint is intact."""


def _decibels(mse: float) -> float:
    return -10 * math.log10(max(mse, 1e-10))


@dataclass
class Progress:
    """Where a run stands. Loss and terms are smoothed over some steps, rates are over the last second or so."""

    step: int = 0  # steps taken
    seconds: float = 0.0  # spent on everything but the final evaluation
    fraction: float = 0.0  # 0..1, the larger of the shares of the budgets that are spent
    loss: float = 0.0  # mean over the last steps
    terms: dict[str, float] = field(default_factory=dict)  # means of what else a step reports, such as ``mse``
    counts: dict[str, int] = field(default_factory=dict)  # sums over all steps, ``samples`` among them
    rates: dict[str, float] = field(default_factory=dict)  # counts per second

    @property
    def samples(self) -> int:
        return self.counts.get("samples", 0)

    @property
    def psnr(self) -> float:
        """In dB, of the term ``mse``."""
        return _decibels(self.terms.get("mse", self.loss))

    @property
    def seconds_left(self) -> float:
        return self.seconds * (1 - self.fraction) / self.fraction if self.fraction > 0 else math.inf


@dataclass
class Report:
    """What a task is told when it is evaluated."""

    out: Path  # folder for what it writes
    progress: Progress  # where the run ended
    curve: list[dict[str, float]] = field(default_factory=list)  # loss and terms over the run
    interrupted: bool = False  # by the user: then the evaluation should be short

    @property
    def psnrs(self) -> list[tuple[float, float]]:
        """Seconds and PSNR in dB of training batches, for :func:`hashgrid.train.report.plot_psnr`."""
        return [(point["seconds"], _decibels(point["mse"])) for point in self.curve]

    def say(self, figures: str) -> None:
        """Prints figures, and what they took."""
        spent = f"{self.progress.step} steps, {self.progress.samples / 1e6:.1f} M samples"
        print(f"{figures}; {spent} in {self.progress.seconds:.1f} s", flush=True)


class Step(NamedTuple):
    """What a task says of a step."""

    loss: Tensor  # scalar, differentiable
    terms: Mapping[str, Tensor]  # scalars without gradient
    counts: Mapping[str, int]  # without ``samples`` there is nothing to learn from


class Reading(NamedTuple):
    """Sums over the steps since the last reading."""

    loss: float
    terms: Mapping[str, float]
    counts: Mapping[str, int]


class Task:
    """What is trained, on what, and how. A task overrides what it needs; random numbers are functions of the seed and
    ``progress.step``, so that a run that goes on from a checkpoint is the run that was never stopped.

    Args:
        config: the recipe; parameters that are made from here on are those of its seed.
    """

    name: str  # of the command
    config: RunConfig  # the recipe, with the device that it runs on
    model: nn.Module  # what has parameters, on its device
    schedule: Schedule  # of the learning rate
    ema_decay: float | None = None  # of the averages that are evaluated instead of the weights; None for none

    def __init__(self, config: RunConfig) -> None:
        self.config = config.on_device()
        torch.manual_seed(config.seed)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def loss(self, progress: Progress) -> Step:
        """The loss of one step."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What :class:`hashgrid.optim.Adam` takes."""
        return grid_groups(self.model, self.config.weight_decay)

    def before_step(self, progress: Progress) -> None:
        """What has to be done between steps, without gradients."""

    def stepper(self, optimizer: Adam) -> Stepper:
        """What takes the steps."""
        return Stepper(self, optimizer)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside model and optimiser."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes over what :meth:`state` gave."""

    def notes(self) -> dict[str, Any]:
        """What a checkpoint says of the data, as JSON."""
        return {}

    def headline(self, progress: Progress) -> str:
        """What the progress bar says."""
        quality = f" PSNR {progress.psnr:.2f} dB" if "mse" in progress.terms else ""
        return f"loss {progress.loss:.3g}{quality}"

    def evaluate(self, report: Report) -> dict[str, Any]:
        """Measures what was trained and writes pictures to ``report.out``; returns figures for ``results.json``."""
        return {}

    def finish(self, out: Path) -> None:
        """Writes what people look at and nobody measures, such as a turntable."""

    def close(self) -> None:
        """Ends what runs in the background."""


class Stepper:
    """Takes each step as it comes, and reads it at once. Others read what they have done every ``read_every`` steps:
    reading waits for a GPU."""

    read_every = 1

    def __init__(self, task: Task, optimizer: Adam) -> None:
        self.task, self.optimizer = task, optimizer
        self._parameters = [param for group in optimizer.param_groups for param in group["params"]]
        skipped = {param for group in optimizer.param_groups if group["skip_zero"] for param in group["params"]}
        self._small = [param for param in self._parameters if param not in skipped]
        self._reading = Reading(0.0, {}, {})

    def run(self, progress: Progress) -> None:
        """Takes one step."""
        self.drop_small_gradients()
        self.optimizer.zero_grad()
        step = self.task.loss(progress)
        value = float(step.loss.detach())
        if math.isfinite(value) and step.loss.requires_grad and step.counts.get("samples", 0) > 0:
            step.loss.backward(inputs=self._parameters)  # not of points, whose gradient may be part of the loss
            self.optimizer.step()
        self._reading = Reading(value, {name: float(term) for name, term in step.terms.items()}, step.counts)

    def drop_small_gradients(self) -> None:
        """Lets the next ones be taken anew, not added to; a table's buffer stays, as most of it is zero."""
        for param in self._small:
            param.grad = None

    def read(self) -> Reading:
        """Sums over the steps since the last reading."""
        return self._reading

    def forget(self, progress: Progress) -> None:
        """Takes notice that the optimiser's state and the task's have become other tensors."""


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
        self.optimizer = Adam(
            task.parameter_groups(),
            lr=self.learning_rate,
            betas=(0.9, 0.99),
            eps=1e-15,
            ema_decay=task.ema_decay,
            zero_grad_in_step=True,
            backend=config.backend,
        )
        for module in task.model.modules():
            if isinstance(module, HashGrid) and module.half_table is not None:
                self.optimizer.register_half_copy(module.table, module.half_table)
        self.stepper = task.stepper(self.optimizer)
        self.progress = Progress(seconds=seconds_before)
        self.curve: list[dict[str, float]] = []  # of loss and terms over time
        self._unread = 0
        self._clock = time.perf_counter() - seconds_before
        self._mark: tuple[float, dict[str, int]] = (self.progress.seconds, {})

    def update_clock(self) -> float:
        """Notes the time spent; returns the progress of the run in 0..1."""
        config, progress = self.task.config, self.progress
        progress.seconds = time.perf_counter() - self._clock
        of_steps = 0.0 if config.steps is None else progress.step / config.steps if config.steps else 1.0
        of_time = 0.0 if config.time_limit is None else progress.seconds / config.time_limit
        progress.fraction = min(1.0, max(of_steps, of_time))
        return progress.fraction

    @property
    def finished(self) -> bool:
        return self.update_clock() >= 1.0

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside does not count as time of the run."""
        self.read()  # steps that are still under way do count
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._clock += time.perf_counter() - begin

    def step(self) -> None:
        """One step of the optimiser."""
        progress = self.progress
        self.update_clock()
        self.learning_rate.fill_(self.task.schedule(progress.fraction, progress.step))
        self.task.before_step(progress)
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
        while not self.finished:
            self.step()
            if on_step is not None:
                on_step(self.progress)
            if checkpoint is not None and self.progress.seconds - saved > self.task.config.checkpoint_seconds:
                with record_function(CHECKPOINT):
                    self.save(checkpoint)
                saved = self.progress.seconds
        self.read()

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
        load_model(self.task.model, tensors)
        self.task.load_state(with_prefix(tensors, "state."))
        self.optimizer.load_state_dict(unflatten_state(metadata["optimizer"], tensors))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.progress = Progress(**metadata["progress"])
        self.curve = list(metadata["curve"])
        self._unread = 0
        self.stepper.forget(self.progress)
        self._clock = time.perf_counter() - self.progress.seconds
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
