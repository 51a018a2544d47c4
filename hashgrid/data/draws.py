"""Random rows of a data set, as functions of (seed, step): a run that goes on sees what it would have seen."""

from __future__ import annotations

import torch
from torch import Tensor

from hashgrid.ops._backend import backend_ops

STREAM = 1 << 28  # random numbers of a stream of one step


def draw_rows(
    seed: int | Tensor,
    step: int | Tensor,
    n: int,
    n_rows: int,
    device: torch.device,
    stream: int = 0,
    backend: str = "native",
) -> Tensor:
    """``n`` of the numbers 0 .. ``n_rows`` - 1, with replacement [n] int64: the same ones on every device, and a longer
    draw begins with a shorter one.

    Args:
        seed, step: what they are a function of; numbers, or tensors that a captured CUDA graph follows.
        n: how many.
        n_rows: below 2^48.
        device: where they are wanted.
        stream: another one for each thing that is drawn in a step, 0 to 15.
        backend: ``"native"`` or ``"reference"``.
    """
    index = torch.arange(stream * STREAM, stream * STREAM + 2 * n, device=device)
    high, low = backend_ops(backend).counter_uniform(seed, step, index).view(n, 2).unbind(1)
    # 24 bits alone would draw some rows more often; 1 - 2^-48 times the number of rows is not rounded up to it
    return high.double().add_(low, alpha=2.0**-24).mul_(n_rows).long()
