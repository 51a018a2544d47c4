"""Lenses: where directions before a camera fall on its picture, and which way the light of a point of it came.

Directions have x right, y *down*, z along the axis, as OpenCV has them; points of the picture are in focal lengths from
the principal point. A lens is a kind and coefficients; what a kind does without coefficients:

- ``perspective``: ``(x, y) / z``.
- ``fisheye``: the angle to the axis is the distance from the middle (equidistant).
- ``fov``: ``atan(2 r tan(w / 2)) / w`` of a perspective distance ``r`` (Devernay and Faugeras 2001); ``k1`` is ``w``.
- ``division``: ``(x, y, z) ~ (u, v, 1 + k1 r^2)`` of a point ``(u, v)`` (Fitzgibbon 2001).
- ``eucm``: ``(x, y) / (a sqrt(b (x^2 + y^2) + z^2) + (1 - a) z)`` (Khomutenko et al. 2016); ``k1, k2`` are ``a, b``.
- ``equirectangular``: longitude and latitude; ``equal_area``: longitude and the sine of latitude (Lambert's cylinder).

Points of the first two are distorted then: ``r`` is their distance from the middle, they are multiplied by
``(1 + k1 r^2 + .. + k6 r^12) / (1 + q1 r^2 + q2 r^4 + q3 r^6)``, and OpenCV's tangential terms of ``p1, p2`` are added
and thin prisms ``s1 r^2 + s2 r^4`` to x, ``s3 r^2 + s4 r^4`` to y: of the points as they were, or, where ``late`` is 1,
as they have become (Project Aria).
"""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("perspective", "fisheye", "fov", "division", "eucm", "equirectangular", "equal_area")
COEFFICIENTS = (
    *("k1", "k2", "k3", "k4", "p1", "p2"),  # what most lenses have
    *("k5", "k6", "q1", "q2", "q3", "s1", "s2", "s3", "s4", "late"),
)
_PLACE = {name: place for place, name in enumerate(COEFFICIENTS)}
PANORAMAS = ("equirectangular", "equal_area")  # all around
POLYNOMIAL = ("perspective", "fisheye")  # the kinds that are distorted


def coefficients(**values: float) -> list[float]:
    """A row of `COEFFICIENTS` from some of them; a ValueError for a name that is none."""
    if unknown := values.keys() - set(COEFFICIENTS):
        raise ValueError(f"coefficients must be of {', '.join(COEFFICIENTS)}, got {', '.join(sorted(unknown))}")
    return [float(values.get(name, 0.0)) for name in COEFFICIENTS]


def distort(points: Tensor, coefficients: Tensor) -> Tensor:
    """Where a lens moves ideal points [..., 2], by coefficients [..., 6 or 16] that are broadcast against them."""
    early, late = _stages(coefficients)
    points = _distort(points, early)
    return points if late is None else _distort(points, late)


def undistort(points: Tensor, coefficients: Tensor, max_iterations: int = 40) -> tuple[Tensor, Tensor]:
    """The inverse of ``distort``: ideal points [..., 2], of the dtype of ``points``, and the residual in float64
    ``|distort(ideal) - points|`` [...].

    A damped Newton iteration in float64 starts in the middle and never leaves the region around it in which the formula
    is invertible, so that a point no direction maps to ends near the border of that region, not at one of the other
    roots.
    """
    early, late = _stages(coefficients.double())
    ideal = points.double()
    if late is not None:
        ideal = _invert(ideal, late, max_iterations)
    ideal = _invert(ideal, early, max_iterations)
    residual = (distort(ideal, coefficients.double()) - points.double()).norm(dim=-1)
    return ideal.to(points.dtype), residual


def relens(ideal: Tensor, given: Tensor, changed: Tensor, zoom: Tensor, n_steps: int = 4) -> Tensor:
    """Where the light of pixels comes from when a perspective lens of coefficients ``given`` [..., 16], whose ideal
    points [..., 2] are known, turns out to have coefficients ``changed`` [..., 16] and a focal length ``zoom`` [] times
    as long: other ideal points [..., 2]. Differentiable in the change, which a few of Newton's steps have to follow.

    Raises:
        ValueError: tangential terms are late, as Project Aria has them.
    """
    if bool((given[..., _PLACE["late"]] != 0).any()):
        raise ValueError("`given` must have no `late` coefficients")
    seen = _distort(ideal, given) / zoom
    with torch.no_grad():
        for _ in range(n_steps):
            ideal = _newton(ideal, seen, changed)
    return _newton(ideal.detach(), seen, changed)  # one step has the derivative that the solution has


