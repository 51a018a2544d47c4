"""What a learned start is worth: losses after few steps beside those of a random one, and pictures of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hashgrid.rendering.shape_views import level_lines
from hashgrid.train.meta import AdaptationError, Learner, Params, Rate, Samples, adapt, bind
from hashgrid.train.report import plot_curves
from hashgrid.util.pictures import write_grid

JUDGED_STEPS, CURVE_STEPS = 3, 10  # steps of the figures, and of the curve
RANDOM_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # of steps from a random start, which gets the best of them
N_SHOWN = 6  # signals in the picture
SIDE = 128  # pixels of one picture, at least


def mean_losses(model: nn.Module, signals: Sequence[Samples], rate: Rate, starts: Sequence[Params]) -> Tensor:
    """Mean losses [11] of signals after 0 to 10 steps from ``starts``; NaN where one is not finite."""
    rows = []
    for signal, start in zip(signals, starts, strict=True):
        try:
            rows.append(adapt(model, signal, CURVE_STEPS + 1, rate, start).losses)
        except AdaptationError:
            rows.append(signal.y.new_full((CURVE_STEPS + 1,), torch.nan))
    return torch.stack(rows).mean(0).cpu()


@torch.no_grad()
def compare_starts(
    out: Path, learner: Learner, random: nn.Module, signals: Sequence[Samples], starts: Sequence[Params]
) -> dict[str, Any]:
    """Fits signals from their learned starts and from ``random``, all of whose parameters take steps at the one of
    seven rates that is best for them; writes ``strip.png`` and ``curve.png``.

    Args:
        out: folder of the pictures.
        learner: whose steps lead on from ``starts``.
        random: a model as it is before training.
        signals: of samples [size^D, C] at the middles of pixels, row after row; D = 2, or 3 with one channel.
        starts: one per signal.

    Returns:
        Mean squared errors after 3 steps (``loss``, ``loss_random``), their ``ratio``, the ``random_rate``, and both
        after 0 to 10 steps (``losses``, ``losses_random``).
    """
    model = learner.model
    parameters = {name: param.detach() for name, param in random.named_parameters() if name in learner.trainable}
    learned = mean_losses(model, signals, learner.rate, starts)
    curves = {rate: mean_losses(random, signals, rate, [parameters] * len(signals)) for rate in RANDOM_RATES}
    rate = min(curves, key=lambda rate: curves[rate][JUDGED_STEPS].nan_to_num(torch.inf).item())
    columns = {"truth": [signal.y for signal in signals[:N_SHOWN]]}
    fits: dict[str, tuple[nn.Module, Rate, Sequence[Params], int]]
    fits = {f"random, {JUDGED_STEPS} steps": (random, rate, [parameters] * len(signals), JUDGED_STEPS)}
    fits |= {f"learned, {n}": (model, learner.rate, starts, n) for n in (0, 1, JUDGED_STEPS)}
    for title, (field, step, begin, n) in fits.items():
        pairs = list(zip(signals, begin, strict=True))[:N_SHOWN]
        columns[title] = [bind(field, adapt(field, one, n, step, start).params)(one.x) for one, start in pairs]
    n_dims = signals[0].x.shape[1]
    write_grid(out / "strip.png", {title: [_shown(values, n_dims) for values in ys] for title, ys in columns.items()})
    lines = {"learned start": learned.tolist(), f"random start, rate {rate:g}": curves[rate].tolist()}
    plot_curves(out / "curve.png", lines, "steps of gradient descent", "mean squared error, unseen signals")
    loss, loss_random = learned[JUDGED_STEPS].item(), curves[rate][JUDGED_STEPS].item()
    figures = {"loss": loss, "loss_random": loss_random, "ratio": loss_random / loss, "random_rate": rate}
    return figures | {"losses": learned.tolist(), "losses_random": curves[rate].tolist()}


def _shown(values: Tensor, n_dims: int) -> Tensor:
    """Values [size^D, C] as a picture [h, w, 3]: colours as they are, distances with lines at equal ones; of a
    solid the plane through its middle, y up."""
    size = round(len(values) ** (1 / n_dims))
    if n_dims == 3:
        values = values.view(size, size, size, -1)[size // 2].flip(0)
    image = values.reshape(size, size, -1).permute(2, 0, 1)[None].cpu()
    factor = -(-SIDE // size)
    if image.shape[1] == 1:
        return level_lines(nn.functional.interpolate(image, scale_factor=factor, mode="bicubic")[0, 0])
    return nn.functional.interpolate(image, scale_factor=factor)[0].permute(1, 2, 0).clamp(0, 1)
