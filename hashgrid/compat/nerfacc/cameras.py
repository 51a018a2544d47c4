"""OpenCV's lenses, undone by `hashgrid.geometry.lenses`.

Points are in focal lengths from the principal point, y down.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hashgrid.compat.nerfacc._checks import check_last
from hashgrid.geometry.lenses import COEFFICIENTS, distort, undistort

_MIN_STEPS = 40  # of a damped search, which starts in the middle and not at the point
_TOLERANCE = 1e-6  # of a solution, in focal lengths
_OPENCV = ("k1", "k2", "p1", "p2", "k3", "q1", "q2", "q3")  # q is what OpenCV calls k4, k5, k6: below the fraction
_FISHEYE = ("k1", "k2", "k3", "k4")


@torch.no_grad()
def opencv_lens_undistortion(uv: Tensor, params: Tensor, eps: float = 1e-6, iters: int = 10) -> Tensor:
    """Points [..., 2] that a lens moves to ``uv``. Not differentiable.

    Args:
        uv: [..., 2].
        params: [..., n] or [n], the first n of (k1, k2, p1, p2, k3, k4, k5, k6); n is 0, 1, 2, 4 or 8.
        eps: without effect: the search ends at the precision of fp64.
        iters: largest number of steps, at least 40.

    Raises:
        ValueError: a shape does not fit.

    Example:
        >>> import torch
        >>> from hashgrid.compat.nerfacc.cameras import opencv_lens_undistortion
        >>> opencv_lens_undistortion(torch.tensor([[1.1, 0.0]]), torch.tensor([0.1]))
        tensor([[1., 0.]])
    """
    check_last("uv", uv, 2)
    check_last("params", params, 0, 1, 2, 4, 8)
    if params.shape[-1] == 0:
        return uv
    return undistort(uv, _row(params, _OPENCV), max(iters, _MIN_STEPS))[0]


@torch.no_grad()
def opencv_lens_undistortion_fisheye(uv: Tensor, params: Tensor, eps: float = 1e-6, iters: int = 10) -> Tensor:
    """Points [..., 2] of a perspective picture that a fisheye lens moves to ``uv``; NaN where there are none. Not
    differentiable.

    Points further than pi / 2 from the middle are treated as those at pi / 2, and the result is lengthened, as by
    OpenCV.

    Args:
        uv: [..., 2].
        params: [..., 4] or [4], (k1, k2, k3, k4).
        eps: without effect: the search ends at the precision of fp64.
        iters: largest number of steps, at least 40.

    Raises:
        ValueError: a shape does not fit.
    """
    check_last("uv", uv, 2)
    check_last("params", params, 4)
    given = uv.double()
    radius = given.norm(dim=-1, keepdim=True)
    reached = radius.clamp(max=math.pi / 2)
    scale = torch.where(radius > 0, reached / radius, 1)
    bent, residual = undistort(given * scale, _row(params, _FISHEYE), max(iters, _MIN_STEPS))
    angle = bent.norm(dim=-1, keepdim=True)
    points = given * torch.where(angle > 0, angle.tan() / reached, 1)
    return torch.where(residual[..., None] < _TOLERANCE, points, torch.nan).to(uv.dtype)


def _opencv_lens_distortion(uv: Tensor, params: Tensor) -> Tensor:
    """Where a lens of ``params`` [..., 8] moves points [..., 2]."""
    check_last("uv", uv, 2)
    check_last("params", params, 8)
    return distort(uv, _row(params, _OPENCV))


def _opencv_lens_distortion_fisheye(uv: Tensor, params: Tensor, eps: float = 1e-10) -> Tensor:
    """Where a fisheye lens of ``params`` [..., 4] moves points [..., 2] of a perspective picture."""
    check_last("uv", uv, 2)
    check_last("params", params, 4)
    radius = uv.norm(dim=-1, keepdim=True)
    return distort(uv * (radius.atan() / radius.clamp(min=eps)), _row(params, _FISHEYE))


def _opencv_lens_undistortion(uv: Tensor, params: Tensor, eps: float = 1e-6, iters: int = 10) -> Tensor:
    """Another name of `opencv_lens_undistortion`, which is one in PyTorch there."""
    return opencv_lens_undistortion(uv, params, eps, iters)


def _row(params: Tensor, names: tuple[str, ...]) -> Tensor:
    """Coefficients [..., 16] of `hashgrid.geometry.lenses` from those that ``names`` are of."""
    columns = [torch.zeros_like(params[..., 0])] * len(COEFFICIENTS)
    for name, column in zip(names, params.unbind(-1), strict=False):  # the first few
        columns[COEFFICIENTS.index(name)] = column
    return torch.stack(columns, dim=-1)
