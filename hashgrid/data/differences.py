"""What signals say by differences of neighbouring samples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hashgrid.data.signals import Signal

Field = Callable[[Tensor], Tensor]
STRUCTURE_SIGMA = 6.0  # pixels over which slopes are compared


def stencil(field: Field, signal: Signal, index: Tensor, steps: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """What a field says at samples [N] and at those so many ``steps`` along each coordinate.

    Returns:
        Flat indices [N, 1 + K], of the samples first, then for each step along all D coordinates; values [N, 1 + K, C];
        whether there are such neighbours [N, K].
    """
    found = [signal.neighbours(index, step) for step in steps]
    sites = torch.cat([index[:, None], *(sites for sites, _ in found)], dim=1)
    values = field(signal.places(sites.view(-1))).view(*sites.shape, -1)
    return sites, values, torch.cat([exists for _, exists in found], dim=1)


def difference_error(
    field: Field, signal: Signal, source: Signal, index: Tensor, inside: Tensor, laplacian: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean squared error of forward differences of a field, or of its five-point Laplacians, beside those of
    ``source``, of samples [N] that are ``inside`` [N] bool; and the squared error of its values beside those of
    ``signal`` [N]."""
    sites, values, exists = stencil(field, signal, index, (1, -1) if laplacian else (1,))
    errors = values - source.at(sites.view(-1)).view_as(values)
    differences = errors[:, 1:] - errors[:, :1]  # their errors are differences of errors
    if laplacian:
        differences, exists = differences.sum(dim=1, keepdim=True), exists.all(dim=1, keepdim=True)
    exists = exists & inside[:, None]
    mean = (differences.square().mean(-1) * exists).sum() / exists.sum().clamp_min(1)
    return mean, (values[:, 0] - signal.at(index)).square().mean(-1)


def bending(field: Field, signal: Signal, patches: Tensor) -> Tensor:
    """Mean over pixels inside of patches [P, s, s] of a picture, s > 2, of how much the slope of a field changes from
    pixel to pixel: the length of its Hessian ``H``, of all channels, not its square: an edge costs as much as a slope
    of the same height (total generalised variation, Bredies et al. 2010, of second order). Where slopes around a pixel
    agree, the changes along them do not count, only those along edges and hairs, which so grow together: ``H (1 - c n
    n')`` with the direction ``n`` of the structure tensor and its coherence ``c`` (Weickert 1999). Lengths are per
    pixel."""
    x = field(signal.places(patches.view(-1))).view(*patches.shape, -1).permute(0, 3, 1, 2)  # [P, C, s, s]
    middle = x[..., 1:-1, 1:-1]
    dxx = x[..., 1:-1, 2:] + x[..., 1:-1, :-2] - 2 * middle
    dyy = x[..., 2:, 1:-1] + x[..., :-2, 1:-1] - 2 * middle
    dxy = (x[..., 2:, 2:] + x[..., :-2, :-2] - x[..., 2:, :-2] - x[..., :-2, 2:]) / 4
    with torch.no_grad():
        dx, dy = (x[..., 1:-1, 2:] - x[..., 1:-1, :-2]) / 2, (x[..., 2:, 1:-1] - x[..., :-2, 1:-1]) / 2
        products = torch.stack((dx * dx, dy * dy, dx * dy)).sum(2)  # [3, P, s - 2, s - 2]
        xx, yy, xy = blurred(products, STRUCTURE_SIGMA)
        spread = ((xx - yy).square() + 4 * xy.square()).sqrt()
        much = (spread / (xx + yy + 1e-6)).sqrt()
        cosine, sine = (xx - yy) / spread.clamp_min(1e-12), 2 * xy / spread.clamp_min(1e-12)  # of twice its angle
        pxx, pyy, pxy = 1 - much * (1 + cosine) / 2, 1 - much * (1 - cosine) / 2, -much * sine / 2
    pxx, pyy, pxy = pxx[:, None], pyy[:, None], pxy[:, None]  # the same for all channels
    bent = torch.stack((dxx * pxx + dxy * pxy, dxx * pxy + dxy * pyy, dxy * pxx + dyy * pxy, dxy * pxy + dyy * pyy))
    return (bent.square().sum((0, 2)) + 1e-6).sqrt().mean()


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Pictures [..., H, W] after a Gaussian; black around."""
    offsets = torch.arange(-int(3 * sigma), int(3 * sigma) + 1, device=x.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(x).view(1, 1, 1, -1)
    flat, n = x.reshape(-1, 1, *x.shape[-2:]), len(offsets) // 2
    flat = torch.nn.functional.conv2d(flat, kernel, padding=(0, n))
    return torch.nn.functional.conv2d(flat, kernel.transpose(2, 3), padding=(n, 0)).view(x.shape)


@torch.no_grad()
def levelled(field: Field, signal: Signal, index: Tensor) -> Field:
    """``a f + b`` of each channel that is nearest to the signal at samples [N], for a field of differences: they say
    nothing of the level, and Laplacians nothing of what is harmonic."""
    output, target = field(signal.places(index)), signal.at(index)
    centred = output - output.mean(0)
    slope = (centred * target).sum(0) / centred.square().sum(0).clamp_min(1e-12)
    offset = target.mean(0) - slope * output.mean(0)
    return lambda x: slope * field(x) + offset
