"""nerfstudio's field components on hashgrid's kernels: the same arguments, shapes and checkpoints, without nerfstudio.

Change ``from nerfstudio.field_components.encodings import HashEncoding`` to ``from hashgrid.compat.nerfstudio import
HashEncoding``. ``implementation="torch"`` stands for the parameters and numbers of nerfstudio's plain PyTorch,
``"tcnn"``, or ``"hashgrid"``, for those of tiny-cuda-nn; the kernels are ours with all three. What differs is in
docs/compat.md.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hashgrid.compat import tinycudann as tcnn
from hashgrid.levels import FEATURE_COUNTS, LevelTable
from hashgrid.nn.fused_mlp import MAX_HIDDEN_LAYERS, _name_of
from hashgrid.ops._backend import backend_ops
from hashgrid.util.choices import check_option

__all__ = ["Encoding", "FieldComponent", "HashEncoding", "MLP", "MLPWithHashEncoding", "NeRFEncoding", "SHEncoding"]

Implementation = Literal["tcnn", "torch", "hashgrid"]
Interpolation = Literal["Nearest", "Linear", "Smoothstep"]
IMPLEMENTATIONS = ("tcnn", "torch", "hashgrid")
MAX_SH_LEVELS = 5
_FUSED_WIDTHS = (16, 32, 64, 128)
_TCNN_NAMES = {nn.ReLU: "ReLU", nn.LeakyReLU: "LeakyReLU", nn.Sigmoid: "Sigmoid", nn.Tanh: "Tanh"}
_TCNN_NAMES |= {nn.Softplus: "Softplus"}


class FieldComponent(nn.Module):
    """What all of them share: ``in_dim`` and ``out_dim``.

    Args:
        in_dim: inputs; None if they are told later.
        out_dim: outputs.
    """

    def __init__(self, in_dim: int | None = None, out_dim: int | None = None) -> None:
        super().__init__()
        self.in_dim, self.out_dim = in_dim, out_dim

    def build_nn_modules(self) -> None:
        """Makes the parameters anew, where ``implementation`` is ``"torch"``."""

    def set_in_dim(self, in_dim: int) -> None:
        """Sets the number of inputs."""
        if in_dim <= 0:
            raise ValueError(f"`in_dim` must be positive, got {in_dim}")
        self.in_dim = in_dim

    def get_out_dim(self) -> int:
        """The number of outputs."""
        if self.out_dim is None:
            raise ValueError("`out_dim` has not been set")
        return self.out_dim


class Encoding(FieldComponent):
    """An encoding of ``in_dim`` numbers."""

    in_dim: int

    def __init__(self, in_dim: int) -> None:
        if in_dim <= 0:
            raise ValueError(f"`in_dim` must be positive, got {in_dim}")
        super().__init__(in_dim)
        self.tcnn_encoding: nn.Module | None = None

    def forward(self, in_tensor: Tensor) -> Tensor:
        """Features [..., out] of ``in_tensor`` [..., in]."""
        return self.pytorch_fwd(in_tensor) if self.tcnn_encoding is None else self.tcnn_encoding(in_tensor)

    def pytorch_fwd(self, in_tensor: Tensor) -> Tensor:
        """The same with the numbers of nerfstudio's plain PyTorch."""
        raise NotImplementedError


