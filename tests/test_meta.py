"""Learned starts: gradients against closed forms and differences, families, the command, what a start is worth."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hashgrid import FusedMLP
from hashgrid.cli import main
from hashgrid.data.signal_families import (
    GENERATED,
    generated_family,
    photo_family,
    pixel_centres,
    polygon_distances,
    random_polygons,
)
from hashgrid.fields.modulated import ModulatedConfig, ModulatedSiren
from hashgrid.nn.hypernetwork import HyperNetwork
from hashgrid.rendering.starts import JUDGED_STEPS, mean_losses
from hashgrid.tasks.meta import Meta, MetaConfig, load_learner
from hashgrid.train.loop import Trainer
from hashgrid.train.meta import AdaptationError, Learner, Maml, MetaSdf, Reptile, Samples, adapt, bind

# ---- gradients -------------------------------------------------------------------------------------------------------

W, X, Y, RATE = 0.7, 1.3, -0.4, 0.11  # f = w x, loss (w x - y)^2


def linear() -> tuple[nn.Linear, Samples]:
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(model.weight, W)
    return model, Samples(*(torch.tensor([[value]], dtype=torch.float64) for value in (X, Y)))


def after(steps: int) -> float:
    """w after steps of gradient descent: its distance to y / x shrinks by the same factor in each."""
    return Y / X + (1 - 2 * RATE * X**2) ** steps * (W - Y / X)


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("method", ["maml", "first order", "reptile"])
def test_gradient_on_the_linear_model(method: str, steps: int) -> None:
    model, signal = linear()
    learner: Learner = Reptile(model, steps, RATE)
    if method != "reptile":
        learner = Maml(model, steps, RATE, first_order=method == "first order")
    value = learner(signal)
    value.backward()
    slope = 2 * X * (after(steps) * X - Y)
    factor = (1 - 2 * RATE * X**2) ** steps
    expected = {"maml": slope * factor, "first order": slope, "reptile": W - after(steps)}[method]
    assert model.weight.grad is not None and model.weight.item() == W
    assert abs(model.weight.grad.item() - expected) < 1e-10
    assert abs(value.item() - (after(steps) * X - Y) ** 2) < 1e-10


def test_gradient_of_rates() -> None:
    """On the linear model: dL(w')/da = -2 x (w' x - y) 2 x (w x - y), step after step."""
    model, signal = linear()
    learner = MetaSdf(model, 2, RATE)
    learner(signal).backward()
    slopes = [2 * X * (after(i) * X - Y) for i in range(3)]
    factor = 1 - 2 * RATE * X**2
    expected = [-slopes[2] * factor * slopes[0], -slopes[2] * slopes[1]]
    torch.testing.assert_close(
        learner.rates[0].grad.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10
    )
    model.weight.data.fill_(after(2))  # the last rate serves all further steps
    learner.rates[0].data[1] = 0
    assert learner.adapt(signal, 5).params["weight"].item() == pytest.approx(after(3), abs=1e-12)


@pytest.mark.parametrize("activation", ["sine", "softplus"])
def test_gradient_through_kernels(activation: str) -> None:
    """MAML through three steps of a network on the native kernels, against differences of its value."""
    torch.manual_seed(1)
    model = FusedMLP(2, 2, 6, 2, activation=activation, bias=True).double()
    signal, query = (Samples(torch.rand(9, 2).double(), torch.rand(9, 2).double()) for _ in range(2))
    learner = Maml(model, 3, 0.02)
    learner(signal, query).backward()
    directions = [torch.randn_like(param) for param in model.parameters()]
    slope = sum(float((param.grad * d).sum()) for param, d in zip(model.parameters(), directions, strict=True))

    def moved(by: float) -> float:
        params = {
            name: (param + by * d).detach()
            for (name, param), d in zip(model.named_parameters(), directions, strict=True)
        }
        return float(query(bind(model, adapt(model, signal, 3, 0.02, params).params)).detach())

    step = 1e-5
    assert slope == pytest.approx((moved(step) - moved(-step)) / (2 * step), rel=1e-6)


def test_signals_do_not_know_of_one_another() -> None:
    """A signal's steps, and its part of the gradient, are those that it has alone."""
    model = ModulatedSiren(ModulatedConfig(n_neurons=8, n_hidden_layers=2), 2, 1)
    learner = Maml(model, 2, 0.05)
    signals = [Samples(torch.rand(n, 2), torch.rand(n, 1)) for n in (20, 30, 40)]
    parameters = list(model.parameters())
    together = torch.autograd.grad(torch.stack([learner(signal) for signal in signals]).sum(), parameters)
    alone = [torch.autograd.grad(learner(signal), parameters) for signal in signals]
    for whole, *parts in zip(together, *alone, strict=True):
        torch.testing.assert_close(whole, sum(parts), rtol=1e-4, atol=1e-6)


