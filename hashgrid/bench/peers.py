"""Other libraries, each through its documented interface: tiny-cuda-nn and nerfacc on a GPU, nerfstudio, Dr.Jit.

Each function gives contenders that are built when they are first run, so that a library that is absent, or does not run
here, is reported with its reason and stops nobody. tcnn rounds to half precision inside: its results are compared by
root mean squares.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hashgrid.bench.harness import Contender
from hashgrid.levels import make_level_table

HALF_TOLERANCE = 2e-2  # of half-precision sums and gradients, root mean square

Run = Callable[[], Sequence[Tensor]]
MakeContender = Callable[..., Contender]


@dataclass
class Grid:
    """Sizes of a hash grid over the unit cube in tcnn's convention."""

    n_levels: int
    n_features_per_level: int
    log2_hashmap_size: int
    base_resolution: int
    max_resolution: int

    @property
    def per_level_scale(self) -> float:
        return (self.max_resolution / self.base_resolution) ** (1 / max(self.n_levels - 1, 1))

    def tcnn_config(self) -> dict[str, Any]:
        return {
            "otype": "HashGrid",
            "n_levels": self.n_levels,
            "n_features_per_level": self.n_features_per_level,
            "log2_hashmap_size": self.log2_hashmap_size,
            "base_resolution": self.base_resolution,
            "per_level_scale": self.per_level_scale,
            "interpolation": "Linear",
        }


def _late(name: str, build: Callable[[], tuple[Run, Run | None]], **options: Any) -> Contender:
    """A contender whose ``build`` gives (run, check), called when the first of them is."""
    built = functools.cache(build)

    def check() -> Sequence[Tensor]:
        run, check = built()
        return (check or run)()

    return Contender(name, lambda: built()[0](), check=check, peer=True, **options)


# ---- tiny-cuda-nn ----------------------------------------------------------------------------------------------------


def _tcnn(jit: bool) -> Any:
    import tinycudann

    if jit and not (hasattr(tinycudann, "supports_jit_fusion") and tinycudann.supports_jit_fusion()):
        raise RuntimeError("this tinycudann has no JIT fusion")
    return tinycudann


def _tcnn_run(module: Any, x: Tensor, grad_y: Tensor | None, inputs: Sequence[Tensor], results: Callable) -> Run:
    """Forward, or forward and the gradients of ``inputs``, which ``results`` brings into our form."""
    if grad_y is None:

        def forward() -> Sequence[Tensor]:
            with torch.no_grad():
                return (module(x),)

        return forward

    def forward_backward() -> Sequence[Tensor]:
        y = module(x)
        return results(torch.autograd.grad(y, inputs, grad_y.to(y.dtype)))

    return forward_backward


# name, JIT fusion, parameters already in half precision (so that no call casts them)
_TCNN_MODES = (("tcnn", False, False), ("tcnn, JIT", True, False), ("tcnn, JIT, no cast", True, True))


def _prepare(module: Any, params: Tensor, jit: bool, no_cast: bool) -> Any:
    module = module.to(params.device)
    if jit:
        module.jit_fusion = True
    if module.params.numel() != params.numel():
        raise RuntimeError(f"tcnn has {module.params.numel()} parameters here, not {params.numel()}")
    module.params = torch.nn.Parameter(params.detach().clone().to(module.dtype if no_cast else torch.float32))
    return module


def hash_encoders(grid: Grid) -> dict[str, MakeContender]:
    """Functions of (positions, table, grad_y or None) by name."""

    def tcnn(name: str, jit: bool, no_cast: bool, dtype: torch.dtype) -> MakeContender:
        def make(positions: Tensor, table: Tensor, grad_y: Tensor | None) -> Contender:
            def build() -> tuple[Run, None]:
                module = _tcnn(jit).Encoding(3, grid.tcnn_config(), dtype=dtype)
                module = _prepare(module, table.flatten(), jit, no_cast)
                g = None if grad_y is None else grad_y.to(dtype)
                shaped = lambda grads: (grads[0].view_as(table),)  # noqa: E731
                return _tcnn_run(module, positions, g, [module.params], shaped), None

            return _late(name, build, rms_tolerance=HALF_TOLERANCE)

        return make

    def drjit(positions: Tensor, table: Tensor, grad_y: Tensor | None) -> Contender:
        return _late("Dr.Jit", lambda: _drjit_hash_grid(grid, positions, table, grad_y), rms_tolerance=1e-3)

    makers = {name: tcnn(name, jit, cast, torch.float16) for name, jit, cast in _TCNN_MODES}
    makers["tcnn, fp32"] = tcnn("tcnn, fp32", False, False, torch.float32)
    return makers | {"Dr.Jit": drjit}


