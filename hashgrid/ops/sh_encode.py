"""Real spherical harmonics of directions, on the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid import _extension
from hashgrid.maths import spherical_harmonics
from hashgrid.ops._autograd import differentiable_by_formula
from hashgrid.ops._tensors import at_least_fp32, flatten, unflatten
from hashgrid.ops._vmap import register_vmap

MAX_DEGREE = 8


def sh_encode(directions: Tensor, degree: int = 4) -> Tensor:
    """Real spherical harmonics of the bands ``l < degree``.

    Orthonormal on the sphere, in tiny-cuda-nn's order and signs: the band l = 1 is (-y, z, -x) times sqrt(3 / (4 pi)).
    Evaluated as polynomials of (x, y, z), also off the unit sphere. Differentiable any number of times.

    Args:
        directions: [..., 3], unit vectors, fp32 or fp64 (half precision is read as fp32).
        degree: number of bands, 1..8.

    Returns:
        [..., degree^2], channel ``l^2 + l + m`` for m in -l..l.

    Raises:
        ValueError: a shape or the degree does not fit.
    """
    if not 1 <= degree <= MAX_DEGREE:
        raise ValueError(f"`degree` must be in 1..{MAX_DEGREE}, got {degree}")
    batch = directions.shape[:-1]
    flat = flatten(at_least_fp32(directions), 3, "directions")
    return unflatten(_encode(flat, degree), batch)


_encode = differentiable_by_formula("sh_encode", spherical_harmonics)


def _register() -> None:
    """Registers fake kernels of ``torch.ops.hashgrid.sh_encode`` and its derivative, and vmap over them."""

    @torch.library.register_fake("hashgrid::sh_encode")
    def _(directions, degree):
        return directions.new_empty(directions.shape[0], degree * degree)

    @torch.library.register_fake("hashgrid::sh_encode_backward")
    def _(grad_y, directions, degree):
        return torch.empty_like(directions)

    register_vmap("sh_encode", ["directions"])
    register_vmap("sh_encode_backward", ["grad_y", "directions"])


if _extension.module is not None:
    _register()
