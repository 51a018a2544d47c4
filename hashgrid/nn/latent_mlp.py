"""The network of DeepSDF: an MLP of a point and a code that are put in once more half way."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hashgrid.nn.mlp import MLP
from hashgrid.ops._backend import backend_ops


class LatentMLP(MLP):
    """ReLU network of points and a code per shape, both of which the layer half way gets once more (Park et al. 2019,
    section 4).

    What a layer makes of a code is the same for all points of a shape: it is computed once, as a bias of the fused
    kernels. With dropout a training step puts the codes beside the points and goes layer by layer.

    Args:
        n_point_dims: D of points.
        n_latent_dims: Z of codes; 0 for none.
        n_output_dims: outputs.
        n_neurons: width; the layer before the skip is narrower by what is put in there.
        n_hidden_layers: 2..16; the skip enters in the middle.
        weight_norm: hidden layers have a length and a direction per row (Salimans and Kingma 2016).
        dropout: share of hidden values that a training step leaves out.
        output_activation: of the last layer.
        backend: ``"native"`` or ``"reference"``.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> LatentMLP(3, 8, 1, n_neurons=32, n_hidden_layers=4)(torch.rand(2, 5, 3), torch.rand(2, 8)).shape
        torch.Size([2, 5, 1])
    """

    def __init__(
        self,
        n_point_dims: int = 3,
        n_latent_dims: int = 64,
        n_output_dims: int = 1,
        n_neurons: int = 256,
        n_hidden_layers: int = 8,
        weight_norm: bool = True,
        dropout: float = 0.0,
        output_activation: str = "tanh",
        backend: str = "native",
    ) -> None:
        if not 2 <= n_hidden_layers <= 16:
            raise ValueError(f"`n_hidden_layers` must be in 2..16, got {n_hidden_layers}")
        super().__init__(
            n_point_dims + n_latent_dims,
            n_output_dims,
            n_neurons,
            n_hidden_layers,
            "relu",
            output_activation,
            skips=(n_hidden_layers // 2,),
            narrow_skips=True,
            weight_norm=weight_norm,
            dropout=dropout,
            backend=backend,
        )
        self.n_point_dims, self.n_latent_dims = n_point_dims, n_latent_dims
        self.gains = nn.ParameterList(list(self.gains)[:-1])  # the last layer has none
        with torch.no_grad():
            self.weights[-1].mul_(0.1)  # values of some hundredths: where a clamped loss has a gradient

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:  # type: ignore[override]
        """Outputs [B, N, C] of points [B, N, D] of shapes with codes [B, Z]."""
        if x.dim() != 3 or x.shape[-1] != self.n_point_dims:
            raise ValueError(f"`x` must have shape [B, N, {self.n_point_dims}], got {list(x.shape)}")
        if latent.shape != (len(x), self.n_latent_dims):
            raise ValueError(f"`latent` must have shape {[len(x), self.n_latent_dims]}, got {list(latent.shape)}")
        if self.training and self.dropout > 0:
            return super().forward(torch.cat([x, latent[:, None].expand(-1, x.shape[1], -1)], dim=-1))
        if len(x) == 0:
            return x.new_zeros(0, x.shape[1], self.n_output_dims)
        (skip,), (weights, biases) = self.skips, self.layers_used()
        assert biases is not None
        shifts: dict[int, Tensor] = {}  # [B, out], what the codes add to the biases
        for layer in (0, skip):
            kept = weights[layer].shape[1] - self.n_latent_dims
            shifts[layer] = latent @ weights[layer][:, kept:].t() + biases[layer]
            weights[layer] = weights[layer][:, :kept].contiguous()
        mlp, rows = backend_ops(self.backend).mlp, []
        for shape, points in enumerate(x):
            first = [shifts[0][shape], *biases[1:skip]]
            second = [shifts[skip][shape], *biases[skip + 1 :]]
            y = mlp(points, weights[:skip], first, "relu", "relu", None)
            y = torch.cat([y, points], dim=-1)
            rows.append(mlp(y, weights[skip:], second, "relu", self.output_activation, None))
        return torch.stack(rows)