def cpu_hash_encoders(grid: Grid) -> dict[str, MakeContender]:
    """Those that run on a CPU and can be imported: Dr.Jit's LLVM back end, nerfstudio's PyTorch encoding."""
    makers: dict[str, MakeContender] = {}
    if importlib.util.find_spec("drjit") is not None:
        makers["Dr.Jit"] = hash_encoders(grid)["Dr.Jit"]
    if importlib.util.find_spec("nerfstudio") is not None:
        makers["nerfstudio, torch"] = functools.partial(_nerfstudio_hash_grid, grid)
    return makers


def _nerfstudio_hash_grid(grid: Grid, positions: Tensor, table: Tensor, grad_y: Tensor | None) -> Contender:
    """``HashEncoding(implementation="torch")``: every level is hashed, so that its values are others than ours."""

    def build() -> tuple[Run, Run]:
        from nerfstudio.field_components.encodings import HashEncoding

        encoding = HashEncoding(
            num_levels=grid.n_levels,
            min_res=grid.base_resolution,
            max_res=grid.max_resolution,
            log2_hashmap_size=grid.log2_hashmap_size,
            features_per_level=grid.n_features_per_level,
            implementation="torch",
        )

        def run() -> Sequence[Tensor]:
            if grad_y is None:
                with torch.no_grad():
                    return (encoding(positions),)
            return torch.autograd.grad(encoding(positions), encoding.hash_table, grad_y)

        def check() -> Sequence[Tensor]:
            run()
            return ()

        return run, check

    return _late("nerfstudio, torch", build, project=lambda _: ())


def mlps(weights: Sequence[Tensor], x: Tensor, grad_y: Tensor | None) -> list[Contender]:
    """Bias-free ReLU networks of one hidden width; tcnn stores the layers' [out, in] matrices one after the other."""

    def contender(name: str, jit: bool, no_cast: bool) -> Contender:
        def build() -> tuple[Run, None]:
            module = _tcnn(jit).Network(weights[0].shape[1], weights[-1].shape[0], _network_config(weights))
            module = _prepare(module, torch.cat([w.detach().flatten() for w in weights]), jit, no_cast)
            leaf = x.detach().clone().requires_grad_()

            def results(grads: Sequence[Tensor]) -> Sequence[Tensor]:
                parts = grads[1].split([w.numel() for w in weights])
                return (grads[0], *(part.view_as(w) for part, w in zip(parts, weights, strict=True)))

            g = None if grad_y is None else grad_y.half()
            return _tcnn_run(module, leaf, g, [leaf, module.params], results), None

        return _late(name, build)

    return [contender(*mode) for mode in _TCNN_MODES]


def networks_with_input_encoding(
    grid: Grid, positions: Tensor, table: Tensor, weights: Sequence[Tensor]
) -> list[Contender]:
    """A hash grid and a bias-free ReLU network behind it, forward; tcnn stores the network first."""

    def contender(name: str, jit: bool, no_cast: bool) -> Contender:
        def build() -> tuple[Run, None]:
            module = _tcnn(jit).NetworkWithInputEncoding(
                3, weights[-1].shape[0], grid.tcnn_config(), _network_config(weights)
            )
            params = torch.cat([*(w.detach().flatten() for w in weights), table.flatten()])
            return _tcnn_run(_prepare(module, params, jit, no_cast), positions, None, [], tuple), None

        return _late(name, build, rms_tolerance=HALF_TOLERANCE)

    return [contender(*mode) for mode in _TCNN_MODES]


