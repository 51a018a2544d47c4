"""Lets code that names a GPU run without one: imported before a peer's own test.

What takes a device takes it as it is told; `.cuda()` stays where it is, events of CUDA are clocks.
"""

from __future__ import annotations

import contextlib
import time

import torch


class _Event:
    """A clock with the methods of ``torch.cuda.Event``."""

    def __init__(self, **options: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: _Event) -> float:
        return 1e3 * (end.at - self.at)


def put_on_cpu() -> None:
    """From now on."""
    torch.Tensor.cuda = lambda self, *where, **options: self
    torch.nn.Module.cuda = lambda self, *where: self
    torch.cuda.Event = _Event
    torch.cuda.synchronize = torch.cuda.empty_cache = lambda *where: None
    torch.cuda.device = lambda which: contextlib.nullcontext()
