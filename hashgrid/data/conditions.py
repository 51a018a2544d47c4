"""Boundary and initial conditions of differential equations: where they hold, and functions that hold them exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# What can be known along an axis, to be held exactly: ends, 0 or 1, and whether it is the slope there.
ALLOWED = (
    set(),
    *({(end, False)} for end in (0, 1)),
    {(0, False), (1, False)},
    *({(end, False), (end, True)} for end in (0, 1)),
)
Function = Callable[[Tensor], Tensor]  # of points [N, D], values [N]


@dataclass(frozen=True)
class Condition:
    """What is known of the solution at some place.

    Args:
        where: coordinates that are fixed there, by the names of the axes: ``{"t": 0.0}`` is a face of the box, a point
            fixes every axis.
        value: of the solution there, a number or a function of points [N, D] with values [N].
        slope: the axis along which the *derivative* has that value; None for the solution itself.
    """

    where: Mapping[str, float]
    value: float | Function = 0.0
    slope: str | None = None

    def values(self, x: Tensor) -> Tensor:
        """What is known [N] at points [N, D]."""
        return one_each("value", self.value(x), x) if callable(self.value) else torch.full_like(x[:, 0], self.value)


def one_each(name: str, values: Tensor, x: Tensor) -> Tensor:
    """``values``, what a function called ``name`` has said of points ``x`` [N, D].

    Raises:
        ValueError: they are not [N].
    """
    if values.shape != x.shape[:1]:
        raise ValueError(f"`{name}` must give values [N] of points [N, {x.shape[1]}], got {list(values.shape)}")
    return values


class Jet(NamedTuple):
    """A function at N points."""

    value: Tensor  # [N]
    first: Tensor  # [N, D], its derivatives along the axes
    second: Tensor  # [N, M], the sums of second derivatives that an equation asks for


def jet_of(function: Function, x: Tensor, operators: Tensor) -> Jet:
    """The jet of a function made of PyTorch's own ops at ``x`` [N, D], with the second derivatives along the axes that
    ``operators`` [M, D] sum up. In reverse mode: what `torch.func.jvp` loads at its first call takes over a second."""
    x = x.detach().requires_grad_()

    def slopes(of: Tensor) -> Tensor:
        if not of.requires_grad:
            return torch.zeros_like(x)
        return torch.autograd.grad(of.sum(), x, create_graph=True, materialize_grads=True)[0]

    with torch.enable_grad():
        value = function(x)
        first = slopes(value)
        second = torch.stack([slopes(first[:, i])[:, i] for i in range(x.shape[1])], dim=1)
    return Jet(value.detach(), first.detach(), second.detach() @ operators.to(second).T)


def product(a: Jet, b: Jet, operators: Tensor) -> Jet:
    """The jet of ``a`` times ``b``; cross terms are those along each axis."""
    cross = 2 * (a.first * b.first) @ operators.T.to(a.first)
    first = a.first * b.value[:, None] + a.value[:, None] * b.first
    return Jet(a.value * b.value, first, a.second * b.value[:, None] + cross + a.value[:, None] * b.second)


class Constraint:
    """Makes a function hold conditions at faces of a box exactly: ``lift(x) + mask(x) f(x)``, whatever f is.

    ``lift`` has the values that are asked for: each axis corrects what those before it left (the Boolean sum of Coons
    patches), so that data must agree where faces meet. ``mask`` vanishes there, and as fast as a slope needs.

    Args:
        conditions: at faces of the box.
        axes: names of the axes.
        box: their ends [D, 2].

    Raises:
        ValueError: a condition is not one at a face, or an axis has other ones than a value at one end or at both, or a
            value and a slope at one end.
    """

    def __init__(self, conditions: Sequence[Condition], axes: Sequence[str], box: Tensor) -> None:
        self.low, self.extent = box[:, 0].tolist(), (box[:, 1] - box[:, 0]).tolist()
        faces: list[dict[tuple[int, bool], Condition]] = [{} for _ in axes]  # per axis, by end and whether of the slope
        for condition in conditions:
            (axis, at), *more = condition.where.items()
            i = axes.index(axis)
            if more or at not in box[i].tolist() or condition.slope not in (None, axis):
                raise ValueError(f"conditions can be hard at faces of the box only, got one at {dict(condition.where)}")
            faces[i][int(at == box[i, 1]), condition.slope is not None] = condition
        for axis, known in zip(axes, faces, strict=True):
            if known.keys() not in ALLOWED:
                raise ValueError(f"conditions along `{axis}` cannot be hard: give `conditions` soft")
        # a slope is corrected first, while nothing else has one
        order = sorted(range(len(axes)), key=lambda i: not any(is_slope for _, is_slope in faces[i]))
        self.faces = [(i, faces[i]) for i in order if faces[i]]

    def mask(self, x: Tensor) -> Tensor:
        """What vanishes [N] where something is known, and is about 1 far from there."""
        product = torch.ones_like(x[:, 0])
        for i, known in self.faces:
            share = (x[:, i] - self.low[i]) / self.extent[i]
            ends = {end for end, _ in known}
            for end, _ in known:
                product = product * (share if end == 0 else 1 - share)
            product = 4 * product if len(ends) == 2 else product
        return product

    def lift(self, x: Tensor) -> Tensor:
        """What has the values that are known, [N]."""
        return self._lift(x, len(self.faces))

    def _lift(self, x: Tensor, n_axes: int) -> Tensor:
        """With the conditions along the first ``n_axes`` only."""
        if n_axes == 0:
            return torch.zeros_like(x[:, 0])
        i, known = self.faces[n_axes - 1]
        before = self._lift(x, n_axes - 1)
        result, share = before, (x[:, i] - self.low[i]) / self.extent[i]
        for (end, is_slope), condition in known.items():
            there = self.low[i] + end * self.extent[i]
            place = torch.cat((x[:, :i], torch.full_like(x[:, i : i + 1], there), x[:, i + 1 :]), dim=1)
            if is_slope:
                result = result + (x[:, i] - there) * condition.values(place)
                continue
            blend = 1.0 if len({end for end, _ in known}) == 1 else share if end else 1 - share
            result = result + blend * (condition.values(place) - self._lift(place, n_axes - 1))
        return result