def _network_config(weights: Sequence[Tensor]) -> dict[str, Any]:
    return {
        "otype": "FullyFusedMLP",
        "activation": "ReLU",
        "output_activation": "None",
        "n_neurons": weights[0].shape[0],
        "n_hidden_layers": len(weights) - 1,
    }


def _encoders(config: dict[str, Any], to_input: Callable[[Tensor], Tensor], slope: float) -> dict[str, MakeContender]:
    """Encodings without parameters; their input is ``to_input`` of ours, whose gradient is ``slope`` times theirs."""

    def maker(name: str, jit: bool) -> MakeContender:
        def make(x: Tensor, grad_y: Tensor | None) -> Contender:
            def build() -> tuple[Run, None]:
                module = _tcnn(jit).Encoding(3, config).to(x.device)
                if jit:
                    module.jit_fusion = True
                leaf = to_input(x).clone().requires_grad_()
                scaled = lambda grads: (grads[0] * slope,) if slope != 1 else grads  # noqa: E731
                return _tcnn_run(module, leaf, grad_y, [leaf], scaled), None

            return _late(name, build, rms_tolerance=HALF_TOLERANCE)

        return make

    return {name: maker(name, jit) for name, jit, cast in _TCNN_MODES if not cast}


def sh_encoders(degree: int) -> dict[str, MakeContender]:
    """tcnn takes directions in [0, 1] and maps them to 2 x - 1."""
    return _encoders({"otype": "SphericalHarmonics", "degree": degree}, lambda x: (x + 1) / 2, 0.5)


def frequency_encoders(n_frequencies: int) -> dict[str, MakeContender]:
    return _encoders({"otype": "Frequency", "n_frequencies": n_frequencies}, lambda x: x, 1.0)


# ---- Dr.Jit ----------------------------------------------------------------------------------------------------------


def _drjit_hash_grid(grid: Grid, positions: Tensor, table: Tensor, grad_y: Tensor | None) -> tuple[Run, Run]:
    """Evaluated and waited for in each call: Dr.Jit works on a stream of its own."""
    import drjit
    from drjit.hashgrid import HashGridEncoding

    if positions.is_cuda:
        from drjit.cuda.ad import ArrayXf, Float
    else:
        from drjit.llvm.ad import ArrayXf, Float
    encoding = HashGridEncoding(
        Float,
        3,
        n_levels=grid.n_levels,
        n_features_per_level=grid.n_features_per_level,
        hashmap_size=1 << grid.log2_hashmap_size,
        base_resolution=grid.base_resolution,
        per_level_scale=grid.per_level_scale,
    )
    # Its levels are rounded up to F entries where ours are to 8: it gets the rows in front of that.
    levels = make_level_table(3, grid.n_levels, grid.log2_hashmap_size, grid.base_resolution, grid.max_resolution)
    ends = [encoding.level_offset(level) for level in range(grid.n_levels + 1)]
    rows = torch.cat([
        torch.arange(offset, offset + end - begin)
        for offset, begin, end in zip(levels.offsets, ends[:-1], ends[1:], strict=True)
    ]).to(table.device)  # fmt: skip
    encoding.set_params(Float(table.detach()[rows].flatten()))
    points = ArrayXf([Float(column) for column in positions.t().contiguous()])
    if grad_y is not None:
        cotangents = ArrayXf([Float(column) for column in grad_y.t().contiguous()])
        drjit.eval(cotangents)
    drjit.eval(points, encoding.params)

    def forward() -> Any:
        y = encoding(points)
        drjit.eval(y)
        drjit.sync_thread()
        return y

    def forward_backward() -> Any:
        drjit.enable_grad(encoding.params)
        drjit.clear_grad(encoding.params)
        drjit.backward(drjit.sum(encoding(points) * cotangents, axis=None))
        gradient = drjit.grad(encoding.params)
        drjit.eval(gradient)
        drjit.sync_thread()
        return gradient

    work = forward if grad_y is None else forward_backward

    def run() -> Sequence[Tensor]:
        work()
        return ()

    def check() -> Sequence[Tensor]:
        if grad_y is None:
            return (torch.stack([row.torch() for row in forward()], dim=1),)
        gradient = torch.zeros_like(table)
        gradient[rows] = forward_backward().torch().view(-1, table.shape[1])
        return (gradient,)

    return run, check


