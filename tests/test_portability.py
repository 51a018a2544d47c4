"""What is there on Unix alone: nothing that is imported may need it."""

from __future__ import annotations

import subprocess
import sys

from hashgrid.util.memory import peak_memory

UNIX_ONLY = ("resource", "fcntl", "pwd", "grp", "termios", "syslog")
SCRIPT = f"""
import sys
import torch  # and what it imports
for name in {UNIX_ONLY}:
    sys.modules[name] = None  # importing it raises
import hashgrid, hashgrid.cli, hashgrid.tasks.nerf, hashgrid.tasks.sdf, hashgrid.tasks.image
import hashgrid.bench
from hashgrid.util.memory import peak_memory
assert peak_memory() is None
hashgrid.cli.main(["--help"])
"""


def test_modules_of_unix_are_not_needed() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("usage: hashgrid")


def test_peak_memory_is_in_bytes() -> None:
    peak = peak_memory()
    assert peak is None or 1 << 26 < peak < 1 << 40  # PyTorch alone is more than 64 MiB
