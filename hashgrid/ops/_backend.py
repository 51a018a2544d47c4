"""Chooses the ops of a module by the name of a backend: the one native file that knows the reference."""

from __future__ import annotations

from types import ModuleType

from hashgrid import ops, reference
from hashgrid.ops import _ngp
from hashgrid.util.choices import BACKENDS, check_option


def backend_ops(backend: str) -> ModuleType:
    """Returns ``hashgrid.ops`` or ``hashgrid.reference``."""
    return ops if check_option("backend", backend, BACKENDS) == "native" else reference


def ngp_ops(backend: str) -> ModuleType:
    """Returns ``hashgrid.ops._ngp``, the fused ops of the fast path, or ``hashgrid.reference``."""
    return _ngp if check_option("backend", backend, BACKENDS) == "native" else reference
