"""The field: hash grid and MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hashgrid.nn import FusedMLP, HashGrid
from hashgrid.nn.network_with_input_encoding import encode_and_pass
from hashgrid.sdf.config import SdfConfig
from hashgrid.util.choices import check_option

FIELDS = ("hashgrid", "siren")
_DTYPES = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Field(nn.Module):
    """What every signed distance field can do: ``forward(x [..., 3], level_weights=None)`` gives distances [...] of
    points in the unit cube, negative inside, differentiable twice.

    Attributes:
        learning_rates: the first and the last one.
        n_levels: levels of detail that ``level_weights`` [n_levels] are for; 0 without.
    """

    learning_rates: tuple[float, float]
    n_levels: int = 0

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def gradient(self, x: Tensor, level_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Distances [...] and their gradients [..., 3] at points [..., 3]; differentiable once more."""
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            y = self(x, level_weights)
            (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return y, gradient

    def differences(self, x: Tensor, step: float, level_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `gradient`, from the four corners of a tetrahedron ``sqrt(3) * step`` away from each point: off by
        ``step`` times the curvature, blind to anything much smaller, with nothing but first derivatives behind it."""
        corners = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=x.dtype, device=x.device)
        y = self(x[..., None, :] + step * corners, level_weights)
        return y.mean(-1), y @ corners / (4 * step)

    def normals(self, x: Tensor) -> Tensor:
        """Outward unit normals [..., 3] of the level sets through points [..., 3]."""
        return nn.functional.normalize(self.gradient(x)[1].detach(), dim=-1)

    def to_mesh(self, resolution: int = 256, level: float = 0.0) -> tuple[Tensor, Tensor]:
        """Vertices [V, 3] in the unit cube and faces [F, 3] of the surface, by `rendering.extract.to_mesh`."""
        from hashgrid.rendering.extract import to_mesh

        return to_mesh(self, resolution, level)

    def parameter_groups(self, weight_decay: float) -> list[dict]:
        """What :class:`hashgrid.optim.Adam` takes."""
        return [{"params": list(self.parameters()), "weight_decay": weight_decay}]


class SdfField(Field):
    """Hash grid and MLP; with ``config.from_centre`` added to the distance to the cube's centre.

    Args:
        config: sizes of the field.
    """

    def __init__(self, config: SdfConfig | None = None) -> None:
        super().__init__()
        config = SdfConfig() if config is None else config
        self.learning_rates = config.learning_rate, config.final_learning_rate
        self.from_centre = config.from_centre
        self.n_levels = config.n_levels
        self.grid = HashGrid(
            3,
            n_levels=config.n_levels,
            n_features_per_level=config.n_features_per_level,
            log2_hashmap_size=config.log2_hashmap_size,
            base_resolution=config.base_resolution,
            max_resolution=config.max_resolution,
            interpolation=config.interpolation,
            backend=config.backend,
        )
        self.mlp = FusedMLP(
            self.grid.n_output_dims,
            1,
            n_neurons=config.n_neurons,
            n_hidden_layers=config.n_hidden_layers,
            activation=config.activation,
            compute_dtype=_DTYPES[config.compute_dtype],
            backend=config.backend,
        )

    def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        """Distances [...] of points [..., 3] in [0, 1]^3."""
        y = encode_and_pass(self.grid, self.mlp, x, level_weights).squeeze(-1)
        return y + distance_to_centre(x) if self.from_centre else y

    def parameter_groups(self, weight_decay: float) -> list[dict]:
        """The table without decay, skipping entries without gradient; the MLP with decay."""
        return [
            {"params": [self.grid.table], "skip_zero": True},
            {"params": list(self.mlp.parameters()), "weight_decay": weight_decay},
        ]


def distance_to_centre(x: Tensor) -> Tensor:
    """Distances [...] of points [..., 3] to the centre of the cube, rounded off to 0.1 there: smooth, and not so small
    that a bit of surface stays behind."""
    return ((x - 0.5).square().sum(-1) + 0.1**2).sqrt()


def make_field(config: SdfConfig) -> Field:
    """The field that ``config.field`` names, with parameters that ``config.seed`` gives."""
    from hashgrid.fields.siren import SirenField

    torch.manual_seed(config.seed)
    return SdfField(config) if check_option("field", config.field, FIELDS) == "hashgrid" else SirenField(config)