class HashEncoding(Encoding):
    """Features of positions in [0, 1]^3 at several resolutions.

    Args:
        num_levels: levels L.
        min_res: resolution of the coarsest level.
        max_res: that of the finest.
        log2_hashmap_size: a level has at most 2 to this power entries, with ``"torch"`` exactly so many.
        features_per_level: features F of an entry.
        hash_init_scale: with ``"torch"``, entries start from U(-s, s).
        implementation: ``"torch"``, ``"tcnn"`` or ``"hashgrid"``.
        interpolation: ``"Nearest"``, ``"Linear"`` or ``"Smoothstep"``; with ``"torch"`` linear.

    Attributes:
        hash_table: with ``"torch"``, Parameter [L * 2^T, F].

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> HashEncoding(num_levels=4, log2_hashmap_size=12, implementation="torch")(torch.rand(10, 3)).shape
        torch.Size([10, 8])
    """

    hash_table: Tensor

    def __init__(
        self,
        num_levels: int = 16,
        min_res: int = 16,
        max_res: int = 1024,
        log2_hashmap_size: int = 19,
        features_per_level: int = 2,
        hash_init_scale: float = 0.001,
        implementation: Implementation = "tcnn",
        interpolation: Interpolation | None = None,
    ) -> None:
        super().__init__(3)
        check_option("implementation", implementation, IMPLEMENTATIONS)
        self.num_levels, self.min_res, self.features_per_level = num_levels, min_res, features_per_level
        self.hash_init_scale, self.log2_hashmap_size = hash_init_scale, log2_hashmap_size
        self.hash_table_size = 2**log2_hashmap_size
        self.growth_factor = growth_of(num_levels, min_res, max_res)
        levels = torch.arange(num_levels, device="cpu")
        self.scalings = torch.floor(min_res * self.growth_factor**levels)  # in fp32
        self.hash_offset = levels * self.hash_table_size
        if implementation == "torch":
            if interpolation not in (None, "Linear"):
                raise ValueError(f"`interpolation` must be 'Linear' with implementation 'torch', got {interpolation!r}")
            self.levels = LevelTable(
                3,
                tuple((scale,) * 3 for scale in self.scalings.tolist()),
                tuple((int(scale) + 1,) * 3 for scale in self.scalings.tolist()),
                0.0,
                tuple(self.hash_offset.tolist()),
                (self.hash_table_size,) * num_levels,
                (True,) * num_levels,
            )
            self.build_nn_modules()
            return
        self.hash_table = torch.empty(0)
        sizes = (num_levels, features_per_level, log2_hashmap_size, min_res, self.growth_factor)
        self.tcnn_encoding = tcnn.Encoding(3, self.get_tcnn_encoding_config(*sizes, interpolation))

    def build_nn_modules(self) -> None:
        """Draws a table from U(-s, s), where ``implementation`` is ``"torch"``."""
        values = torch.rand(self.hash_table_size * self.num_levels, self.features_per_level) * 2 - 1
        self.hash_table = nn.Parameter(values * self.hash_init_scale)

    @classmethod
    def get_tcnn_encoding_config(
        cls,
        num_levels: int,
        features_per_level: int,
        log2_hashmap_size: int,
        min_res: int,
        growth_factor: float,
        interpolation: Interpolation | None = None,
    ) -> dict[str, Any]:
        """The dictionary that tiny-cuda-nn takes."""
        config: dict[str, Any] = {
            "otype": "HashGrid",
            "n_levels": num_levels,
            "n_features_per_level": features_per_level,
            "log2_hashmap_size": log2_hashmap_size,
            "base_resolution": min_res,
            "per_level_scale": growth_factor,
        }
        return config if interpolation is None else config | {"interpolation": interpolation}

    def get_out_dim(self) -> int:
        return self.num_levels * self.features_per_level

    def pytorch_fwd(self, in_tensor: Tensor) -> Tensor:
        """Features [..., L * F] of ``in_tensor`` [..., 3], every level hashed."""
        backend = "native" if self.features_per_level in FEATURE_COUNTS else "reference"
        return backend_ops(backend).hash_encode(in_tensor, self.hash_table, self.levels, bounds="none")


def growth_of(num_levels: int, min_res: int, max_res: int) -> float:
    """Growth of the resolution from level to level."""
    return math.exp((math.log(max_res) - math.log(min_res)) / (num_levels - 1)) if num_levels > 1 else 1.0


