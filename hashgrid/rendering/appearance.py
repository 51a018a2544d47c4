"""What a camera makes of colours: how long it was exposed, and how it balanced them."""

from __future__ import annotations

import torch
from torch import Tensor

SIZES = {"exposure": 1, "affine": 12}  # numbers per picture


def exposed(colors: Tensor, stops: Tensor) -> Tensor:
    """sRGB colours [..., 3] of pictures that were exposed by ``stops`` [..., 1] longer: twice the light for each, and
    white where it is too much. There the gradient is that of the light, so that what is too bright can become darker.

    Example:
        >>> import torch
        >>> exposed(torch.tensor([0.0, 0.5, 0.9]), torch.tensor([1.0]))
        tensor([0.0000, 0.6858, 1.0000])
    """
    light = torch.where(colors <= 0.04045, colors / 12.92, ((colors.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)
    light = light * torch.exp2(stops)
    linear, curved = 12.92 * light, 1.055 * light.clamp_min(0.0031308) ** (1 / 2.4) - 0.055
    shown = torch.where(light <= 0.0031308, linear, curved)
    return shown + (shown.clamp_max(1) - shown).detach()


def balanced(colors: Tensor, numbers: Tensor) -> Tensor:
    """Colours [..., 3] times ``I + A``, plus ``b``, of ``numbers`` [..., 12]: A row by row, then b, as Zip-NeRF has it
    (Barron et al. 2023)."""
    matrix, offset = numbers[..., :9].unflatten(-1, (3, 3)), numbers[..., 9:]
    return colors + (matrix @ colors[..., None])[..., 0] + offset


def shown(kind: str, colors: Tensor, opacities: Tensor, numbers: Tensor) -> Tensor:
    """Colours [R, C] that cover ``opacities`` [R] of their pixels, as cameras of ``numbers`` [R, D] show them; channels
    behind the first three as they are."""
    share = opacities.clamp_min(1e-4)[:, None]
    change = exposed if kind == "exposure" else balanced
    first = share * change(colors[:, :3] / share, numbers)
    # what is all but transparent has no colour to divide out
    first = torch.where(opacities[:, None] > 1e-4, first, colors[:, :3])
    return first if colors.shape[1] == 3 else torch.cat((first, colors[:, 3:]), dim=1)
