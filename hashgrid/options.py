"""The options that have names, in the order of the kernels' enumerations."""

from __future__ import annotations

from collections.abc import Collection

import torch

BACKENDS = ("native", "reference")
INTERPOLATIONS = ("linear", "smoothstep", "nearest")
BOUNDS = ("clamp", "zero", "none")
ACTIVATIONS = ("none", "relu", "leaky_relu", "silu", "softplus", "sigmoid", "tanh", "exp", "sine")
# What matrix products multiply: the tensors as they are, or rounded.
FACTORS = (None, torch.bfloat16, torch.float16)


def check_option(name: str, value: str, allowed: Collection[str]) -> str:
    """``value``, when it is ``allowed``.

    Raises:
        ValueError: it is not.
    """
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {tuple(allowed)}, got {value!r}")
    return value
