"""Compositing of ray samples over a background."""

from __future__ import annotations

from torch import Tensor

from hashgrid.geometry.rays import RaySamples
from hashgrid.ops._backend import backend_ops


def composite(
    sigmas: Tensor | None,
    features: Tensor,
    samples: RaySamples,
    early_stop_eps: float = 1e-4,
    background: Tensor | None = None,
    backend: str | None = None,
    *,
    alphas: Tensor | None = None,
    return_transmittances: bool = False,
) -> tuple[Tensor, ...]:
    """Composite the samples of every ray, front to back; see :func:`hashgrid.ops.composite`.

    Args:
        sigmas: [S], densities, non-negative; None with ``alphas``.
        features: [S, C], any C.
        samples: where the samples lie.
        early_stop_eps: smallest transmittance at which a sample counts.
        background: [C] or [R, C], added in proportion to what the samples let through; None for none.
        backend: ``"native"`` or ``"reference"``; None for that of ``samples``.
        alphas: [S], in [0, 1], instead of ``sigmas``.
        return_transmittances: whether those in front of each sample are returned as well.

    Returns:
        features [R, C], opacities [R], depths [R] (absolute distance, weighted by the samples alone), weights [S],
        distortion [R], and transmittances [S] with ``return_transmittances``.

    Raises:
        ValueError: ``background`` does not fit, or not exactly one of ``sigmas`` and ``alphas`` is given.
        RuntimeError: another shape or dtype does not fit.
    """
    rendered, opacities, *others = backend_ops(backend or samples.backend).composite(
        *(sigmas, features, samples.t_starts, samples.t_ends, samples.packed_info, early_stop_eps),
        alphas=alphas,
        return_transmittances=return_transmittances,
    )
    if background is not None:
        n_rays, n_features = rendered.shape
        if background.shape not in ((n_features,), (n_rays, n_features)):
            allowed = f"[{n_features}] or [{n_rays}, {n_features}]"
            raise ValueError(f"`background` must have shape {allowed}, got {list(background.shape)}")
        rendered = rendered + (1 - opacities).unsqueeze(-1) * background.to(rendered.dtype)
    return rendered, opacities, *others
