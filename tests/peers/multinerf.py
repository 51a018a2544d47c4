"""hashgrid's functions in the place of multinerf's, for multinerf's own tests, which are written for JAX.

A function of ours is called through ``jax.pure_callback``, its gradient is PyTorch's. What hashgrid has not stays
multinerf's: :data:`CALLS` tells which test used one of ours.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor

from hashgrid import ops
from hashgrid.geometry import contraction, frustums
from hashgrid.nn import Frequency
from hashgrid.nn.encodings import IntegratedFrequency
from hashgrid.rendering import ray_losses, samplers

CALLS: set[str] = set()  # of our functions, by multinerf's names


def _tensors(arrays: Any, grad: bool = False) -> list[Tensor]:
    return [torch.tensor(np.asarray(x, np.float32), requires_grad=grad) for x in arrays]


def bridged(fn: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Any]:
    """A function of tensors as a function of JAX's arrays, with its gradient."""

    def run(*arrays: Any) -> tuple[np.ndarray, ...]:
        with torch.no_grad():
            return tuple(y.numpy() for y in fn(*_tensors(arrays)))

    def run_back(arrays: Any, gradients: Any) -> tuple[np.ndarray, ...]:
        inputs = _tensors(arrays, grad=True)
        outputs = fn(*inputs)
        pairs = [(y, g) for y, g in zip(outputs, _tensors(gradients), strict=True) if y.requires_grad]
        found = torch.autograd.grad([y for y, _ in pairs], inputs, [g for _, g in pairs], allow_unused=True)
        return tuple(
            (torch.zeros_like(x) if g is None else g).detach().numpy() for x, g in zip(inputs, found, strict=True)
        )

    @jax.custom_vjp
    def call(*arrays: Any) -> Any:
        zeros = run(*(np.zeros(x.shape, np.float32) for x in arrays))
        shapes = tuple(jax.ShapeDtypeStruct(y.shape, y.dtype) for y in zeros)
        return jax.pure_callback(run, shapes, *arrays, vmap_method="sequential")

    def back(arrays: Any, gradients: Any) -> Any:
        shapes = tuple(jax.ShapeDtypeStruct(x.shape, np.float32) for x in arrays)
        return jax.pure_callback(run_back, shapes, arrays, gradients, vmap_method="sequential")

    call.defvjp(lambda *arrays: (call(*arrays), arrays), back)
    return lambda *arrays: call(*(jnp.asarray(x, jnp.float32) for x in arrays))


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


@bridged
def contract(x: Tensor) -> tuple[Tensor, ...]:
    return (contraction.contract(x),)


@bridged
def expand(z: Tensor) -> tuple[Tensor, ...]:
    return (contraction.expand(z),)


def _in_their_order(encoded: Tensor, n_dims: int) -> Tensor:
    """[..., D * K * 2] to [..., 2 * K * D]: all sines before all cosines, dimensions of a frequency together."""
    return encoded.unflatten(-1, (n_dims, -1, 2)).movedim((-1, -2, -3), (-3, -2, -1)).flatten(-3)


def pos_enc(x: Any, min_deg: int, max_deg: int, append_identity: bool = True) -> Any:
    @bridged
    def encode(x: Tensor) -> tuple[Tensor, ...]:
        encoding = Frequency(x.shape[-1], max_deg - min_deg, pi=False)
        return (_in_their_order(encoding(x * 2.0**min_deg), x.shape[-1]),)

    y = encode(x)[0]
    return jnp.concatenate((x, y), axis=-1) if append_identity else y


def integrated_pos_enc(mean: Any, var: Any, min_deg: int, max_deg: int) -> Any:
    @bridged
    def encode(mean: Tensor, var: Tensor) -> tuple[Tensor, ...]:
        encoding = IntegratedFrequency(mean.shape[-1], max_deg - min_deg)
        encoded = encoding(mean * 2.0**min_deg, variances=var * 4.0**min_deg)
        return (_in_their_order(encoded, mean.shape[-1]),)

    return encode(mean, var)[0]


@bridged
def expected_sin(mean: Tensor, var: Tensor) -> tuple[Tensor, ...]:
    return (IntegratedFrequency(1, 1)(mean[..., None], variances=var[..., None])[..., 0],)


@bridged
def outer_measure(t0: Tensor, t1: Tensor, y1: Tensor) -> tuple[Tensor, ...]:
    return (ray_losses.outer_bound(_rows(t0), _rows(t1), _rows(y1)).reshape(*t0.shape[:-1], -1),)


