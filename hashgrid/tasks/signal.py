"""What tasks of sampled signals have in common: a field learns values of random samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from hashgrid.data.signal_families import GENERATED
from hashgrid.data.signals import Signal
from hashgrid.fields import SIGNAL_FIELDS
from hashgrid.fields.base import SignalField
from hashgrid.nn.hash_grid import keep_gradients
from hashgrid.optim import Adam
from hashgrid.tasks.meta import load_learner
from hashgrid.train.config import RunConfig
from hashgrid.train.meta import Samples
from hashgrid.train.schedule import Schedule
from hashgrid.train.task import Progress, Step, Task
from hashgrid.util.config import Config


@dataclass(frozen=True)
class SignalConfig(RunConfig):
    """Defaults of fitting a signal: Instant-NGP's recipe for images (Müller et al. 2022) with a batch for a few CPU
    cores."""

    fields = SIGNAL_FIELDS
    default_steps = 2000

    field: Config = SIGNAL_FIELDS["hash"].Config()
    batch: int = 1 << 15  # samples per step
    keep: float = 1.0  # share of the samples to learn from, drawn at random; the others are for judging
    learning_rate: float = 1e-2  # after the first steps
    final_learning_rate: float = 1e-4  # at the end of a run
    init: Path | None = None  # checkpoint of `hashgrid meta` to start from

    def check(self) -> None:
        super().check()
        if self.batch < 1:
            raise ValueError(f"`batch` must be at least 1, got {self.batch}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"`keep` must be in (0, 1], got {self.keep}")
        if not 0 < self.final_learning_rate <= self.learning_rate:
            rates = f"{self.final_learning_rate} and {self.learning_rate}"
            raise ValueError(f"`final_learning_rate` must be in (0, `learning_rate`], got {rates}")


class SignalTask(Task):
    """Fits a field to a signal. A task says how the signal is read, and what of it is written.

    Args:
        config: the recipe.
        signal: what to learn.
    """

    packages: ClassVar[Sequence[str]] = ("PIL", "imageio.v3")
    metric: ClassVar[str] = "psnr"
    config: SignalConfig
    model: SignalField

    def __init__(self, config: SignalConfig, signal: Signal) -> None:
        kind = SIGNAL_FIELDS[config.field.name]
        signal = signal.keep(config.keep, config.seed) if config.keep < 1 else signal
        field, start = start_of(config.init, config.field.name, signal) if config.init else (config.field, None)
        super().__init__(config.replace(field=kind.configured(field, signal.shape)))
        config = self.config
        self.signal = signal.to(torch.device(config.device))
        self.model = kind(config.field, len(signal.shape), signal.n_channels, config.backend).to(config.device)
        if start is not None:
            self.model.load_state_dict(start)
        self._judged: Tensor | None = None  # samples that `score` looks at
        self.schedule = Schedule(config.learning_rate, config.final_learning_rate, power=2.0, warmup_steps=0)

    @classmethod
    def defaults(cls, field: str | None, device: torch.device, given: set[str]) -> RunConfig:
        return super().defaults("modulated" if field is None and "--init" in given else field, device, given)

    def begin(self) -> None:
        keep_gradients(self.model)

    def loss(self, progress: Progress) -> Step:
        config = self.config
        index = self.signal.draw(config.batch, config.seed, progress.step)
        target = self.signal.at(index)
        errors = [self.error(output, target) for output in self.model.outputs(self.signal.places(index))]
        return Step(torch.stack(errors).mean(), {"mse": errors[-1].detach()}, {"samples": config.batch})

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of outputs and targets [N, C]."""
        return torch.nn.functional.mse_loss(output, target)

    @torch.no_grad()
    def score(self, optimizer: Adam) -> float:
        if self._judged is None:  # what was not learned from, where there is such
            signal, unknown = self.signal, ~self.signal.known_mask().view(-1)
            pool = unknown.nonzero().squeeze(1).to(self.device) if unknown.any() else None
            self._judged = Signal(signal.values, signal.low, signal.high, pool).draw(1 << 15, 0, 0)
        error = self.model(self.signal.places(self._judged)) - self.signal.at(self._judged)
        return self.in_decibels(float(error.square().mean()))

    def in_decibels(self, mse: float) -> float:
        """The metric of a mean squared error."""
        return -10 * math.log10(max(mse, 1e-12))

    def quality(self, values: Tensor, where: Tensor | None = None) -> dict[str, Any]:
        """PSNR in dB of stored values [*shape, C] as they are written, at all samples or where asked; where not all
        were learned from, of those and of the others, too."""
        figures = {"psnr": self.signal.psnr(values, where)}
        if self.signal.known is not None:
            known = self.signal.known_mask()
            figures |= {"psnr_known": self.signal.psnr(values, known), "psnr_unknown": self.signal.psnr(values, ~known)}
        return figures


@torch.no_grad()
def start_of(path: Path, field: str, signal: Signal, n_samples: int = 1 << 14) -> tuple[Config, dict[str, Tensor]]:
    """Options and state of a field called ``field`` from a checkpoint of ``hashgrid meta``, after the steps that were
    learned with it, on random samples of a signal.

    Raises:
        ValueError: the checkpoint cannot be read, or is not of such a field and such signals.
        AdaptationError: the steps lead nowhere.
    """
    learner, config = load_learner(path)
    n_dims = GENERATED[config.family].n_dims
    found = (config.field.name, n_dims, learner.model(torch.zeros(1, n_dims)).shape[-1])
    if found != (wanted := (field, len(signal.shape), signal.n_channels)):
        raise ValueError(f"`--init` must be of field, dimensions and channels {wanted}, `{path}` is of {found}")
    index = signal.draw(n_samples, config.seed, -1)
    samples = Samples(signal.places(index).cpu(), signal.at(index).cpu())
    return config.field, {**learner.model.state_dict(), **learner.adapt(samples).params}
