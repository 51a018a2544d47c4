"""``hashgrid compare``: fields side by side on one task, at equal time and, if asked, at equal size."""

from __future__ import annotations

import argparse
import importlib
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hashgrid.data.images import load_photo
from hashgrid.fields.base import SignalField
from hashgrid.fields.distance import DistanceField
from hashgrid.train.loop import Trainer
from hashgrid.train.report import write_results
from hashgrid.train.run import CHECKPOINT, parse
from hashgrid.train.task import Progress, Report, Task
from hashgrid.util.device import choose_device
from hashgrid.util.files import atomic_path, atomic_write_image, atomic_write_json
from hashgrid.util.optional import optional_import
from hashgrid.util.pictures import GAP, HEADER, write_texts
from hashgrid.util.threads import threads_for

LOOKS = 24  # at the metric over a run, the later the rarer
SMALL_IS_GOOD = ("relative_l2", "chamfer")  # of metrics


def main(tasks: Mapping[str, tuple[str, str, str]], argv: Sequence[str]) -> int:
    """Runs the command; ``tasks`` are module, class and summary by name. Options of the task go to every field.

    Raises:
        ValueError: the task or a field is not known, or has no size that can be chosen.
    """
    parser = argparse.ArgumentParser(
        prog="hashgrid compare", description="Trains several fields on one task: a table, a plot, a strip, JSON."
    )
    parser.add_argument("task", choices=tasks, metavar="TASK", help=", ".join(tasks))
    parser.add_argument("--fields", help="names, with commas between; all if not given")
    parser.add_argument("--parameters", type=int, help="give each field the size nearest to so many, from below")
    parser.add_argument("--out", type=Path, help="folder of the results; outputs/compare/TASK if none")
    args, others = parser.parse_known_args(argv)
    module, name, _ = tasks[args.task]
    command: type[Task] = getattr(importlib.import_module(module), name)
    names = [name.strip() for name in args.fields.split(",")] if args.fields else list(command.Config.fields)
    for name in names:
        if name not in command.Config.fields:
            raise ValueError(f"`--fields` must be of {', '.join(command.Config.fields) or 'no field'}, got {name!r}")
    out = args.out or Path("outputs") / "compare" / args.task
    rows = [run_one(command, name, args.parameters, out / name, others) for name in names]
    atomic_write_json(out / "compare.json", rows)
    table = as_table(rows)
    (out / "compare.md").write_text(table)
    plot(out / "compare.png", rows)
    strip(out / "strip.png", rows, out, command.preview)
    print(table + f"results in {out}", flush=True)
    return 0


def run_one(command: type[Task], field: str, size: int | None, out: Path, argv: Sequence[str]) -> dict[str, Any]:
    """Trains one field, looks at its metric now and then, evaluates it; returns a row of the table."""
    given = {word.partition("=")[0] for word in argv if word.startswith("--")}
    options, config = parse(command, [*argv, "--field", field], command.defaults(field, choose_device("auto"), given))
    config = config.with_budget().on_device()
    config.check()
    for package in ("safetensors", "tqdm", "matplotlib", *command.packages):
        optional_import(package)
    with threads_for(config.backend):
        task = command.make(config, options.source, {})
        if size is not None:
            sized = config_of_size(task.model, task.config.field, size)  # type: ignore[attr-defined]
            task = command.make(task.config.replace(field=sized), options.source, {})
        print(f"{field}: {task.describe()}", flush=True)
        out.mkdir(parents=True, exist_ok=True)
        try:
            return _train(task, field, out)
        finally:
            task.close()


