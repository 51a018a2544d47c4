"""``hashgrid pde``: the solution of a differential equation as a function of position and time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hashgrid.data.collocation import Collocation
from hashgrid.data.equations import EQUATIONS, Equation, find_equation
from hashgrid.fields import SIGNAL_FIELDS
from hashgrid.fields.base import SignalField
from hashgrid.fields.smooth import SmoothField
from hashgrid.optim import Adam
from hashgrid.rendering.solution import grid_of, write_solution
from hashgrid.train.config import RunConfig
from hashgrid.train.lbfgs import AdamThenLbfgs, Lbfgs
from hashgrid.train.schedule import Schedule
from hashgrid.train.task import Progress, Report, Step, Stepper, Task
from hashgrid.util.config import Config

FIELDS: dict[str, type[SignalField]] = {"smooth": SmoothField, **SIGNAL_FIELDS}


@dataclass(frozen=True)
class PdeConfig(RunConfig):
    """A physics-informed network (Raissi et al. 2019) for a few CPU cores."""

    fields = FIELDS
    default_seconds = 60.0

    field: Config = SmoothField.Config()
    coefficients: tuple[str, ...] = ()  # of the equation, such as nu=0.01
    conditions: Literal["auto", "hard", "soft"] = "auto"  # held exactly, or learned; auto: exactly where they can be
    condition_weight: float = 10.0  # of squared errors of soft conditions beside squared residuals
    batch: int = 4096  # points inside, per step
    difficult: float = 0.25  # share of them drawn where the equation fails most
    redraw_steps: int = 250  # until they are drawn again
    adam_share: float = 0.2  # of the budget; the rest is for L-BFGS
    learning_rate: float = 5e-3  # of Adam, after the first steps
    final_learning_rate: float = 5e-5  # at the end of its share
    history: int = 200  # steps that L-BFGS remembers
    weight_decay: float = 0.0  # of networks

    def check(self) -> None:
        super().check()
        for name, least in (("batch", 1), ("redraw_steps", 1), ("history", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}")
        for name in ("difficult", "adam_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {getattr(self, name)}")
        if not self.condition_weight > 0 or not 0 < self.final_learning_rate <= self.learning_rate:
            raise ValueError(
                "`condition_weight` must be positive and `final_learning_rate` in (0, `learning_rate`],"
                f" got {self.condition_weight}, {self.final_learning_rate} and {self.learning_rate}"
            )


class Pde(Task):
    """Solves an equation: Adam first, then L-BFGS.

    Args:
        config: the recipe.
        equation: what to solve.
        path: the file that it is in, if any.
    """

    name = "pde"
    Config = PdeConfig
    summary = "Solves a differential equation with a network, and compares it with the solution in closed form."
    source_help = f"{', '.join(EQUATIONS)}, or a Python file with an equation; heat if none"
    packages = ("PIL", "matplotlib")
    metric = "relative_l2"
    preview = "solution.png"
    config: PdeConfig

    def __init__(self, config: PdeConfig, equation: Equation, path: Path | None = None) -> None:
        equation.check()
        self.equation, self.path, kind = equation, path, FIELDS[config.field.name]
        field = kind.configured(config.field, [len(axis) for axis in grid_of(equation)])
        super().__init__(config.replace(field=field))
        config, device = self.config, torch.device(self.config.device)
        points = config.batch, config.seed, device
        if config.conditions == "auto":
            try:
                self.problem = Collocation(equation, True, *points)
            except ValueError:
                self.problem = Collocation(equation, False, *points)
            self.config = config.replace(conditions="soft" if self.problem.constraint is None else "hard")
        else:
            self.problem = Collocation(equation, config.conditions == "hard", *points)
        self.model = kind(config.field, len(equation.axes), 1, config.backend).to(device)
        # the loop's rate falls over the whole run, this one over Adam's share of it
        fall = (config.final_learning_rate / config.learning_rate) ** (1 / max(config.adam_share, 1e-2))
        self.schedule = Schedule(config.learning_rate, config.learning_rate * max(fall, 1e-30))
        self.lbfgs = Lbfgs(config.history)
        self._take_difficult(torch.empty(0, len(equation.axes), dtype=torch.float64))

    @classmethod
    def folder(cls, source: Path | None, config: PdeConfig) -> str:
        return "heat" if source is None else source.stem

    @classmethod
    def make(cls, config: PdeConfig, source: Path | None, notes: dict[str, Any]) -> Pde:
        solved, file = notes.get("equation", "heat"), notes.get("file")
        if source is None and file is not None:
            raise ValueError(f"`SOURCE` must be given again, the file of `{solved}`, {file}: a checkpoint runs no code")
        equation = find_equation(source or solved, config.coefficients)
        if notes and equation.name != solved:
            raise ValueError(f"`SOURCE` must be the equation of the checkpoint, {solved}, got {equation.name}")
        return cls(config, equation, source if source is not None and source.suffix == ".py" else None)

    def describe(self) -> str:
        text = (type(self.equation).__doc__ or "").split("\n")[0].replace("``", "")
        return f"{self.equation.name}, {self.config.conditions} conditions: {text}"

    def notes(self) -> dict[str, Any]:
        return {"equation": self.equation.name, "file": None if self.path is None else self.path.name}

    def begin(self) -> None:
        some = self.problem.pool.at(slice(0, 2))  # what does not fit should fail now
        self.problem.residual(self.model, some)
        self.equation.true_values(some.x.double().cpu())

    def _take_difficult(self, unit: Tensor) -> None:
        self.difficult, self._difficult = unit, self.problem.points(unit)

    def before_step(self, progress: Progress) -> None:
        config = self.config
        if progress.step % config.redraw_steps == 0 and config.difficult > 0:
            n, seed = round(config.difficult * config.batch), config.seed * 1_000_003 + progress.step
            self._take_difficult(self.problem.difficult(self.model, n, seed, self.difficult))
        if progress.step % config.redraw_steps == 0:
            self.lbfgs.here = None  # the loss becomes another one

    def loss(self, progress: Progress) -> Step:
        config, problem = self.config, self.problem
        is_adam = progress.fraction < config.adam_share
        block = problem.block(progress.step if is_adam else progress.step // config.redraw_steps)
        points = block.at(slice(0, config.batch - len(self.difficult))).join(self._difficult)
        residual = problem.residual(self.model, points).square().mean()
        terms, loss = {"residual": residual.detach()}, residual
        if errors := problem.border_errors(self.model):
            border = torch.stack([error.square().mean() for error in errors]).sum()
            terms["border"], loss = border.detach(), residual + config.condition_weight * border
        return Step(loss, terms, {"samples": len(points.x)})

    def stepper(self, optimizer: Adam) -> Stepper:
        return AdamThenLbfgs(self, optimizer, self.lbfgs, self.config.adam_share)

    def state(self) -> dict[str, Tensor]:
        return {"difficult": self.difficult, **{f"lbfgs.{name}": part for name, part in self.lbfgs.state().items()}}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._take_difficult(state["difficult"])
        parts = {name: part.to(self.device) for name, part in state.items()}
        self.lbfgs.load_state({name[6:]: part for name, part in parts.items() if name.startswith("lbfgs.")})

    def score(self, optimizer: Adam) -> float:
        x = self.problem.pool.x[: 1 << 12].double().cpu()
        truth = self.equation.true_values(x)
        return math.nan if truth is None else relative_l2(self.problem.values(self.model, x), truth)

    def evaluate(self, report: Report) -> dict[str, Any]:
        equation, axes = self.equation, grid_of(self.equation)
        x = torch.cartesian_prod(*axes).view(-1, len(axes))
        values = self.problem.values(self.model, x)
        truth = equation.true_values(x)
        write_solution(report.out / "solution.png", equation, axes, values, truth)
        with torch.no_grad():
            residual = self.problem.residual(self.model, self.problem.block(1)).square().mean().sqrt()
        figures = {"equation": equation.name, "relative_l2": None, "max_error": None, "residual": float(residual)}
        text = f"residual {figures['residual']:.1e}"
        if truth is not None:
            error = values - truth
            figures |= {"relative_l2": relative_l2(values, truth), "max_error": float(error.abs().max())}
            text = f"relative L2 error {figures['relative_l2']:.2e}, {text}"
        report.say(f"{equation.name}: {text}")
        return figures


def relative_l2(values: Tensor, truth: Tensor) -> float:
    """Norm of the error of ``values`` [N] relative to that of the ``truth`` [N]."""
    return float((values - truth).norm() / truth.norm())
