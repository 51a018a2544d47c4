"""Pictures of a field: sphere traced, shaded, as normals, and coloured by the distance to the truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from hashgrid.geometry.cameras import UP, Cameras
from hashgrid.ops._backend import backend_ops
from hashgrid.rendering.extract import Distance, device_of
from hashgrid.util.pictures import ERROR_MAP, colorize, round_scale

CHUNK = 1 << 19  # rays traced together: the last steps are those of a few rays
MAX_STEPS, MAX_SHADOW_STEPS = 128, 40
REACH = 0.12  # of what darkens its surroundings
TETRAHEDRON = ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0), (-1.0, 1.0, -1.0), (1.0, 1.0, 1.0))

# Light, linear, in the frame of the camera (right, up, towards it).
KEY, KEY_COLOR = (-0.5, 1.0, 0.5), (1.22, 1.13, 1.00)
FILL, FILL_COLOR = (0.9, 0.0, 0.7), (0.13, 0.16, 0.21)
RIM, RIM_COLOR = (0.5, 0.4, -0.9), (0.35, 0.38, 0.42)
SKY, GROUND = (0.27, 0.31, 0.37), (0.13, 0.105, 0.085)
CLAY = (0.70, 0.44, 0.29)
PAPER_TOP, PAPER_BOTTOM = (0.93, 0.94, 0.95), (0.99, 0.99, 0.98)  # sRGB


class Hits(NamedTuple):
    """Where rays meet the surface."""

    hit: Tensor  # [R] bool
    t: Tensor  # [R] distance along the ray; no more than where it ended for a miss
    points: Tensor  # [H, 3], of the rays that hit
    normals: Tensor  # [H, 3], outward unit normals there


class Picture(NamedTuple):
    """Three pictures [h, w, 3] of one view, and the scale of the last one. Normals are outward, in the frame of the
    camera, and coloured (n + 1) / 2: red right, green up, blue nearer."""

    shading: Tensor  # a matte material
    normals: Tensor
    error: Tensor | None  # distance of the hits to the truth as a colour; None without a truth
    error_scale: float  # that of the darkest colour, in sides of the cube


@torch.no_grad()
def trace(
    field: Distance, rays_o: Tensor, rays_d: Tensor, box: Tensor, epsilon: float = 1e-4, backend: str = "native"
) -> Hits:
    """Follows rays [R, 3] to the surface of a field within a box [6]; normals by :func:`smooth_normals`."""
    module = backend_ops(backend)
    t_min, t_max = module.ray_aabb(rays_o, rays_d, box)
    t, hit = module.sphere_trace(field, rays_o, rays_d, t_min, t_max, MAX_STEPS, epsilon)[:2]
    points = rays_o[hit] + t[hit, None] * rays_d[hit]
    return Hits(hit, t, points, smooth_normals(field, points))


def smooth_normals(field: Distance, points: Tensor, step: float = 1 / 512) -> Tensor:
    """Unit normals [N, 3] of the level sets through points [N, 3] by differences over the corners of a tetrahedron,
    each ``step`` from the point along every axis. A field of linear cells has kinks at all their borders, and pictures
    show the gradient there as noise: differences over a cell are what a pixel sees."""
    total = torch.zeros_like(points)
    for corner in TETRAHEDRON:
        offset = torch.tensor(corner, device=points.device)
        total += field(points + step * offset)[:, None] * offset
    return normalize(total, dim=-1)


@torch.no_grad()
def render(
    field: Distance,
    camera: Cameras,
    box: Tensor | None = None,
    up: str = "y",
    floor: float | None = None,
    supersample: int = 2,
    shadows: bool = True,
    truth: Callable[[Tensor], Tensor] | None = None,
    backend: str = "native",
) -> Picture:
    """Renders a field in the unit cube.

    Args:
        field: distances [N] of points [N, 3].
        camera: where from, the first of them.
        box: [6], where the surface lies; the whole cube by default.
        up: axis that is up, "x", "y" or "z".
        floor: where along it shadows fall; None for none.
        supersample: rays per pixel along each axis.
        shadows: whether the key light casts them.
        truth: distances [N] of points [N, 3] on the CPU to the true surface.
        backend: of the tracing.
    """
    layers: list[tuple[Tensor, Tensor, Tensor]] = []
    device = device_of(field)
    cube = torch.tensor([0.0, 0, 0, 1, 1, 1])
    box = (cube if box is None else box.float()).to(device)
    light = _direction(camera, KEY).to(device)
    rays = camera.scaled(supersample).view_rays(0).to(device)
    for o, d in zip(rays.origins.split(CHUNK), rays.directions.split(CHUNK), strict=True):
        hits = trace(field, o, d, box, backend=backend)
        shadow = soft_shadow(field, hits.points + 2e-3 * hits.normals, light, box, backend=backend) if shadows else None
        miss = ~hits.hit
        image = torch.zeros(len(o), 3, device=device)
        image[hits.hit] = _shade(field, camera, hits, up, shadow)
        image[miss, 0] = 1.0
        if floor is not None:
            lit = light if shadows else None
            image[miss, 0] = _floor_light(field, o[miss], d[miss], lit, box, up, floor, backend)
        normals = torch.zeros(len(o), 3, device=device)
        normals[hits.hit] = hits.normals @ camera.c2w[0, :, :3].to(device)
        error = torch.full((len(o),), torch.nan)
        if truth is not None and len(hits.points):
            error[hits.hit.cpu()] = truth(hits.points.cpu()).float()
        layers.append((image.cpu(), normals.cpu(), error))
    image, normals, error = (torch.cat(layer) for layer in zip(*layers, strict=True))
    return _compose(camera.size(0), supersample, image, normals, error if truth is not None else None)


def _compose(size: tuple[int, int], supersample: int, image: Tensor, normals: Tensor, error: Tensor | None) -> Picture:
    """Puts shaded colours, or the light on the paper in the first channel of misses, onto the paper."""
    hit = normals.any(-1, keepdim=True)
    height = torch.linspace(0, 1, size[1] * supersample)[:, None, None].expand(-1, size[0] * supersample, 1)
    paper = torch.lerp(torch.tensor(PAPER_TOP), torch.tensor(PAPER_BOTTOM), height).view(-1, 3)
    shaded = torch.where(hit, image.clamp(0, 1) ** (1 / 2.2), paper * image[:, :1])
    colors = torch.where(hit, (normals + 1) / 2, paper)
    scale, dirt = 0.0, None
    if error is not None:
        scale = round_scale(error[hit[:, 0]])
        gray = shaded.mean(-1, keepdim=True)
        dirt = colorize(error, 0.0, scale, ERROR_MAP) * (0.62 + 0.38 * gray / 0.85)
        dirt = _down(torch.where(hit, dirt, paper), size, supersample)
    return Picture(_down(shaded, size, supersample), _down(colors, size, supersample), dirt, scale)


def _down(pixels: Tensor, size: tuple[int, int], supersample: int) -> Tensor:
    """Means over the samples of each pixel [h * s * w * s, 3] -> [h, w, 3]."""
    image = pixels.clamp(0, 1).view(size[1] * supersample, size[0] * supersample, 3).permute(2, 0, 1)
    return avg_pool2d(image[None], supersample)[0].permute(1, 2, 0).contiguous()


def _shade(field: Distance, camera: Cameras, hits: Hits, up: str, shadow: Tensor | None) -> Tensor:
    """Linear colours [H, 3] of a matte material under key, fill and rim light and a soft sky."""
    device, normals = hits.points.device, hits.normals

    def light(direction: tuple[float, float, float], color: tuple[float, float, float], wrap: float) -> Tensor:
        cosine = normals @ _direction(camera, direction).to(device)
        return ((cosine + wrap) / (1 + wrap)).clamp(min=0)[:, None] * torch.tensor(color, device=device)

    open_sky = ambient_occlusion(field, hits.points, normals)[:, None]
    height = (normals @ torch.tensor(UP[up], device=device))[:, None] * 0.5 + 0.5
    ambient = torch.lerp(torch.tensor(GROUND, device=device), torch.tensor(SKY, device=device), height)
    key = light(KEY, KEY_COLOR, 0.0)
    if shadow is not None:
        key = key * shadow[:, None]
    total = key + (light(FILL, FILL_COLOR, 0.3) + light(RIM, RIM_COLOR, 0.1) + ambient) * open_sky
    return torch.tensor(CLAY, device=device) * total


def _direction(camera: Cameras, local: tuple[float, float, float]) -> Tensor:
    """A unit direction [3] given in the frame of the camera (right, up, towards it)."""
    return normalize(camera.c2w[0, :, :3] @ torch.tensor(local), dim=0)


def ambient_occlusion(field: Distance, points: Tensor, normals: Tensor) -> Tensor:
    """How open the surroundings of surface points [N, 3] are [N], 0 to 1: what the distances along the normal lack to
    those over a plane."""
    lack, weight = torch.zeros(len(points), device=points.device), 0.0
    for i in range(1, 5):
        h = REACH * (i / 4) ** 2
        x = points + h * normals
        known = ((x >= 0) & (x <= 1)).all(-1)
        lack += torch.where(known, (h - field(x.clamp(0, 1))).clamp(0, h) / h, 0.0) / i
        weight += 1 / i
    return (1 - 0.9 * lack / weight).clamp(0, 1)


def soft_shadow(
    field: Distance, points: Tensor, light: Tensor, box: Tensor, sharpness: float = 9.0, backend: str = "native"
) -> Tensor:
    """How much of a light in direction ``light`` [3] points [N, 3] see [N], 0 to 1, by how closely the ray to it passes
    the surface in a box [6] (Quilez 2010)."""
    seen = torch.ones(len(points), device=points.device)
    directions = light.expand_as(points).contiguous()
    t_min, t_max = backend_ops(backend).ray_aabb(points, directions, _grown(box, 0.05))
    t = t_min.clamp(min=2e-2)
    live = (t < t_max).nonzero()[:, 0]
    for _ in range(MAX_SHADOW_STEPS):
        if len(live) == 0:
            break
        distance = field((points[live] + t[live, None] * light).clamp(0, 1))
        seen[live] = torch.minimum(seen[live], (0.5 + 0.5 * sharpness * distance / t[live].clamp(max=0.5)).clamp(0, 1))
        t[live] += distance.clamp(6e-3, 0.06)
        live = live[(t[live] < t_max[live]) & (seen[live] > 0.01)]
    return seen * seen * (3 - 2 * seen)


def _grown(box: Tensor, by: float) -> Tensor:
    """The box [6], larger on every side, within the unit cube."""
    return torch.cat([box[:3] - by, box[3:] + by]).clamp(0, 1)


def _floor_light(
    field: Distance,
    rays_o: Tensor,
    rays_d: Tensor,
    light: Tensor | None,
    box: Tensor,
    up: str,
    floor: float,
    backend: str,
) -> Tensor:
    """How bright the floor is where rays [R, 3] meet it [R]; 1 where they do not."""
    vertical = torch.tensor(UP[up], device=rays_o.device)
    bright = torch.ones(len(rays_o), device=rays_o.device)
    t = (floor - rays_o @ vertical) / (rays_d @ vertical)
    points = rays_o + t[:, None] * rays_d
    met = (t > 0) & points.isfinite().all(-1)
    if light is not None:
        bright[met] = 0.70 + 0.30 * soft_shadow(field, points[met], light, box, sharpness=5.0, backend=backend)
    wide = _grown(box, REACH)
    near = met & ((points > wide[:3] - 1e-6) & (points < wide[3:] + 1e-6)).all(-1)
    bright[near] *= 0.45 + 0.55 * ambient_occlusion(field, points[near], vertical.expand_as(points[near]))
    return bright
