"""A task as a command: options, data, training, evaluation, files."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import torch

from hashgrid.train import ranks
from hashgrid.train.checkpoint import Checkpoint, CheckpointError, load_checkpoint, with_prefix
from hashgrid.train.config import RunConfig
from hashgrid.train.loop import Trainer, load_model
from hashgrid.train.page import write_page
from hashgrid.train.profile import StepProfile
from hashgrid.train.report import REPORTERS, RESULTS, Console, Reporter, write_results
from hashgrid.train.task import Progress, Report, Task
from hashgrid.util.device import choose_device, why_not_cuda
from hashgrid.util.files import atomic_write_json
from hashgrid.util.memory import peak_memory
from hashgrid.util.optional import optional_import
from hashgrid.util.threads import threads_for, threads_in_use

CHECKPOINT, CONFIG = "checkpoint.safetensors", "config.json"


def _option(default: Any, help: str, **look: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, **look})


@dataclass
class Options:
    """What a command is told besides its configuration."""

    source: Path | None = None
    out: Path | None = _option(None, "folder of the results; outputs/TASK/NAME if none")
    resume: bool = _option(False, "go on from the checkpoint in the folder of the results")
    eval: Path | None = _option(None, "only evaluate this checkpoint", metavar="CHECKPOINT")
    config: Path | None = _option(None, "take defaults from a config.json", metavar="FILE")
    log: Literal["none", "tensorboard"] = _option("none", "who is told besides the console")
    profile: bool = _option(False, "show where the time of a step goes: a table and a trace")
    view: bool = _option(False, "show in the browser what is trained: nerf, surface, sdf, volume, image")
    host: str | None = _option(None, "address of the page of `--view`; 127.0.0.1 if none, which only this machine sees")
    port: int | None = _option(None, "port of the page of `--view`; 8080 if none")
    reduce_dtype: Literal["float32", "bfloat16"] = _option("float32", "of table gradients between torchrun's processes")


def main(command: type[Task], argv: Sequence[str]) -> int:
    """Runs a command; returns the exit status: 0, or 130 when the user interrupted training.

    Raises:
        ValueError: the data, a checkpoint or an option is wrong.
        ImportError: a package is missing.
    """
    begin, early = time.perf_counter(), _early(argv)
    checkpoint = early.eval
    if checkpoint is None and early.resume and early.out is not None:
        checkpoint = Path(early.out) / CHECKPOINT
    stored = None if checkpoint is None or "--help" in argv else read_checkpoint(Path(checkpoint), command)
    options, config = parse(command, argv, starting_config(command, argv, stored))
    if options.resume and stored is None:
        stored = read_checkpoint(_output_folder(command, options, config) / CHECKPOINT, command)
        options, config = parse(command, argv, starting_config(command, argv, stored))
    return run(command, options, config, stored, begin)


def run(
    command: type[Task],
    options: Options,
    config: RunConfig,
    stored: Checkpoint | None = None,
    begin: float | None = None,
) -> int:
    """What :func:`main` does with options that are known; ``stored`` is what to go on from, or to evaluate."""
    begin = time.perf_counter() if begin is None else begin
    if ranks.wanted() > 1:
        _check_ranks(command, options)
    config = config.with_budget().on_device()
    try:
        config.check()
    except ValueError as error:
        raise ValueError(f"{error}; the checkpoint says so, an option replaces it") if stored else error from None
    for package in ("safetensors", "tqdm", *(("viser",) if options.view else ()), *command.packages):
        optional_import(package)
    if options.profile and config.device != "cpu":
        raise ValueError(f"`--profile` is for the CPU, got device {config.device}; use Nsight Systems on a GPU")
    if options.view and options.eval:
        raise ValueError("`--view` is for training, not for `--eval`; `hashgrid view CHECKPOINT` shows a stored field")
    if not options.view and (options.host is not None or options.port is not None):
        raise ValueError(f"`--host` and `--port` are of `--view`, got {options.host} and {options.port} without it")
    out = options.eval.parent if options.eval and not options.out else _output_folder(command, options, config)
    _check_writable(out)
    with ranks.joined(config.device, options.reduce_dtype), threads_for(config.backend):
        with ranks.first_of_machine_first():
            task = command.make(config, options.source, stored.metadata["notes"] if stored else {})
        print(task.describe(), flush=True)
        print(_describe_device(task), flush=True)
        out.mkdir(parents=True, exist_ok=True)
        try:
            return _train_and_evaluate(task, options, out, stored, begin)
        finally:
            task.close()


def _train_and_evaluate(task: Task, options: Options, out: Path, stored: Checkpoint | None, begin: float) -> int:
    if options.eval is not None and stored is not None:
        load_model(task.model, stored.tensors, averaged=True)
        task.load_state(with_prefix(stored.tensors, "state."))
        report = Report(out, Progress(**stored.metadata["progress"]), stored.metadata["curve"])
    else:
        task.begin()
        trainer = Trainer(task, seconds_before=time.perf_counter() - begin)
        if stored is not None:
            trainer.load(*stored)
        report = Report(out, trainer.progress, trainer.curve)
        if ranks.is_first():
            atomic_write_json(out / CONFIG, task.config.to_dict())
        report.interrupted = _train(trainer, options, out)
        if not ranks.is_first():
            return 130 if report.interrupted else 0
        trainer.save(out / CHECKPOINT)
        if report.interrupted:
            print("interrupted: the checkpoint is written, a short evaluation follows; --resume goes on", flush=True)
        trainer.take_averages()
    peak = None if options.eval else peak_memory()  # memory of an evaluation is not that of training
    figures = task.evaluate(report)
    if ranks.size() > 1:
        figures["ranks"] = costs = ranks.costs(report.progress.seconds)
        print(ranks.describe(costs), flush=True)
    write_results(task, report, figures, peak)
    if not report.interrupted:
        task.finish(out)
    write_page(out, json.loads((out / RESULTS).read_text()), task.config.to_dict(), report.curve)
    print(f"results in {out}", flush=True)
    return 130 if report.interrupted else 0


def _train(trainer: Trainer, options: Options, out: Path) -> bool:
    """Whether the user interrupted."""
    reporters: list[Reporter] = []
    if not ranks.is_first():
        return _ended_early(trainer, [], None)
    if options.view:  # before the bar: it may refuse, and says where it is
        from hashgrid.viewer.live import HOST, PORT, LiveView  # what it draws with, no other run needs

        reporters.append(LiveView(trainer, out, options.host or HOST, PORT if options.port is None else options.port))
    reporters.append(Console(trainer.task))
    if options.log != "none":
        reporters.append(REPORTERS[options.log](out))
    if options.profile:
        reporters.append(StepProfile(out))
    return _ended_early(trainer, reporters, out / CHECKPOINT)


def _ended_early(trainer: Trainer, reporters: Sequence[Reporter], checkpoint: Path | None) -> bool:
    """Trains; whether the user interrupted."""

    def tell(progress: Progress) -> None:
        for reporter in reporters:
            reporter.step(progress)

    try:
        with ranks.noting_signals():
            trainer.train(tell, checkpoint)
    except KeyboardInterrupt:
        return True
    finally:
        for reporter in reporters:
            reporter.close()
    return False


def _check_ranks(command: type[Task], options: Options) -> None:
    """Refuses what several processes would do several times over."""
    if not command.splits:
        ranks.refuse(f"`hashgrid {command.name}`")
    for name in ("view", "profile", "eval"):
        if getattr(options, name):
            ranks.refuse(f"`--{name}`")


def read_checkpoint(path: Path, command: type[Task]) -> Checkpoint:
    """Reads a checkpoint of a command.

    Raises:
        ValueError: there is none, or it is one of another command.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint at `{path}`; train without `--resume` and `--eval` first")
    stored = load_checkpoint(path)
    if stored.metadata.get("task") != command.name:
        of = stored.metadata.get("task")
        raise CheckpointError(f"`{path}` must be a checkpoint of `hashgrid {command.name}`, got one of {of!r}")
    return stored


