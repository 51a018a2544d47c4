"""A differential equation as a field learns it: the points where it has to hold, and what is known at the border."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hashgrid.data.conditions import Constraint, Jet, jet_of, one_each, product
from hashgrid.data.equations import Equation
from hashgrid.nn.derivatives import Stage, derivatives_along

N_BLOCKS = 8  # of points; each by itself fills the box evenly
LEAST_LIKELY = 0.05  # what is added to residuals, relative to their mean, where points are drawn by them
NEARBY = (0.03, 0.01, 0.003)  # of the box: around difficult points, others are looked for as far as this


class Points(NamedTuple):
    """Points at which an equation has to hold, fp32."""

    unit: Tensor  # [N, D] in the unit cube
    x: Tensor  # [N, D] in the equation's coordinates
    form: Tensor  # [N, 2 + 2 D + 2 M], jets of lift and mask, if conditions are hard; [N, 0] otherwise

    def at(self, index: Tensor | slice) -> Points:
        """Some of them."""
        return Points(*(part[index] for part in self))

    def join(self, other: Points) -> Points:
        """These, and then the others."""
        return Points(*(torch.cat(parts) for parts in zip(self, other, strict=True)))


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
        self.operators, self.directions = operators.float().to(device), torch.diag(1 / self.extent).float().to(device)
        self.pool = self.points(_sobol(N_BLOCKS * n_block, n_dims, seed))
        n_conditions = 0 if hard else len(equation.conditions())
        self.borders = [self._border(i, max(1, n_block // 8), seed) for i in range(n_conditions)]

    def points(self, unit: Tensor) -> Points:
        """What there is to know of points [N, D] of the unit cube, fp64."""
        x, jets = self.low + self.extent * unit.cpu(), []
        if self.constraint is not None:
            for function in (self.constraint.lift, self.constraint.mask):
                value, first, second = jet_of(function, x, self.operators.cpu())
                jets += [value[:, None], first, second]
        form = torch.cat(jets, dim=1) if jets else x[:, :0]
        return Points(*(part.float().to(self.device) for part in (unit, x, form)))

    def _border(self, number: int, n: int, seed: int) -> Border:
        equation, condition = self.equation, self.equation.conditions()[number]
        place = torch.tensor([condition.where.get(axis, torch.nan) for axis in equation.axes], dtype=torch.float64)
        n = 1 if place.isfinite().all() else n
        x = self.low + self.extent * _sobol(n, len(place), seed + 1 + number)
        x = torch.where(place.isfinite(), place, x)
        unit, values = (x - self.low) / self.extent, condition.values(x)
        axis = None if condition.slope is None else equation.axes.index(condition.slope)
        return Border(unit.float().to(self.device), values.float().to(self.device), axis)

    def block(self, number: int) -> Points:
        """The points of a block; after the last one comes the first."""
        start = number % N_BLOCKS * self.n_block
        return self.pool.at(slice(start, start + self.n_block))

    def solution(self, field: Stage, points: Points) -> Jet:
        """What ``field`` says of the solution."""
        parts = derivatives_along(field, points.unit, self.directions, self.operators)
        jet = Jet(*(part.squeeze(-1) for part in parts))
        if self.constraint is None:
            return jet
        m, n_dims = self.operators.shape
        columns = points.form.split([1, n_dims, m, 1, n_dims, m], dim=1)
        lift, mask = (Jet(value[:, 0], *slopes) for value, *slopes in (columns[:3], columns[3:]))
        return Jet(*(a + b for a, b in zip(lift, product(mask, jet, self.operators), strict=True)))

    def residual(self, field: Stage, points: Points) -> Tensor:
        """By how much ``field`` fails the equation [N]."""
        residual = self.equation.residual(points.x, *self.solution(field, points))
        return one_each("residual", residual, points.x)

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
    def difficult(self, field: Stage, n: int, seed: int, before: Tensor) -> Tensor:
        """Points [n, D] of the unit cube, fp64, that are drawn by their residuals (Wu et al. 2023) from the pool and
        from the neighbourhood of those ``before`` [N, D]: where a shock is thin, they gather over some draws."""
        generator = torch.Generator().manual_seed(seed)
        noise = [size * torch.randn(before.shape, generator=generator, dtype=torch.float64) for size in NEARBY]
        near = 1 - (1 - (torch.cat([before.cpu() + part for part in noise])).abs()).abs()  # thrown back at the sides
        candidates = self.pool.join(self.points(near))
        residuals = [
            self.residual(field, candidates.at(slice(i, i + self.n_block))).abs()
            for i in range(0, len(candidates.x), self.n_block)
        ]
        likely = torch.cat(residuals).cpu().double()
        likely = likely / likely.mean().clamp_min(1e-30) + LEAST_LIKELY
        # of the cumulated shares and by stratified numbers: fewer twice, and no limit of how many there are
        edges = likely.cumsum(0)
        places = (torch.arange(n) + torch.rand(n, generator=generator).double()) / max(n, 1) * edges[-1]
        drawn = torch.searchsorted(edges, places).clamp_max(len(edges) - 1)
        return candidates.unit.cpu()[drawn].double()

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
