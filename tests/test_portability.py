"""What is there on Unix alone: nothing that is imported may need it."""

from __future__ import annotations

import subprocess
import sys

from hashgrid.util.memory import peak_memory

UNIX_ONLY = ("resource", "fcntl", "pwd", "grp", "termios", "syslog")
UNIX_FUNCTIONS = ("sched_getaffinity", "sysconf", "nice", "fork", "uname", "getuid", "geteuid", "killpg", "setsid")
WINDOWS = f"""
import os, signal, sys
import torch  # and what it imports
for name in {UNIX_ONLY}:
    sys.modules[name] = None  # importing it raises
for name in {UNIX_FUNCTIONS}:
    delattr(os, name)
del signal.SIGKILL, signal.SIGALRM, signal.SIGHUP
"""
IMPORT_ALL = """
import importlib, pkgutil
import hashgrid
names = [module.name for module in pkgutil.walk_packages(hashgrid.__path__, "hashgrid.")]
failed = {}
for name in names:
    if name.rpartition(".")[2] not in ("__main__", "_C", "_C_cuda"):
        try:
            importlib.import_module(name)
        except Exception as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name not in UNIX_ONLY
            if not missing or "hashgrid" in (error.name or "hashgrid"):
                failed[name] = repr(error)
assert len(names) > 80 and not failed, failed
"""
USE = """
import hashgrid.cli
from hashgrid.util.memory import free_memory, peak_memory
assert peak_memory() is None and free_memory() > 0
grid = hashgrid.HashGrid(n_input_dims=2, n_levels=2, log2_hashmap_size=8)
with hashgrid.own_threads():
    grid(torch.rand(5, 2)).sum().backward()
hashgrid.cli.main(["info"])
hashgrid.cli.main(["--help"])
"""


def run_as_on_windows(code: str) -> str:
    """Output of code that runs without what Unix alone has."""
    script = f"UNIX_ONLY = {UNIX_ONLY}\n{WINDOWS}\n{code}"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_no_module_needs_what_unix_alone_has() -> None:
    """All modules are imported but those whose packages are not installed here."""
    run_as_on_windows(IMPORT_ALL)


def test_kernels_threads_and_commands_run_without_unix() -> None:
    printed = run_as_on_windows(USE)
    assert "CPU kernels" in printed and "usage: hashgrid" in printed


def test_peak_memory_is_in_bytes() -> None:
    peak = peak_memory()
    assert peak is None or 1 << 26 < peak < 1 << 40  # PyTorch alone is more than 64 MiB
