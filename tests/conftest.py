"""Fixtures of the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the shared data, ``HASHGRID_DATA`` or ``../shared`` beside the repository; skips where it is absent."""
    path = Path(os.environ.get("HASHGRID_DATA", Path(__file__).resolve().parents[2] / "shared"))
    if not path.is_dir():
        pytest.skip(f"no shared data at {path}; set HASHGRID_DATA")
    return path


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test starts from the same random state; tests that need a seed of their own derive it from this one."""
    torch.manual_seed(0)
    return 0


@pytest.fixture(scope="session", autouse=True)
def torch_threads() -> None:
    """Two threads unless ``OMP_NUM_THREADS`` says otherwise: enough to race, cheap on a busy machine."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(2)
