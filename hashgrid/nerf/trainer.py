"""Training a radiance field: one step, the schedule, checkpoints."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from hashgrid.data.scene import Scene
from hashgrid.fields.ngp import NerfModel
from hashgrid.nerf.config import NerfConfig
from hashgrid.nerf.fixed_step import FixedStep
from hashgrid.nn import OccupancyGrid
from hashgrid.ops._backend import ngp_ops
from hashgrid.optim import Adam
from hashgrid.rendering.volume import Marching, render_rays
from hashgrid.train.checkpoint import load_checkpoint, save_checkpoint

CHECKPOINT_FORMAT = "hashgrid-nerf-2"
RAYS, OCCUPANCY, CHECKPOINT = "hashgrid rays", "hashgrid occupancy update", "hashgrid checkpoint"  # in profiles


class TrainingError(RuntimeError):
    """Training cannot go on; the last checkpoint is intact."""


@dataclass
class Progress:
    """Where a run stands. Rates are over the last second or so, the loss and PSNR smoothed over some steps."""

    step: int = 0
    seconds: float = 0.0
    fraction: float = 0.0
    loss: float = 0.0
    psnr: float = 0.0
    samples: int = 0  # that count
    evaluated: int = 0  # whose density was asked for
    rays: int = 0
    samples_per_second: float = 0.0
    rays_per_second: float = 0.0
    n_rays: int = 0

    @property
    def seconds_left(self) -> float:
        return self.seconds * (1 - self.fraction) / self.fraction if self.fraction > 0 else math.inf


class Trainer:
    """Fits a :class:`NerfModel` to a scene's training views.

    Everything random is a function of (seed, step), so a run resumed from a checkpoint sees the rays it would have
    seen. Time already spent counts towards ``time_limit``.

    Args:
        scene: the data, in any coordinates.
        config: the recipe.
        seconds_before: time of the run spent before, e.g. loading images.
    """

    def __init__(self, scene: Scene, config: NerfConfig, seconds_before: float = 0.0) -> None:
        if config.steps is None and config.time_limit is None:
            raise ValueError("give `steps`, `time_limit` or both, got neither")
        config = config.resolved()
        scene = scene.normalized()
        self.scene, self.config = scene, config
        torch.manual_seed(config.seed)
        self.marching = Marching.of(scene, config.steps_per_diagonal, config.early_stop_eps)
        self.device = torch.device(config.device)
        self.model = NerfModel(config, scene.outer_aabb, scene.n_cascades).to(self.device)
        self.occupancy = OccupancyGrid(
            scene.aabb, resolution=config.occupancy_resolution, n_cascades=scene.n_cascades, backend=config.backend
        ).to(self.device)
        self.occupancy.mark_invisible_cells(scene.train.c2w, scene.train.intrinsics, scene.train.sizes, near=scene.near)
        self.learning_rate = torch.tensor(config.learning_rate, device=self.device)
        self.optimizer = Adam(
            self.model.parameter_groups(config.weight_decay),
            lr=self.learning_rate,
            betas=(0.9, 0.99),
            eps=1e-15,
            zero_grad_in_step=True,
            backend=config.backend,
        )
        if self.model.grid.half_table is not None:
            self.optimizer.register_half_copy(self.model.grid.table, self.model.grid.half_table)
        # what the kernel of a GPU does not draw is drawn on the host: distorted without a table, or masked
        drawn_by_kernel = scene.train.rays_are_tabulated and scene.train.counts is None
        to_device = self.device.type != "cpu" and self._images_fit() and drawn_by_kernel
        self.views = scene.train.to(self.device) if to_device else scene.train
        self.fixed = None
        if config.fixed_size:
            self.fixed = FixedStep(self.model, self.occupancy, self.optimizer, self.views, self.marching, config)
        self.progress = Progress(seconds=seconds_before)
        self.curve: list[dict[str, float]] = []  # what the PSNR-over-time plot shows
        self.n_rays = 1024
        self._unread_steps = 0
        self._clock = time.perf_counter() - seconds_before
        self._occupancy_seconds = 0.0
        self._rate_mark = (self.progress.seconds, 0, 0)

    # ---- schedule ------------------------------------------------------------------------------------------------

    def tick(self) -> float:
        """Updates the time spent and returns the progress of the run in 0..1."""
        config, progress = self.config, self.progress
        progress.seconds = time.perf_counter() - self._clock
        fractions = [0.0]
        if config.steps is not None:
            fractions.append(progress.step / config.steps if config.steps > 0 else 1.0)
        if config.time_limit is not None:
            fractions.append(progress.seconds / config.time_limit)
        progress.fraction = min(1.0, max(fractions))
        return progress.fraction

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside does not count as time of the run."""
        if self.fixed is not None:  # steps that are still under way do count
            self._read_fixed(self.fixed)
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._clock += time.perf_counter() - begin

    @property
    def finished(self) -> bool:
        return self.tick() >= 1.0

    def _set_learning_rate(self) -> None:
        config = self.config
        decay = max(0.0, self.progress.fraction - config.decay_start) / (1 - config.decay_start)
        ratio = config.final_learning_rate / config.learning_rate
        warmup = min(1.0, (self.progress.step + 1) / 32)
        self.learning_rate.fill_(config.learning_rate * warmup * ratio**decay)

    # ---- one step ------------------------------------------------------------------------------------------------

    def batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Random rays of the current step: origins, directions, colours [R, 3] and their backgrounds [R, 3]."""
        # Opaque images too: a background that cannot be predicted makes every ray end on something.
        rays_o, rays_d, rgba, background = self._sample_rays(self.n_rays)
        colors = torch.lerp(background, rgba[:, :3], rgba[:, 3:])
        return rays_o, rays_d, colors, background

    def _sample_rays(self, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.views.sample_rays(n, self.config.seed, self.progress.step, self.config.backend)

    def step(self) -> None:
        """One step of the optimiser."""
        config, progress = self.config, self.progress
        self.tick()
        self._set_learning_rate()
        self._update_occupancy()
        if self.fixed is not None:
            return self._fixed_step(self.fixed)
        self.model.drop_network_gradients()
        self.optimizer.zero_grad()
        with record_function(RAYS):
            rays_o, rays_d, colors, background = (x.to(self.device) for x in self.batch())
        out = render_rays(
            self.model,
            self.occupancy,
            rays_o,
            rays_d,
            self.marching,
            None,
            jitter=(config.seed, progress.step),
        )
        pixel_loss = ngp_ops(config.backend).pixel_loss
        loss, means = pixel_loss(out.colors, out.opacities, background, colors, config.huber_delta)
        value, error = means.tolist()
        self._check_loss(value)
        if loss.requires_grad and out.n_samples > 0:
            loss.backward()
            self.optimizer.step()
        progress.evaluated += out.n_evaluated
        self._record(1, value, error, self.n_rays, out.n_samples)
        self._adapt_rays(out.n_samples)

    def _fixed_step(self, fixed: FixedStep) -> None:
        """A step of which nothing is read back but every few steps, before anything is saved or reported."""
        if fixed.views is None:
            fixed.feed(*self._sample_rays(min(2 * self.n_rays, self.config.max_rays)))
        fixed.run()
        self._unread_steps += 1
        self.progress.step += 1
        if self.progress.step % self.config.occupancy_interval == 0:
            self._read_fixed(fixed)

    def _read_fixed(self, fixed: FixedStep) -> None:
        if self._unread_steps == 0:
            return
        loss, error, rays, samples, self.n_rays = fixed.read()
        n_steps, self._unread_steps = self._unread_steps, 0
        self._check_loss(loss)
        self.progress.step -= n_steps
        self.progress.evaluated += samples
        self._record(n_steps, loss / n_steps, error / n_steps, rays, samples)

    def _check_loss(self, value: float) -> None:
        if math.isfinite(value):
            return
        raise TrainingError(
            f"the loss is {value} at step {self.progress.step}; lower the learning rate ({self.config.learning_rate})"
            " or check the scene for broken poses or images"
        )

    def _images_fit(self) -> bool:
        """Whether the training images take less than half of the device's free memory."""
        if self.device.type != "cuda":
            return True
        return self.scene.train.data.numel() < torch.cuda.mem_get_info(self.device)[0] / 2

    def _update_occupancy(self) -> None:
        config, step = self.config, self.progress.step
        if step % config.occupancy_interval != 0:
            return
        share = self._occupancy_seconds / max(self.progress.seconds, 1e-9)
        if step >= config.occupancy_warmup_steps and share > config.occupancy_time_share:
            return
        begin = time.perf_counter()
        with torch.no_grad(), record_function(OCCUPANCY):
            cells = self.occupancy.choose_cells(
                step, config.seed, 0, config.occupancy_uniform, config.occupancy_occupied
            )
            values = self.model.cell_values(self.occupancy, cells, config.seed, step, self.marching.step_size)
            self.occupancy.raise_cells(cells, values)
        self._occupancy_seconds += time.perf_counter() - begin

    def _adapt_rays(self, n_samples: int) -> None:
        """The next batch aims at ``target_samples`` samples that count."""
        wanted = self.n_rays * self.config.target_samples / max(n_samples, 1)
        bounded = min(max(wanted, self.n_rays / 2), self.n_rays * 2, self.config.max_rays)
        self.n_rays = max(64, int(bounded) // 64 * 64)

    def _record(self, n_steps: int, loss: float, error: float, n_rays: int, n_samples: int) -> None:
        """Takes the mean loss and squared error of some steps, and their rays and samples, into ``progress``."""
        progress = self.progress
        keep = 0.0 if progress.step == 0 else 0.95**n_steps
        progress.loss = keep * progress.loss + (1 - keep) * loss
        psnr = -10 * math.log10(max(error, 1e-10))
        progress.psnr = keep * progress.psnr + (1 - keep) * psnr
        progress.step += n_steps
        progress.samples += n_samples
        progress.rays += n_rays
        progress.n_rays = self.n_rays
        self.tick()
        seconds, samples, rays = self._rate_mark
        if progress.seconds - seconds > 1.0:
            elapsed = progress.seconds - seconds
            progress.samples_per_second = (progress.samples - samples) / elapsed
            progress.rays_per_second = (progress.rays - rays) / elapsed
            self._rate_mark = (progress.seconds, progress.samples, progress.rays)
            self.curve.append({"seconds": progress.seconds, "step": progress.step, "train_psnr": progress.psnr})

    def train(self, on_step: Callable[[Progress], None] | None = None, checkpoint: Path | None = None) -> None:
        """Steps until the budget is spent; writes ``checkpoint`` every ``checkpoint_seconds``."""
        saved = self.progress.seconds
        while not self.finished:
            self.step()
            if on_step is not None:
                on_step(self.progress)
            if self.fixed is not None and self.finished:
                self._read_fixed(self.fixed)
            if checkpoint is not None and self.progress.seconds - saved > self.config.checkpoint_seconds:
                with record_function(CHECKPOINT):
                    self.save(checkpoint)
                saved = self.progress.seconds

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Everything a run needs to go on, in one file that is replaced atomically."""
        if self.fixed is not None:
            self._read_fixed(self.fixed)
        self.tick()
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"occupancy.{name}": value for name, value in self.occupancy.state_dict().items()}
        optimizer_meta = flatten_state(self.optimizer.state_dict(), "optimizer", tensors)
        metadata = {
            "format": CHECKPOINT_FORMAT,
            "config": self.config.to_dict(),
            "scene": str(self.scene.path),
            "placement": vars(self.scene.placement),
            "progress": vars(self.progress),
            "n_rays": self.n_rays,
            "occupancy_seconds": self._occupancy_seconds,
            "curve": self.curve,
            "optimizer": optimizer_meta,
        }
        save_checkpoint(path, tensors, metadata)

    def load(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Takes over the state that :meth:`save` wrote.

        Raises:
            ValueError: the checkpoint belongs to a field of another shape.
        """
        self.model.load_state_dict(_with_prefix(tensors, "model."))
        self.occupancy.load_state_dict(_with_prefix(tensors, "occupancy."))
        self.optimizer.load_state_dict(unflatten_state(metadata["optimizer"], tensors))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.progress = Progress(**metadata["progress"])
        self.n_rays = metadata["n_rays"]
        self._unread_steps = 0
        if self.fixed is not None:
            self.fixed.forget()
            self.fixed.step.fill_(self.progress.step)
            self.fixed.n_rays.fill_(self.n_rays)
        self.curve = metadata["curve"]
        self._occupancy_seconds = metadata["occupancy_seconds"]
        self._clock = time.perf_counter() - self.progress.seconds
        self._rate_mark = (self.progress.seconds, self.progress.samples, self.progress.rays)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a NeRF checkpoint.

    Raises:
        ValueError: the file is no checkpoint of this application.
    """
    tensors, metadata = load_checkpoint(path)
    if metadata.get("format") != CHECKPOINT_FORMAT:
        raise ValueError(f"`{path}` must be a {CHECKPOINT_FORMAT} checkpoint, got {metadata.get('format')!r}")
    return tensors, metadata


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def flatten_state(state: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Moves the tensors of a nested state into ``tensors``; returns the rest as JSON values that refer to them."""
    if isinstance(state, Tensor):
        tensors[name] = state
        return {"__tensor__": name}
    if isinstance(state, dict):
        items = [[key, flatten_state(value, f"{name}.{key}", tensors)] for key, value in state.items()]
        return {"__items__": items}
    if isinstance(state, (list, tuple)):
        return [flatten_state(value, f"{name}.{i}", tensors) for i, value in enumerate(state)]
    return state


def unflatten_state(state: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of :func:`flatten_state`; tuples come back as lists."""
    if isinstance(state, dict) and "__tensor__" in state:
        return tensors[state["__tensor__"]]
    if isinstance(state, dict):
        return {key: unflatten_state(value, tensors) for key, value in state["__items__"]}
    if isinstance(state, list):
        return [unflatten_state(value, tensors) for value in state]
    return state
