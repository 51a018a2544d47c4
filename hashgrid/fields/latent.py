"""What every field of many shapes can do: values of points, given what says which shape it is."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from hashgrid.util.config import Config


class LatentField(nn.Module):
    """Any of many shapes over the unit cube. A method is a subclass with ``forward``, and either codes, which are
    trained with it (an auto-decoder), or ``encode``, which makes a latent of points.

    Latents are a tensor [B, ...] or a tuple of such tensors, one row per shape.
    """

    Config: ClassVar[type[Config]]  # of its options; ``learning_rate`` and ``final_learning_rate`` are among them
    recipe: ClassVar[dict[str, Any]] = {}  # options of training that differ from the task's
    target: ClassVar[Literal["distance", "occupancy", "unsigned"]] = "distance"  # what its values are trained to be
    code_shape: tuple[int, ...] | None = None  # of one shape's code; None where points are encoded
    level: float = 0.0  # of the surface

    def forward(self, x: Tensor, latent: Any) -> Tensor:
        """Values [B, N] of points [B, N, 3]: signed distances, logits of being inside, or unsigned distances."""
        raise NotImplementedError

    def encode(self, points: Tensor) -> Any:
        """Latents of clouds [B, P, 3]."""
        raise NotImplementedError

    def outside(self, x: Tensor, latent: Any) -> Tensor:
        """Values [B, N] that are negative inside, whatever the field is trained to be."""
        values = self(x, latent)
        return self.level - values if self.target == "occupancy" else values - self.level

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


class OneShape(nn.Module):
    """One of the shapes of a field as a function of points.

    Args:
        field: of many shapes.
        latent: of several.
        index: which of them.
    """

    def __init__(self, field: LatentField, latent: Any, index: int = 0) -> None:
        super().__init__()
        self.field, self.latent = field, pick(latent, slice(index, index + 1))

    @property
    def device(self) -> torch.device:
        return self.field.device

    def forward(self, x: Tensor, level_weights: Tensor | None = None) -> Tensor:
        """Values [N] of points [N, 3], negative inside."""
        return self.field.outside(x[None], self.latent)[0]


def shapes_of(field: LatentField, latent: Any) -> list[OneShape]:
    """Each of the shapes of a latent [B, ...]."""
    n = len(latent if isinstance(latent, Tensor) else latent[0])
    return [OneShape(field, latent, index) for index in range(n)]


class ShapeModel(nn.Module):
    """A field and, for an auto-decoder, the codes of the shapes that it is trained on.

    Args:
        field: of many shapes.
        n_shapes: S.
        code_std: of the first codes.
    """

    CODE_RATE = 2.0  # learning rate of codes over that of the network (Park et al. 2019: 1e-3 and 5e-4)

    def __init__(self, field: LatentField, n_shapes: int, code_std: float) -> None:
        super().__init__()
        self.field, self.codes = field, None
        if field.code_shape is not None:  # Adam's steps do not know how large a gradient is: codes move so much faster
            self.codes = nn.Parameter(torch.randn(n_shapes, *field.code_shape) * (code_std / self.CODE_RATE))

    def trained(self) -> Tensor | None:
        """Codes [S, ...] of all shapes; None of a field without codes."""
        return None if self.codes is None else self.latents().detach()

    def latents(self, shapes: Tensor | slice = slice(None)) -> Tensor:
        """Codes of shapes [B] among those that were trained."""
        assert self.codes is not None
        return self.codes[shapes] * self.CODE_RATE


def pick(latent: Any, rows: Any) -> Any:
    """Some rows of a latent."""
    return latent[rows] if isinstance(latent, Tensor) else tuple(part[rows] for part in latent)


def between(a: Any, b: Any, weight: float) -> Any:
    """The latent at ``weight`` of the way from one latent to another."""
    if isinstance(a, Tensor):
        return torch.lerp(a, b, weight)
    return tuple(torch.lerp(x, y, weight) for x, y in zip(a, b, strict=True))
