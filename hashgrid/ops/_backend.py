"""Where a module finds its ops."""

from __future__ import annotations

from types import ModuleType

from hashgrid.util.choices import BACKENDS, check_option


def backend_ops(backend: str) -> ModuleType:
    """``hashgrid.ops`` or ``hashgrid.reference``."""
    if check_option("backend", backend, BACKENDS) == "native":
        from hashgrid import ops

        return ops
    from hashgrid import reference

    return reference
