"""Tells whether a half-precision copy of a parameter still matches it: by the parameter's version, not by comparing."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class WatchedParameter(nn.Parameter):
    """A parameter whose version counts writes through ``.data``, too: PyTorch hides them, while moving averages,
    `torch.nn.utils.vector_to_parameters` and older optimisers write that way. Use ``nn.Parameter(param.detach())`` to
    make another parameter of it."""

    _hashgrid_lent = False

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        torch.autograd.graph.increment_version([self])
        # the memory is somebody's who may go on writing to it, as to a vector of all parameters
        self._hashgrid_lent = self._hashgrid_lent or value is not self


def watch(param: Tensor) -> None:
    """Makes ``param`` a `WatchedParameter` in place. Tensors of other kinds stay as they are; their copies are
    renewed each time."""
    if type(param) is nn.Parameter:
        param.__class__ = WatchedParameter


@contextmanager
def moving_parameter(param: Tensor) -> Iterator[None]:
    """Marks, as a context, that a module moves or casts ``param``: memory that ``param.data`` is set to in it belongs
    to nobody else."""
    lent = param.__dict__.pop("_hashgrid_lent", False)
    yield
    has_moved = param.__dict__.pop("_hashgrid_lent", False)
    if lent and not has_moved:
        param._hashgrid_lent = True  # type: ignore[attr-defined]


class _Written:
    """Of which tensor, and at which of its versions, a half table is a copy. A copy of the half table knows nothing."""

    def __init__(self, param: Tensor | None = None) -> None:
        self.param = None if param is None else weakref.ref(param)
        self.version = -1 if param is None else param._version

    def __deepcopy__(self, memo: dict[int, Any]) -> _Written:
        return _Written()

    def __reduce__(self) -> tuple[type, tuple]:
        return _Written, ()


def mark_current(half_table: Tensor, param: Tensor) -> None:
    """Notes that ``half_table`` holds the current values of ``param``."""
    watch(param)
    # inference tensors have no version: their copies are renewed each time
    known = isinstance(param, WatchedParameter) and not param._hashgrid_lent and not param.is_inference()
    half_table._hashgrid_written = _Written(param if known else None)  # type: ignore[attr-defined]


def mark_unknown(half_table: Tensor) -> None:
    """Notes that nothing is known about ``half_table``."""
    half_table._hashgrid_written = _Written()  # type: ignore[attr-defined]


def is_current(half_table: Tensor, param: Tensor) -> bool:
    """Returns whether ``half_table`` holds the values of ``param``: it did at `mark_current`, and neither has been
    written to since. Writes that no tensor counts, such as those to ``param.detach().numpy()``, are not seen."""
    written = getattr(half_table, "_hashgrid_written", None)
    return (
        written is not None
        and written.param is not None
        and written.param() is param
        and (written.version == param._version)
    )