def _train(task: Task, field: str, out: Path) -> dict[str, Any]:
    begin = time.perf_counter()
    scores: list[tuple[float, float]] = []
    task.begin()
    trainer = Trainer(task, seconds_before=time.perf_counter() - begin)

    def look(progress: Progress) -> None:
        # the square root spreads what happens at first; looking does not count as time
        while progress.fraction >= (len(scores) / LOOKS) ** 2 and len(scores) <= LOOKS:
            with trainer.pause():
                scores.append((progress.seconds, task.score(trainer.optimizer)))

    trainer.train(look)
    trainer.save(out / CHECKPOINT)
    trainer.take_averages()
    report = Report(out, trainer.progress, trainer.curve)
    figures = task.evaluate(report)
    write_results(task, report, figures, None)
    value: Any = figures
    for part in task.metric.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return {
        "field": field,
        "task": task.name,
        "seconds": trainer.progress.seconds,
        "steps": trainer.progress.step,
        "parameters": sum(param.numel() for param in task.model.parameters()),
        "metric": task.metric,
        "value": value,
        "curve": scores,
    }


def config_of_size(model: torch.nn.Module, config: Any, n_parameters: int) -> Any:
    """The options of a field with the largest size (its option ``size``) of at most so many parameters.

    Raises:
        ValueError: the smallest has more, or the field has no option for its size.
    """
    if not isinstance(model, (SignalField, DistanceField)):
        raise ValueError(f"`--parameters` is for fields with an option for their size, got {type(model).__name__}")
    option, dims = model.size, (model.n_input_dims, model.n_output_dims) if isinstance(model, SignalField) else ()

    def count(size: int) -> float:
        try:
            with torch.device("meta"):  # nothing is allocated
                field = type(model)(config.replace(**{option: size}), *dims)
        except ValueError:  # larger than the field can be
            return math.inf
        return sum(param.numel() for param in field.parameters())

    low, high = 1, 2
    if count(low) > n_parameters:
        raise ValueError(f"`--parameters` must be at least {count(low)} for {config.name}, got {n_parameters}")
    while count(high) <= n_parameters and (count(high) > count(high // 2) or high < 32):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= n_parameters else (low, middle)
    return config.replace(**{option: low})


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown, best first."""
    metric = rows[0]["metric"] if rows else ""
    lines = [f"| field | {metric} | parameters | steps | seconds |", "|---|---|---|---|---|"]
    small_is_good = metric in SMALL_IS_GOOD
    for row in sorted(rows, key=lambda row: (row["value"] or 0.0) * (1 if small_is_good else -1)):
        value = "none" if row["value"] is None else f"{row['value']:.4g}"
        lines.append(f"| {row['field']} | {value} | {row['parameters']} | {row['steps']} | {row['seconds']:.1f} |")
    return "\n".join(lines) + "\n"


def plot(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A plot of the metric over seconds of training, one line per field."""
    figure = optional_import("matplotlib.figure").Figure(figsize=(7.2, 4.5), layout="constrained")
    axes, colors = figure.add_subplot(), optional_import("matplotlib").colormaps["tab20"].colors
    for i, row in enumerate(rows):
        points = [(seconds, value) for seconds, value in row["curve"] if math.isfinite(value)]
        if points:
            axes.plot(*zip(*points, strict=True), color=colors[2 * i % 20 + i // 10], label=row["field"], linewidth=1.5)
    axes.set(xlabel="training time [s]", ylabel=rows[0]["metric"] if rows else "")
    if rows and rows[0]["metric"] in SMALL_IS_GOOD:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def strip(path: Path, rows: Sequence[dict[str, Any]], out: Path, preview: str) -> None:
    """What the fields' evaluations drew, one below the other with its name and figure; nothing where they draw
    nothing."""
    panels = []
    for row in rows:
        file = out / row["field"] / preview
        if not preview or not file.is_file():
            continue
        image = load_photo(file)
        top = torch.ones(HEADER, image.shape[1], 3)
        value = "none" if row["value"] is None else f"{row['value']:.4g}"
        text = f"{row['field']}  {row['metric']} {value}"
        labelled = write_texts(torch.cat([top, image, torch.ones(GAP, image.shape[1], 3)]), [(2, 3, text)])
        panels.append(labelled)
    if panels:
        width = max(panel.shape[1] for panel in panels)
        padded = [torch.nn.functional.pad(p, (0, 0, 0, width - p.shape[1]), value=255) for p in panels]
        atomic_write_image(path, torch.cat(padded))
