"""A differential equation as a field learns it: the points where it has to hold, and what is known at the border."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hashgrid.data.conditions import Constraint, Jet, jet_of, one_each, product
from hashgrid.data.equations import Equation
from hashgrid.nn.derivatives import Stage, derivatives_along

N_BLOCKS = 8  # of points; each by itself fills the box evenly
MOST_LIKELY, LEAST_LIKELY = 1.0, 0.05  # power of the residual that points are drawn by, and what is added to it


class Border(NamedTuple):
    """Points at which something is known."""

    unit: Tensor  # [N, D] in the unit cube
    values: Tensor  # [N]
    axis: int | None  # whose slope has these values; None for the solution itself


class Collocation:
    """An equation with a pool of points, the Sobol sequence, in blocks. The field sees the unit cube; derivatives are
    in the equation's own coordinates.

    Args:
        equation: what has to hold.
        hard: whether the field is put into a form that holds the conditions exactly; see :class:`Constraint`.
        n_block: points of a block; an eighth as many for each condition.
        seed: of the sequence.
        device: where the points are.

    Raises:
        ValueError: the conditions cannot be hard.
    """

    def __init__(self, equation: Equation, hard: bool, n_block: int, seed: int, device: torch.device) -> None:
        self.equation, self.n_block, self.device = equation, n_block, device
        box = torch.tensor(equation.box, dtype=torch.float64)
        self.low, self.extent, n_dims = box[:, 0], box[:, 1] - box[:, 0], len(box)
        # kernels sum up at least one second derivative
        operators = torch.tensor(equation.operators or [[0.0] * n_dims], dtype=torch.float64)
        self.constraint = Constraint(equation.conditions(), equation.axes, box) if hard else None
        unit = _sobol(N_BLOCKS * n_block, n_dims, seed)
        x = self.low + self.extent * unit
        self.lift = self.mask = None
        if self.constraint is not None:
            self.lift, self.mask = (
                Jet(*(part.float().to(device) for part in jet_of(function, x, operators)))
                for function in (self.constraint.lift, self.constraint.mask)
            )
        self.borders = [] if hard else [self._border(i, max(1, n_block // 8), seed) for i in range(self._n_conditions)]
        self.unit, self.x, self.operators = (part.float().to(device) for part in (unit, x, operators))
        self.directions = torch.diag(1 / self.extent).float().to(device)

    @property
    def _n_conditions(self) -> int:
        return len(self.equation.conditions())

    def _border(self, number: int, n: int, seed: int) -> Border:
        equation, condition = self.equation, self.equation.conditions()[number]
        place = torch.tensor([condition.where.get(axis, torch.nan) for axis in equation.axes], dtype=torch.float64)
        n = 1 if place.isfinite().all() else n
        x = self.low + self.extent * _sobol(n, len(place), seed + 1 + number)
        x = torch.where(place.isfinite(), place, x)
        unit, values = (x - self.low) / self.extent, condition.values(x)
        axis = None if condition.slope is None else equation.axes.index(condition.slope)
        return Border(unit.float().to(self.device), values.float().to(self.device), axis)

    def block(self, number: int) -> Tensor:
        """Indices [n_block] of the points of a block; after the last one comes the first."""
        return torch.arange(self.n_block, device=self.device) + number % N_BLOCKS * self.n_block

    def solution(self, field: Stage, index: Tensor) -> Jet:
        """What ``field`` says of the solution at points of the pool."""
        parts = derivatives_along(field, self.unit[index], self.directions, self.operators)
        jet = Jet(*(part.squeeze(-1) for part in parts))
        if self.lift is None or self.mask is None:
            return jet
        lift, mask = (Jet(*(part[index] for part in of)) for of in (self.lift, self.mask))
        return Jet(*(a + b for a, b in zip(lift, product(mask, jet, self.operators), strict=True)))

    def residual(self, field: Stage, index: Tensor) -> Tensor:
        """By how much ``field`` fails the equation [N] at points of the pool."""
        x = self.x[index]
        return one_each("residual", self.equation.residual(x, *self.solution(field, index)), x)

    def border_errors(self, field: Stage) -> list[Tensor]:
        """By how much it fails each condition [N]; nothing where it cannot."""
        errors = []
        for unit, values, axis in self.borders:
            if axis is None:
                errors.append(field(unit).squeeze(-1) - values)
            else:
                _, first, _ = derivatives_along(field, unit, self.directions[axis : axis + 1])
                errors.append(first[:, 0, 0] - values)
        return errors

    @torch.no_grad()
    def difficult(self, field: Stage, n: int, seed: int) -> Tensor:
        """Indices [n] of points of the pool that are drawn by their residuals (Wu et al. 2023)."""
        residuals = [self.residual(field, self.block(i)).abs() for i in range(N_BLOCKS)]
        likely = torch.cat(residuals).cpu().double() ** MOST_LIKELY
        likely = likely / likely.mean().clamp_min(1e-30) + LEAST_LIKELY
        # of the cumulated shares and by stratified numbers: fewer twice, and no limit of how many there are
        edges, generator = likely.cumsum(0), torch.Generator().manual_seed(seed)
        places = (torch.arange(n) + torch.rand(n, generator=generator).double()) / max(n, 1) * edges[-1]
        return torch.searchsorted(edges, places).clamp_max(len(edges) - 1).to(self.device)

    @torch.no_grad()
    def values(self, field: Stage, x: Tensor) -> Tensor:
        """The solution [N] at points [N, D] of fp64 on the CPU, as ``field`` says."""
        parts = []
        for some in x.split(1 << 15):
            u = field(((some - self.low) / self.extent).float().to(self.device)).squeeze(-1).double().cpu()
            parts.append(u if self.constraint is None else self.constraint.lift(some) + self.constraint.mask(some) * u)
        return torch.cat(parts)


def _sobol(n: int, n_dims: int, seed: int) -> Tensor:
    """Points [n, n_dims] of the unit cube, fp64, spread evenly."""
    return torch.quasirandom.SobolEngine(n_dims, scramble=True, seed=seed).draw(n, dtype=torch.float64)
