"""CoordX (Liang et al. 2022): a SIREN whose first layers see one coordinate each, for values on grids."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hashgrid.nn import jets
from hashgrid.nn.filters import check_sizes
from hashgrid.nn.fused_mlp import MAX_HIDDEN_LAYERS, SIREN_FREQUENCY
from hashgrid.nn.mlp import draw_sines_
from hashgrid.ops._backend import backend_ops
from hashgrid.ops._tensors import maths_dtype
from hashgrid.util.choices import BACKENDS, check_option


class CoordX(nn.Module):
    """Layers of ``sin(w0 (W x + b))``: the first ones of each coordinate by itself, the rest of what their outputs make
    together. On a grid of H x W points the first ones cost H + W instead of H W: :meth:`grid`.

    Each coordinate has a first layer of its own, further split layers are shared. Points that do not form a grid cost
    as much as with one network, or more.

    Args:
        n_input_dims: coordinates D, in [-1, 1]^D.
        n_output_dims: outputs.
        n_neurons: width.
        n_hidden_layers: layers of sines.
        n_split_layers: so many of them are of single coordinates, 1 at least. Deeper ones cost less and fit worse.
        fusion: outputs of the split layers are multiplied ("product"), added ("sum") or put side by side ("concat").
        groups: coordinates that go together, as in ``((0,), (1, 2))`` for time and place; None for each by itself.
        w0: frequency of the first layers, as of :class:`Siren`.
        w0_hidden: of the following ones.
        backend: ``"native"`` or ``"reference"``.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> net, y, x = CoordX(2, 3, n_neurons=32), torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 7)
        >>> values = net.grid([y, x])
        >>> values.shape, torch.allclose(values, net(torch.cartesian_prod(y, x)).view(5, 7, 3), atol=1e-5)
        (torch.Size([5, 7, 3]), True)
    """

    def __init__(
        self,
        n_input_dims: int,
        n_output_dims: int,
        n_neurons: int = 256,
        n_hidden_layers: int = 4,
        n_split_layers: int = 2,
        fusion: Literal["product", "sum", "concat"] = "product",
        groups: Sequence[Sequence[int]] | None = None,
        w0: float = SIREN_FREQUENCY,
        w0_hidden: float = SIREN_FREQUENCY,
        backend: str = "native",
    ) -> None:
        super().__init__()
        check_sizes(n_input_dims, n_output_dims, n_neurons, n_hidden_layers)
        self.groups = tuple(map(tuple, ((i,) for i in range(n_input_dims)) if groups is None else groups))
        if sorted(axis for group in self.groups for axis in group) != list(range(n_input_dims)):
            raise ValueError(f"`groups` must hold each of {n_input_dims} coordinates once, got {self.groups}")
        if not 1 <= n_split_layers <= n_hidden_layers or n_hidden_layers > MAX_HIDDEN_LAYERS:
            raise ValueError(
                f"`n_split_layers` must be in 1..{n_hidden_layers} and `n_hidden_layers` at most {MAX_HIDDEN_LAYERS},"
                f" got {n_split_layers} and {n_hidden_layers}"
            )
        if not (0 < w0 < math.inf and 0 < w0_hidden < math.inf):
            raise ValueError(f"`w0` and `w0_hidden` must be positive and finite, got {w0} and {w0_hidden}")
        self.n_input_dims, self.n_output_dims = n_input_dims, n_output_dims
        self.fusion = check_option("fusion", fusion, ("product", "sum", "concat"))
        self.w0, self.w0_hidden = w0, w0_hidden
        self.backend = check_option("backend", backend, BACKENDS)
        self.first, self.shared, self.rest = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        n_groups, n = len(self.groups), n_neurons
        for group in self.groups:
            self.first.append(self._layer(len(group), n, True, n_groups))
        for _ in range(n_split_layers - 1):
            self.shared.append(self._layer(n, n, False, n_groups))
        widths = [n * n_groups if fusion == "concat" else n, *[n] * (n_hidden_layers - n_split_layers), n_output_dims]
        for n_in, n_out in zip(widths, widths[1:], strict=False):
            self.rest.append(self._layer(n_in, n_out, False, 1))

    def _layer(self, n_in: int, n_out: int, is_first: bool, n_branches: int) -> nn.Linear:
        layer = nn.Linear(n_in, n_out)
        draw_sines_(layer.weight, layer.bias, self.w0_hidden, is_first)
        with torch.no_grad():
            layer.bias.div_(n_branches)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [..., out] of points ``x`` [..., D].

        Raises:
            ValueError: the last dimension of ``x`` does not fit.
        """
        if x.dim() == 0 or x.shape[-1] != self.n_input_dims:
            raise ValueError(f"`x` must have shape [..., {self.n_input_dims}], got {list(x.shape)}")
        return self._together([self._branch(i, x[..., list(group)]) for i, group in enumerate(self.groups)])

    def grid(self, axes: Sequence[Tensor]) -> Tensor:
        """Outputs [n_1, n_2, ..., out] at all combinations of coordinates, of each group [n_i], or [n_i, d] of d.

        Raises:
            ValueError: there is not one tensor per group, or a shape does not fit.
        """
        if len(axes) != len(self.groups):
            raise ValueError(f"`axes` must be {len(self.groups)} tensors, one per group, got {len(axes)}")
        branches = []
        for i, (axis, group) in enumerate(zip(axes, self.groups, strict=True)):
            points = axis[:, None] if axis.dim() == 1 else axis
            if points.dim() != 2 or points.shape[1] != len(group):
                raise ValueError(f"`axes[{i}]` must have shape [N, {len(group)}], got {list(axis.shape)}")
            sides = [1] * len(axes)
            sides[i] = len(points)
            branches.append(self._branch(i, points).view(*sides, -1))
        return self._together(branches)

    def jet(
        self, x: Tensor, directions: Tensor, accelerations: Tensor | None = None, operators: Tensor | None = None
    ) -> jets.Jet:
        """Outputs with first and second derivatives; see `derivatives_along`."""
        ops, parts = backend_ops(self.backend), []
        for i, group in enumerate(self.groups):
            values, first, second = jets.channels((x, directions, accelerations), list(group))
            parts.append(ops.mlp_jet(values, first, **self._split(i), accelerations=second, operators=operators))
        if self.fusion == "product":
            whole = reduce(lambda a, b: jets.product(a, b, operators), parts)
        elif self.fusion == "sum":
            values, first, second = (sum(tensors) for tensors in zip(*parts, strict=True))
            whole = values, first, second
        else:
            whole = jets.concatenated(parts)
        values, first, second = whole
        return ops.mlp_jet(values, first, **self._rest(), accelerations=second, operators=operators)

    def _branch(self, i: int, x: Tensor) -> Tensor:
        """Outputs of the split layers of group ``i``."""
        return self._run(x, self._split(i))

    def _together(self, branches: Sequence[Tensor]) -> Tensor:
        if self.fusion == "concat":
            sides = torch.broadcast_shapes(*(branch.shape[:-1] for branch in branches))
            y = torch.cat([branch.expand(*sides, -1) for branch in branches], dim=-1)
        else:
            y = reduce(torch.mul if self.fusion == "product" else torch.add, branches)
        return self._run(y, self._rest())

    def _run(self, x: Tensor, layers: dict[str, Any]) -> Tensor:
        # autocast alone rounds nothing: sines of large numbers are lost in half precision
        return backend_ops(self.backend).mlp(x, **layers, compute_dtype=maths_dtype(layers["weights"][0]))

    def _split(self, i: int) -> dict[str, object]:
        layers = [self.first[i], *self.shared]
        return _arguments(layers, [self.w0, *[self.w0_hidden] * len(self.shared)], "sine")

    def _rest(self) -> dict[str, object]:
        return _arguments(self.rest, [*[self.w0_hidden] * (len(self.rest) - 1), 1.0], "none")


def _arguments(layers: Iterable[Any], factors: Sequence[float], output_activation: str) -> dict[str, object]:
    """Arguments of :func:`hashgrid.ops.mlp` for layers of sines, whose factors stand beside the parameters."""
    pairs = list(zip(factors, layers, strict=True))
    return {
        "weights": [factor * layer.weight for factor, layer in pairs],
        "biases": [factor * layer.bias for factor, layer in pairs],
        "activation": "sine",
        "output_activation": output_activation,
    }
