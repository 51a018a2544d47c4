"""Losses of distances and depths. Each takes what it is about per point and returns a scalar, the mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hashgrid.data.pools import PointBatch
from hashgrid.fields.distance import DistanceField
from hashgrid.geometry.cameras import Cameras
from hashgrid.geometry.rays import Rays
from hashgrid.util.config import Config


def mape(distance: Tensor, target: Tensor, offset: float) -> Tensor:
    """Mean absolute percentage error ``|d - t| / (|t| + offset)`` (Müller et al. 2022, section 5.2).

    Args:
        distance: [N], of the field.
        target: [N], true distances.
        offset: keeps it finite at the surface, in units of the cube.
    """
    return ((distance - target).abs() / (target.abs() + offset)).mean()


def truncated_l1(distance: Tensor, target: Tensor, truncation: float) -> Tensor:
    """``|clamp(d) - clamp(t)|`` with both distances [N] clamped to +-``truncation`` (Park et al. 2019, eq. 4)."""
    return (distance.clamp(-truncation, truncation) - target.clamp(-truncation, truncation)).abs().mean()


def occupancy(logits: Tensor, distance: Tensor) -> Tensor:
    """Binary cross entropy of logits [...] of being inside, where signed distances [...] are negative (Mescheder et al.
    2019, eq. 3)."""
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, (distance < 0).to(logits.dtype))


def of_shape(target: str, values: Tensor, distance: Tensor, truncation: float) -> Tensor:
    """The loss of values [...] of a :class:`hashgrid.fields.latent.LatentField` at points with signed distances [...]:
    of its ``target``. Distances are clamped to ``truncation``."""
    if target == "occupancy":
        return occupancy(values, distance)
    if target == "unsigned":  # Chibane et al. 2020, eq. 3
        return truncated_l1(values, distance.abs(), truncation)
    return truncated_l1(values, distance, truncation)


def of_ends(depths: Tensor, ends: Tensor | None, delta: float = 0.05) -> Tensor | float:
    """Smooth absolute difference of rendered depths [R] and distances [R] at which rays are known to end, 0 where
    nobody knows; quadratic below ``delta``. Rendered depths are not divided by opacities: a ray that is known to end
    has to be opaque there. Zero without distances."""
    if ends is None:
        return 0.0
    known = ends > 0
    error = torch.nn.functional.smooth_l1_loss(depths, ends, beta=delta, reduction="none")
    return (error * known).sum() / known.sum().clamp_min(1)


def of_relative_depths(depths: Tensor, known: Tensor, group: Tensor, n_groups: int, delta: float = 0.05) -> Tensor:
    """Smooth absolute difference of depths and known ones, which each group has up to a scale and a shift; quadratic
    below ``delta``.

    Scale and shift are those with which the known depths of a group have the mean and the standard deviation of the
    rendered ones; no gradient passes through them. A fit by least squares (Eigen et al. 2014; Yu et al. 2022, MonoSDF,
    eq. 13) shrinks what it fits as long as they hardly agree, and its scale may be negative.

    Args:
        depths: rendered ones [R].
        known: [R], of any unit per group; 0 where nobody knows.
        group: what each is of [R] int64. Groups of fewer than 3 known depths do not count.
        n_groups: how many groups there may be.
        delta: in the unit of ``depths``.

    Example:
        >>> rendered, group = torch.tensor([1.0, 2.0, 4.0]), torch.zeros(3, dtype=torch.int64)
        >>> bool(of_relative_depths(rendered, 7 * rendered + 3, group, 1) < 1e-9)
        True
    """
    rendered, known = depths.detach(), known.to(depths.dtype)
    one = (known > 0).to(depths.dtype)

    def mean(x: Tensor) -> Tensor:
        return depths.new_zeros(n_groups).index_add(0, group, x * one) / count.clamp_min(1)

    count = depths.new_ones(())
    count = mean(torch.ones_like(one))
    middles = mean(rendered), mean(known)
    x, y = (values - middle.index_select(0, group) for values, middle in zip((rendered, known), middles, strict=True))
    scale = (mean(x * x) / mean(y * y).clamp_min(1e-12)).sqrt()
    target = middles[0].index_select(0, group) + scale.index_select(0, group) * y
    one = one * (count >= 3).index_select(0, group)
    error = torch.nn.functional.smooth_l1_loss(depths, target, beta=delta, reduction="none")
    return (error * one).sum() / one.sum().clamp_min(1)


FREE = 0.1  # of the weight of depths in metres: the surface has to be where colours put it before they bend it


@dataclass(frozen=True)
class DepthLosses(Config):
    """How known depths are learned from."""

    depth_weight: float = 0.1  # of known depths, where the scene has some
    depth_scale: Literal["metric", "free"] = "metric"  # free: each image's are known up to a scale and a shift

    def check(self) -> None:
        super().check()
        if self.depth_weight < 0:
            raise ValueError(f"`depth_weight` must be at least 0, got {self.depth_weight}")

    def of_rays(self, depths: Tensor, rays: Rays, cameras: Cameras) -> Tensor | float:
        """The weighted loss of rendered depths [R] of rays whose ends may be known, of ``cameras`` that are trained
        on. What is known up to scale and shift are depths along the axis of a camera, not distances along rays."""
        if rays.ends is None:
            return 0.0
        if self.depth_scale == "metric":
            return self.depth_weight * of_ends(depths, rays.ends)
        assert rays.camera is not None
        ahead = cameras.ahead(rays)
        return (
            FREE * self.depth_weight * of_relative_depths(depths * ahead, rays.ends * ahead, rays.camera, len(cameras))
        )


def on_surface(distance: Tensor) -> Tensor:
    """``|d|`` of distances [N] at points of the surface (Gropp et al. 2020, eq. 1; Sitzmann et al. 2020, eq. 6)."""
    return distance.abs().mean()


def off_surface(distance: Tensor, sharpness: float) -> Tensor:
    """``exp(-sharpness |d|)`` of distances [N] at points off the surface: there is no second surface (Sitzmann et al.
    2020, eq. 6)."""
    return torch.exp(-sharpness * distance.abs()).mean()


def wrong_side(distance: Tensor, signs: Tensor) -> Tensor:
    """``max(0, -s d)``: how far distances [N] have to go to get the signs [N], -1 inside, 1 outside, 0 unknown."""
    return torch.relu(-signs * distance).mean()


def eikonal(gradient: Tensor) -> Tensor:
    """``(|g| - 1)^2`` of gradients [N, 3]: distances grow by one per unit of length (Gropp et al. 2020, eq. 2)."""
    return (gradient.norm(dim=-1) - 1).square().mean()


def eikonal_l1(gradient: Tensor) -> Tensor:
    """``||g| - 1|`` of gradients [N, 3] (Sitzmann et al. 2020, eq. 6)."""
    return (gradient.norm(dim=-1) - 1).abs().mean()


def normal_difference(gradient: Tensor, normals: Tensor) -> Tensor:
    """``|g - n|`` of gradients and unit normals [N, 3] at points of the surface (Gropp et al. 2020, eq. 1)."""
    return (gradient - normals).norm(dim=-1).mean()


def normal_cosine(gradient: Tensor, normals: Tensor) -> Tensor:
    """``1 - cos(g, n)`` of gradients and unit normals [N, 3] at points of the surface (Sitzmann et al. 2020, eq. 6)."""
    return (1 - torch.nn.functional.cosine_similarity(gradient, normals, dim=-1)).mean()


def variation_along_rays(values: Tensor) -> Tensor:
    """``|v_{i+1} - v_i|`` of neighbouring samples along rays [R, n]: total variation (Rudin et al. 1992), in the
    directions that rays have."""
    return values.diff(dim=1).abs().mean() if values.shape[1] > 1 else values.new_zeros(())


@dataclass(frozen=True)
class DistanceLosses(Config):
    """What a distance field is trained by. Lengths are in units of the cube."""

    loss: Literal["mape", "truncated_l1"] = "mape"  # of distances
    mape_offset: float = 0.01  # |error| / (|distance| + this)
    truncation: float = 0.1  # of distances, for truncated_l1
    point_loss: Literal["siren", "igr"] = "siren"  # of points without distances
    gradient_step: float = 0.001  # of finite differences for gradients in the loss of points; 0 for exact ones
    eikonal_weight: float = 0.0  # of the eikonal term
    eikonal_share: float = 0.125  # of the batch of a mesh, where the eikonal term is on
    sign_weight: float = 100.0  # of points on the wrong side, by the winding number of the cloud; 0 for none
    surface_weight: float = 30.0  # of points on the surface
    normal_weight: float = 1.0  # of normals
    off_surface_weight: float = 0.1  # of surface far from all points
    off_surface_sharpness: float = 20.0  # of the fall of that with the distance

    def of_distances(self, field: DistanceField, x: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        """The loss of a field at random points [N, 3] whose distances [N] are known; ``weights`` are its levels'."""
        # the gradient costs three times the distance; samples are random, so that any part of them will do
        n = round(len(x) * self.eikonal_share) if self.eikonal_weight > 0 else 0
        distance = field(x[n:], weights)
        if n > 0:
            with_gradient, gradient = field.gradient(x[:n], weights)
            distance = torch.cat([with_gradient, distance])
        if self.loss == "mape":
            loss = mape(distance, target, self.mape_offset)
        else:
            loss = truncated_l1(distance, target, self.truncation)
        return loss + self.eikonal_weight * eikonal(gradient) if n > 0 else loss

    def of_points(self, field: DistanceField, points: PointBatch, weights: Tensor | None) -> Tensor:
        """The loss of a field that vanishes at points, has their normals, and grows by one per unit of length
        everywhere: implicit geometric regularisation (IGR, Gropp et al. 2020), or the losses of SIREN (Sitzmann et al.
        2020); ``weights`` are its levels'.

        Those losses allow more surfaces than the one through the points, and a hash grid, in which distant places have
        no parameters in common, comes up with them. So points off the surface also have to be on the side that the
        winding number of the oriented points says.
        """
        x, normals, signs = points
        n = len(normals)
        if self.gradient_step > 0:
            distance, gradient = field.differences(x, self.gradient_step, weights)
        else:
            distance, gradient = field.gradient(x, weights)
        on, off = gradient[:n], gradient[n:]
        if self.point_loss == "igr":
            normal, growth = normal_difference(on, normals), eikonal(off)
        else:
            normal, growth = normal_cosine(on, normals), eikonal_l1(gradient)
        loss = self.surface_weight * on_surface(distance[:n])
        loss = loss + self.normal_weight * normal + self.eikonal_weight * growth
        loss = loss + self.off_surface_weight * off_surface(distance[2 * n :], self.off_surface_sharpness)
        return loss + self.sign_weight * wrong_side(distance[n:], signs)