def _newton(ideal: Tensor, seen: Tensor, coefficients: Tensor) -> Tensor:
    """One step towards points that a lens shows at ``seen`` [..., 2]; the slope has no gradient."""
    a, b, c, d = _jacobian(ideal, coefficients.detach()).unbind(-1)
    ex, ey = (_distort(ideal, coefficients) - seen).unbind(-1)
    return ideal - torch.stack((d * ex - b * ey, a * ey - c * ex), dim=-1) / (a * d - b * c)[..., None]


def project(directions: Tensor, kind: str, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Points [..., 2] of the picture where directions [..., 3] of any length fall, and whether they do [...] bool: a
    perspective lens sees nothing behind it."""
    x, y, z = directions.unbind(-1)
    r = torch.hypot(x, y)
    seen = torch.ones_like(z, dtype=torch.bool)
    if kind == "perspective":
        seen = z > 0
        points = distort(directions[..., :2] / _nonzero(z)[..., None], coefficients)
    elif kind == "fisheye":
        points = distort(directions[..., :2] * _ratio(torch.atan2(r, z), r, 1 / _nonzero(z))[..., None], coefficients)
    elif kind == "fov":
        seen, width = z > 0, coefficients[..., 0].clamp_min(1e-9)
        plane = r / _nonzero(z)
        bent = torch.atan(2 * plane * torch.tan(width / 2)) / width
        points = directions[..., :2] * _ratio(bent, r, 1 / _nonzero(z))[..., None]
    elif kind == "division":
        inside = z * z - 4 * coefficients[..., 0] * r * r
        seen = (inside >= 0) & ((z > 0) | (coefficients[..., 0] < 0))
        points = directions[..., :2] * (2 / _nonzero(z + inside.clamp_min(0).sqrt()))[..., None]
    elif kind == "eucm":
        a, b = coefficients[..., 0], coefficients[..., 1]
        length = (b * r * r + z * z).sqrt()
        depth = a * length + (1 - a) * z
        seen = z > -torch.minimum(a, 1 - a) / torch.maximum(a, 1 - a) * length  # further back points come twice
        points = directions[..., :2] / _nonzero(depth)[..., None]
    else:
        height = torch.atan2(y, torch.hypot(x, z)) if kind == "equirectangular" else y / _nonzero(torch.hypot(r, z))
        points = torch.stack((torch.atan2(x, z), height), dim=-1)
    return points, seen


def unproject(points: Tensor, kind: str, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Unit directions [..., 3] that fall on points [..., 2] of the picture, of their dtype, and how far from the points
    they do fall, in focal lengths [...], float64; inf where there is no such direction."""
    given, c = points.double(), coefficients.double()
    residual = torch.zeros(given.shape[:-1], dtype=torch.float64, device=given.device)
    if kind in POLYNOMIAL:
        given, residual = undistort(given, c)
    u, v = given.unbind(-1)
    r = torch.hypot(u, v)
    z, possible = torch.ones_like(u), torch.ones_like(u, dtype=torch.bool)
    if kind == "fisheye":
        scale, z, possible = _ratio(r.sin(), r, torch.ones_like(r)), r.cos(), r <= torch.pi
    elif kind == "fov":
        width = c[..., 0].clamp_min(1e-9)
        scale, possible = _ratio(torch.tan(r * width), r, width) / (2 * torch.tan(width / 2)), r * width < torch.pi / 2
    elif kind == "division":
        scale, z = torch.ones_like(r), 1 + c[..., 0] * r * r
    elif kind == "eucm":
        a, b = c[..., 0], c[..., 1]
        inside = 1 - (2 * a - 1) * b * r * r
        scale, possible = torch.ones_like(r), inside >= 0
        z = (1 - b * a * a * r * r) / (a * inside.clamp_min(0).sqrt() + (1 - a))
    elif kind in PANORAMAS:
        level = v.cos() if kind == "equirectangular" else (1 - v * v).clamp_min(0).sqrt()  # 1 at the horizon
        possible = (u.abs() <= torch.pi) & (v.abs() <= (torch.pi / 2 if kind == "equirectangular" else 1))
        directions = torch.stack((u.sin() * level, v.sin() if kind == "equirectangular" else v, u.cos() * level), -1)
        return directions.to(points.dtype), torch.where(possible, residual, torch.inf)
    else:
        scale = torch.ones_like(r)
    directions = torch.nn.functional.normalize(torch.stack((u * scale, v * scale, z), dim=-1), dim=-1)
    return directions.to(points.dtype), torch.where(possible, residual, torch.inf)


def _nonzero(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 1e-12, torch.full_like(x, 1e-12), x)


def _ratio(x: Tensor, r: Tensor, limit: Tensor) -> Tensor:
    """``x / r``, and ``limit`` where ``r`` vanishes."""
    small = r < 1e-9
    return torch.where(small, limit.expand_as(r), x / torch.where(small, torch.ones_like(r), r))


def _stages(coefficients: Tensor) -> tuple[Tensor, Tensor | None]:
    """Coefficients [..., 16] of one formula, or of two that follow each other where some of them are late."""
    missing = len(COEFFICIENTS) - coefficients.shape[-1]
    full = torch.nn.functional.pad(coefficients, (0, missing)) if missing else coefficients
    late = full[..., _PLACE["late"]] != 0
    if not bool(late.any()):
        return full, None
    added = torch.zeros(len(COEFFICIENTS), dtype=torch.bool, device=full.device)
    added[[_PLACE[name] for name in ("p1", "p2", "s1", "s2", "s3", "s4")]] = True
    return torch.where(late[..., None] & added, 0, full), torch.where(late[..., None] & added, full, 0)


def _distort(points: Tensor, coefficients: Tensor) -> Tensor:
    x, y = points.unbind(-1)
    k1, k2, k3, k4, p1, p2, k5, k6, q1, q2, q3, s1, s2, s3, s4, _ = coefficients.unbind(-1)
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * (k4 + r2 * (k5 + r2 * k6)))))
    radial = radial / (1 + r2 * (q1 + r2 * (q2 + r2 * q3)))
    return torch.stack(
        (
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x) + r2 * (s1 + r2 * s2),
            y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y * y) + r2 * (s3 + r2 * s4),
        ),
        dim=-1,
    )


