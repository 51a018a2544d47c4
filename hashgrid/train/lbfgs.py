"""L-BFGS after Adam: second-order steps on a loss without noise, one iteration at a time, so that a run can be stopped
after any and go on with the same bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hashgrid.optim import Adam
from hashgrid.train.task import Progress, Step, Stepper, Task

SUFFICIENT, FLAT = 1e-4, 0.9  # the strong Wolfe conditions: of the decrease, and of the slope that may be left
MOST_TRIALS = 20  # of a line search


class Point(NamedTuple):
    """Where a line search has been."""

    at: float  # distance along the line, in steps
    loss: float
    slope: float  # along the line
    gradient: Tensor  # [n] fp64


class Lbfgs:
    """Limited-memory BFGS (Nocedal & Wright 2006, algorithms 7.4, 7.5, 3.5 and 3.6) on vectors [n] of fp64.

    Args:
        history: pairs of steps and changes of the gradient that are remembered.
    """

    def __init__(self, history: int) -> None:
        self.history = history
        self.steps: list[Tensor] = []
        self.changes: list[Tensor] = []
        self.here: tuple[float, Tensor] | None = None  # loss and gradient where the iteration stands

    def step(self, x: Tensor, evaluate: Callable[[Tensor], tuple[float, Tensor]]) -> tuple[Tensor, float, int]:
        """One iteration from ``x``: the new point, its loss, and how often ``evaluate`` (loss and gradient) was called.
        Without a step that leads down, the history is forgotten and the point stays."""
        n_before = 0 if self.here is not None else 1
        loss, gradient = self.here or evaluate(x)
        self.here = loss, gradient
        if not math.isfinite(loss):
            return x, loss, n_before
        direction = self._direction(gradient)
        slope = float(gradient @ direction)
        if not slope < 0:
            self.forget()
            direction, slope = -gradient, -float(gradient @ gradient)
        first = 1.0 if self.steps else min(1.0, 1.0 / float(gradient.abs().sum().clamp_min(1e-30)))
        found, n = _line_search(x, direction, Point(0.0, loss, slope, gradient), first, evaluate)
        if found is None:
            self.forget()
            return x, loss, n_before + n
        new = x + found.at * direction
        step, change = new - x, found.gradient - gradient
        if float(step @ change) > 1e-10 * float(step.norm() * change.norm()):
            self.steps, self.changes = [*self.steps, step][-self.history :], [*self.changes, change][-self.history :]
        self.here = found.loss, found.gradient
        return new, found.loss, n_before + n

    def forget(self) -> None:
        """Lets the next step be one along the gradient."""
        self.steps, self.changes = [], []

    def _direction(self, gradient: Tensor) -> Tensor:
        """Minus the inverse Hessian, as the pairs know it, times the gradient."""
        direction, shares = -gradient, []
        for step, change in zip(reversed(self.steps), reversed(self.changes), strict=True):
            shares.append((step @ direction) / (step @ change))
            direction = direction - shares[-1] * change
        if self.steps:
            step, change = self.steps[-1], self.changes[-1]
            direction = direction * ((step @ change) / (change @ change))
        for step, change, share in zip(self.steps, self.changes, reversed(shares), strict=True):
            direction = direction + (share - (change @ direction) / (step @ change)) * step
        return direction

    def state(self) -> dict[str, Tensor]:
        """Everything, as tensors."""
        if self.here is None:
            return {}
        pairs = {"steps": torch.stack(self.steps), "changes": torch.stack(self.changes)} if self.steps else {}
        return {**pairs, "loss": torch.tensor(self.here[0], dtype=torch.float64), "gradient": self.here[1]}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes over what :meth:`state` gave."""
        self.steps, self.changes = (list(state[name]) if name in state else [] for name in ("steps", "changes"))
        self.here = (float(state["loss"]), state["gradient"]) if state else None


def _line_search(
    x: Tensor, direction: Tensor, start: Point, first: float, evaluate: Callable[[Tensor], tuple[float, Tensor]]
) -> tuple[Point | None, int]:
    """A point along ``direction`` that meets the strong Wolfe conditions, or else the lowest one that was seen; None if
    none is lower than ``start``. And the number of evaluations."""
    low, high, best, at = start, None, None, first
    for n in range(1, MOST_TRIALS + 1):
        loss, gradient = evaluate(x + at * direction)
        point = Point(at, loss, float(gradient @ direction), gradient)
        finite = math.isfinite(loss) and math.isfinite(point.slope)
        if finite and loss < (best or start).loss:
            best = point
        if not finite or loss > start.loss + SUFFICIENT * at * start.slope or (low.at > 0 and loss >= low.loss):
            high = point
        elif abs(point.slope) <= -FLAT * start.slope:
            return point, n
        else:
            if point.slope * ((high.at if high else math.inf) - point.at) >= 0:
                high = low
            low = point
        if high is None:
            at = 2 * at
        else:
            if abs(high.at - low.at) * float(direction.abs().max()) < 1e-9:
                return best, n
            at = _between(low, high)
    return best, MOST_TRIALS


def _between(low: Point, high: Point) -> float:
    """The minimum of the cubic through two points with their slopes (equation 3.59), kept away from both ends; their
    middle where there is none."""
    width = high.at - low.at
    middle = low.at + 0.5 * width
    if not (math.isfinite(high.loss) and math.isfinite(high.slope)):
        return low.at + 0.1 * width
    a = low.slope + high.slope - 3 * (low.loss - high.loss) / (low.at - high.at)
    under = a * a - low.slope * high.slope
    if under < 0:
        return middle
    b = math.copysign(math.sqrt(under), width)
    below = high.slope - low.slope + 2 * b
    at = high.at - width * (high.slope + b - a) / below if below else middle
    near, far = sorted((low.at + 0.1 * width, high.at - 0.1 * width))
    return min(max(at, near), far)


class AdamThenLbfgs(Stepper):
    """Takes steps of Adam until a share of the budget is spent, and then iterations of L-BFGS. For these the loss must
    be the same function of the parameters from step to step; where it becomes another one, the task sets ``lbfgs.here``
    to None.

    Args:
        task: what is trained; its checkpoints hold ``lbfgs.state()``.
        optimizer: Adam.
        lbfgs: what goes on from it.
        adam_share: of the budget.
    """

    def __init__(self, task: Task, optimizer: Adam, lbfgs: Lbfgs, adam_share: float) -> None:
        super().__init__(task, optimizer)
        self.lbfgs, self.adam_share = lbfgs, adam_share

    def run(self, progress: Progress) -> None:
        """Takes one step, or one iteration."""
        if progress.fraction < self.adam_share:
            self.lbfgs.here = None
            return super().run(progress)
        step = Step(0.0, {}, {})

        def evaluate(x: Tensor) -> tuple[float, Tensor]:
            nonlocal step
            _write(self._parameters, x)
            step = self.task.loss(progress)
            if not math.isfinite(value := float(step.loss.detach())):
                return value, torch.full_like(x, math.nan)
            return value, _flat(torch.autograd.grad(step.loss, self._parameters, materialize_grads=True))

        x, loss, n = self.lbfgs.step(_flat(self._parameters), evaluate)
        _write(self._parameters, x)
        counts = {name: n * count for name, count in step.counts.items()}
        self._reading = Step(loss, {name: float(term) for name, term in step.terms.items()}, counts)
        return None


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).double()


def _write(parameters: Sequence[Tensor], x: Tensor) -> None:
    with torch.no_grad():
        for param, values in zip(parameters, x.split([param.numel() for param in parameters]), strict=True):
            param.copy_(values.view_as(param))