def test_adapting_leaves_the_model_alone() -> None:
    model, signal = linear()
    with torch.no_grad():
        params, losses = adapt(model, signal, 3, RATE)
    assert not params["weight"].requires_grad and model.weight.item() == W and model.weight.grad is None
    assert losses.tolist() == pytest.approx([(after(i) * X - Y) ** 2 for i in range(3)])
    assert params["weight"].item() == pytest.approx(after(3))
    with pytest.raises(AdaptationError, match=r"the loss is (inf|nan) after \d+ inner steps; lower the inner rate"):
        adapt(model, signal, 400, 1e3)
    with pytest.raises(AdaptationError, match="after 1 inner steps; lower the inner rate"):
        Maml(model, 1, 1e300)(signal)
    with pytest.raises(ValueError, match="`names` must be of parameters or buffers of the model, got \\['bias'\\]"):
        Maml(model, names=["bias"])


# ---- fields and networks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_shifts_are_added_before_the_sine(backend: str) -> None:
    """With parameters of its own and with others in their place; gradients reach all of them."""
    field = ModulatedSiren(ModulatedConfig(n_neurons=8, n_hidden_layers=2, n_latent=3, offset=0.25), 2, 1, backend)
    params = {name: torch.randn_like(param) / 8 for name, param in field.named_parameters()}
    params["latent"], x = torch.randn(3), torch.rand(50, 2)

    def expected(x: Tensor) -> Tensor:
        shifts = (params["shift.weight"] @ params["latent"] + params["shift.bias"]).view(2, 8)
        h = 2 * x - 1
        for layer in range(2):
            h = (30 * (h @ params[f"weights.{layer}"].T + params[f"biases.{layer}"] + shifts[layer])).sin()
        return h @ params["weights.2"].T + params["biases.2"] + 0.25

    for value in params.values():
        value.requires_grad_()
    output = bind(field, params)(x)
    torch.testing.assert_close(output, expected(x), rtol=1e-4, atol=1e-4)
    grads = torch.autograd.grad(output.square().sum(), list(params.values()))
    for found, true in zip(grads, torch.autograd.grad(expected(x).square().sum(), list(params.values())), strict=True):
        torch.testing.assert_close(found, true, rtol=1e-3, atol=1e-3 * float(true.abs().max()))
    assert torch.equal(field.latent, torch.zeros(3))


def test_hypernetwork_starts_as_a_siren_does() -> None:
    """Within +-1 / fan-in, about; the order of samples does not count, nor their number by itself."""
    field = ModulatedSiren(ModulatedConfig(n_neurons=32, n_hidden_layers=2), 2, 3)
    network = HyperNetwork(field, 2, 3)
    x, y = torch.rand(40, 2), torch.rand(40, 3)
    params, penalty = network(x, y)
    assert {name: value.shape for name, value in params.items()} == {n: p.shape for n, p in field.named_parameters()}
    for layer, fan_in in enumerate((2, 32, 32)):
        for kind in ("weights", "biases"):
            spread = params[f"{kind}.{layer}"].square().mean().sqrt() * fan_in  # 3^-1/2 of a uniform one, and some more
            assert 0.35 < spread < 1.2, (kind, layer)
    squares = torch.cat([value.flatten() for value in params.values()]).square().mean()
    z = network.encoder(torch.cat((2 * x - 1, y), dim=1)).mean(0)
    torch.testing.assert_close(penalty, 0.1 * z.square().mean() + 100 * squares)
    both, penalties = network(torch.stack([x, 1 - x]), torch.stack([y, y]))
    torch.testing.assert_close(penalties[0], penalty)
    torch.testing.assert_close(both["weights.1"][0], params["weights.1"])
    order = torch.randperm(40)
    for again, _ in (network(x[order], y[order]), network(x.repeat(2, 1), y.repeat(2, 1))):
        for name, value in params.items():
            torch.testing.assert_close(again[name], value, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="`x` must hold at least one sample"):
        network(x[:0], y[:0])