class NeRFEncoding(Encoding):
    """``sin(2 pi 2^e x)`` of every input dimension for exponents e at equal distances, then the cosines.

    Args:
        in_dim: input dimensions D.
        num_frequencies: K.
        min_freq_exp: the first exponent.
        max_freq_exp: the last one.
        include_input: whether ``in_tensor`` comes behind the waves.
        implementation: ``"torch"``; ``"tcnn"`` and ``"hashgrid"`` have ``sin(pi 2^k x), cos(pi 2^k x)`` by turns, for
            exponents 0, 1, ..., K - 1.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        in_dim: int,
        num_frequencies: int,
        min_freq_exp: float,
        max_freq_exp: float,
        include_input: bool = False,
        implementation: Implementation = "torch",
    ) -> None:
        super().__init__(in_dim)
        check_option("implementation", implementation, IMPLEMENTATIONS)
        self.num_frequencies, self.include_input = num_frequencies, include_input
        self.min_freq, self.max_freq = min_freq_exp, max_freq_exp
        if implementation == "torch":
            return
        if min_freq_exp != 0 or max_freq_exp != num_frequencies - 1:
            raise ValueError(
                f"exponents must be 0..{num_frequencies - 1} with implementation {implementation!r}, got"
                f" {min_freq_exp}..{max_freq_exp}"
            )
        self.tcnn_encoding = tcnn.Encoding(in_dim, self.get_tcnn_encoding_config(num_frequencies))

    @classmethod
    def get_tcnn_encoding_config(cls, num_frequencies: int) -> dict[str, Any]:
        """The dictionary that tiny-cuda-nn takes."""
        return {"otype": "Frequency", "n_frequencies": num_frequencies}

    def get_out_dim(self) -> int:
        return self.in_dim * (self.num_frequencies * 2 + self.include_input)

    def pytorch_fwd(self, in_tensor: Tensor, covs: Tensor | None = None) -> Tensor:
        """Waves [..., D * 2 * K]; with covariances ``covs`` [..., D, D] their means (Barron et al. 2021, eq. 14)."""
        exponents = torch.linspace(self.min_freq, self.max_freq, self.num_frequencies, device=in_tensor.device)
        frequencies = 2**exponents
        phases = (2 * torch.pi * in_tensor[..., None] * frequencies).flatten(-2)
        waves = torch.cat((phases, phases + torch.pi / 2), dim=-1).sin()
        if covs is None:
            return waves
        variances = (covs.diagonal(dim1=-2, dim2=-1)[..., None] * frequencies**2).flatten(-2)
        return waves * (-0.5 * torch.cat((variances, variances), dim=-1)).exp()

    def forward(self, in_tensor: Tensor, covs: Tensor | None = None) -> Tensor:
        """Features [..., out] of ``in_tensor`` [..., D]."""
        encoding = self.tcnn_encoding
        waves = self.pytorch_fwd(in_tensor, covs) if encoding is None else encoding(in_tensor)
        return torch.cat((waves, in_tensor), dim=-1) if self.include_input else waves


class SHEncoding(Encoding):
    """Real spherical harmonics of directions.

    Args:
        levels: number of bands, 1..5.
        implementation: ``"torch"`` takes unit directions, has no factors (-1)^m and passes no gradient on; ``"tcnn"``
            and ``"hashgrid"`` take ``(direction + 1) / 2``.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, levels: int = 4, implementation: Implementation = "torch") -> None:
        super().__init__(3)
        if not 1 <= levels <= MAX_SH_LEVELS:
            raise ValueError(f"`levels` must be in 1..{MAX_SH_LEVELS}, got {levels}")
        self.levels = levels
        if check_option("implementation", implementation, IMPLEMENTATIONS) != "torch":
            self.tcnn_encoding = tcnn.Encoding(3, self.get_tcnn_encoding_config(levels))

    @classmethod
    def get_tcnn_encoding_config(cls, levels: int) -> dict[str, Any]:
        """The dictionary that tiny-cuda-nn takes."""
        return {"otype": "SphericalHarmonics", "degree": levels}

    def get_out_dim(self) -> int:
        return self.levels**2

    @torch.no_grad()
    def pytorch_fwd(self, in_tensor: Tensor) -> Tensor:
        """Harmonics [..., levels^2] of unit directions [..., 3]."""
        y = backend_ops("native").sh_encode(in_tensor, self.levels)
        signs = [(-1.0) ** m for band in range(self.levels) for m in range(-band, band + 1)]
        return y * y.new_tensor(signs)


