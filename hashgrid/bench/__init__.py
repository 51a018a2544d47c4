"""Benchmarks that an installed package can run: ``hashgrid bench``; ``benchmarks/*.py`` are thin scripts over them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

SUITES = ("hash_encode", "mlp", "encodings", "composite", "march_rays", "adam_step", "nerf_step", "sdf_step")


def run(names: Sequence[str] = (), out: Path | str = "benchmarks/results", device: str = "cpu") -> list[Path]:
    """Runs the suites ``names`` (all of :data:`SUITES` when empty) with their defaults on ``device``.

    Returns:
        The JSON files written, one per suite, each with a plot beside it.

    Raises:
        ValueError: a name is unknown.
        ImportError: a package for the plots or the scene is missing.
    """
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        raise ValueError(f"`names` must be among {SUITES}, got {unknown}")
    options = ["--out", str(out), "--device", device]
    return [importlib.import_module(f"hashgrid.bench.{name}").main(options) for name in (names or SUITES)]
