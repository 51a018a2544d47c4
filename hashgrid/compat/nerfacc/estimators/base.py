"""What estimators share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class AbstractEstimator(nn.Module):
    """Something that chooses samples along rays, and learns where."""

    _dummy: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_dummy", torch.empty(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return self._dummy.device

    def sampling(self, *args: Any, **kwargs: Any) -> Any:
        """Returns samples of rays.

        Raises:
            NotImplementedError: a subclass does it.
        """
        raise NotImplementedError

    def update_every_n_steps(self, *args: Any, **kwargs: Any) -> Any:
        """Learns from a step of training.

        Raises:
            NotImplementedError: a subclass does it.
        """
        raise NotImplementedError
