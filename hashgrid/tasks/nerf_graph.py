"""Steps of fixed size, for GPUs: nothing in them waits for the host, so that a CUDA graph can replay them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hashgrid.fields.ngp import Ngp
from hashgrid.geometry.rays import At, Rays
from hashgrid.ops._backend import ngp_ops
from hashgrid.optim import Adam
from hashgrid.rendering.composite import composite
from hashgrid.rendering.samplers import OccupancySampler, calmed
from hashgrid.train import ranks
from hashgrid.train.task import Progress, Step, Stepper

if TYPE_CHECKING:
    from hashgrid.tasks.nerf import Nerf

# Of the samples there is room for, what the number of rays aims at: the rest takes the variation from step to step.
FILL = 0.9
# Steps before the one that is recorded: they allocate what stays, gradients and the optimiser's state.
N_EAGER = 3


class FixedStep(Stepper):
    """Steps of exactly ``config.target_samples`` samples.

    Whatever changes from step to step, the number of rays included, lives in tensors on the model's device, and random
    numbers are a function of (seed, step, ray). All samples of a ray are computed, those behind surfaces too.

    Args:
        task: what is trained: a hash grid, in an occupancy grid.
        optimizer: zeroes gradients itself (``zero_grad_in_step``); its learning rate is a tensor on the device.

    Attributes:
        step: int64 [1], steps taken.
        n_rays: int64 [1], rays of the next step.
    """

    task: Nerf

    def __init__(self, task: Nerf, optimizer: Adam) -> None:
        if not isinstance(task.model, Ngp) or not isinstance(task.sampler, OccupancySampler):
            raise ValueError(
                f"`fixed_size` must be off for the field {task.config.field.name!r}: its steps vary in size;"
                " choose `--no-fixed-size`"
            )
        if ranks.size() > 1:
            raise ValueError("`fixed_size` must be off in several processes; choose `--no-fixed-size`")
        config = task.config
        super().__init__(task, optimizer)
        self.config, self.model, self.sampler = config, task.model, task.sampler
        self.read_every = config.sampling.occupancy_interval
        self.device = task.device
        self.views = task.views if task.views.data.device == self.device else None
        self.seed = torch.tensor([config.seed], device=self.device)
        self.step = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.n_rays = task.n_rays.to(self.device, copy=True)
        # loss, squared error, rays and samples in all steps since they were last read
        self.sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        widths = (3, 3, 4, 3) if self.views is None else ()
        self.fed = [torch.zeros(config.max_rays, width, device=self.device) for width in widths]
        self.n_fed = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._n_eager = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream: torch.cuda.Stream | None = None
        self._grad: Tensor | None = None  # which the graph adds to

    def run(self, progress: Progress) -> None:
        """One step. On a GPU the first few run as they are, the next one is recorded, and replayed from then on."""
        if self.views is None:
            self._feed(progress.step)
        if self._graph is not None and self.model.grid.table.grad is not self._grad:
            self._drop_graph()
        if self._graph is not None:
            return self._graph.replay()
        if self.device.type != "cuda" or not self.config.cuda_graph or self.config.backend != "native":
            return self._step()
        with torch.cuda.device(self.device):
            if self._stream is None:
                self._stream = torch.cuda.Stream(self.device)
            if self._n_eager < N_EAGER:  # recording wants them on a stream of their own
                self._stream.wait_stream(torch.cuda.current_stream(self.device))
                with torch.cuda.stream(self._stream):
                    self._step()
                torch.cuda.current_stream(self.device).wait_stream(self._stream)
                self._n_eager += 1
                return
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream):
                self._step()
        self._graph, self._grad = graph, self.model.grid.table.grad
        graph.replay()

    def forget(self, progress: Progress) -> None:
        """To be called when the optimiser's state has become other tensors: the next steps run as they are, and are
        then recorded anew. What was not read is lost."""
        self._drop_graph()
        self.sums.zero_()
        self.step.fill_(progress.step)
        self.n_rays.copy_(self.task.n_rays)

    def _drop_graph(self) -> None:
        self._graph, self._grad, self._n_eager = None, None, 0

    def _feed(self, step: int) -> None:
        """Replaces the rays of the next step, for images that do not fit on the device. It takes no more than these."""
        n = min(2 * int(self.task.n_rays), self.config.max_rays)
        rays, *colors = self.task.views.sample_rays(n, self.config.seed, step, self.config.backend)
        for target, source in zip(self.fed, (rays.origins, rays.directions, *colors), strict=True):
            target[:n].copy_(source, non_blocking=True)
        self.n_fed.fill_(n)

    def read(self) -> Step:
        """Sums over the steps since the last call. Waits for the device."""
        loss, error, rays, samples, n_rays = torch.cat((self.sums, self.n_rays.double())).tolist()
        self.sums.zero_()
        self.task.n_rays.fill_(int(n_rays))
        counts = {"samples": int(samples), "samples_evaluated": int(samples), "rays": int(rays)}
        return Step(loss, {"mse": error}, counts)

    def batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Origins, directions, colours [max_rays, 3] and their backgrounds [max_rays, 3]."""
        config = self.config
        if self.views is None:
            rays_o, rays_d, rgba, background = self.fed
        else:
            rays, rgba, background = self.views.sample_rays(config.max_rays, self.seed, self.step, config.backend)
            rays_o, rays_d = rays.origins, rays.directions
        return rays_o, rays_d, torch.lerp(background, rgba[:, :3], rgba[:, 3:]), background

    def _step(self) -> None:
        config, model = self.config, self.model
        rays_o, rays_d, target, background = self.batch()
        if self.views is None:
            torch.minimum(self.n_rays, self.n_fed, out=self.n_rays)
        samples, totals = self.sampler.grid.march_fixed(
            rays_o,
            rays_d,
            config.target_samples,
            self.n_rays,
            **self.sampler.march_arguments(),
            seed=self.seed,
            step=self.step,
        )
        # rays into the unit cube, not samples: they are a quarter as many, or less
        unit = model.inside(samples.positions(model.unit(rays_o), model.unit_direction(rays_d)))
        radiance = model.radiance(At(Rays(rays_o, rays_d), unit, samples.ray_indices))
        sigmas, colors = calmed(model, samples, *radiance)
        colors, opacities, *_ = composite(sigmas, colors, samples, early_stop_eps=self.sampler.early_stop_eps)
        loss, means = ngp_ops(config.backend).pixel_loss(
            colors, opacities, background, target, config.huber_delta, totals[1:]
        )
        self.drop_small_gradients()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.sums[:2].add_(means)
            self.sums[2:].add_(torch.stack((totals[1], samples.packed_info[-1].sum())))
            # as many rays for the next step as should fill it
            wanted = self.n_rays * (FILL * config.target_samples) / totals[0].clamp(min=1)
            bounded = wanted.clamp(self.n_rays / 2, self.n_rays * 2)
            self.n_rays.copy_(bounded.clamp_(min(64, config.max_rays), config.max_rays))
            self.step += 1