class MLP(FieldComponent):
    """A multilayer perceptron: with biases if ``implementation`` is ``"torch"``, without them otherwise.

    Args:
        in_dim: inputs.
        num_layers: matrices.
        layer_width: width of the hidden layers.
        out_dim: outputs; None for ``layer_width``.
        skip_connections: layers that see the inputs beside what comes before; only with ``"torch"``.
        activation: module behind the hidden layers; None for none.
        out_activation: module behind the last one.
        implementation: ``"torch"``, ``"tcnn"`` or ``"hashgrid"``.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> MLP(32, 2, 64, 3, out_activation=nn.Sigmoid())(torch.rand(10, 32)).shape
        torch.Size([10, 3])
    """

    in_dim: int
    out_dim: int

    def __init__(
        self,
        in_dim: int,
        num_layers: int,
        layer_width: int,
        out_dim: int | None = None,
        skip_connections: tuple[int, ...] | None = None,
        activation: nn.Module | None = nn.ReLU(),  # noqa: B008
        out_activation: nn.Module | None = None,
        implementation: Implementation = "torch",
    ) -> None:
        check_option("implementation", implementation, IMPLEMENTATIONS)
        if min(in_dim, num_layers, layer_width) < 1:
            sizes = [in_dim, num_layers, layer_width]
            raise ValueError(f"`in_dim`, `num_layers` and `layer_width` must be positive, got {sizes}")
        super().__init__(in_dim, layer_width if out_dim is None else out_dim)
        self.num_layers, self.layer_width, self.skip_connections = num_layers, layer_width, skip_connections
        self._skip_connections = set(skip_connections or ())
        self.activation, self.out_activation = activation, out_activation
        self.net = None
        self.tcnn_encoding: nn.Module | None = None
        if implementation == "torch":
            self.build_nn_modules()
            return
        if self._skip_connections:
            raise ValueError(f"`skip_connections` want implementation 'torch', got {implementation!r}")
        config = self.get_tcnn_network_config(activation, out_activation, layer_width, num_layers)
        self.tcnn_encoding = tcnn.Network(in_dim, self.out_dim, config)

    @classmethod
    def get_tcnn_network_config(
        cls, activation: nn.Module | None, out_activation: nn.Module | None, layer_width: int, num_layers: int
    ) -> dict[str, Any]:
        """The dictionary that tiny-cuda-nn takes."""
        is_fused = layer_width in _FUSED_WIDTHS and num_layers > 1
        return {
            "otype": "FullyFusedMLP" if is_fused else "CutlassMLP",
            "activation": activation_to_tcnn_string(activation),
            "output_activation": activation_to_tcnn_string(out_activation),
            "n_neurons": layer_width,
            "n_hidden_layers": num_layers - 1,
        }

    def build_nn_modules(self) -> None:
        """Makes the layers, ``nn.Linear``, where ``implementation`` is ``"torch"``."""
        if 0 in self._skip_connections:
            raise ValueError("`skip_connections` must not hold 0: the first layer sees the inputs anyway")
        widths = [self.in_dim, *[self.layer_width] * (self.num_layers - 1), self.out_dim]
        for layer in self._skip_connections.intersection(range(1, self.num_layers - 1)):
            widths[layer] += self.in_dim
        hidden = [self.layer_width] * (self.num_layers - 1)
        outputs = [*hidden, self.out_dim]
        self.layers = nn.ModuleList([nn.Linear(n_in, n) for n_in, n in zip(widths, outputs, strict=False)])

    def pytorch_fwd(self, in_tensor: Tensor) -> Tensor:
        """Outputs by the layers of ``"torch"``: as one kernel, but where the inputs are seen twice, there are more than
        9 layers or an activation is none of ours."""
        options = self._kernel_options()
        if options is not None:
            weights = [layer.weight for layer in self.layers]
            return backend_ops("native").mlp(in_tensor, weights, [layer.bias for layer in self.layers], **options)
        x = in_tensor
        for i, layer in enumerate(self.layers):
            x = layer(torch.cat((in_tensor, x), dim=-1) if i in self._skip_connections else x)
            if self.activation is not None and i < len(self.layers) - 1:
                x = self.activation(x)
        return x if self.out_activation is None else self.out_activation(x)

    def _kernel_options(self) -> dict[str, Any] | None:
        if self._skip_connections or self.num_layers > MAX_HIDDEN_LAYERS + 1:
            return None
        try:
            hidden, beta = ("none", 1.0) if self.activation is None else _name_of(self.activation)
            last, last_beta = ("none", 1.0) if self.out_activation is None else _name_of(self.out_activation)
        except ValueError:
            return None
        options = {"activation": hidden, "output_activation": last, "softplus_beta": beta}
        return options if last_beta == 1 else None

    def forward(self, in_tensor: Tensor) -> Tensor:
        """Outputs [..., out] of ``in_tensor`` [..., in]."""
        return self.pytorch_fwd(in_tensor) if self.tcnn_encoding is None else self.tcnn_encoding(in_tensor)


