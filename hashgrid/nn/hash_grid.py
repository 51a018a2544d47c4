"""The multiresolution hash grid as a module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hashgrid.levels import FEATURE_COUNTS, LevelTable, as_level_table, make_level_table
from hashgrid.maths import straight_through
from hashgrid.ops._backend import backend_ops, ngp_ops
from hashgrid.ops._half_table import is_current, mark_current, mark_unknown, moving_parameter, watch
from hashgrid.ops._tensors import HALF_DTYPES, maths_dtype
from hashgrid.util.autograd import has_tangents, is_transformed
from hashgrid.util.choices import BACKENDS, BOUNDS, INTERPOLATIONS, as_integer, check_option


class HashGrid(nn.Module):
    """Trainable features of positions in [0, 1]^D at several resolutions (Müller et al. 2022, section 3).

    Args:
        n_input_dims: dimensions D of the positions, 1..7.
        n_levels: levels L.
        n_features_per_level: features F of a table entry: 1, 2, 4 or 8.
        log2_hashmap_size: a level has at most 2 to this power entries; coarse levels that need fewer are dense.
        base_resolution: resolution of the coarsest level, one for all axes or one each.
        max_resolution: resolution of the finest level, likewise.
        per_level_scale: growth from level to level, likewise; when given, it wins over ``max_resolution``.
        interpolation: ``"linear"``, ``"smoothstep"`` or ``"nearest"``.
        convention: how scales are rounded, ``"tcnn"`` or ``"paper"``.
        bounds: outside [0, 1], ``"clamp"`` uses the border value, ``"zero"`` gives zeros, ``"none"`` extrapolates.
        level_table: ready geometry that replaces everything from ``n_levels`` on but the features, for importers.
        compute_dtype: ``torch.float16`` or ``torch.bfloat16`` to read a copy of the table in half precision; the table,
            features and all gradients stay fp32. The half table is renewed when the table has changed; an
            optimiser that knows it (`hashgrid.optim.Adam.register_half_copy`) writes both in one pass. A table whose
            ``data`` was assigned is copied each time: its memory may have another owner who writes to it. Only
            changes past PyTorch, such as to ``table.detach().numpy()``, go unnoticed: call `refresh_half_table` then.
        accumulate_grad: the backward adds the table's gradient to ``table.grad`` itself, a buffer that is kept from
            step to step, instead of handing a fresh one to autograd. For training loops whose optimiser zeroes what it
            consumes (`hashgrid.optim.Adam` with ``zero_grad_in_step``); gradient hooks, `torch.autograd.grad` and
            DistributedDataParallel do not see this gradient, and `zero_grad` belongs before the forward pass.
        backend: ``"native"`` or ``"reference"``.

    Attributes:
        table: Parameter [n_entries, F], fp32, drawn from U(-1e-4, 1e-4). After ``.half()`` it is read as the values it
            then has; features stay fp32.
        half_table: buffer like ``table`` in ``compute_dtype``, not part of the state; None without ``compute_dtype``.
        levels: geometry of the levels.
        n_output_dims: L * F.

    Raises:
        ValueError: an argument is out of range.
    """

    table: nn.Parameter
    half_table: Tensor | None

    def __init__(
        self,
        n_input_dims: int = 3,
        n_levels: int = 16,
        n_features_per_level: int = 2,
        log2_hashmap_size: int = 19,
        base_resolution: int | Sequence[int] = 16,
        max_resolution: float | Sequence[float] | None = 2048,
        per_level_scale: float | Sequence[float] | None = None,
        interpolation: str = "linear",
        convention: str = "tcnn",
        bounds: str = "clamp",
        level_table: LevelTable | Sequence[dict] | None = None,
        compute_dtype: torch.dtype | None = None,
        accumulate_grad: bool = False,
        backend: str = "native",
    ) -> None:
        super().__init__()
        n_input_dims = as_integer("n_input_dims", n_input_dims)
        n_features_per_level = as_integer("n_features_per_level", n_features_per_level)
        if n_features_per_level not in FEATURE_COUNTS:
            raise ValueError(f"`n_features_per_level` must be one of {FEATURE_COUNTS}, got {n_features_per_level}")
        check_option("interpolation", interpolation, INTERPOLATIONS)
        check_option("bounds", bounds, BOUNDS)
        if compute_dtype not in (None, torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(f"`compute_dtype` must be torch.float16, torch.bfloat16 or None, got {compute_dtype}")
        self.backend = check_option("backend", backend, BACKENDS)
        if level_table is None:
            self.levels = make_level_table(
                n_input_dims, n_levels, log2_hashmap_size, base_resolution, max_resolution, per_level_scale, convention
            )
        else:
            self.levels = as_level_table(level_table, n_input_dims)
        self.accumulate_grad = accumulate_grad
        self.n_input_dims = n_input_dims
        self.n_levels = self.levels.n_levels
        self.n_features_per_level = n_features_per_level
        self.n_output_dims = self.n_levels * n_features_per_level
        self.interpolation = interpolation
        self.bounds = bounds
        self.compute_dtype = None if compute_dtype == torch.float32 else compute_dtype
        self.table = nn.Parameter(torch.empty(self.levels.n_entries, n_features_per_level))
        half_table = None if self.compute_dtype is None else torch.empty_like(self.table, dtype=self.compute_dtype)
        self.register_buffer("half_table", None if half_table is None else half_table.detach(), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the table from U(-1e-4, 1e-4) (Müller et al. 2022, section 4)."""
        nn.init.uniform_(self.table, -1e-4, 1e-4)

    def forward(self, x: Tensor, level_weights: Tensor | None = None, precomputed: Tensor | None = None) -> Tensor:
        """Features [..., L * F] of the positions ``x`` [..., D], channel ``l * F + f``, fp32 with a half table as
        well. ``level_weights`` [L] scale the levels, for coarse-to-fine schedules; gradients reach them too.
        ``precomputed`` [..., L * F] is the result of an earlier call with the same positions and table: it is
        returned as it is, and only its gradient is new.

        Raises:
            ValueError: a shape does not fit.
        """
        arguments = self.op_arguments(x, level_weights)
        half_table, buffer = arguments.pop("half_table"), self.gradient_buffer()
        if half_table is not None and has_tangents():  # only the public op has a forward mode
            arguments["table"], half_table = straight_through(half_table, self.table), None
        if half_table is None and precomputed is None and buffer is None:
            return backend_ops(self.backend).hash_encode(**arguments)
        return ngp_ops(self.backend).hash_encode_into(
            **arguments, half_table=half_table, precomputed=precomputed, grad_buffer=buffer
        )

    def jet(
        self, x: Tensor, directions: Tensor, accelerations: Tensor | None = None, operators: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features [..., L * F] of ``x`` [..., D], first and second derivatives [..., K, L * F] along ``directions``
        [..., K, D], read from the table itself where there is a half one: :func:`hashgrid.ops.hash_encode_jet`. What
        `derivatives_along` calls. ``accelerations`` [..., K, D] are second derivatives of ``x`` that moves on a curve;
        ``operators`` [M, K] sum second derivatives up, and accelerations are then M.

        Raises:
            ValueError: a shape does not fit.
        """
        along = directions if accelerations is None else torch.cat((directions, accelerations), dim=-2)
        y, first, second = backend_ops(self.backend).hash_encode_jet(
            x, along, self.table, self.levels, self.interpolation, self.bounds
        )
        n = directions.shape[-2]
        second = second[..., :n, :] if operators is None else operators @ second[..., :n, :]
        return y, first[..., :n, :], second if accelerations is None else second + first[..., n:, :]

    def op_arguments(self, x: Tensor, level_weights: Tensor | None = None) -> dict[str, Any]:
        """Arguments of :func:`hashgrid.ops._ngp.hash_encode_into` for these positions.

        Raises:
            ValueError: a shape does not fit.
        """
        if x.dim() == 0 or x.shape[-1] != self.n_input_dims:
            raise ValueError(f"`x` must have shape [..., {self.n_input_dims}], got {list(x.shape)}")
        if level_weights is not None:
            if level_weights.shape != (self.n_levels,):
                raise ValueError(f"`level_weights` must have shape [{self.n_levels}], got {list(level_weights.shape)}")
            level_weights = level_weights.to(maths_dtype(x))
        return {"positions": x, "level_weights": level_weights, **self.table_arguments()}

    def table_arguments(self) -> dict[str, Any]:
        """Arguments of fused ops that compute positions from rays."""
        return {
            "table": self.table,
            "levels": self.levels,
            "interpolation": self.interpolation,
            "bounds": self.bounds,
            "half_table": self._current_half_table(),
        }

    def gradient_buffer(self) -> Tensor | None:
        """``table.grad``, made where needed, when the backward is to add to it itself. Not one of half precision, which
        would lose what is small, nor where `torch.func` returns gradients, nor in forward mode."""
        if not (self.accumulate_grad and torch.is_grad_enabled() and self.table.requires_grad):
            return None
        if self.table.dtype in HALF_DTYPES or is_transformed() or has_tangents():
            return None
        if self.table.grad is None:
            self.table.grad = torch.zeros_like(self.table)
        return self.table.grad

    def _current_half_table(self) -> Tensor | None:
        """The half table with the values the table has now."""
        if self.half_table is None:
            return None
        # versions cannot be looked at inside a graph, and `torch.func` allows no writes: both cast each time
        if torch.compiler.is_compiling() or is_transformed() or has_tangents():
            return self.table.detach().to(self.compute_dtype)
        if not is_current(self.half_table, self.table):
            self.refresh_half_table()
        return self.half_table

    @torch.no_grad()
    def refresh_half_table(self) -> None:
        """Copies the table to the half table. Needed by hand only after changes past PyTorch."""
        if self.half_table is not None:
            self.half_table.copy_(self.table)
            mark_current(self.half_table, self.table)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HashGrid:
        with moving_parameter(self.table):
            super()._apply(fn, recurse)
        if self.half_table is not None:
            self.half_table = self.half_table.to(self.compute_dtype)  # `.double()`, `.half()` are not meant for it
            mark_unknown(self.half_table)
            watch(self.table)
        return self

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        super().register_parameter(name, param)
        if param is not None and self.compute_dtype is not None:
            watch(param)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.compute_dtype is not None:
            watch(self.table)

    def extra_repr(self) -> str:
        sizes = f"{self.n_input_dims}, n_levels={self.n_levels}, n_features_per_level={self.n_features_per_level}"
        options = f"interpolation={self.interpolation!r}, bounds={self.bounds!r}, backend={self.backend!r}"
        dtype = "" if self.compute_dtype is None else f", compute_dtype={self.compute_dtype}"
        return f"{sizes}, n_entries={self.levels.n_entries}, {options}{dtype}"


def keep_gradients(model: nn.Module) -> None:
    """Lets the hash grids of a model add their gradients to buffers that stay: no fresh pages in every step."""
    for module in model.modules():
        if isinstance(module, HashGrid):
            module.accumulate_grad = True


def levels_on(n_levels: int, n_coarse: int, share: float, device: torch.device) -> Tensor | None:
    """Weights [n_levels] of levels of detail that come one after the other: ``n_coarse`` are there at share 0, all at
    share 1 (Lin et al. 2021, section 3.3, with linear steps); None from then on, and where there are no levels."""
    if n_levels == 0 or share >= 1:
        return None
    coarse = min(n_coarse, n_levels)
    return (coarse + share * (n_levels - coarse) - torch.arange(n_levels, device=device)).clamp(0, 1)
