"""torch-ngp's layers and ray marching on hashgrid's kernels: the same classes, functions and checkpoints, also without
a GPU.

Its folders ``gridencoder``, ``shencoder``, ``freqencoder``, ``ffmlp`` and ``raymarching`` are one module here: change
``from gridencoder import GridEncoder`` to ``from hashgrid.compat.torch_ngp import GridEncoder`` and ``import
raymarching`` to ``from hashgrid.compat import torch_ngp as raymarching``. What differs is in docs/compat.md.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hashgrid.compat.tinycudann_layout import next_multiple
from hashgrid.compat.tinycudann_network import NETWORK_MULTIPLE, Layers
from hashgrid.compat.torch_ngp_grid import GridEncoder, _grid_encode, grid_encode
from hashgrid.compat.torch_ngp_rays import (
    composite_rays,
    composite_rays_train,
    march_rays,
    march_rays_train,
    morton3D,
    morton3D_invert,
    near_far_from_aabb,
    packbits,
    sph_from_ray,
)
from hashgrid.maths import activate
from hashgrid.ops._backend import backend_ops
from hashgrid.util.choices import BACKENDS, check_option

__all__ = [
    "FFMLP",
    "FreqEncoder",
    "GridEncoder",
    "SHEncoder",
    "_grid_encode",
    "composite_rays",
    "composite_rays_train",
    "freq_encode",
    "get_encoder",
    "grid_encode",
    "march_rays",
    "march_rays_train",
    "morton3D",
    "morton3D_invert",
    "near_far_from_aabb",
    "packbits",
    "sh_encode",
    "sph_from_ray",
    "trunc_exp",
]

# names of torch-ngp's `ffmlp`, in its numbers' order, and ours
_ACTIVATIONS = {
    "relu": "relu",
    "exponential": "exp",
    "sine": "sine",
    "sigmoid": "sigmoid",
    "squareplus": "squareplus",
    "softplus": "softplus",
}


def trunc_exp(x: Tensor) -> Tensor:
    """``exp(x)`` whose derivative is constant beyond 15 and below -15."""
    return activate(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x, "exp")


def sh_encode(inputs: Tensor, degree: int, calc_grad_inputs: bool = False) -> Tensor:
    """Harmonics [..., degree^2] of directions ``inputs`` [..., 3]; a gradient reaches them if they want one."""
    return backend_ops("native").sh_encode(inputs, degree)


class SHEncoder(nn.Module):
    """Real spherical harmonics of directions.

    Args:
        input_dim: 3.
        degree: number of bands, 1..8.
        backend: ``"native"`` or ``"reference"``; torch-ngp has no such argument.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, input_dim: int = 3, degree: int = 4, *, backend: str = "native") -> None:
        super().__init__()
        if input_dim != 3:
            raise ValueError(f"`input_dim` must be 3, got {input_dim}")
        if not 1 <= degree <= 8:
            raise ValueError(f"`degree` must be in 1..8, got {degree}")
        self.input_dim, self.degree, self.output_dim = input_dim, degree, degree**2
        self.backend = check_option("backend", backend, BACKENDS)

    def forward(self, inputs: Tensor, size: float = 1) -> Tensor:
        """Harmonics [..., degree^2] of ``inputs`` [..., 3], over ``size``."""
        return backend_ops(self.backend).sh_encode(inputs / size, self.degree)

    def extra_repr(self) -> str:
        return f"input_dim={self.input_dim}, degree={self.degree}"


def freq_encode(inputs: Tensor, degree: int, output_dim: int | None = None) -> Tensor:
    """``inputs`` [..., D], then ``sin(2^f x)`` and ``cos(2^f x)`` of all dimensions for each f below ``degree``."""
    x = inputs if inputs.dtype == torch.float64 else inputs.float()
    scaled = x[..., None, None, :] * 2.0 ** torch.arange(degree, device=x.device, dtype=x.dtype)[:, None, None]
    waves = torch.cat((scaled.sin(), scaled.cos()), dim=-2)  # [..., degree, 2, D]
    return torch.cat((x, waves.flatten(-3)), dim=-1)


class FreqEncoder(nn.Module):
    """Sines and cosines of coordinates, without pi, behind the coordinates themselves.

    Args:
        input_dim: dimensions D.
        degree: number of frequencies.
    """

    def __init__(self, input_dim: int = 3, degree: int = 4) -> None:
        super().__init__()
        self.input_dim, self.degree = input_dim, degree
        self.output_dim = input_dim + input_dim * 2 * degree

    def forward(self, inputs: Tensor, **kwargs: Any) -> Tensor:
        """Encoding [..., D + 2 * D * degree] of ``inputs`` [..., D]."""
        if inputs.dim() == 0 or inputs.shape[-1] != self.input_dim:
            raise ValueError(f"`inputs` must have shape [..., {self.input_dim}], got {list(inputs.shape)}")
        return freq_encode(inputs, self.degree)

    def extra_repr(self) -> str:
        return f"input_dim={self.input_dim}, degree={self.degree}, output_dim={self.output_dim}"