# ---- families --------------------------------------------------------------------------------------------------------


def test_distances_of_polygons() -> None:
    """Their sign by another rule, their size by points along the outline."""
    paths = pytest.importorskip("matplotlib.path")
    generator = torch.Generator().manual_seed(3)
    vertices, x = random_polygons(6, generator), pixel_centres(16)
    distances = polygon_distances(x, vertices)
    t = torch.linspace(0, 1, 200)[:, None, None]
    for corners, found in zip(vertices, distances, strict=True):
        outline = torch.lerp(corners, corners.roll(-1, 0), t).view(-1, 2)
        torch.testing.assert_close(found.abs(), torch.cdist(x, outline).amin(1), rtol=0, atol=2e-3)
        inside = torch.from_numpy(paths.Path(corners.numpy()).contains_points(x.numpy()))
        assert 5 < int(inside.sum()) < 200 and torch.equal(found < 0, inside)


@pytest.mark.parametrize("name", GENERATED)
def test_generated_signals_are_functions_of_the_generator(name: str) -> None:
    family = generated_family(name, 8)
    one, again, other = (family.draw(3, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one.shape == (3, *[8] * GENERATED[name].n_dims, family.n_channels) and one.isfinite().all()
    assert torch.equal(one, again) and not torch.equal(one, other) and not torch.equal(one[0], one[1])


def test_unseen_signals_are_of_other_photos(tmp_path: Path) -> None:
    iio = pytest.importorskip("imageio.v3")
    pytest.importorskip("PIL")
    for i in range(6):  # each has a grey of its own
        iio.imwrite(tmp_path / f"{i}.png", torch.full((40, 50, 3), 40 * i, dtype=torch.uint8).numpy())
    (tmp_path / "notes.txt").write_text("no photo")
    family = photo_family(tmp_path, 8)
    drawn = [draw(200, torch.Generator().manual_seed(0)) for draw in (family.draw, family.draw_unseen)]
    greys = [set((values * 255).round().flatten().int().tolist()) for values in drawn]
    assert greys == [{0, 40, 80, 160, 200}, {120}] and drawn[0].shape == (200, 8, 8, 3)
    single = tmp_path / "single"
    single.mkdir()
    halves = torch.zeros(40, 80, 3, dtype=torch.uint8)
    halves[:, 60:] = 255
    iio.imwrite(single / "one.png", halves.numpy())
    family = photo_family(single, 8)
    assert not family.draw(50, torch.Generator()).any() and (family.draw_unseen(50, torch.Generator()) > 0.999).all()


# ---- training --------------------------------------------------------------------------------------------------------

TINY = {"device": "cpu", "image_size": 10, "n_neurons": 24, "n_hidden_layers": 2, "signals": 2}


@pytest.mark.parametrize(("method", "steps"), [("maml", 30), ("reptile", 30)])
def test_learned_start_is_worth_it(method: str, steps: int) -> None:
    """A fifth of the loss of a random start after three steps, on signals that were not seen."""
    config = MetaConfig().replace(**TINY, method=method, steps=steps, family="shapes", learning_rate=6e-3)
    task = Meta(config, generated_family("shapes", 10))
    start = {name: value.clone() for name, value in task.model.model.named_parameters()}
    trainer = Trainer(task)
    trainer.train()
    values = task.family.draw_unseen(6, torch.Generator().manual_seed(9))
    signals = [Samples(task.places, one.view(-1, 1)) for one in values]
    learned = mean_losses(task.model.model, signals, task.model.rate, [task.model.start(one) for one in signals])
    curves = [mean_losses(task.random, signals, rate, [start] * 6)[JUDGED_STEPS] for rate in (0.01, 0.03, 0.1)]
    assert 5 * learned[JUDGED_STEPS] < min(float(loss) for loss in curves if math.isfinite(loss))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("PIL", "imageio.v3", "matplotlib"):
        pytest.importorskip(package)
    out = tmp_path / "out"
    sizes = ["--image-size", "8", "--n-neurons", "8", "--n-unseen", "2", "--device", "cpu"]
    assert main(["meta", "--method", "hypernet", "--steps", "2", "--out", str(out), *sizes]) == 0
    names = {"results.json", "config.json", "checkpoint.safetensors", "report.html", "strip.png", "curve.png"}
    assert {path.name for path in out.iterdir()} == names
    results = json.loads((out / "results.json").read_text())
    assert results["ratio"] == pytest.approx(results["loss_random"] / results["loss"])
    assert len(results["losses"]) == 11 and results["losses"][3] == results["loss"]
    assert "generated images, 8x8" in capsys.readouterr().out
    assert main(["meta", "--eval", str(out / "checkpoint.safetensors"), "--out", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert again["losses"] == results["losses"] and again["losses_random"] == results["losses_random"]
    learner, _ = load_learner(out / "checkpoint.safetensors")
    signal = Samples(pixel_centres(8), torch.rand(64, 3))
    params, losses = learner.adapt(signal)
    assert losses.shape == (3,) and bind(learner.model, params)(signal.x).shape == (64, 3)


def test_photo_starts_where_it_was_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`hashgrid image --init`: with the sizes of the checkpoint, after its steps; other signals are refused."""
    for package in ("PIL", "imageio.v3", "matplotlib"):
        pytest.importorskip(package)
    iio, path = pytest.importorskip("imageio.v3"), tmp_path / "start.safetensors"
    photo = generated_family("images", 16).draw(1, torch.Generator().manual_seed(4))[0]
    iio.imwrite(tmp_path / "photo.png", (photo * 255).round().byte().numpy())
    config = MetaConfig().replace(**{**TINY, "image_size": 16}, steps=1)
    Trainer(Meta(config, generated_family("images", 16))).save(path)
    options = ["--init", str(path), "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main(["image", str(tmp_path / "photo.png"), *options, "--steps", "0"]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["config"]["field"]["n_neurons"] == TINY["n_neurons"]
    learner, _ = load_learner(path)
    signal = Samples(pixel_centres(16), (photo * 255).round().view(-1, 3) / 255)
    loss = learner.adapt(signal, learner.steps + 1).losses[-1]
    assert results["psnr"] == pytest.approx(-10 * math.log10(loss), abs=0.3)  # on random pixels there
    iio.imwrite(tmp_path / "grey.png", (photo[..., 0] * 255).round().byte().numpy())
    assert main(["image", str(tmp_path / "grey.png"), *options]) == 1
    assert "`--init` must be of field, dimensions and channels ('modulated', 2, 1)" in capsys.readouterr().err


def test_wrong_input_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("PIL", "imageio.v3", "matplotlib"):
        pytest.importorskip(package)
    (tmp_path / "empty").mkdir()
    small = ["--image-size", "8", "--steps", "3", "--device", "cpu", "--out", str(tmp_path / "out")]
    for arguments, message in (
        ([str(tmp_path / "empty")], "`SOURCE` must be a folder of photos (.png, .jpg"),
        ([str(tmp_path / "none")], f"`SOURCE` must be a folder of photos, got `{tmp_path / 'none'}`"),
        (["--inner-rate", "1e20"], "inner steps; lower the inner rate (1e+20) or check the data"),
        (["--method", "coinpp", "--field", "hash"], "`--method coinpp` must have `--field modulated`, got 'hash'"),
        (["--n-unseen", "0"], "`n_unseen` must be at least 1, got 0"),
    ):
        assert main(["meta", *arguments, *small]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("hashgrid: error: ") and message in error
    with pytest.raises(SystemExit):
        main(["meta", "--method", "mammal", *small])
    assert "mammal" in capsys.readouterr().err
