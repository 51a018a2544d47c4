"""Differential equations with what is known at their borders, and solutions in closed form to compare with."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.conditions import Condition, one_each

PI = math.pi


@dataclass(frozen=True)
class Equation:
    """A differential equation of second order for one function of a box. A subclass is a problem; what it adds as
    fields with defaults are coefficients, which `hashgrid pde --coefficients` sets.

    Example:
        >>> class Decay(Equation):
        ...     axes, box, operators = ("t",), ((0.0, 1.0),), ()
        ...     def residual(self, x, u, first, second):
        ...         return first[:, 0] + 3 * u
        ...     def conditions(self):
        ...         return [Condition({"t": 0.0}, 1.0)]
        ...     def truth(self, x):
        ...         return torch.exp(-3 * x[:, 0])
    """

    name: ClassVar[str] = "equation"  # of a subclass that of the class, unless it says otherwise
    axes: ClassVar[Sequence[str]] = ("x", "t")
    box: ClassVar[Sequence[tuple[float, float]]] = ((0.0, 1.0), (0.0, 1.0))  # ends of each axis
    # which sums of second derivatives along the axes ``residual`` wants, one row each: u_xx alone is (1, 0), the
    # Laplacian (1, 1)
    operators: ClassVar[Sequence[Sequence[float]]] = ((1.0, 0.0),)
    positive: ClassVar[Sequence[str]] = ()  # coefficients that must be

    def __init_subclass__(cls) -> None:
        cls.name = cls.__dict__.get("name", cls.__name__.lower())

    def residual(self, x: Tensor, u: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """What vanishes [N] where ``u`` [N] solves the equation at ``x`` [N, D]; ``first`` [N, D] are its derivatives
        along the axes, ``second`` [N, M] those of ``operators``."""
        raise NotImplementedError

    def conditions(self) -> Sequence[Condition]:
        """What is known of the solution."""
        raise NotImplementedError

    def truth(self, x: Tensor) -> Tensor | None:
        """The solution [N] at ``x`` [N, D], in PyTorch's ops; None where it is not known."""
        return None

    @torch.no_grad()
    def true_values(self, x: Tensor) -> Tensor | None:
        """What ``truth`` gives, a part of the points after the other and checked."""
        parts = [self.truth(some) for some in x.split(1 << 13)]
        known = [
            one_each("truth", part, some)
            for part, some in zip(parts, x.split(1 << 13), strict=True)
            if part is not None
        ]
        return torch.cat(known) if known else None

    def check(self) -> None:
        """Raises ValueError where a coefficient, or what the class says, cannot be used."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value) or (field.name in self.positive and not value > 0):
                what = "positive" if field.name in self.positive else "finite"
                raise ValueError(f"coefficient `{field.name}` of {self.name} must be {what}, got {value:g}")
        n = len(self.axes)
        if n < 1 or len(self.box) != n or any(len(ends) != 2 or not ends[0] < ends[1] for ends in self.box):
            raise ValueError(f"`box` of {self.name} must be {n} pairs (low, high), got {self.box}")
        if any(len(row) != n for row in self.operators):
            raise ValueError(f"`operators` of {self.name} must be rows of {n} numbers, got {self.operators}")
        conditions = self.conditions()
        if not conditions:
            raise ValueError(f"`conditions` of {self.name} must be at least one, got none")
        for condition in conditions:
            named = {*condition.where, *([condition.slope] if condition.slope else [])}
            if not condition.where or not named <= set(self.axes):
                raise ValueError(f"`conditions` of {self.name} must be at axes of {tuple(self.axes)}, got {condition}")


@dataclass(frozen=True)
class Heat(Equation):
    """``u_t = a u_xx`` on a rod of length 1 that is cold at both ends."""

    positive = ("a",)

    a: float = 0.1  # diffusivity

    def residual(self, x: Tensor, u: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return first[:, 1] - self.a * second[:, 0]

    def conditions(self) -> Sequence[Condition]:
        return Condition({"t": 0.0}, lambda x: torch.sin(PI * x[:, 0])), Condition({"x": 0.0}), Condition({"x": 1.0})

    def truth(self, x: Tensor) -> Tensor:
        return torch.exp(-self.a * PI**2 * x[:, 1]) * torch.sin(PI * x[:, 0])


@dataclass(frozen=True)
class Wave(Equation):
    """``u_tt = c^2 u_xx``: a string of length 1 that is let go, over one period."""

    operators = ((1.0, 0.0), (0.0, 1.0))
    positive = ("c",)

    c: float = 1.0  # speed

    @property
    def box(self) -> Sequence[tuple[float, float]]:  # type: ignore[override]
        return (0.0, 1.0), (0.0, 2 / self.c)

    def residual(self, x: Tensor, u: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return second[:, 1] / self.c**2 - second[:, 0]

    def conditions(self) -> Sequence[Condition]:
        start = Condition({"t": 0.0}, lambda x: torch.sin(PI * x[:, 0])), Condition({"t": 0.0}, slope="t")
        return *start, Condition({"x": 0.0}), Condition({"x": 1.0})

    def truth(self, x: Tensor) -> Tensor:
        return torch.sin(PI * x[:, 0]) * torch.cos(self.c * PI * x[:, 1])


class _Still(Equation):
    """An equation of x and y that is zero all around its box."""

    axes = ("x", "y")
    operators = ((1.0, 1.0),)

    def conditions(self) -> Sequence[Condition]:
        return [Condition({axis: at}) for axis, ends in zip(self.axes, self.box, strict=True) for at in ends]


@dataclass(frozen=True)
class Poisson(_Still):
    """``-(u_xx + u_yy) = 2 pi^2 sin(pi x) sin(pi y)`` on the unit square."""

    def residual(self, x: Tensor, u: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return second[:, 0] + 2 * PI**2 * self.truth(x)

    def truth(self, x: Tensor) -> Tensor:
        return torch.sin(PI * x[:, 0]) * torch.sin(PI * x[:, 1])


@dataclass(frozen=True)
class Helmholtz(_Still):
    """``u_xx + u_yy + k^2 u = q`` on [-1, 1]^2, of which ``sin(a1 pi x) sin(a2 pi y)`` is the solution."""

    box = ((-1.0, 1.0), (-1.0, 1.0))
    positive = ("a1", "a2", "k")

    a1: float = 1.0  # half waves per unit of x, a whole number
    a2: float = 4.0  # of y
    k: float = 1.0  # wave number

    def residual(self, x: Tensor, u: Tensor, first: Tensor, second: Tensor) -> Tensor:
        source = (self.k**2 - PI**2 * (self.a1**2 + self.a2**2)) * self.truth(x)
        return second[:, 0] + self.k**2 * u - source

    def truth(self, x: Tensor) -> Tensor:
        return torch.sin(self.a1 * PI * x[:, 0]) * torch.sin(self.a2 * PI * x[:, 1])

    def check(self) -> None:
        super().check()
        for name, value in (("a1", self.a1), ("a2", self.a2)):
            if value != round(value):
                raise ValueError(f"coefficient `{name}` of helmholtz must be a whole number, got {value:g}")


@dataclass(frozen=True)
class Burgers(Equation):
    """``u_t + u u_x = nu u_xx`` on [-1, 1], from ``-sin(pi x)``.

    A shock stands at x = 0 from t = 1 / pi on, of slope -152 at nu = 0.01 / pi (Raissi et al. 2019). The residual is
    divided by ``1 + |u_x| / 20``: within the shock every term is hundreds of times as large as elsewhere. By a larger
    part of the slope the loss would not see the shock drift, undivided it sees little else.
    """

    box = ((-1.0, 1.0), (0.0, 1.0))
    positive = ("nu",)

    nu: float = 0.01 / PI  # viscosity

    def residual(self, x: Tensor, u: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return (first[:, 1] + u * first[:, 0] - self.nu * second[:, 0]) / (1 + 0.05 * first[:, 0].abs())

    def conditions(self) -> Sequence[Condition]:
        return Condition({"t": 0.0}, lambda x: -torch.sin(PI * x[:, 0])), Condition({"x": -1.0}), Condition({"x": 1.0})

    def truth(self, x: Tensor) -> Tensor:
        """By the transformation of Cole and Hopf: a mean of ``-sin(pi (x - e))`` over Gaussian distances e of variance
        2 nu t, weighed by ``exp(-cos(pi (x - e)) / (2 pi nu))``, by Gauss-Hermite quadrature."""
        z, log_weights = (values.to(x) for values in _quadrature())
        angle = PI * (x[:, :1] - z * (4 * self.nu * x[:, 1:]).sqrt())  # [N, nodes]
        # as a softmax, which takes the largest exponent out: they reach 1 / (2 pi nu) = 50
        shares = torch.softmax(log_weights - torch.cos(angle) / (2 * PI * self.nu), dim=1)
        return -(shares * torch.sin(angle)).sum(dim=1)


@cache
def _quadrature(n_nodes: int = 240) -> tuple[Tensor, Tensor]:
    """Nodes and logarithms of weights [n_nodes] of Gauss-Hermite quadrature; weights of more are too small for fp64."""
    nodes, weights = np.polynomial.hermite.hermgauss(n_nodes)
    return torch.from_numpy(nodes), torch.from_numpy(np.log(weights))


@dataclass(frozen=True)
class Advection(Equation):
    """``u_t + c u_x = 0``: waves ``sin(2 pi x)`` that flow in at x = 0 and out at x = 1."""

    operators = ()
    positive = ("c",)

    c: float = 1.0  # speed

    def residual(self, x: Tensor, u: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return first[:, 1] + self.c * first[:, 0]

    def conditions(self) -> Sequence[Condition]:
        return Condition({"t": 0.0}, self.truth), Condition({"x": 0.0}, self.truth)

    def truth(self, x: Tensor) -> Tensor:
        return torch.sin(2 * PI * (x[:, 0] - self.c * x[:, 1]))


@dataclass(frozen=True)
class Eikonal(Equation):
    """``|grad u| = 1`` on [-1, 1]^2, the distance from the middle.

    Nothing else rises from 0 there to these values at the border.
    """

    axes = ("x", "y")
    box = ((-1.0, 1.0), (-1.0, 1.0))
    operators = ()

    def residual(self, x: Tensor, u: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return first.square().sum(dim=1) - 1

    def conditions(self) -> Sequence[Condition]:
        border = [Condition({axis: at}, self.truth) for axis in self.axes for at in (-1.0, 1.0)]
        return [Condition({"x": 0.0, "y": 0.0}), *border]

    def truth(self, x: Tensor) -> Tensor:
        return x.norm(dim=1)


EQUATIONS: dict[str, type[Equation]] = {
    kind.name: kind for kind in (Poisson, Heat, Wave, Helmholtz, Burgers, Advection, Eikonal)
}


def find_equation(source: str | Path, coefficients: Sequence[str] = ()) -> Equation:
    """The equation of a name, or the one in a Python file, with ``coefficients`` such as ``"a=0.2"``.

    Raises:
        ValueError: there is none, or it does not have such coefficients.
    """
    path = Path(source)
    kind = _equation_of(path) if path.suffix == ".py" else EQUATIONS.get(str(source))
    if kind is None:
        raise ValueError(f"`SOURCE` must be one of {', '.join(EQUATIONS)} or a Python file, got '{source}'")
    known, values = [field.name for field in dataclasses.fields(kind)], {}
    for text in coefficients:
        name, _, value = text.partition("=")
        if name not in known:
            of = f"among {', '.join(known)} of {kind.name}" if known else f"none: {kind.name} has none"
            raise ValueError(f"`coefficients` must be {of}, got '{text}'")
        try:
            values[name] = float(value)
        except ValueError:
            raise ValueError(f"`coefficients` must be such as {name}=0.1, got '{text}'") from None
    equation = kind(**values)
    equation.check()
    return equation


def _equation_of(path: Path) -> type[Equation]:
    """The one subclass of :class:`Equation` that a file makes, which is run."""
    if not path.is_file():
        raise ValueError(f"`SOURCE` must be one of {', '.join(EQUATIONS)} or a Python file; there is no '{path}'")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a stranger's file raises
        raise ValueError(f"'{path}' cannot be run: {type(error).__name__}: {error}") from error
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Equation)]
    kinds = [kind for kind in kinds if kind.__module__ == module.__name__]
    if len(kinds) != 1:
        raise ValueError(f"'{path}' must hold one subclass of `hashgrid.data.equations.Equation`, got {len(kinds)}")
    return kinds[0]
