"""Several processes that train one field, as torchrun starts them: each takes its part of every batch, gradients are
summed, and what a clock or the user decides is decided by the first. In one process nothing here does anything."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = "HASHGRID_RANKS_TIMEOUT"  # seconds after which a process that does not answer is given up
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class RanksError(RuntimeError):
    """Another process is gone, or is not the same run."""


class _Team:
    """What one process knows of all."""

    size, rank = 1, 0
    dtype = torch.float32  # of table gradients on the way
    now = 0.0  # clock of the first process, as of the last step
    interrupted = False  # by the user, in some process, as of the last step
    noted = False  # a signal came to this process
    seconds, bytes, steps = 0.0, 0, 0  # of the sums of gradients


_team = _Team()


def wanted() -> int:
    """How many processes torchrun says there are; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def size() -> int:
    """How many processes train together now."""
    return _team.size


def is_first() -> bool:
    """Whether this process is the one that writes, prints and scores."""
    return _team.rank == 0


def refuse(what: str) -> NoReturn:
    """Says once that this is for one process.

    Raises:
        ValueError: in the first process; the others wait for it to say so, and end.
    """
    if int(os.environ["RANK"]) == 0:
        raise ValueError(f"{what} runs in one process, got {wanted()} of torchrun; `hashgrid nerf` trains in several")
    time.sleep(10)  # a process that ends makes torchrun end the others
    sys.exit(1)


@contextlib.contextmanager
def joined(device: str, dtype: str = "float32") -> Iterator[None]:
    """Inside, the processes of torchrun are one team; all but the first are silent.

    Args:
        device: what is trained on, "cpu" or "cuda", of which each process on a machine takes another.
        dtype: of table gradients on the way, "float32" or "bfloat16".

    Raises:
        ValueError: there are fewer GPUs than processes, or all should use one.
        RanksError: a process does not come.
    """
    if wanted() == 1:
        yield
        return
    kind, timeout = "gloo", timedelta(seconds=float(os.environ.get(TIMEOUT, "300")))
    if device != "cpu":
        local, n_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if device != "cuda" or local >= n_gpus:
            raise ValueError(
                f"`device` must be `cuda` with a GPU for each process, got {device!r}, {n_gpus} GPUs and"
                f" {local + 1} processes here; choose `--device cpu` or fewer processes"
            )
        torch.cuda.set_device(local)
        kind = "cpu:gloo,cuda:nccl"
    # It keeps the team it finds when it is imported as a default argument, PyTorch's compiler imports it at any time,
    # and threads of a team that is kept abort the process as Python ends, in one run of 20.
    importlib.import_module("torch.distributed.nn.functional")
    with _naming_the_lost():
        dist.init_process_group(kind, timeout=timeout)
    _team.size, _team.rank, _team.dtype = dist.get_world_size(), dist.get_rank(), DTYPES[dtype]
    _team.seconds, _team.bytes, _team.steps = 0.0, 0, 0
    try:
        with contextlib.ExitStack() as stack:
            if not is_first():
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            yield
    finally:
        _team.size, _team.rank, _team.dtype = 1, 0, torch.float32
        dist.destroy_process_group()


