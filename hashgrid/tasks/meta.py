"""``hashgrid meta``: a start from which a few steps of gradient descent fit any signal of a family."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hashgrid.data.signal_families import GENERATED, Family, generated_family, photo_family, pixel_centres
from hashgrid.fields import SIGNAL_FIELDS
from hashgrid.nn.hypernetwork import HyperNetwork
from hashgrid.rendering.starts import JUDGED_STEPS, compare_starts
from hashgrid.train.config import RunConfig
from hashgrid.train.groups import adam_groups
from hashgrid.train.loop import load_model
from hashgrid.train.meta import Hyper, Learner, Maml, MetaSdf, Reptile, Samples
from hashgrid.train.run import read_checkpoint
from hashgrid.train.schedule import Schedule
from hashgrid.train.task import Progress, Report, Step, Task
from hashgrid.util.config import Config

# signals per step, steps on each, their rate (the first one where rates are learned), learning rate
RECIPES: dict[str, tuple[int, int, float, float]] = {
    "maml": (3, 3, 0.03, 1e-3),
    "reptile": (3, 8, 0.1, 3e-3),
    "metasdf": (3, 3, 0.01, 1e-3),
    "hypernet": (16, 3, 0.01, 1e-3),
    "coinpp": (3, 3, 0.3, 1e-3),
}
OPTIONS = ("signals", "inner_steps", "inner_rate", "learning_rate")  # that a recipe is of


@dataclass(frozen=True)
class MetaConfig(RunConfig):
    """Defaults of learned starts. Zeros stand for what the method says."""

    fields = SIGNAL_FIELDS
    default_seconds = 60.0

    field: Config = SIGNAL_FIELDS["modulated"].Config()
    method: Literal["maml", "reptile", "metasdf", "hypernet", "coinpp"] = "maml"
    family: Literal["images", "shapes", "solids"] = "images"  # that is learned from without SOURCE
    image_size: int = 0  # samples along each side of a signal; 0: 32, of solids 12
    smallest_crop: float = 0.5  # of a photo's shorter side
    signals: int = 0  # per step
    inner_steps: int = 0  # of gradient descent on each
    inner_rate: float = 0.0  # of those
    first_order: bool = False  # maml takes the gradients of inner steps for constants
    context: int = 200  # samples that a hypernetwork looks at, at most
    inner_backend: Literal["auto", "native", "reference"] = "auto"  # auto: PyTorch's layers for second derivatives
    n_unseen: int = 16  # signals of the evaluation
    learning_rate: float = 0.0  # after the first steps
    weight_decay: float = 0.0

    def check(self) -> None:
        super().check()
        for name in ("context", "n_unseen", "image_size", *OPTIONS):
            if not getattr(self, name) >= (least := int(name in ("context", "n_unseen"))):
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.smallest_crop <= 1:
            raise ValueError(f"`smallest_crop` must be in (0, 1], got {self.smallest_crop}")
        if self.method in ("hypernet", "coinpp") and self.field.name != "modulated":
            raise ValueError(f"`--method {self.method}` must have `--field modulated`, got {self.field.name!r}")


def field_backend(config: MetaConfig) -> str:
    """Of a field whose inner steps are differentiated: kernels leave second derivatives of weights to PyTorch's ops,
    and those compute the first ones again."""
    second_order = config.method in ("metasdf", "coinpp") or (config.method == "maml" and not config.first_order)
    if config.inner_backend != "auto":
        return config.inner_backend
    return "reference" if second_order and getattr(config.field, "encoding", "") != "hash" else config.backend


def make_learner(config: MetaConfig, n_channels: int) -> Learner:
    """A field for signals of ``n_channels`` and how its start is learned, as ``config`` says."""
    n_dims = GENERATED[config.family].n_dims
    field = SIGNAL_FIELDS[config.field.name](config.field, n_dims, n_channels, field_backend(config))
    steps, rate = config.inner_steps, config.inner_rate
    if config.method == "reptile":
        return Reptile(field, steps, rate)
    if config.method == "metasdf":
        return MetaSdf(field, steps, rate)
    if config.method == "hypernet":
        # squared errors of colours in [0, 1] are a quarter of those of the paper's in [-1, 1], so its weights are, too
        network = HyperNetwork(field, n_dims, n_channels, backend=config.backend, latent_weight=0.025, made_weight=25.0)
        return Hyper(field, network, steps, rate)
    names = ["latent"] if config.method == "coinpp" else None
    return Maml(field, steps, rate, names, config.first_order)


class Meta(Task):
    """Learns a start for a family of signals.

    Args:
        config: the recipe.
        family: what to learn from.
        source: folder of the photos, if they are not generated.
    """

    name = "meta"
    Config = MetaConfig
    summary = "Learns where to start, so that a few steps of gradient descent fit any signal of a family."
    source_help = "folder of photos; generated images, shapes or solids if none"
    packages = ("PIL", "imageio.v3", "matplotlib")
    metric = "loss"
    config: MetaConfig
    model: Learner

    def __init__(self, config: MetaConfig, family: Family, source: Path | None = None) -> None:
        recipe = dict(zip(OPTIONS, RECIPES[config.method], strict=True))
        for name, value in {"image_size": GENERATED[config.family].size, **recipe}.items():
            config = config if getattr(config, name) else config.replace(**{name: value})
        config = config.replace(**{"offset": family.mean} if config.knows("offset") else {})
        if config.method == "coinpp" and not config.field.n_latent:  # type: ignore[attr-defined]
            config = config.replace(n_latent=256)
        shape = (config.image_size,) * GENERATED[config.family].n_dims
        super().__init__(config.replace(field=SIGNAL_FIELDS[config.field.name].configured(config.field, shape)))
        self.family, self.source = family, source
        self.model = make_learner(self.config, family.n_channels).to(self.config.device)
        self.random = copy.deepcopy(self.model.model)
        self.places = pixel_centres(self.config.image_size, len(shape)).to(self.device)
        self.n_looked_at = min(self.config.context, len(self.places))
        self.schedule = Schedule(self.config.learning_rate, self.config.learning_rate / 20)

    @classmethod
    def defaults(cls, field: str | None, device: torch.device, given: set[str]) -> RunConfig:
        """The recipe is that of the method, not of the field."""
        config = cls.Config.for_device(device)
        return config.replace(field=SIGNAL_FIELDS[field].Config()) if field in SIGNAL_FIELDS else config

    @classmethod
    def make(cls, config: MetaConfig, source: Path | None, notes: dict[str, Any]) -> Meta:
        source = Path(notes["photos"]) if source is None and notes.get("photos") else source
        size = config.image_size or GENERATED[config.family].size
        if source is None:
            return cls(config, generated_family(config.family, size))
        return cls(config.replace(family="images"), photo_family(source, size, config.smallest_crop), source)

    def describe(self) -> str:
        config, size = self.config, "x".join([str(self.config.image_size)] * self.places.shape[1])
        n, backend = sum(param.numel() for param in self.model.model.parameters()), field_backend(config)
        model = f"{config.field.name} with {n} parameters on the {backend} backend"
        return f"{self.family.name}, {size}; {config.method} of {model}"

    def notes(self) -> dict[str, Any]:
        photos = None if self.source is None else str(self.source.resolve())
        return {"photos": photos, "n_channels": self.family.n_channels}

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = adam_groups(self.model, self.config.weight_decay)
        return [{**group, "params": [param for param in group["params"] if param.requires_grad]} for group in groups]

    def loss(self, progress: Progress) -> Step:
        config = self.config
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + progress.step)
        signals = [self._signal(values) for values in self.family.draw(config.signals, generator)]
        n = int(torch.randint(min(10, self.n_looked_at), self.n_looked_at + 1, (1,), generator=generator))
        losses = self.model.losses([self._looked_at(signal, generator, n) for signal in signals], signals)
        n_samples = config.signals * len(self.places) * (1 if isinstance(self.model, Hyper) else self.model.steps + 1)
        return Step(losses.mean(), {}, {"samples": n_samples})

    def _signal(self, values: Tensor) -> Samples:
        return Samples(self.places, values.reshape(len(self.places), -1).to(self.device))

    def _looked_at(self, signal: Samples, generator: torch.Generator, n: int) -> Samples:
        """What the start is made from: for a hypernetwork ``n`` samples."""
        if not isinstance(self.model, Hyper):
            return signal
        index = torch.randperm(len(signal.x), generator=generator)[:n].to(self.device)
        return Samples(signal.x[index], signal.y[index])

    @torch.no_grad()
    def evaluate(self, report: Report) -> dict[str, Any]:
        config = self.config
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 - 1)
        signals = [self._signal(values) for values in self.family.draw_unseen(config.n_unseen, generator)]
        starts = [self.model.start(self._looked_at(signal, generator, self.n_looked_at)) for signal in signals]
        figures = compare_starts(report.out, self.model, self.random, signals, starts)
        after = f"loss {figures['loss']:.2e} after {JUDGED_STEPS} steps"
        report.say(f"{config.method}: {after}, {figures['ratio']:.1f} times less than from a random start")
        return {"family": self.family.name, "method": config.method, **figures}


def load_learner(path: str | Path) -> tuple[Learner, MetaConfig]:
    """The learned start in a checkpoint of ``hashgrid meta``, on the CPU, and how it was learned:
    ``learner.adapt(Samples(x, y))`` fits a signal, ``learner.model`` is the field.

    Raises:
        ValueError: there is no such file, it is damaged, or it holds something else.
    """
    tensors, metadata = read_checkpoint(Path(path), Meta)
    config = MetaConfig.from_dict({**metadata["config"], "device": "cpu"}, f"`{path}`")
    with torch.random.fork_rng(devices=[]):
        learner = make_learner(config, metadata["notes"]["n_channels"])
    load_model(learner, tensors)
    return learner, config
