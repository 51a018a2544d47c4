"""pytest plugin of ``run.py``: other libraries' names lead to hashgrid's layers, and each test says what it used."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

import pytest
from on_cpu import put_on_cpu

import hashgrid.compat


def _alias(target: str, *names: str) -> None:
    """Makes ``import names`` find the module ``target``, with empty packages above."""
    for name in names:
        parts = name.split(".")
        for k in range(1, len(parts)):
            package = sys.modules.setdefault(".".join(parts[:k]), ModuleType(".".join(parts[:k])))
            package.__path__ = []  # type: ignore[attr-defined]
        module = importlib.import_module(target)
        sys.modules[name] = module
        if len(parts) > 1:
            setattr(sys.modules[".".join(parts[:-1])], parts[-1], module)


def install(names: str) -> None:
    """Installs the layers, by the names of :func:`hashgrid.compat.install`, and ``nerfstudio``."""
    put_on_cpu()
    for name in filter(None, names.split(",")):
        if name == "nerfstudio":  # its tests import its own modules, no other of which is needed
            components = "nerfstudio.field_components"
            _alias("hashgrid.compat.nerfstudio", f"{components}.mlp", f"{components}.encodings")
        elif name == "multinerf":
            importlib.import_module("multinerf").replace_functions()
        else:
            hashgrid.compat.install(name)


def pytest_configure(config: pytest.Config) -> None:
    install(os.environ["HASHGRID_PEERS_INSTALL"])


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item):
    """Notes which of our functions a test called, where they replace single ones of another library."""
    module = sys.modules.get("multinerf")
    if module:
        module.CALLS.clear()
        module.jax.clear_caches()  # what is compiled calls no Python
    yield
    if module:
        item.user_properties.append(("used", ",".join(sorted(module.CALLS))))