def parse(command: type[Task], argv: Sequence[str], base: RunConfig) -> tuple[Options, RunConfig]:
    """Options and configuration of a command line, over the values of ``base``."""
    tyro = optional_import("tyro")
    hints, arguments = get_type_hints(Options), {}
    for option in dataclasses.fields(Options):
        arguments[option.name] = Annotated[hints[option.name], tyro.conf.arg(**option.metadata)], option.default
    source = tyro.conf.arg(help=command.source_help, metavar="SOURCE")
    arguments["source"] = Annotated[Path | None, tyro.conf.Positional, source], None
    if fields := tuple(command.Config.fields):
        kind = Annotated[Literal.__getitem__(fields), tyro.conf.arg(help="what is trained")]  # type: ignore[valid-type]
        arguments["field"] = kind, base.field.name  # type: ignore[attr-defined]
    arguments["recipe"] = Annotated[type(base), tyro.conf.arg(name="")], base
    kinds = [(name, kind, dataclasses.field(default=default)) for name, (kind, default) in arguments.items()]
    parsed = tyro.cli(
        dataclasses.make_dataclass("Arguments", kinds, bases=(Options,)),
        args=list(argv),
        prog=f"hashgrid {command.name}",
        description=command.summary,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    return parsed, parsed.recipe


def starting_config(command: type[Task], argv: Sequence[str], stored: Checkpoint | None = None) -> RunConfig:
    """The configuration that the options of a command line change."""
    early = _early(argv)
    field, file = early.field, early.config
    if stored is not None:
        kept = stored.metadata["config"].get("field", {}).get("name")
        if field not in (None, kept):
            raise ValueError(f"`--field` must be that of the checkpoint, {kept}, got {field!r}")
        if file is not None:
            raise ValueError("`--config` and a checkpoint exclude each other: it has its configuration; give options")
        # a run may go on on another machine
        return command.Config.from_dict({**stored.metadata["config"], "device": "auto"}, "the checkpoint")
    given = {word.partition("=")[0] for word in argv if word.startswith("--")}
    fields = command.Config.fields
    if field is not None and field not in fields:
        raise ValueError(f"`--field` must be one of {', '.join(fields)}, got {field!r}")
    if file is None:
        device = choose_device(early.device or RunConfig.device, early.backend or RunConfig.backend)
        return command.defaults(field, device, given)
    try:
        values = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"`--config` must be a JSON file, `{file}`: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"`--config` must hold an object, `{file}` holds {type(values).__name__}")
    return command.Config.from_dict(values, f"`{file}`")


def _early(argv: Sequence[str]) -> argparse.Namespace:
    """The options that decide which others there are, and what their defaults are."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("out", "eval", "config", "field", "backend", "device"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--resume", action="store_true")
    return parser.parse_known_args(argv)[0]


def _output_folder(command: type[Task], options: Options, config: RunConfig) -> Path:
    if options.out is not None:
        return options.out
    return Path("outputs") / command.name / command.folder(options.source, config)


def _check_writable(out: Path) -> None:
    """Raises now what would be raised after training."""
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"`--out` must be a folder, `{existing}` is a file")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"`--out` must be a folder to write to, `{existing}` is not")


def _describe_device(task: Task) -> str:
    """Where it runs; and why not on a GPU that is there."""
    if task.device.type == "cuda":
        return f"running on {torch.cuda.get_device_name(task.device)}"
    text = f"running on the CPU with {threads_in_use()} threads"
    unused = torch.cuda.is_available() and why_not_cuda(task.config.backend)
    return f"{text}: {unused}" if unused else text