def _jacobian(points: Tensor, coefficients: Tensor) -> Tensor:
    """``a, b, c, d`` [..., 4] of the derivative ``[[a, b], [c, d]]`` of ``_distort``."""
    x, y = points.unbind(-1)
    k1, k2, k3, k4, p1, p2, k5, k6, q1, q2, q3, s1, s2, s3, s4, _ = coefficients.unbind(-1)
    r2 = x * x + y * y
    above = 1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * (k4 + r2 * (k5 + r2 * k6)))))
    below = 1 + r2 * (q1 + r2 * (q2 + r2 * q3))
    of_above = k1 + r2 * (2 * k2 + r2 * (3 * k3 + r2 * (4 * k4 + r2 * (5 * k5 + r2 * 6 * k6))))
    of_below = q1 + r2 * (2 * q2 + r2 * 3 * q3)
    radial, slope = above / below, 2 * (of_above * below - above * of_below) / (below * below)  # d/dx = slope * x
    prism_x, prism_y = 2 * (s1 + 2 * r2 * s2), 2 * (s3 + 2 * r2 * s4)
    across = slope * x * y
    a = radial + slope * x * x + 2 * p1 * y + 6 * p2 * x + prism_x * x
    b = across + 2 * p1 * x + 2 * p2 * y + prism_x * y
    c = across + 2 * p1 * x + 2 * p2 * y + prism_y * x
    d = radial + slope * y * y + 6 * p1 * y + 2 * p2 * x + prism_y * y
    return torch.stack((a, b, c, d), dim=-1)


def _invert(target: Tensor, coefficients: Tensor, max_iterations: int) -> Tensor:
    def look(ideal: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        error = _distort(ideal, coefficients) - target
        return ideal, error, _jacobian(ideal, coefficients), error.norm(dim=-1, keepdim=True)

    state = look(torch.zeros_like(target))
    damping = torch.ones_like(state[-1])
    for _ in range(max_iterations):
        ideal, error, jacobian, residual = state
        if not bool((residual > 1e-12).any()):
            break
        (a, b, c, d), (ex, ey) = jacobian.unbind(-1), error.unbind(-1)
        det = a * d - b * c
        candidate = look(ideal - damping * torch.stack(((d * ex - b * ey) / det, (a * ey - c * ex) / det), dim=-1))
        a, b, c, d = candidate[2].split(1, dim=-1)
        # between the middle and the first fold
        better = (candidate[-1] < residual) & (a > 0) & (a * d - b * c > 1e-6)
        state = tuple(torch.where(better, new, old) for new, old in zip(candidate, state, strict=True))  # type: ignore[assignment]
        damping = torch.where(better, (2 * damping).clamp_max(1), 0.5 * damping)
    return state[0]
