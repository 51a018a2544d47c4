"""Samples by proposal networks (Barron et al. 2022): small fields say where a large one is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from hashgrid.compat.nerfacc._checks import check_same_shape, wrong
from hashgrid.compat.nerfacc.data_specs import RayIntervals
from hashgrid.compat.nerfacc.estimators.base import AbstractEstimator
from hashgrid.compat.nerfacc.pdf import importance_sampling, searchsorted
from hashgrid.compat.nerfacc.volrend import render_transmittance_from_density
from hashgrid.util.choices import check_option

_Distance = TypeVar("_Distance", float, Tensor)


class PropNetEstimator(AbstractEstimator):
    """Samples of rays where proposal networks see something, and the loss that teaches them.

    Args:
        optimizer: steps the proposal networks in :meth:`update_every_n_steps`.
        scheduler: steps after it, and on steps without gradients, too.

    Attributes:
        prop_cache: intervals and cumulative densities of the networks since the last loss, then the final intervals.

    Example:
        >>> estimator = PropNetEstimator()
        >>> t_starts, t_ends = estimator.sampling([lambda a, b: torch.ones_like(a)], [8], 4, 2, 0.1, 10.0)
        >>> t_starts.shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    ) -> None:
        super().__init__()
        self.optimizer, self.scheduler = optimizer, scheduler
        self.prop_cache: list[tuple[RayIntervals, Tensor | None]] = []

    @torch.no_grad()
    def sampling(
        self,
        prop_sigma_fns: Sequence[Callable],
        prop_samples: Sequence[int],
        num_samples: int,
        n_rays: int,
        near_plane: float,
        far_plane: float,
        sampling_type: str = "lindisp",
        stratified: bool = False,
        requires_grad: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Returns distances [n_rays, num_samples] at which samples begin and end.

        Args:
            prop_sigma_fns: functions of such distances [n_rays, n] that return densities [n_rays, n], coarse to fine.
            prop_samples: n of each.
            num_samples: how many remain in the end.
            n_rays: number of rays.
            near_plane: distance of the first edge; positive with ``"lindisp"``.
            far_plane: of the last.
            sampling_type: the measure in which intervals are divided: ``"uniform"`` is the distance, ``"lindisp"`` one
                over it.
            stratified: whether samples are moved at random, all of a ray alike.
            requires_grad: whether the densities' graphs are kept for :meth:`compute_loss`.

        Raises:
            ValueError: there are not as many numbers as functions, a density has another shape, or the measure has no
                such name.
        """
        check_option("sampling_type", sampling_type, _MEASURES)
        if len(prop_sigma_fns) != len(prop_samples):
            wrong("prop_samples", f"have {len(prop_sigma_fns)} numbers, as `prop_sigma_fns`", len(prop_samples))
        cdfs = torch.tensor([0.0, 1.0], device=self.device).repeat(n_rays, 1)
        intervals = RayIntervals(cdfs)
        for sigma_fn, n in zip(prop_sigma_fns, prop_samples, strict=True):
            intervals, _ = importance_sampling(intervals, cdfs, n, stratified)
            t = _transform_stot(sampling_type, intervals.vals, near_plane, far_plane)
            t_starts, t_ends = t[..., :-1], t[..., 1:]
            with torch.set_grad_enabled(requires_grad):
                sigmas = sigma_fn(t_starts, t_ends)
                check_same_shape("sigmas", sigmas, "t_starts", t_starts)
                cdfs = _cdfs(render_transmittance_from_density(t_starts, t_ends, sigmas)[0])
                if requires_grad:
                    self.prop_cache.append((intervals, cdfs))
        intervals, _ = importance_sampling(intervals, cdfs, num_samples, stratified)
        if requires_grad:
            self.prop_cache.append((intervals, None))
        t = _transform_stot(sampling_type, intervals.vals, near_plane, far_plane)
        return t[..., :-1], t[..., 1:]

    @torch.enable_grad()
    def compute_loss(self, trans: Tensor, loss_scaler: float = 1.0) -> Tensor:
        """Returns what the proposals of the last :meth:`sampling` have missed, a scalar whose gradient reaches them
        alone, and forgets them; zero without any.

        Args:
            trans: [n_rays, num_samples], transmittances of the final samples.
            loss_scaler: factor.
        """
        loss = torch.zeros((), device=self.device)
        if not self.prop_cache:
            return loss
        intervals, _ = self.prop_cache.pop()
        cdfs = _cdfs(trans.detach())
        while self.prop_cache:
            proposed, proposed_cdfs = self.prop_cache.pop()
            assert proposed_cdfs is not None
            loss = loss + _pdf_loss(intervals, cdfs, proposed, proposed_cdfs).mean()
        return loss * loss_scaler

    @torch.enable_grad()
    def update_every_n_steps(self, trans: Tensor, requires_grad: bool = False, loss_scaler: float = 1.0) -> float:
        """Takes a step of the optimiser if ``requires_grad``, and of the scheduler in any case; returns the loss.

        Args:
            trans: [n_rays, num_samples], transmittances of the final samples.
            requires_grad: as it was in :meth:`sampling`.
            loss_scaler: factor of the loss.

        Raises:
            ValueError: there is no optimiser, or nothing was kept to learn from.
        """
        loss = self._update(trans, loss_scaler) if requires_grad else 0.0
        if self.scheduler is not None:
            self.scheduler.step()
        return loss

    def _update(self, trans: Tensor, loss_scaler: float) -> float:
        if self.optimizer is None:
            wrong("optimizer", "be given for updates", "None", "PropNetEstimator(optimizer) takes it")
        if not self.prop_cache:
            wrong("requires_grad", "be that of `sampling`", "True", "sample with `requires_grad=True` before")
        loss = self.compute_loss(trans, loss_scaler)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def get_proposal_requires_grad_fn(target: float = 5.0, num_steps: int = 1000) -> Callable[[int], bool]:
    """Returns a function that says of each step in order whether proposals learn: more and more seldom, from step
    ``num_steps`` on after more than ``target`` steps without.

    Example:
        >>> learns = get_proposal_requires_grad_fn(target=2.0, num_steps=10)
        >>> [learns(step) for step in range(20, 27)]
        [False, False, False, True, False, False, True]
    """
    waited = 0

    def requires_grad(step: int) -> bool:
        nonlocal waited
        learns = waited > min(step / num_steps, 1.0) * target
        waited = 1 if learns else waited + 1
        return learns

    return requires_grad


# ---- measures and losses ---------------------------------------------------------------------------------------------

# from distances to the measure in which intervals are divided, and back
_MEASURES: dict[str, Callable[[Any], Any]] = {"uniform": lambda t: t, "lindisp": lambda t: 1 / t}


def _transform_stot(transform_type: str, s_vals: Tensor, t_min: _Distance, t_max: _Distance) -> Tensor:
    """Distances of ``s_vals`` in [0, 1], 0 at ``t_min`` and 1 at ``t_max``."""
    measure = _MEASURES[check_option("transform_type", transform_type, _MEASURES)]
    return measure(s_vals * measure(t_max) + (1 - s_vals) * measure(t_min))


def _cdfs(trans: Tensor) -> Tensor:
    """Of edges [R, n + 1], from transmittances [R, n]; all of the light ends at the last edge."""
    return 1 - torch.nn.functional.pad(trans, (0, 1))


def _pdf_loss(
    segments_query: RayIntervals, cdfs_query: Tensor, segments_key: RayIntervals, cdfs_key: Tensor, eps: float = 1e-7
) -> Tensor:
    """What of each interval's weight w the intervals of the key that it touches do not have, squared, over w."""
    left, right = searchsorted(segments_key, segments_query)
    if segments_query.vals.dim() > 1:
        left, right, weights = left[..., :-1], right[..., 1:], cdfs_query.diff(dim=-1)
    else:
        is_left, is_right = segments_query.is_left, segments_query.is_right
        if is_left is None or is_right is None:
            wrong("segments_query", "have `is_left` and `is_right` with flat `vals`", "None")
        left, right, weights = left[is_left], right[is_right], cdfs_query[is_right] - cdfs_query[is_left]
        cdfs_key = cdfs_key.flatten()  # positions are those of all rays
    bound = cdfs_key.gather(-1, right) - cdfs_key.gather(-1, left)
    return (weights - bound).clamp_min(0).square() / (weights + eps)


def _outer(t0_starts: Tensor, t0_ends: Tensor, t1_starts: Tensor, t1_ends: Tensor, y1: Tensor) -> Tensor:
    """Sums [..., n] of what ``y1`` [..., m] has in all intervals that touch each of those asked for."""
    total = torch.nn.functional.pad(y1.cumsum(dim=-1), (1, 0))
    last = y1.shape[-1] - 1
    first = torch.searchsorted(t1_starts.contiguous(), t0_starts.contiguous(), right=True) - 1
    behind = torch.searchsorted(t1_ends.contiguous(), t0_ends.contiguous(), right=True)
    return total.gather(-1, behind.clamp(0, last) + 1) - total.gather(-1, first.clamp(0, last))


def _lossfun_outer(t: Tensor, w: Tensor, t_env: Tensor, w_env: Tensor) -> Tensor:
    """Squares over w of what weights ``w`` [..., n] between edges ``t`` [..., n + 1] have beyond those of ``w_env``."""
    bound = _outer(t[..., :-1], t[..., 1:], t_env[..., :-1], t_env[..., 1:], w_env)
    return (w - bound).clamp_min(0).square() / (w + torch.finfo(t.dtype).eps)