# ---- nerfacc ---------------------------------------------------------------------------------------------------------


def nerfacc_composite(samples: Sequence[Tensor], backward: bool) -> Contender:
    """``nerfacc.rendering``: colours, opacities and depths; it has no early stop, hence the tolerance."""

    def build() -> tuple[Run, None]:
        import nerfacc

        sigmas, colors, t_starts, t_ends, packed_info = samples
        n_rays = packed_info.shape[0]
        rays = torch.arange(n_rays, device=sigmas.device).repeat_interleave(packed_info[:, 1])
        leaves = sigmas.clone().requires_grad_(), colors.clone().requires_grad_()

        def render(sigmas: Tensor, colors: Tensor) -> Sequence[Tensor]:
            rendered = nerfacc.rendering(
                t_starts,
                t_ends,
                ray_indices=rays,
                n_rays=n_rays,
                rgb_sigma_fn=lambda *_: (colors, sigmas),
                expected_depths=False,
            )
            return rendered[0], rendered[1].squeeze(-1), rendered[2].squeeze(-1)

        def forward() -> Sequence[Tensor]:
            with torch.no_grad():
                return render(sigmas, colors)

        def forward_backward() -> Sequence[Tensor]:
            outputs = render(*leaves)
            return torch.autograd.grad(outputs, leaves, [torch.ones_like(y) for y in outputs])

        return forward_backward if backward else forward, None

    return _late("nerfacc", build, rms_tolerance=1e-2)


def nerfacc_march(rays_o: Tensor, rays_d: Tensor, aabb: Tensor, occupied: Tensor, step: float) -> Contender:
    """``OccGridEstimator.sampling``; its samples lie elsewhere, so that only their total length is compared."""

    def build() -> tuple[Run, Run]:
        import nerfacc

        estimator = nerfacc.OccGridEstimator(aabb, resolution=list(occupied.shape), levels=1).to(rays_o.device)
        estimator.binaries = occupied.unsqueeze(0).clone()

        def run() -> Sequence[Tensor]:
            return estimator.sampling(rays_o, rays_d, render_step_size=step, stratified=False)

        def check() -> Sequence[Tensor]:
            _, t_starts, t_ends = run()
            return ((t_ends - t_starts).sum(),)

        return run, check

    return _late("nerfacc", build, project=lambda truth: ((truth[1] - truth[0]).sum(),), rms_tolerance=0.05)


# ---- nerfacc and tcnn: a whole step ----------------------------------------------------------------------------------


