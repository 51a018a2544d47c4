"""A training step of fixed size, for GPUs: nothing in it waits for the host, so that a CUDA graph can replay it."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid.data.scene import Views
from hashgrid.fields.ngp import NerfModel
from hashgrid.nerf.config import NerfConfig
from hashgrid.nn import OccupancyGrid
from hashgrid.ops._backend import ngp_ops
from hashgrid.optim import Adam
from hashgrid.rendering.volume import Marching, composite_samples

# Of the samples there is room for, what the number of rays aims at: the rest takes the variation from step to step.
FILL = 0.9
# Steps before the one that is recorded: they allocate what stays, gradients and the optimiser's state.
N_EAGER = 3


class FixedStep:
    """Steps of exactly ``config.target_samples`` samples.

    Whatever changes from step to step, the number of rays included, lives in tensors on the model's device, and random
    numbers are a function of (seed, step, ray). All samples of a ray are computed, those behind surfaces too.

    Args:
        model, occupancy, optimizer: what is trained; the optimiser zeroes gradients itself (``zero_grad_in_step``), and
            its learning rate is a tensor on the device.
        views: the images; on the device, or anywhere else if :meth:`feed` brings the rays.
        marching: how rays are cut into samples.
        config: sizes.

    Attributes:
        step: int64 [1], steps taken.
        n_rays: int64 [1], rays of the next step.
    """

    def __init__(
        self,
        model: NerfModel,
        occupancy: OccupancyGrid,
        optimizer: Adam,
        views: Views,
        marching: Marching,
        config: NerfConfig,
    ) -> None:
        self.model, self.occupancy, self.optimizer = model, occupancy, optimizer
        self.marching, self.config = marching, config
        self.device = model.aabb.device
        self.views = views if views.data.device == self.device else None
        self.seed = torch.tensor([config.seed], device=self.device)
        self.step = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.n_rays = torch.full((1,), min(1024, config.max_rays), dtype=torch.int64, device=self.device)
        # loss, squared error, rays and samples in all steps since they were last read
        self.sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        self.fed = (
            [torch.zeros(config.max_rays, n, device=self.device) for n in (3, 3, 4, 3)] if self.views is None else []
        )
        self.n_fed = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._n_eager = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream: torch.cuda.Stream | None = None
        self._grad: Tensor | None = None  # which the graph adds to

    def run(self) -> None:
        """One step. On a GPU the first few run as they are, the next one is recorded, and replayed from then on."""
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

    def forget(self) -> None:
        """To be called when the optimiser's state has become other tensors: the next steps run as they are, and are
        then recorded anew. What was not read is lost."""
        self._drop_graph()
        self.sums.zero_()

    def _drop_graph(self) -> None:
        self._graph, self._grad, self._n_eager = None, None, 0

    def feed(self, *batch: Tensor) -> None:
        """Replaces the rays of the next step, for images that do not fit on the device: what :meth:`Views.sample_rays`
        gives. The step takes no more than these."""
        for target, source in zip(self.fed, batch, strict=True):
            target[: len(source)].copy_(source, non_blocking=True)
        self.n_fed.fill_(len(batch[0]))

    def read(self) -> tuple[float, float, int, int, int]:
        """Loss and squared error, summed over the steps since the last call, the rays and samples of these steps, and
        the rays of the next one. Waits for the device."""
        loss, error, rays, samples, n_rays = torch.cat((self.sums, self.n_rays.double())).tolist()
        self.sums.zero_()
        return loss, error, int(rays), int(samples), int(n_rays)

    def batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Origins, directions, colours [max_rays, 3] and their backgrounds [max_rays, 3]."""
        config = self.config
        rays_o, rays_d, rgba, background = (
            self.fed
            if self.views is None
            else self.views.sample_rays(config.max_rays, self.seed, self.step, config.backend)
        )
        return rays_o, rays_d, torch.lerp(background, rgba[:, :3], rgba[:, 3:]), background

    def _step(self) -> None:
        config, model, marching = self.config, self.model, self.marching
        rays_o, rays_d, target, background = self.batch()
        if self.views is None:
            torch.minimum(self.n_rays, self.n_fed, out=self.n_rays)
        samples, totals = self.occupancy.march_fixed(
            rays_o,
            rays_d,
            config.target_samples,
            self.n_rays,
            step_size=marching.step_size,
            cone_angle=marching.cone_angle,
            near=marching.near,
            seed=self.seed,
            step=self.step,
        )
        # rays into the unit cube, not samples: they are a quarter as many, or less
        unit = samples.positions(model.unit(rays_o), model.unit_direction(rays_d))
        sigmas, colors = model.radiance(model.grid(unit), model.directions(rays_d), samples.ray_indices)
        colors, opacities, _ = composite_samples(sigmas, colors, samples, marching, None)
        loss, means = ngp_ops(config.backend).pixel_loss(
            colors, opacities, background, target, config.huber_delta, totals[1:]
        )
        model.drop_network_gradients()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.sums[:2].add_(means)
            self.sums[2:].add_(torch.stack((totals[1], samples.packed_info[-1].sum())))
            self._adapt(totals[0])
            self.step += 1

    def _adapt(self, n_wanted: Tensor) -> None:
        """As many rays for the next step as should fill it."""
        wanted = self.n_rays * (FILL * self.config.target_samples) / n_wanted.clamp(min=1)
        bounded = wanted.clamp(self.n_rays / 2, self.n_rays * 2)
        self.n_rays.copy_(bounded.clamp_(min(64, self.config.max_rays), self.config.max_rays))