@bridged
def distortion(t: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    return (ray_losses.distortion(_rows(t), _rows(w)).reshape(t.shape[:-1]),)


@bridged
def interlevel(t: Tensor, w: Tensor, t_env: Tensor, w_env: Tensor) -> tuple[Tensor, ...]:
    """Of each interval by itself: the others weigh nothing."""
    n, single = w.shape[-1], torch.diag_embed(_rows(w))  # [R, n, n]
    again = [x.repeat_interleave(n, 0) for x in map(_rows, (t, t_env, w_env))]
    return (ray_losses.interlevel(again[0], single.reshape(-1, n), *again[1:]).reshape(w.shape),)


@bridged
def _places(t: Tensor, w: Tensor, shares: Tensor) -> tuple[Tensor, ...]:
    return (samplers.draw(_rows(t), _rows(w), _rows(shares)).reshape(shares.shape),)


def invert_cdf(u: Any, t: Any, w_logits: Any, use_gpu_resampling: bool = False) -> Any:
    return _places(t, jax.nn.softmax(w_logits, axis=-1), jnp.broadcast_to(u, (*t.shape[:-1], u.shape[-1])))[0]


def weighted_percentile(t: Any, w: Any, ps: Any) -> Any:
    shares = jnp.broadcast_to(jnp.asarray(ps) / 100, (*t.shape[:-1], len(ps)))
    return _places(t, w, shares)[0]


def conical_frustum_to_gaussian(d: Any, t0: Any, t1: Any, base_radius: Any, diag: bool, stable: bool = True) -> Any:
    if not stable:
        return THEIRS["render", "conical_frustum_to_gaussian"](d, t0, t1, base_radius, diag, stable)

    @bridged
    def convert(d: Tensor, t0: Tensor, t1: Tensor, radii: Tensor) -> tuple[Tensor, ...]:
        length = d.norm(dim=-1, keepdim=True)  # of a ray, [..., 1]; ours are of length 1
        t0, t1, radii = torch.broadcast_tensors(t0, t1, radii / length)
        radii = radii.reshape(-1)
        of_samples = (d / length)[..., None, :].expand(*t0.shape, 3).reshape(-1, 3)
        gaussians = frustums.conical_frustums((t0 * length).reshape(-1), (t1 * length).reshape(-1), radii)
        spread = (frustums.diagonals if diag else frustums.covariances)(gaussians, of_samples)
        means = gaussians.t[:, None] * of_samples
        return means.reshape(*t0.shape, 3), spread.reshape(*t0.shape, *spread.shape[1:])

    return convert(d, t0, t1, base_radius)


@bridged
def _absorbed(density: Tensor, tdist: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
    n_rays, n = density.shape
    tdist = tdist * lengths
    info = torch.stack((torch.arange(n_rays) * n, torch.full((n_rays,), n)), dim=1)
    edges = tdist[:, :-1].reshape(-1), tdist[:, 1:].reshape(-1)
    none = density.new_zeros(n_rays * n, 0)
    _, _, _, weights, _, before = ops.composite(
        density.reshape(-1), none, *edges, info, early_stop_eps=0.0, return_transmittances=True
    )
    return weights.view(n_rays, n), before.view(n_rays, n)


def compute_alpha_weights(density: Any, tdist: Any, dirs: Any, opaque_background: bool = False) -> Any:
    theirs = THEIRS["render", "compute_alpha_weights"](density, tdist, dirs, opaque_background)
    if opaque_background:
        return theirs
    weights, before = _absorbed(density, tdist, jnp.linalg.norm(dirs, axis=-1, keepdims=True))
    return weights, theirs[1], before


def inner_outer(t0: Any, t1: Any, y1: Any) -> Any:
    return THEIRS["stepfun", "inner_outer"](t0, t1, y1)[0], outer_measure(t0, t1, y1)[0]


OURS: dict[tuple[str, str], Callable[..., Any]] = {
    ("coord", "contract"): lambda x: contract(x)[0],
    ("coord", "inv_contract"): lambda z: expand(z)[0],
    ("coord", "pos_enc"): pos_enc,
    ("coord", "integrated_pos_enc"): integrated_pos_enc,
    ("coord", "expected_sin"): lambda mean, var: expected_sin(mean, var)[0],
    ("stepfun", "inner_outer"): inner_outer,
    ("stepfun", "lossfun_outer"): lambda t, w, t_env, w_env: interlevel(t, w, t_env, w_env)[0],
    ("stepfun", "lossfun_distortion"): lambda t, w: distortion(t, w)[0],
    ("stepfun", "invert_cdf"): invert_cdf,
    ("stepfun", "weighted_percentile"): weighted_percentile,
    ("render", "conical_frustum_to_gaussian"): conical_frustum_to_gaussian,
    ("render", "compute_alpha_weights"): compute_alpha_weights,
}
THEIRS: dict[tuple[str, str], Callable[..., Any]] = {}


def replace_functions() -> None:
    """Puts ours in the modules of multinerf's ``internal``."""
    for (module_name, name), ours in OURS.items():
        module = importlib.import_module(f"internal.{module_name}")
        THEIRS[module_name, name] = getattr(module, name)

        def counted(*args: Any, _name: str = name, _ours: Callable[..., Any] = ours, **options: Any) -> Any:
            CALLS.add(_name)
            return _ours(*args, **options)

        setattr(module, name, counted)
