"""Imports of optional dependencies, with an error that says what to install."""

from __future__ import annotations

import importlib
from types import ModuleType

EXTRAS = {
    **dict.fromkeys(("soundfile", "av", "nibabel", "tifffile", "OpenEXR"), "signals"),
    "constriction": "compress",
    "pycolmap": "colmap",
    **dict.fromkeys(("lpips", "torchvision"), "lpips"),
    **dict.fromkeys(("pymeshlab", "xatlas"), "export"),
    "viser": "view",
}


def optional_import(name: str) -> ModuleType:
    """The module ``name``; an ``ImportError`` naming ``pip install 'torch-hashgrid[EXTRA]'`` when it is absent."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        if (error.name or package).partition(".")[0] != package:
            raise  # the module is there, something it needs is not: its own message is the better one
        remedy = f"pip install 'torch-hashgrid[{EXTRAS.get(package, 'apps')}]'"
        raise ImportError(f"`{package}` is needed here, but not installed; {remedy}") from error
