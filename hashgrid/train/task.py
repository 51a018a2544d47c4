"""What a task is, and what it and the loop tell each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from hashgrid.optim import Adam
from hashgrid.train import ranks
from hashgrid.train.config import RunConfig
from hashgrid.train.groups import adam_groups
from hashgrid.train.schedule import Schedule


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
    """What a task says of a step, in tensors; and what a stepper says of some steps, sums in numbers."""

    loss: Any  # scalar, differentiable
    terms: Mapping[str, Any]  # scalars without gradient
    counts: Mapping[str, int]  # without ``samples`` there is nothing to learn from

    def times(self, share: float) -> Step:
        """The part that a share of the batch has in the mean over all of it."""
        if share == 1:
            return self
        return Step(self.loss * share, {name: term * share for name, term in self.terms.items()}, self.counts)


class Task:
    """What is trained, on what, and how: the command ``hashgrid NAME [SOURCE]``. A task overrides what it needs; random
    numbers are functions of the seed and ``progress.step``, so that a run that goes on from a checkpoint is the run
    that was never stopped.

    Args:
        config: the recipe; parameters that are made from here on are those of its seed.
    """

    name: ClassVar[str]  # of the command
    Config: ClassVar[type[RunConfig]]
    summary: ClassVar[str]  # what the command does, in one sentence
    source_help: ClassVar[str]  # what SOURCE is
    packages: ClassVar[Sequence[str]] = ()  # what has to be installed besides safetensors and tqdm
    config: RunConfig  # the recipe, with the device that it runs on
    metric: ClassVar[str] = ""  # the figure of `results.json` that says how good it is, as in "test.psnr_mean"
    preview: ClassVar[str] = ""  # the file of an evaluation that shows it best, or a pattern, of which the first
    model: nn.Module  # what has parameters, on its device
    schedule: Schedule  # of the learning rate
    splits: ClassVar[bool] = False  # whether each process of torchrun takes its part of a batch; losses are summed
    ema_decay: float | None = None  # of the averages that are evaluated instead of the weights; None for none

    def __init__(self, config: RunConfig) -> None:
        self.config = config.on_device()
        torch.manual_seed(config.seed)

    @classmethod
    def defaults(cls, field: str | None, device: torch.device, given: set[str]) -> RunConfig:
        """The configuration before any option is read; ``given`` are the options that are there."""
        config = cls.Config.for_device(device)
        kind = cls.Config.fields.get(field or "")
        if kind is None or kind.Config is type(config.field):  # type: ignore[attr-defined]
            return config
        return config.replace(field=kind.Config(), **getattr(kind, "recipe", {}))

    @classmethod
    def folder(cls, source: Path | None, config: Any) -> str:
        """Name of the folder of the results."""
        return "generated" if source is None else source.stem

    @classmethod
    def make(cls, config: Any, source: Path | None, notes: dict[str, Any]) -> Task:
        """The task on its data. ``notes`` are those of a checkpoint, or none."""
        raise NotImplementedError

    def describe(self) -> str:
        """What the data are, in one line."""
        return ""

    def begin(self) -> None:
        """Prepares what only training needs."""

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def loss(self, progress: Progress) -> Step:
        """The loss of one step."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What :class:`hashgrid.optim.Adam` takes."""
        return adam_groups(self.model, self.config.weight_decay)

    def before_step(self, progress: Progress) -> bool | None:
        """Does what has to be done between steps, without gradients; returns true where the model has other parameters
        now, which no optimiser knows of."""

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

    def score(self, optimizer: Adam) -> float:
        """The metric in a moment, from some of the data, in the middle of training; NaN where that cannot be."""
        return math.nan

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
        self._tables = [param for param in self._parameters if param in skipped]
        self._reading = Step(0.0, {}, {})

    def run(self, progress: Progress) -> None:
        """Takes one step."""
        self.drop_small_gradients()
        self.optimizer.zero_grad()
        step, alone = self.task.loss(progress), ranks.size() == 1
        value, terms = float(step.loss.detach()), {name: float(term) for name, term in step.terms.items()}
        read = Step(value, terms, step.counts) if alone else Step(*ranks.summed(value, terms, step.counts))
        if math.isfinite(read.loss) and (step.loss.requires_grad or not alone) and read.counts.get("samples", 0) > 0:
            if step.loss.requires_grad and step.counts.get("samples", 0) > 0:
                step.loss.backward(inputs=self._parameters)  # not of points, whose gradient may be part of the loss
            if not alone:
                ranks.sum_gradients(self._parameters, self._tables)
            self.optimizer.step()
        self._reading = read

    def drop_small_gradients(self) -> None:
        """Lets the next ones be taken anew, not added to; a table's buffer stays, as most of it is zero."""
        for param in self._small:
            param.grad = None

    def read(self) -> Step:
        """Sums over the steps since the last reading."""
        return self._reading

    def forget(self, progress: Progress) -> None:
        """Takes notice that the optimiser's state and the task's have become other tensors."""
