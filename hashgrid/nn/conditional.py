"""Layers that a code steers: conditional batch normalisation, and residual blocks with and without it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConditionalBatchNorm(nn.Module):
    """Batch normalisation whose scale and shift are linear functions of a code per shape (de Vries et al. 2017); at
    first 1 and 0 for every code.

    Args:
        n_latent_dims: Z of codes.
        n_features: C.

    Example:
        >>> import torch
        >>> ConditionalBatchNorm(8, 16)(torch.rand(2, 5, 16), torch.rand(2, 8)).shape
        torch.Size([2, 5, 16])
    """

    def __init__(self, n_latent_dims: int, n_features: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(n_features, affine=False)
        self.scale, self.shift = nn.Linear(n_latent_dims, n_features), nn.Linear(n_latent_dims, n_features)
        for layer, bias in ((self.scale, 1.0), (self.shift, 0.0)):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, bias)

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        """Features [B, N, C] of features ``x`` [B, N, C] of shapes with codes [B, Z]; statistics are those of all
        shapes and points while training."""
        y = self.norm(x.flatten(0, 1)).view_as(x)
        return torch.addcmul(self.shift(latent)[:, None], self.scale(latent)[:, None], y)


class ConditionalResBlock(nn.Module):
    """Two layers behind conditional batch normalisation and ReLU, added to what went in (Mescheder et al. 2019,
    supplement); they add nothing at first.

    Args:
        n_latent_dims: Z of codes.
        n_features: C.
    """

    def __init__(self, n_latent_dims: int, n_features: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([ConditionalBatchNorm(n_latent_dims, n_features) for _ in range(2)])
        first, second = (nn.Linear(n_features, n_features) for _ in range(2))
        nn.init.zeros_(second.weight)
        self.layers = nn.ModuleList([first, second])

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        """Features [B, N, C] of features [B, N, C] of shapes with codes [B, Z]."""
        y = x
        for norm, layer in zip(self.norms, self.layers, strict=True):
            y = layer(norm(y, latent).relu())
        return x + y


class ResBlock(nn.Module):
    """Two layers behind a ReLU each, added to what went in; they add nothing at first.

    Args:
        n_inputs: features that go in.
        n_outputs: features that come out; a linear map of what went in is added where they are not as many.
        n_hidden: features between the layers; the smaller number if none.
    """

    def __init__(self, n_inputs: int, n_outputs: int, n_hidden: int | None = None) -> None:
        super().__init__()
        n_hidden = min(n_inputs, n_outputs) if n_hidden is None else n_hidden
        self.first, self.second = nn.Linear(n_inputs, n_hidden), nn.Linear(n_hidden, n_outputs)
        nn.init.zeros_(self.second.weight)
        self.shortcut = nn.Identity() if n_inputs == n_outputs else nn.Linear(n_inputs, n_outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features [..., n_outputs] of features [..., n_inputs]."""
        y: Tensor = self.shortcut(x) + self.second(self.first(x.relu()).relu())
        return y