class NerfaccTrainer:
    """The training step of nerfacc's Instant-NGP example: its grid and renderer, tcnn's field, PyTorch's Adam.

    Args:
        scene: of :func:`hashgrid.data.scene.load_scene`, one cascade.
        config: sizes of the field and of the batch.
        batch: gives rays and colours of a step: rays_o, rays_d, colours, backgrounds, for a number of rays.
        jit: tcnn's JIT fusion.
    """

    def __init__(self, scene: Any, config: Any, batch: Callable[[int], Sequence[Tensor]], device: torch.device,
                 jit: bool) -> None:  # fmt: skip
        import nerfacc

        tcnn = _tcnn(jit)
        self.nerfacc, self.config, self.batch = nerfacc, config, batch
        self.aabb = scene.aabb.to(device).float()
        extent = float((self.aabb[3:] - self.aabb[:3]).max())
        self.step_size = extent * 3**0.5 / config.sampling.steps_per_diagonal
        self.estimator = nerfacc.OccGridEstimator(self.aabb, resolution=config.sampling.occupancy_resolution, levels=1)
        self.estimator = self.estimator.to(device)
        sizes = config.field
        grid = Grid(sizes.n_levels, sizes.n_features_per_level, sizes.log2_hashmap_size, sizes.base_resolution,
                    sizes.max_resolution)  # fmt: skip

        def network(n_hidden_layers: int, output: str) -> dict[str, Any]:
            return {
                "otype": "FullyFusedMLP",
                "activation": "ReLU",
                "output_activation": output,
                "n_neurons": sizes.n_neurons,
                "n_hidden_layers": n_hidden_layers,
            }

        n_features = sizes.n_geometry_features
        self.field = tcnn.NetworkWithInputEncoding(3, n_features, grid.tcnn_config(), network(1, "None")).to(device)
        self.directions = tcnn.Encoding(3, {"otype": "SphericalHarmonics", "degree": sizes.sh_degree}).to(device)
        n_inputs = n_features + sizes.sh_degree**2
        self.color = tcnn.Network(n_inputs, 3, network(2, "Sigmoid")).to(device)
        for module in (self.field, self.directions, self.color):
            if jit:
                module.jit_fusion = True
        params = [*self.field.parameters(), *self.color.parameters()]
        self.optimizer = torch.optim.Adam(params, lr=1e-2, betas=(0.9, 0.99), eps=1e-15, fused=True)
        self.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
        self.n_rays, self.rays_of_step, self.steps = min(1024, config.max_rays), 0, 0

    def geometry(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        unit = (positions - self.aabb[:3]) / (self.aabb[3:] - self.aabb[:3])
        features = self.field(unit)
        return features[:, 0].float().clamp(max=15).exp(), features

    def update_occupancy(self) -> None:
        self.estimator.update_every_n_steps(
            step=self.steps, occ_eval_fn=lambda x: self.geometry(x)[0][:, None] * self.step_size, occ_thre=1e-2
        )

    def step(self) -> None:
        rays_o, rays_d, colors, background = self.batch(self.n_rays)
        self.rays_of_step, self.steps = self.n_rays, self.steps + 1

        def positions(t_starts: Tensor, t_ends: Tensor, rays: Tensor) -> Tensor:
            return rays_o[rays] + rays_d[rays] * ((t_starts + t_ends) / 2)[:, None]

        def density(t_starts: Tensor, t_ends: Tensor, rays: Tensor) -> Tensor:
            return self.geometry(positions(t_starts, t_ends, rays))[0]

        def color_density(t_starts: Tensor, t_ends: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
            sigmas, features = self.geometry(positions(t_starts, t_ends, rays))
            harmonics = self.directions((rays_d[rays] + 1) / 2)
            return self.color(torch.cat((features, harmonics), dim=1)).float(), sigmas

        rays, t_starts, t_ends = self.estimator.sampling(
            rays_o, rays_d, sigma_fn=density, render_step_size=self.step_size, stratified=True,
            early_stop_eps=self.config.sampling.early_stop_eps,
        )  # fmt: skip
        if len(rays) == 0:
            return
        rendered = self.nerfacc.rendering(
            t_starts, t_ends, ray_indices=rays, n_rays=self.n_rays, rgb_sigma_fn=color_density
        )
        prediction = rendered[0] + (1 - rendered[1]) * background
        loss = torch.nn.functional.huber_loss(prediction, colors, delta=self.config.huber_delta)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        wanted = self.n_rays * self.config.target_samples / len(rays)
        self.n_rays = max(64, int(min(wanted, 2 * self.n_rays, self.config.max_rays)) // 64 * 64)


def nerfacc_steps(make: Callable[[bool], NerfaccTrainer], warm_steps: int) -> list[Contender]:
    """Trained for ``warm_steps`` before they are timed. Another field than ours: nothing is compared but the work."""

    def contender(name: str, jit: bool) -> Contender:
        trainers: list[NerfaccTrainer] = []

        def build() -> tuple[Run, Run]:
            trainer = make(jit)
            trainers.append(trainer)

            def run() -> Sequence[Tensor]:
                trainer.step()
                return ()

            def warm() -> Sequence[Tensor]:
                for _ in range(warm_steps):
                    trainer.update_occupancy()
                    trainer.step()
                return ()

            return run, warm

        return _late(name, build, points=lambda: trainers[0].rays_of_step, project=lambda _: ())

    return [contender("nerfacc + tcnn", False), contender("nerfacc + tcnn, JIT", True)]
