"""Pictures of functions beside what they should be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid.data.equations import Equation
from hashgrid.util.files import atomic_path
from hashgrid.util.optional import optional_import

GRIDS = {1: (1001,), 2: (256, 101), 3: (64, 64, 33)}  # points along the axes, by their number


def grid_of(equation: Equation) -> list[Tensor]:
    """Places [N] along each axis at which a solution is compared, ends included; of two axes 256 and 101."""
    sizes = GRIDS.get(len(equation.axes), (9,) * len(equation.axes))
    ends = zip(equation.box, sizes, strict=True)
    return [torch.linspace(low, high, n, dtype=torch.float64) for (low, high), n in ends]


def write_solution(
    path: Path, equation: Equation, axes: Sequence[Tensor], values: Tensor, truth: Tensor | None
) -> None:
    """Writes ``prediction | truth | error`` of values [N] on a grid, each with its scale: maps of two axes, in the
    middle of all others, or curves of a single one."""
    figure = optional_import("matplotlib.figure").Figure(figsize=(11, 3.1), layout="constrained", dpi=100)
    panels = {"prediction": values} if truth is None else {"prediction": values, "truth": truth}
    shown = {name: _middle(panel.view([len(axis) for axis in axes])) for name, panel in panels.items()}
    if truth is not None:
        shown["|error|"] = (shown["prediction"] - shown["truth"]).abs()
    for plot, (name, panel) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        if panel.dim() == 1:
            _curve(plot, equation, axes[0], panel, name)
        else:
            low, high = (0.0, None) if name == "|error|" else _ends(*(shown[key] for key in panels))
            _map(figure, plot, equation, panel, name, low, high)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _middle(panel: Tensor) -> Tensor:
    while panel.dim() > 2:
        panel = panel[..., panel.shape[-1] // 2]
    return panel


def _ends(*panels: Tensor) -> tuple[float, float]:
    return min(float(panel.min()) for panel in panels), max(float(panel.max()) for panel in panels)


def _curve(plot: Any, equation: Equation, x: Tensor, panel: Tensor, name: str) -> None:
    plot.plot(x.numpy(), panel.numpy(), color="#d62728" if name == "|error|" else "#4c78a8", linewidth=1.5)
    plot.set(title=name, xlabel=equation.axes[0])
    plot.grid(alpha=0.3)


def _map(
    figure: Any, plot: Any, equation: Equation, panel: Tensor, name: str, low: float | None, high: float | None
) -> None:
    """Time runs to the right, what else there is upwards."""
    across, up = (1, 0) if equation.axes[1] == "t" else (0, 1)
    image = panel.numpy() if across == 1 else panel.T.numpy()
    colors = {"cmap": "magma_r" if name == "|error|" else "viridis", "vmin": low, "vmax": high}
    extent = (*equation.box[across], *equation.box[up])
    drawn = plot.imshow(image, origin="lower", aspect="auto", extent=extent, interpolation="nearest", **colors)
    plot.set(title=name, xlabel=equation.axes[across], ylabel=equation.axes[up])
    figure.colorbar(drawn, ax=plot)
