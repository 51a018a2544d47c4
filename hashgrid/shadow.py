"""Whether a half-precision copy of a parameter still matches it: known by the parameter's version, not by comparing."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor


class _Written:
    """Of which tensor, and at which of its versions, a shadow is a copy. A copy of the shadow knows nothing."""

    def __init__(self, param: Tensor | None = None) -> None:
        self.param = None if param is None else weakref.ref(param)
        self.version = -1 if param is None else param._version

    def __deepcopy__(self, memo: dict[int, Any]) -> _Written:
        return _Written()

    def __reduce__(self) -> tuple[type, tuple]:
        return _Written, ()


def mark_fresh(shadow: Tensor, param: Tensor) -> None:
    """Notes that ``shadow`` holds the current values of ``param``."""
    # inference tensors have no version: their shadows are renewed each time
    shadow._hashgrid_written = _Written(None if param.is_inference() else param)  # type: ignore[attr-defined]


def forget(shadow: Tensor) -> None:
    """Notes that nothing is known about ``shadow``."""
    shadow._hashgrid_written = _Written()  # type: ignore[attr-defined]


def is_fresh(shadow: Tensor, param: Tensor) -> bool:
    """Whether ``param`` is what `mark_fresh` was told, unchanged. Writes through ``param.data`` go unseen, as they do
    in autograd."""
    written = getattr(shadow, "_hashgrid_written", None)
    return (
        written is not None
        and written.param is not None
        and written.param() is param
        and (written.version == param._version)
    )
