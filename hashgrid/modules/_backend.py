"""Where a module finds its ops."""

from __future__ import annotations

from types import ModuleType

from hashgrid.options import BACKENDS, check_option


def ops_of(backend: str) -> ModuleType:
    """``hashgrid.ops`` or ``hashgrid.reference``."""
    if check_option("backend", backend, BACKENDS) == "native":
        from hashgrid import ops

        return ops
    from hashgrid import reference

    return reference
