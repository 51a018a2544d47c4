"""Which parameters of a model Adam treats alike."""

from __future__ import annotations

from typing import Any

from torch import nn

from hashgrid.nn.codes import Codes
from hashgrid.nn.hash_grid import HashGrid
from hashgrid.nn.mlp import MLP


def adam_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for :class:`hashgrid.optim.Adam`: the tables of hash grids, of which most entries see no sample in a step;
    weights that weight norm takes directions from; and everything else, which alone decays."""
    modules = list(model.modules())
    tables = [module.table for module in modules if isinstance(module, (HashGrid, Codes))]
    directions = [weight for module in modules if isinstance(module, MLP) for weight in module.directions]
    apart = {*tables, *directions}
    rest = [param for param in model.parameters() if param not in apart]
    groups: list[dict[str, Any]] = [{"params": tables, "skip_zero": True}, {"params": directions}]
    return [group for group in groups if group["params"]] + [{"params": rest, "weight_decay": weight_decay}]