class FFMLP(nn.Module):
    """A multilayer perceptron without biases.

    Args:
        input_dim: inputs; torch-ngp wants a multiple of 16.
        output_dim: outputs; torch-ngp has up to 16.
        hidden_dim: width of the hidden layers.
        num_layers: how many, at least 1.
        activation: of the hidden layers: ``"relu"``, ``"exponential"``, ``"sine"``, ``"sigmoid"``, ``"squareplus"``,
            ``"softplus"``; every other name is none.
        backend: ``"native"`` or ``"reference"``; torch-ngp has no such argument.

    Attributes:
        weights: Parameter, all matrices [out, in] row by row one behind the other, the last one with rows up to a
            multiple of 16. It starts from torch-ngp's numbers, of seed 42, and leaves PyTorch's generator alone.

    Raises:
        ValueError: a size is not positive.

    Example:
        >>> FFMLP(32, 4, 64, 2)(torch.rand(100, 32)).shape
        torch.Size([100, 4])
    """

    weights: nn.Parameter

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        hidden_dim: int,
        num_layers: int,
        activation: str = "relu",
        *,
        backend: str = "native",
    ) -> None:
        super().__init__()
        sizes = {"input_dim": input_dim, "output_dim": output_dim, "hidden_dim": hidden_dim, "num_layers": num_layers}
        if min(sizes.values()) < 1:
            raise ValueError(f"sizes of an FFMLP must be positive, got {sizes}")
        self.input_dim, self.output_dim = input_dim, output_dim
        self.hidden_dim, self.num_layers = hidden_dim, num_layers
        self.activation = [*_ACTIVATIONS, activation].index(activation)
        self.output_activation = len(_ACTIVATIONS)
        self.padded_output_dim = next_multiple(output_dim, NETWORK_MULTIPLE)
        self.backend = check_option("backend", backend, BACKENDS)
        hidden = _ACTIVATIONS.get(activation, "none")
        self._layers = Layers(input_dim, output_dim, hidden_dim, num_layers, hidden, "none", backend)
        self.num_parameters = sum(self._layers.sizes)
        self.weights = nn.Parameter(torch.empty(self.num_parameters))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the weights from U(-b, b), b = sqrt(3 / hidden_dim), with seed 42."""
        if not self.weights.is_meta:
            bound = math.sqrt(3 / self.hidden_dim)
            values = torch.empty(self.num_parameters, device="cpu")
            self.weights.copy_(values.uniform_(-bound, bound, generator=torch.Generator("cpu").manual_seed(42)))

    def cleanup(self) -> None:
        """Nothing: there are no streams to free."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs [..., output_dim] of ``inputs`` [..., input_dim], fp32; products are of half precision under
        ``torch.autocast``.

        Raises:
            ValueError: the last dimension of ``inputs`` does not fit.
        """
        if inputs.dim() == 0 or inputs.shape[-1] != self.input_dim:
            raise ValueError(f"`inputs` must have shape [..., {self.input_dim}], got {list(inputs.shape)}")
        return self._layers(inputs, self.weights.split(self._layers.sizes), None)

    def extra_repr(self) -> str:
        sizes = f"input_dim={self.input_dim}, output_dim={self.output_dim}, hidden_dim={self.hidden_dim}"
        return f"{sizes}, num_layers={self.num_layers}, activation={self.activation}"


def get_encoder(
    encoding: str,
    input_dim: int = 3,
    multires: int = 6,
    degree: int = 4,
    num_levels: int = 16,
    level_dim: int = 2,
    base_resolution: int = 16,
    log2_hashmap_size: int = 19,
    desired_resolution: float = 2048,
    align_corners: bool = False,
    **kwargs: Any,
) -> tuple[Any, int]:
    """An encoder by name, ``"None"``, ``"frequency"``, ``"sphere_harmonics"``, ``"hashgrid"`` or ``"tiledgrid"``, and
    the number of its outputs.

    Raises:
        NotImplementedError: there is no such encoder.
    """
    if encoding == "None":
        return lambda x, **kwargs: x, input_dim
    encoder: Any
    if encoding == "frequency":
        encoder = FreqEncoder(input_dim, multires)
    elif encoding == "sphere_harmonics":
        encoder = SHEncoder(input_dim, degree)
    elif encoding in ("hashgrid", "tiledgrid"):
        encoder = GridEncoder(
            input_dim,
            num_levels,
            level_dim,
            base_resolution=base_resolution,
            log2_hashmap_size=log2_hashmap_size,
            desired_resolution=desired_resolution,
            gridtype=encoding.removesuffix("grid"),
            align_corners=align_corners,
        )
    else:
        names = "None, frequency, sphere_harmonics, hashgrid, tiledgrid"
        raise NotImplementedError(f"`encoding` must be one of {names}, got {encoding!r}")
    return encoder, encoder.output_dim
