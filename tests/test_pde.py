"""`hashgrid pde`: equations against their solutions, conditions that hold exactly, L-BFGS, the command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hashgrid.cli import main
from hashgrid.data.collocation import Collocation
from hashgrid.data.conditions import Condition, Constraint, jet_of, product
from hashgrid.data.equations import EQUATIONS, Burgers, Equation, find_equation
from hashgrid.fields.smooth import SmoothConfig, SmoothField
from hashgrid.tasks.pde import Pde, PdeConfig
from hashgrid.train.checkpoint import load_checkpoint
from hashgrid.train.lbfgs import Lbfgs
from hashgrid.train.loop import Trainer

CPU = torch.device("cpu")

# u(x, t) at nu = 0.01 / pi, computed apart from this code
BURGERS = [
    (0.25, 0.25, -0.992082), (0.5, 0.25, -0.803198), (0.05, 0.5, -0.978982), (0.25, 0.5, -0.847355),
    (0.5, 0.5, -0.592770), (0.75, 0.5, -0.302843), (0.01, 0.75, -0.761037), (0.25, 0.75, -0.679467),
    (0.5, 0.75, -0.461413), (0.75, 0.75, -0.232854), (0.5, 0.99, -0.378996),
]  # fmt: skip


def inside(equation: Equation, n: int) -> Tensor:
    """Points [n, D] of fp64 in the box of an equation."""
    box = torch.tensor(equation.box, dtype=torch.float64)
    return box[:, 0] + (box[:, 1] - box[:, 0]) * torch.rand(n, len(box), dtype=torch.float64)


def operators_of(equation: Equation) -> Tensor:
    return torch.tensor(equation.operators or [[0.0] * len(equation.axes)], dtype=torch.float64)


# ---- equations -------------------------------------------------------------------------------------------------------


def test_burgers_has_its_reference_values() -> None:
    x, t, expected = torch.tensor(BURGERS, dtype=torch.float64).unbind(1)
    truth = Burgers().truth
    torch.testing.assert_close(truth(torch.stack((x, t), 1)), expected, rtol=0, atol=6e-7)
    torch.testing.assert_close(truth(torch.stack((-x, t), 1)), -expected, rtol=0, atol=6e-7)
    start = torch.linspace(-1, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(truth(torch.stack((start, 0 * start), 1)), -torch.sin(math.pi * start))
    steepest = torch.tensor([[0.0, 1.6037 / math.pi]], dtype=torch.float64)
    assert float(jet_of(truth, steepest, torch.eye(2)).first[0, 0]) == pytest.approx(-152.005, abs=1e-3)


@pytest.mark.parametrize("name", EQUATIONS)
def test_solution_solves_its_equation_and_has_its_conditions(name: str) -> None:
    """In fp64 to 1e-8, also with coefficients other than the default ones; another function does not."""
    changes = {"heat": ["a=0.3"], "wave": ["c=2"], "helmholtz": ["a1=2", "k=3"], "burgers": ["nu=0.02"]}
    for coefficients in ([], changes.get(name, [])):
        equation = find_equation(name, coefficients)
        x, operators = inside(equation, 300), operators_of(equation)
        residual = equation.residual(x, *jet_of(equation.truth, x, operators))
        assert float(residual.abs().max()) < 1e-8
        wrong = equation.residual(x, *jet_of(lambda x: 1.02 * equation.truth(x), x, operators))  # noqa: B023
        assert float(wrong.abs().max()) > 1e-2 or name in ("heat", "wave", "advection")  # which are linear
        shifted = jet_of(lambda x: equation.truth(x * 1.02), x, operators)  # noqa: B023
        assert float(equation.residual(x, *shifted).abs().max()) > 1e-3 or name in ("wave", "advection")
        for condition in equation.conditions():
            place = x.clone()
            for axis, at in condition.where.items():
                place[:, equation.axes.index(axis)] = at
            jet = jet_of(equation.truth, place[: 1 if name == "eikonal" else 300], operators)
            found = jet.value if condition.slope is None else jet.first[:, equation.axes.index(condition.slope)]
            torch.testing.assert_close(found, condition.values(place)[: len(found)], rtol=0, atol=1e-12)


def test_errors_of_equations_are_named(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text("from hashgrid.data.equations import Heat\nHeat()\n")
    (tmp_path / "broken.py").write_text("1 / 0")
    for source, coefficients, message in (
        (
            "heart",
            [],
            "must be one of poisson, heat, wave, helmholtz, burgers, advection, eikonal or a Python",
        ),
        ("none.py", [], "there is no 'none.py'"),
        (tmp_path / "two.py", [], "must hold one subclass of `hashgrid.data.equations.Equation`, got 0"),
        (tmp_path / "broken.py", [], "cannot be run: ZeroDivisionError"),
        ("heat", ["a=-1"], "coefficient `a` of heat must be positive, got -1"),
        ("burgers", ["nu=nan"], "coefficient `nu` of burgers must be positive, got nan"),
        ("heat", ["b=1"], "`coefficients` must be among a of heat, got 'b=1'"),
        ("heat", ["a=x"], "`coefficients` must be such as a=0.1, got 'a=x'"),
        ("poisson", ["a=1"], "`coefficients` must be none: poisson has none, got 'a=1'"),
        ("helmholtz", ["a2=1.5"], "coefficient `a2` of helmholtz must be a whole number, got 1.5"),
    ):
        with pytest.raises(ValueError) as error:
            find_equation(source, coefficients)
        assert message in str(error.value)


# ---- conditions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in EQUATIONS if name != "eikonal"])
def test_hard_conditions_hold_exactly_whatever_the_field(name: str) -> None:
    """To rounding of fp64 (lift and mask) and of fp32 (the field in between)."""
    equation, field = find_equation(name), SmoothField(SmoothConfig(), 2, 1)
    problem = Collocation(equation, True, 32, 0, CPU)
    constraint, operators = problem.constraint, operators_of(equation)
    assert constraint is not None

    def any_field(x: Tensor) -> Tensor:
        return constraint.lift(x) + constraint.mask(x) * torch.cos(3 * x[:, 0] + 5 * x[:, 1] + 1)

    for condition in equation.conditions():
        x = inside(equation, 50)
        for axis, at in condition.where.items():
            x[:, equation.axes.index(axis)] = at
        jet = jet_of(any_field, x, operators)
        found = jet.value if condition.slope is None else jet.first[:, equation.axes.index(condition.slope)]
        torch.testing.assert_close(found, condition.values(x), rtol=0, atol=1e-14)
        if condition.slope is None:
            torch.testing.assert_close(problem.values(field, x), condition.values(x), rtol=0, atol=1e-14)
    x = inside(equation, 50)
    assert float((any_field(x) - constraint.lift(x)).abs().min()) > 1e-6  # and are no condition elsewhere


def test_slopes_and_values_at_the_upper_end_can_be_hard() -> None:
    box = torch.tensor([[0.0, 2.0], [-1.0, 3.0]], dtype=torch.float64)
    known = [
        Condition({"t": 2.0}, lambda x: x[:, 1] ** 2),
        Condition({"t": 2.0}, lambda x: 1 + x[:, 1], slope="t"),
        Condition({"x": -1.0}, lambda x: 1.0 + 0 * x[:, 0]),
        Condition({"x": 3.0}, lambda x: 9 + 4 * (x[:, 0] - 2)),
    ]
    constraint, x = Constraint(known, ("t", "x"), box), torch.rand(20, 2, dtype=torch.float64)
    for condition in known:
        place = box[:, 0] + (box[:, 1] - box[:, 0]) * x
        (axis, at), *_ = condition.where.items()
        place[:, "tx".index(axis)] = at
        jet = jet_of(lambda x: constraint.lift(x) + constraint.mask(x) * x.exp().sum(1), place, torch.eye(2))
        torch.testing.assert_close(jet.first[:, 0] if condition.slope else jet.value, condition.values(place))
    for wrong in ([Condition({"t": 0.0}, slope="t")], [Condition({"t": 1.0})], [Condition({"t": 0.0}, slope="x")]):
        with pytest.raises(ValueError, match="hard"):
            Constraint(wrong, ("t", "x"), box)


def test_residuals_are_those_of_the_written_out_solution() -> None:
    """Lift, mask and field multiplied out by `torch.func` in fp64, in a box that is no unit cube."""
    equation, field = find_equation("wave", ["c=0.5"]), SmoothField(SmoothConfig(n_neurons=8), 2, 1)
    problem = Collocation(equation, True, 16, 0, CPU)
    plain = SmoothField(SmoothConfig(n_neurons=8), 2, 1, "reference").double()
    plain.load_state_dict(field.state_dict())
    layers, constraint, points = plain.mlp.to_sequential(), problem.constraint, problem.block(1)
    assert constraint is not None

    def solution(x: Tensor) -> Tensor:
        unit = (x - problem.low) / problem.extent
        return constraint.lift(x) + constraint.mask(x) * layers(2 * unit - 1).squeeze(-1)

    x = points.x.double()
    expected = equation.residual(x, *jet_of(solution, x, operators_of(equation)))
    torch.testing.assert_close(problem.residual(field, points).double(), expected, rtol=1e-4, atol=1e-4)
    a, b = (jet_of(function, x, torch.ones(1, 2)) for function in (lambda x: x[:, 0].sin(), lambda x: x.prod(1)))
    whole = jet_of(lambda x: x[:, 0].sin() * x.prod(1), x, torch.ones(1, 2))
    for part, expected in zip(product(a, b, torch.ones(1, 2)), whole, strict=True):
        torch.testing.assert_close(part, expected)


def test_soft_conditions_are_values_and_slopes_at_their_places() -> None:
    """In the equation's own coordinates: the wave's box is 4 units of time long."""
    equation, field = find_equation("wave", ["c=0.5"]), SmoothField(SmoothConfig(n_neurons=8), 2, 1)
    problem = Collocation(equation, False, 64, 0, CPU)
    errors = problem.border_errors(field)
    assert [len(error) for error in errors] == [8, 8, 8, 8]
    for condition, border, error in zip(equation.conditions(), problem.borders, errors, strict=True):
        x = (problem.low + problem.extent * border.unit).requires_grad_()
        u = field(((x - problem.low) / problem.extent).float()).squeeze(-1)
        (slopes,) = torch.autograd.grad(u.sum(), x)
        for axis, at in condition.where.items():
            torch.testing.assert_close(x[:, equation.axes.index(axis)], torch.full((8,), at, dtype=x.dtype))
        found = u.double() if condition.slope is None else slopes[:, 1]
        torch.testing.assert_close(error.double(), found - condition.values(x), rtol=1e-4, atol=1e-5)


def test_difficult_points_are_where_the_equation_fails() -> None:
    class Corner(Equation):
        operators = ()

        def residual(self, x: Tensor, u: Tensor, first: Tensor, second: Tensor) -> Tensor:
            return torch.where((x < 0.5).all(1), 1.0, 0.0) + 0 * u

        def conditions(self) -> list[Condition]:
            return [Condition({"x": 0.0})]

    problem, nothing = Collocation(Corner(), False, 256, 0, CPU), torch.empty(0, 2, dtype=torch.float64)
    field = SmoothField(SmoothConfig(n_neurons=8), 2, 1)
    drawn = problem.difficult(field, 400, 3, nothing)
    share = float((drawn < 0.5).all(1).float().mean())
    assert share == pytest.approx((4 + 0.05) / (4 + 0.05 + 3 * 0.05), abs=0.01)
    assert not torch.equal(problem.difficult(field, 400, 4, nothing), drawn)
    again = problem.difficult(field, 400, 5, torch.full((2000, 2), 0.49, dtype=torch.float64))
    assert again.min() >= 0 and again.max() <= 1
    assert 0.7 < float(((again - 0.49).abs() < 0.1).all(1).float().mean()) < 1  # most candidates are near there


# ---- L-BFGS ----------------------------------------------------------------------------------------------------------


def rosenbrock(x: Tensor) -> tuple[float, Tensor]:
    a, b = x[::2], x[1::2]
    gradient = torch.empty_like(x)
    gradient[::2], gradient[1::2] = -400 * a * (b - a * a) - 2 * (1 - a), 200 * (b - a * a)
    return float((100 * (b - a * a) ** 2 + (1 - a) ** 2).sum()), gradient


def test_lbfgs_finds_the_minimum_and_goes_on_from_its_state() -> None:
    """Of a curved valley in which the gradient alone is lost; some trial steps have no value."""

    def evaluate(x: Tensor) -> tuple[float, Tensor]:
        loss, gradient = rosenbrock(x)
        return (loss, gradient) if loss < 1e3 else (math.nan, gradient * math.nan)

    lbfgs, x = Lbfgs(10), torch.tensor([-1.2, 1.0] * 5, dtype=torch.float64)
    losses, n_evaluations = [], 0
    for i in range(60):
        if i == 20:
            kept, lbfgs = lbfgs.state(), Lbfgs(10)
            lbfgs.load_state({name: part.clone() for name, part in kept.items()})
            twin, y = Lbfgs(10), x.clone()
            twin.load_state(kept)
        x, loss, n = lbfgs.step(x, evaluate)
        losses, n_evaluations = [*losses, loss], n_evaluations + n
        if i == 20:
            y, _, again = twin.step(y, evaluate)
            assert torch.equal(x, y) and n == again
    assert losses == sorted(losses, reverse=True) and losses[-1] < 1e-15 and n_evaluations < 100
    torch.testing.assert_close(x, torch.ones_like(x))


# ---- training --------------------------------------------------------------------------------------------------------

SMALL = {"device": "cpu", "batch": 256, "n_neurons": 16, "n_hidden_layers": 3, "redraw_steps": 20, "time_limit": None}


def solve(name: str, **changes: object) -> Trainer:
    trainer = Trainer(Pde(PdeConfig().replace(**SMALL | changes), find_equation(name)))
    trainer.train()
    return trainer


def relative_l2(task: Pde) -> float:
    x = inside(task.equation, 2000)
    truth = task.equation.truth(x)
    assert truth is not None
    return float((task.problem.values(task.model, x) - truth).norm() / truth.norm())


@pytest.mark.parametrize(("conditions", "steps", "bound"), [("hard", 100, 2e-3), ("soft", 150, 1e-2)])
def test_heat_is_solved(conditions: str, steps: int, bound: float) -> None:
    """By Adam alone, for as many steps, to .06 and .7 only."""
    task = solve("heat", steps=steps, conditions=conditions, adam_share=0.4).task
    assert isinstance(task, Pde) and relative_l2(task) < bound


def test_run_goes_on_within_lbfgs_with_the_same_bits(tmp_path: Path) -> None:
    """Between two draws of points, and where one falls due."""
    changes = {"steps": 30, "adam_share": 0.2, "redraw_steps": 10}
    whole = solve("burgers", **changes)
    for stop in (17, 20):
        half = Trainer(Pde(PdeConfig().replace(**SMALL | changes), find_equation("burgers")))
        for _ in range(stop):
            half.step()
        half.save(tmp_path / "half.safetensors")
        resumed = Trainer(Pde(PdeConfig().replace(**SMALL | changes), find_equation("burgers")))
        resumed.load(*load_checkpoint(tmp_path / "half.safetensors"))
        resumed.train()
        for name, value in whole.task.model.state_dict().items():
            assert torch.equal(resumed.task.model.state_dict()[name], value), (stop, name)
        assert resumed.progress.counts == whole.progress.counts


OWN = """
import torch
from hashgrid.data.conditions import Condition
from hashgrid.data.equations import Equation

