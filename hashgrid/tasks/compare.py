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

from hashgrid.fields.base import SignalField
from hashgrid.fields.distance import DistanceField
from hashgrid.rendering.comparison import as_table, plot, strip
from hashgrid.train.loop import Trainer
from hashgrid.train.report import write_results
from hashgrid.train.run import CHECKPOINT, parse
from hashgrid.train.task import Progress, Report, Task
from hashgrid.util.device import choose_device
from hashgrid.util.files import atomic_write_json, atomic_write_text
from hashgrid.util.optional import optional_import
from hashgrid.util.threads import threads_for

LOOKS = 24  # at the metric over a run, the later the rarer


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
    rows: list[dict[str, Any]] = []
    for name in names:
        rows.append(run_one(command, name, args.parameters, out / name, others))
        atomic_write_json(out / "compare.json", rows)  # each at once: a comparison takes hours
    table = as_table(rows)
    atomic_write_text(out / "compare.md", table)
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
        # squares: what happens at first is seen more finely; looking does not count as time
        if progress.fraction >= (len(scores) / LOOKS) ** 2 and len(scores) <= LOOKS:
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
