"""Who is told how a run goes: the console, TensorBoard. A reporter has ``step(progress)`` and ``close()``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from hashgrid.train.task import Progress, Report, Task
from hashgrid.util.files import atomic_path, atomic_write_json
from hashgrid.util.memory import peak_memory
from hashgrid.util.optional import optional_import
from hashgrid.util.threads import threads_in_use

RESULTS = "results.json"
SHOWN_RATES = ("samples", "rays")  # of counts, in the progress bar


class Reporter(Protocol):
    def step(self, progress: Progress) -> None: ...

    def close(self) -> None: ...


class Console:
    """A progress bar on the terminal."""

    def __init__(self, task: Task) -> None:
        self._task = task
        bar_format = task.name + " {percentage:3.0f}%|{bar:20}| {desc}"
        self._bar = optional_import("tqdm").tqdm(total=100.0, bar_format=bar_format, mininterval=0.2)

    def step(self, progress: Progress) -> None:
        rates = "".join(f" {_short(rate)} {name}/s" for name, rate in progress.rates.items() if name in SHOWN_RATES)
        text = f"step {progress.step} {self._task.headline(progress)}{rates} {progress.seconds_left:.0f} s left"
        self._bar.set_description_str(text, refresh=False)
        self._bar.update(100 * progress.fraction - self._bar.n)

    def close(self) -> None:
        self._bar.close()


def _short(rate: float) -> str:
    return f"{rate / 1e6:.2f} M" if rate >= 1e5 else f"{rate / 1e3:.1f} k"


class TensorBoard:
    """Loss, terms and rates once a second or so, for ``tensorboard --logdir``."""

    def __init__(self, folder: Path) -> None:
        self._writer = optional_import("torch.utils.tensorboard").SummaryWriter(str(folder))
        self._next = 0.0

    def step(self, progress: Progress) -> None:
        if progress.seconds < self._next:
            return
        self._next = progress.seconds + 1.0
        values = {"loss": progress.loss, "progress": progress.fraction, **progress.terms}
        values |= {f"{name} per second": rate for name, rate in progress.rates.items()}
        for name, value in values.items():
            self._writer.add_scalar(name, value, progress.step)

    def close(self) -> None:
        self._writer.close()


REPORTERS = {"tensorboard": TensorBoard}  # by the names of `--log`


def write_results(task: Task, report: Report, figures: dict[str, Any], peak: int | None) -> None:
    """Writes ``results.json``: figures of the task, of training (with its ``peak`` of memory in bytes) and of the
    machine, and the configuration."""
    device, progress = task.device, report.progress
    results = {
        "task": task.name,
        **figures,
        "train": {
            "seconds": progress.seconds,
            "steps": progress.step,
            "samples": progress.samples,
            **progress.counts,
            "interrupted": report.interrupted,
            "peak_memory_bytes": peak,
        },
        "n_parameters": sum(param.numel() for param in task.model.parameters()),
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": threads_in_use(),
        "peak_memory_bytes": peak_memory(),
        "config": task.config.to_dict(),
    }
    atomic_write_json(report.out / RESULTS, results)


def plot_psnr(path: Path, points: Sequence[tuple[float, float]], final: float | None = None) -> None:
    """Writes a plot of PSNR over seconds of training, and the one that was measured on test views at the end."""
    figure = optional_import("matplotlib.figure").Figure(figsize=(6.4, 4.0), layout="constrained")  # needs no display
    axes = figure.add_subplot()
    finite = [point for point in points if math.isfinite(point[1])]
    if finite:
        axes.plot(*zip(*finite, strict=True), color="#4c78a8", linewidth=1, alpha=0.8, label="training batches")
    if final is not None and math.isfinite(final):
        end = (points[-1][0] if points else 0.0, final)
        axes.plot(*end, "o", color="#d62728", markersize=4, label="test views")
        axes.annotate(f"{final:.2f}", end, textcoords="offset points", xytext=(0, -14), ha="right")
    axes.set(xlabel="training time [s]", ylabel="PSNR [dB]")
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


def plot_test(out: Path, points: Sequence[tuple[float, float]], test: Mapping[str, Any]) -> None:
    """Writes ``psnr_over_time.png`` of a run with its score, see :func:`plot_psnr`, and ``psnr_of_time.png`` where test
    views have times."""
    plot_psnr(out / "psnr_over_time.png", points, test["psnr_mean"])
    if "psnr_of_time" in test:
        plot_scores(out / "psnr_of_time.png", test["psnr_of_time"], "time of a test view")


def plot_scores(path: Path, scores: Sequence[tuple[float, float]], x_label: str) -> None:
    """Writes a plot of the PSNR of test views over something that they differ in."""
    figure = optional_import("matplotlib.figure").Figure(figsize=(6.4, 3.0), layout="constrained")
    axes = figure.add_subplot()
    finite = [score for score in scores if math.isfinite(score[1])]
    if finite:
        axes.plot(*zip(*finite, strict=True), color="#d62728", marker="o", markersize=3, linewidth=1)
    axes.set(xlabel=x_label, ylabel="PSNR [dB]")
    axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


def plot_curves(path: Path, lines: Mapping[str, Sequence[float]], x_label: str, y_label: str) -> None:
    """Writes a plot of positive values after 0, 1, 2, ... of something, on a logarithmic scale; what is not finite is
    left out."""
    figure = optional_import("matplotlib.figure").Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for name, values in lines.items():
        points = [(i, value) for i, value in enumerate(values) if math.isfinite(value)]
        if points:
            axes.semilogy(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