class Decay(Equation):
    axes, box, operators = ("t",), ((0.0, 2.0),), ()
    def residual(self, x, u, first, second):
        return RESIDUAL
    def conditions(self):
        return [Condition({"t": 0.0}, 1.0)]
    def truth(self, x):
        return torch.exp(-2 * x[:, 0])
"""


def test_command_solves_an_equation_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN.replace("RESIDUAL", "first[:, 0] + 2 * u"))
    small = ["--batch", "64", "--n-neurons", "8", "--n-hidden-layers", "2", "--device", "cpu"]
    assert main(["pde", "own.py", "--steps", "60", "--out", "out", *small]) == 0
    assert {path.name for path in Path("out").iterdir()} == {
        *("results.json", "config.json", "checkpoint.safetensors", "report.html", "solution.png")
    }
    results = json.loads(Path("out/results.json").read_text())
    assert results["equation"] == "decay" and results["relative_l2"] < 1e-2
    assert results["config"]["conditions"] == "hard" and results["train"]["steps"] == 60
    again = ["pde", "--eval", "out/checkpoint.safetensors", "--out", "again"]
    assert main([*again]) == 1
    assert "`SOURCE` must be given again, the file of `decay`, own.py" in capsys.readouterr().err
    assert main(["pde", "own.py", *again[1:]]) == 0
    assert json.loads(Path("again/results.json").read_text())["relative_l2"] == results["relative_l2"]
    capsys.readouterr()
    for source, options, message in (
        ("wave", again[1:], "`SOURCE` must be the equation of the checkpoint, decay, got wave"),
        ("eikonal", ["--conditions", "hard"], "conditions can be hard at faces of the box only"),
        ("heat", ["--batch", "0"], "`batch` must be at least 1, got 0"),
        ("heat", ["--difficult", "2"], "`difficult` must be in [0, 1], got 2.0"),
        ("shape.py", [], "`residual` must give values [N] of points [N, 1], got [2, 1]"),
        ("nan.py", ["--steps", "30"], "the loss is nan at step 0; lower the learning rate (0.005) or check the data"),
    ):
        Path("shape.py").write_text(OWN.replace("RESIDUAL", "first + 2 * u[:, None]"))
        Path("nan.py").write_text(OWN.replace("RESIDUAL", "(first[:, 0] + u) * float('nan')"))
        assert main(["pde", source, *options, *(small[2:] if "--batch" in options else small[:6])]) == 1
        assert message in capsys.readouterr().err