@contextlib.contextmanager
def noting_signals() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM end training in all processes after the same step. torchrun sends SIGTERM to those
    that are left when one dies, too: they live until they have said so."""
    if _team.size == 1:
        yield
        return

    def note(number: int, frame: Any) -> None:
        _team.noted = True

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        _team.noted = _team.interrupted = False
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def first_of_machine_first() -> Iterator[None]:
    """Inside, what is written once and then found, such as a generated scene, is written by one process of each
    machine, while the others wait."""
    waits = _team.size > 1 and os.environ.get("LOCAL_RANK", "0") != "0"
    if waits:
        total(0)
    yield
    if _team.size > 1 and not waits:
        total(0)


@contextlib.contextmanager
def _naming_the_lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        why = str(error).split("\n")[0].split("] ")[-1].split(". ")[0]
        raise RanksError(
            f"another process of the run has ended or does not answer ({why}); the last checkpoint is intact, the same"
            " command with `--resume` goes on from it"
        ) from error


def _reduce(values: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
    """In place, to the same bits in all processes."""
    with _naming_the_lost():
        dist.all_reduce(values, op)
    return values


def part(n: int) -> slice:
    """Which of ``n`` rows are this process's."""
    return slice(n * _team.rank // _team.size, n * (_team.rank + 1) // _team.size)


def total(n: int) -> int:
    """The sum over all processes."""
    return n if _team.size == 1 else int(_reduce(torch.tensor([n])))


def of_first(x: float) -> float:
    """What the first process says."""
    return x if _team.size == 1 else float(_reduce(torch.tensor([x if is_first() else 0.0], dtype=torch.float64)))


def now() -> float:
    """Seconds of a clock; in several processes that of the first, which stands still between steps."""
    return time.perf_counter() if _team.size == 1 else _team.now


def tick() -> None:
    """Lets :func:`now` be now."""
    if _team.size > 1:
        _team.now = of_first(time.perf_counter())


def interrupted() -> bool:
    """Whether the user wants to end, as of the last step."""
    return _team.interrupted


def summed(
    loss: float, terms: Mapping[str, float], counts: Mapping[str, int]
) -> tuple[float, dict[str, float], dict[str, int]]:
    """Loss, terms and counts of a step, of all processes together. The clock ticks."""
    first = time.perf_counter() if is_first() else 0.0
    values = [loss, *terms.values(), *counts.values(), first, float(_team.noted)]
    loss, *others, _team.now, noted = _reduce(torch.tensor(values, dtype=torch.float64)).tolist()
    _team.interrupted = noted > 0
    n = len(terms)
    of_counts = (int(x) for x in others[n:])
    return loss, dict(zip(terms, others[:n], strict=True)), dict(zip(counts, of_counts, strict=True))


@torch.no_grad()
def sum_gradients(parameters: Sequence[Tensor], tables: Sequence[Tensor]) -> None:
    """Gives all processes the sums of their gradients; where no process has a gradient there is none.

    Of ``tables``, which are parameters, too, only rows are sent that some process has touched: first a bit for each row
    goes round, then the rows.
    """
    begin = time.perf_counter()
    others = [param for param in parameters if not any(param is table for table in tables)]
    everything = [*tables, *others]
    there = torch.tensor([param.grad is not None for param in everything], device=everything[0].device)
    rows = [_touched(table) for table in tables]
    there, *rows = _union(torch.cat((there, *rows))).split([len(there), *map(len, rows)])
    everything = [param for param, is_there in zip(everything, there.tolist(), strict=True) if is_there]
    for param in everything:
        if param.grad is None:
            param.grad = torch.zeros_like(param)
    sent: list[tuple[Tensor, Tensor | None]] = []  # gradients, and which of their rows
    for table, touched in zip(tables, rows, strict=True):
        if table.grad is not None:
            sent.append((table.grad.view(-1, table.shape[-1]), touched.nonzero().squeeze(1)))
    _sum_rows(sent, _team.dtype)
    _sum_rows([(param.grad, None) for param in others if param.grad is not None], torch.float32)
    _team.seconds += time.perf_counter() - begin
    _team.steps += 1


def _touched(table: Tensor) -> Tensor:
    """Which rows of a table have a gradient, [rows] bool."""
    if table.grad is None:
        return torch.zeros(table.shape[:-1].numel(), dtype=torch.bool, device=table.device)
    return table.grad.view(-1, table.shape[-1]).any(1)


def _union(flags: Tensor) -> Tensor:
    """Whether a flag [n] is set in any process."""
    if flags.is_cuda:  # NCCL knows no bits
        _team.bytes += len(flags)
        return _reduce(flags.to(torch.uint8), dist.ReduceOp.MAX).bool()
    packed = torch.from_numpy(np.packbits(flags.numpy()))
    _team.bytes += len(packed)
    return torch.from_numpy(np.unpackbits(_reduce(packed, dist.ReduceOp.BOR).numpy(), count=len(flags))).bool()


def _sum_rows(sent: Sequence[tuple[Tensor, Tensor | None]], dtype: torch.dtype) -> None:
    """Sums rows of gradients over all processes, in one message."""
    picked = [gradient if index is None else gradient.index_select(0, index) for gradient, index in sent]
    if not picked:
        return
    message = _reduce(torch.cat([values.to(dtype).flatten() for values in picked]))
    _team.bytes += message.nbytes
    for (gradient, index), values in zip(sent, message.split([x.numel() for x in picked]), strict=True):
        if index is None:
            gradient.copy_(values.view_as(gradient))
        else:
            gradient.index_copy_(0, index, values.view(-1, gradient.shape[1]).to(gradient.dtype))


def check_same(what: str, tensors: Mapping[str, Tensor], text: str = "") -> None:
    """Compares what all processes begin with.

    Raises:
        RanksError: it is not the same everywhere.
    """
    digest = zlib.crc32(text.encode())
    for value in tensors.values():
        digest = zlib.crc32(value.detach().cpu().contiguous().numpy().tobytes(), digest)
    ends = _reduce(torch.tensor([digest, -digest]), dist.ReduceOp.MAX).tolist()
    if ends[0] != -ends[1]:
        raise RanksError(
            f"{what} must be the same in all processes, rank {_team.rank} has another one than some other; give all the"
            " same options, data and checkpoint"
        )


def costs(seconds: float) -> dict[str, float]:
    """What the sums of gradients took of ``seconds`` of training: figures for ``results.json``."""
    steps = max(_team.steps, 1)
    share = _team.seconds / max(seconds, 1e-9)
    return {"processes": _team.size, "bytes_per_step": _team.bytes / steps, "share_of_time": share}


def describe(figures: Mapping[str, float]) -> str:
    """:func:`costs` for a person."""
    return (
        f"{figures['processes']} processes: sums of gradients, waiting for the slowest included, took"
        f" {figures['share_of_time']:.0%} of training, {figures['bytes_per_step'] / 1e6:.2f} MB per step from each"
    )
