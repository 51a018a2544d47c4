"""Signed distance fields: an encoding and a network behind it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hashgrid.fields.base import SignalField
from hashgrid.fields.coordinate import Activation, CoordinateConfig
from hashgrid.nn import FusedMLP, HashGrid
from hashgrid.nn.encoding import make_encoding
from hashgrid.nn.network_with_input_encoding import encode_and_pass
from hashgrid.ops._backend import ngp_ops
from hashgrid.ops._ngp import Slopes
from hashgrid.util.autograd import has_tangents, is_transformed
from hashgrid.util.config import Config


class DistanceField(nn.Module):
    """What every signed distance field can do: ``forward(x [..., 3], level_weights=None)`` gives distances [...] of
    points in the unit cube, negative inside, differentiable twice."""

    Config: ClassVar[type[Config]]  # of its options; ``learning_rate`` and ``final_learning_rate`` are among them
    recipe: ClassVar[dict[str, Any]] = {}  # options of training on a mesh that differ from the task's, and
    recipe_for_points: ClassVar[dict[str, Any]] = {}  # on points
    size: ClassVar[str] = "n_neurons"  # the option that says how large it is
    n_levels: int = 0  # levels of detail that ``level_weights`` [n_levels] are for; 0 without

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def gradient(self, x: Tensor, level_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Distances [...] and their gradients [..., 3] at points [..., 3]; differentiable once more."""
        y, gradient = with_gradient(lambda x: self(x, level_weights)[..., None], x)
        return y.squeeze(-1), gradient

    def differences(self, x: Tensor, step: float, level_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `gradient`, from the four corners of a tetrahedron ``sqrt(3) * step`` away from each point: off by
        ``step`` times the curvature, blind to anything much smaller, with nothing but first derivatives behind it."""
        corners = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=x.dtype, device=x.device)
        y = self(x[..., None, :] + step * corners, level_weights)
        return y.mean(-1), y @ corners / (4 * step)

    def central_differences(
        self, x: Tensor, step: float, level_weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Distances [N] of points [N, 3], their first and second derivatives along each axis [N, 3], from points
        ``step`` to both sides: blind to what is much smaller, and off by its square (Li et al. 2023, eq. 8 and 9)."""
        beside = step * torch.eye(3, dtype=x.dtype, device=x.device)
        y = self(torch.cat((x[:, None], x[:, None] + beside, x[:, None] - beside), dim=1), level_weights)
        middle, after, before = y[:, 0], y[:, 1:4], y[:, 4:]
        return middle, (after - before) / (2 * step), (after + before - 2 * middle[:, None]) / step**2

    def outputs(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        """Distances of points [..., 3] and what else the field says of them [..., 1 + n_features]."""
        raise NotImplementedError

    def remembers(self, level_weights: Tensor | None = None) -> bool:
        """Whether `slopes` go on from what an earlier call has found."""
        return False

    def slopes(self, x: Tensor, level_weights: Tensor | None = None, known: Slopes | None = None) -> Slopes:
        """What `with_features` takes of points [N, 3], differentiable once; ``known`` is what an earlier call said of
        them, where the field remembers it."""
        y, gradient = with_gradient(lambda x: self.outputs(x, level_weights), x)
        return Slopes(y, gradient, y.new_empty(len(y), 0), y.new_empty(len(y), 0))

    def with_features(self, slopes: Slopes, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distances [N] of points [N, 3], their gradients [N, 3] and the features [N, n_features]."""
        return slopes.values[:, 0], slopes.gradient, slopes.values[:, 1:]

    def normals(self, x: Tensor) -> Tensor:
        """Outward unit normals [..., 3] of the level sets through points [..., 3]."""
        return nn.functional.normalize(self.gradient(x)[1].detach(), dim=-1)


def with_gradient(values: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Values [..., C] of points [..., D], and the gradient [..., D] of the first of them, by backpropagation; both
    differentiable once more where gradients are recorded."""
    is_recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        y = values(x)
        (gradient,) = torch.autograd.grad(y[..., 0].sum(), x, create_graph=is_recorded)
    return (y, gradient) if is_recorded else (y.detach(), gradient)


@dataclass(frozen=True)
class GridDistanceConfig(CoordinateConfig):
    """Sizes and learning rates of a :class:`GridDistance`. With "relu" the field may die at the surface: exactly zero
    around it, without a gradient."""

    name = "grid"

    log2_hashmap_size: int = 18  # of a hash grid: entries per level
    max_resolution: int = 512  # of a hash grid: cells of the finest level
    activation: Activation = "silu"  # of hidden layers
    from_centre: bool = False  # add to the distance to the cube's centre: outside until told otherwise
    learning_rate: float = 5e-3  # after the first steps
    final_learning_rate: float = 1e-4  # at the end of a run


class GridDistance(DistanceField):
    """Encoding and MLP; with ``config.from_centre`` added to the distance to the cube's centre.

    Args:
        config: sizes of the field.
        backend: ``"native"`` or ``"reference"``.
        n_features: further outputs of the network, which say of a place what others want to know.
    """

    Config = GridDistanceConfig
    size = "log2_hashmap_size"
    recipe_for_points = {
        "n_levels": 8,
        "n_features_per_level": 4,
        "max_resolution": 128,
        "interpolation": "smoothstep",
        "activation": "relu",
        "from_centre": True,
    }

    def __init__(self, config: GridDistanceConfig | None = None, backend: str = "native", n_features: int = 0) -> None:
        super().__init__()
        config = GridDistanceConfig() if config is None else config
        self.from_centre = config.from_centre
        self.grid = make_encoding(3, config, backend)
        self.n_levels = self.grid.n_levels
        bias = not isinstance(self.grid, HashGrid)  # as of CoordinateField
        self.mlp = config.make_network(self.grid.n_output_dims, 1 + n_features, bias, backend)

    def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        """Distances [...] of points [..., 3] in [0, 1]^3."""
        return self.outputs(x, level_weights)[..., 0]

    def gradient(self, x: Tensor, level_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        points = x.reshape(-1, 3)
        distance, gradient, _ = self.with_features(self.slopes(points, level_weights), points)
        return distance.view(x.shape[:-1]), gradient.view(x.shape)

    def outputs(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        y = encode_and_pass(self.grid, self.mlp, x, level_weights)
        return torch.cat((y[..., :1] + distance_to_centre(x)[..., None], y[..., 1:]), -1) if self.from_centre else y

    def slopes(self, x: Tensor, level_weights: Tensor | None = None, known: Slopes | None = None) -> Slopes:
        """Outputs of the network and the gradient of the first of them: by one op where encoding and network are those
        it is made of."""
        if not self.remembers(level_weights):
            return self._composed_slopes(x, level_weights)
        x = x.to(self.grid.table.dtype)
        arguments = {**self.grid.op_arguments(x, level_weights), **self.mlp.op_arguments()}
        del arguments["half_table"], arguments["compute_dtype"]
        op = ngp_ops(self.grid.backend).hash_encode_mlp_gradient
        return op(**arguments, precomputed=known, grad_buffer=self.grid.gradient_buffer())  # type: ignore[no-any-return]

    def with_features(self, slopes: Slopes, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        distance, gradient, features = super().with_features(slopes, x)
        if not self.from_centre:
            return distance, gradient, features
        radius = distance_to_centre(x)
        return distance + radius, gradient + (x - 0.5) / radius[:, None], features

    def remembers(self, level_weights: Tensor | None = None) -> bool:
        grid, mlp = self.grid, self.mlp
        if torch.compiler.is_compiling() or is_transformed() or has_tangents():
            return False
        if not (isinstance(grid, HashGrid) and isinstance(mlp, FusedMLP) and grid.backend == mlp.backend):
            return False
        fades = level_weights is not None and level_weights.requires_grad
        return grid.half_table is None and mlp.compute_dtype in (None, torch.float32) and not fades

    def _composed_slopes(self, x: Tensor, level_weights: Tensor | None) -> Slopes:
        y, gradient = with_gradient(lambda x: encode_and_pass(self.grid, self.mlp, x, level_weights), x)
        return Slopes(y, gradient, y.new_empty(len(y), 0), y.new_empty(len(y), 0))


def distance_to_centre(x: Tensor) -> Tensor:
    """Distances [...] of points [..., 3] to the centre of the cube, rounded off to 0.1 there: smooth, and not so small
    that a bit of surface stays behind."""
    return ((x - 0.5).square().sum(-1) + 0.1**2).sqrt()


def distance_field(kind: type[SignalField]) -> type[DistanceField]:
    """A field of any signal as one of distances, in steps of the rates and the batch that ``kind.recipe`` has for
    signals. Networks are not held to relative errors: in 250 steps one of 4x128 comes to an IoU of .71 so, in 529 with
    them to .38."""
    rates = [("learning_rate", 1e-3), ("final_learning_rate", 1e-5)]
    options: Any = dataclasses.make_dataclass(
        f"{kind.__name__}DistanceConfig",
        [(name, float, dataclasses.field(default=kind.recipe.get(name, rate))) for name, rate in rates],
        bases=(kind.Config,),
        frozen=True,
    )

    class SignalDistance(DistanceField):
        Config = options
        recipe = {"batch": kind.recipe["batch"], "loss": "truncated_l1"} if "batch" in kind.recipe else {}
        size = kind.size

        def __init__(self, config: Any = None, backend: str = "native") -> None:
            super().__init__()
            config = options() if config is None else config
            self.signal = kind(kind.configured(config, (1024, 1024, 1024)), 3, 1, backend)
            self.n_levels = self.signal.n_levels

        def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
            return self.signal(x, level_weights).squeeze(-1)

    SignalDistance.__name__ = SignalDistance.__qualname__ = f"{kind.__name__}Distance"
    return SignalDistance
