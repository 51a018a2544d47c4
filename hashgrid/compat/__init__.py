"""Other libraries' Python modules on hashgrid's kernels, for code that was written for them.

``from hashgrid.compat import tinycudann as tcnn`` instead of ``import tinycudann as tcnn``; :func:`install` for code
that cannot be edited. Nothing else of hashgrid imports this package.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from types import ModuleType

from hashgrid.util.choices import check_option

# the names under which other code imports a module that is here; what is in a package comes with it
_ALIASES = {
    "nerfacc": ("nerfacc",),
    "tinycudann": ("tinycudann", "tinycudann.modules"),
    "torch_ngp": ("gridencoder", "gridencoder.grid", "shencoder", "freqencoder", "ffmlp", "raymarching"),
    "nerfacc_0_3": (
        "nerfacc", "nerfacc.cdf", "nerfacc.contraction", "nerfacc.grid", "nerfacc.intersection", "nerfacc.losses",
        "nerfacc.pack", "nerfacc.ray_marching", "nerfacc.version", "nerfacc.vol_rendering",
    ),
}  # fmt: skip


def install(name: str) -> ModuleType:
    """Lets ``import`` of the library called ``name`` find the module of this package, for the rest of the process.

    Args:
        name: ``"tinycudann"``, ``"nerfacc"``, ``"nerfacc_0_3"`` for ``nerfacc`` as it was before 0.5, or
            ``"torch_ngp"`` for its folders ``gridencoder``, ``raymarching`` and so on.

    Returns:
        The module that is imported from now on.

    Raises:
        ValueError: there is no such module here.
        ImportError: another module of that name is imported already, and code may hold parts of it.

    Example:
        >>> import hashgrid.compat
        >>> module = hashgrid.compat.install("tinycudann")
        >>> import tinycudann as tcnn
        >>> tcnn.Network(3, 1, {"otype": "FullyFusedMLP", "n_neurons": 16, "n_hidden_layers": 1}).n_output_dims
        1
    """
    check_option("name", name, _ALIASES)
    module = importlib.import_module(f"hashgrid.compat.{name}")
    modules = dict.fromkeys(_ALIASES[name], module)
    for found in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{module.__name__}."):
        alias = found.name.removeprefix("hashgrid.compat.")
        if "._" not in alias:
            modules[alias] = importlib.import_module(found.name)
    for alias, part in modules.items():
        if sys.modules.get(alias, part) is not part:
            raise ImportError(f"`{alias}` is imported already; call hashgrid.compat.install({name!r}) before that")
    sys.modules.update(modules)
    return module