def activation_to_tcnn_string(activation: nn.Module | None) -> str:
    """tiny-cuda-nn's name of an activation.

    Raises:
        ValueError: it has none.
    """
    if activation is None:
        return "None"
    for kind, name in _TCNN_NAMES.items():
        if isinstance(activation, kind):
            return name
    names = ", ".join(f"nn.{kind.__name__}" for kind in _TCNN_NAMES)
    raise ValueError(f"activations must be {names} or None with implementations other than 'torch', got {activation}")


class MLPWithHashEncoding(FieldComponent):
    """A `HashEncoding` and an `MLP` behind it, with the arguments of both.

    Attributes:
        model: ``nn.Sequential`` of both with ``"torch"``, one module of `hashgrid.compat.tinycudann` otherwise.

    Raises:
        ValueError: an argument is out of range.
    """

    out_dim: int

    def __init__(
        self, num_levels: int = 16, min_res: int = 16, max_res: int = 1024, log2_hashmap_size: int = 19,
        features_per_level: int = 2, hash_init_scale: float = 0.001, interpolation: Interpolation | None = None,
        num_layers: int = 2, layer_width: int = 64, out_dim: int | None = None,
        skip_connections: tuple[int, ...] | None = None, activation: nn.Module | None = nn.ReLU(),  # noqa: B008
        out_activation: nn.Module | None = None, implementation: Implementation = "torch",
    ) -> None:  # fmt: skip
        check_option("implementation", implementation, IMPLEMENTATIONS)
        super().__init__(3, layer_width if out_dim is None else out_dim)
        self.num_levels, self.min_res, self.max_res = num_levels, min_res, max_res
        self.features_per_level, self.hash_init_scale = features_per_level, hash_init_scale
        self.log2_hashmap_size, self.hash_table_size = log2_hashmap_size, 2**log2_hashmap_size
        self.growth_factor = growth_of(num_levels, min_res, max_res)
        self.num_layers, self.layer_width, self.skip_connections = num_layers, layer_width, skip_connections
        self.activation, self.out_activation = activation, out_activation
        self.net, self.tcnn_encoding = None, None
        if implementation == "torch":
            self.build_nn_modules()
            return
        if skip_connections:
            raise ValueError(f"`skip_connections` want implementation 'torch', got {implementation!r}")
        sizes = (num_levels, features_per_level, log2_hashmap_size, min_res, self.growth_factor)
        encoding = HashEncoding.get_tcnn_encoding_config(*sizes, interpolation)
        network = MLP.get_tcnn_network_config(activation, out_activation, layer_width, num_layers)
        self.model: nn.Module = tcnn.NetworkWithInputEncoding(3, self.out_dim, encoding, network)

    def build_nn_modules(self) -> None:
        """Makes both, where ``implementation`` is ``"torch"``."""
        encoder = HashEncoding(
            self.num_levels,
            self.min_res,
            self.max_res,
            self.log2_hashmap_size,
            self.features_per_level,
            self.hash_init_scale,
            "torch",
        )
        sizes = (encoder.get_out_dim(), self.num_layers, self.layer_width, self.out_dim, self.skip_connections)
        self.model = nn.Sequential(encoder, MLP(*sizes, self.activation, self.out_activation, "torch"))

    def forward(self, in_tensor: Tensor) -> Tensor:
        """Outputs [..., out] of positions ``in_tensor`` [..., 3] in [0, 1]."""
        return self.model(in_tensor)
