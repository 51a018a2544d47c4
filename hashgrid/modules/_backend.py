"""Where a module finds its ops."""

from __future__ import annotations

from types import ModuleType

BACKENDS = ("native", "reference")


def check_backend(backend: str) -> str:
    """``backend``, when there is such a one.

    Raises:
        ValueError: there is not.
    """
    if backend not in BACKENDS:
        raise ValueError(f"`backend` must be one of {BACKENDS}, got {backend!r}")
    return backend


def ops_of(backend: str) -> ModuleType:
    """``hashgrid.ops`` or ``hashgrid.reference``."""
    if check_backend(backend) == "native":
        from hashgrid import ops

        return ops
    from hashgrid import reference

    return reference
