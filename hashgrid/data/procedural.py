"""A scene made of formulas: known geometry, textures, view-dependent shading, in memory or as a Blender-style folder.

The shapes stand on a disc inside the +-1.5 box, z up. Images are sphere traced with 2x2 samples per pixel; whole blocks
of rays are first advanced together as cones, which saves most of the steps.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.images import reduce_image
from hashgrid.data.scene import NORMAL_HALF, Scene, SceneOptions, Views, make_scene
from hashgrid.geometry.boxes import Box, cube
from hashgrid.geometry.cameras import Cameras, alike, focal_length, look_at
from hashgrid.util.files import atomic_write_image, atomic_write_json, to_uint8
from hashgrid.util.optional import optional_import
from hashgrid.util.threads import threads_in_use

CAMERA_ANGLE_X = 0.6911112070083618  # as in NeRF-synthetic
CAMERA_RADIUS = 4.0
FLOOR = -0.55  # height of the top of the disc
N_BEADS, BEAD_RING, BEAD_RADIUS = 14, 1.13, 0.085
LIGHT = torch.tensor([0.48, -0.52, 0.71])  # towards the key light
BOUND = 1.6  # radius of a sphere around everything
HIT = 5e-4  # distance at which a ray has arrived
SUPERSAMPLING = 2
BLOCK = 8  # samples per side of a cone

# How floor, sphere, torus, cube, ball, capsule and beads reflect, in the order of `_distances`: strength and exponent
# of a Blinn-Phong highlight, and strength of a Fresnel-weighted sky.
BALL = 4
MATERIALS = torch.tensor(
    [
        [0.08, 30, 0.10], [0.55, 90, 0.35], [0.70, 60, 0.45], [0.12, 20, 0.08],
        [0.90, 120, 1.60], [0.40, 50, 0.20], [0.60, 80, 0.30],
    ]
)  # fmt: skip

# Points, directions and normals are [3, N] from here on: far faster than [N, 3] on the CPU.


def _sphere(p: Tensor, centre: tuple[float, float, float], radius: float) -> Tensor:
    x, y, z = (a - b for a, b in zip(p, centre, strict=True))
    return (x * x).addcmul_(y, y).addcmul_(z, z).sqrt_().sub_(radius)


def _turn(x: Tensor, y: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    c, s = math.cos(angle), math.sin(angle)
    return x * c + y * s, y * c - x * s


def _distances(p: Tensor) -> list[Tensor]:
    """Signed distance to each shape, [N] each."""
    x, y, z = p
    ring = torch.hypot(x, y)

    # Disc with a rounded rim: a flat cylinder.
    dx, dz = ring - 1.29, (z - (FLOOR - 0.07)).abs_() - 0.04
    disc = torch.hypot(dx.clamp(min=0), dz.clamp(min=0)) + torch.maximum(dx, dz).clamp_(max=0) - 0.03

    # Torus, leaning back on its edge.
    u, v = _turn(x - 0.46, y - 0.42, -0.6)
    v, w = _turn(v, z - (FLOOR + 0.385), 0.25)
    torus = torch.hypot(torch.hypot(u, w) - 0.28, v) - 0.11

    # Rounded cube, and a polished ball on top of it.
    u, v = _turn(x - 0.42, y + 0.45, 0.45)
    a, b, c = u.abs_() - 0.21, v.abs_() - 0.21, (z - (FLOOR + 0.25)).abs_() - 0.21
    outside = a.clamp(min=0).square_().add_(b.clamp(min=0).square_()).add_(c.clamp(min=0).square_()).sqrt_()
    cube = outside + torch.maximum(torch.maximum(a, b), c).clamp_(max=0) - 0.04

    # Leaning capsule.
    ax, ay, az = -0.55, -0.40, FLOOR + 0.14
    bx, by, bz = 0.16, -0.10, 0.62
    u, v, w = x - ax, y - ay, z - az
    h = ((u * bx + v * by + w * bz) / (bx * bx + by * by + bz * bz)).clamp_(0, 1)
    capsule = ((u - bx * h).square_() + (v - by * h).square_() + (w - bz * h).square_()).sqrt_() - 0.14

    # A ring of beads: one bead, repeated in angle.
    sector = 2 * math.pi / N_BEADS
    angle = torch.atan2(y, x)
    angle = angle - sector * torch.round(angle / sector)
    u, v, w = ring * torch.cos(angle) - BEAD_RING, ring * torch.sin(angle), z - (FLOOR + BEAD_RADIUS)
    beads = (u.square_() + v.square_() + w.square()).sqrt_() - BEAD_RADIUS

    sphere = _sphere(p, (-0.36, 0.36, FLOOR + 0.40), 0.40)
    ball = _sphere(p, (0.42, -0.45, FLOOR + 0.50 + 0.16), 0.16)
    return [disc, sphere, torus, cube, ball, capsule, beads]


def _distance(p: Tensor) -> Tensor:
    return functools.reduce(torch.minimum, _distances(p))


def signed_distance(points: Tensor) -> Tensor:
    """Distance of points [..., 3] to the nearest surface [...], negative inside."""
    return _distance(points.reshape(-1, 3).T.contiguous()).view(points.shape[:-1])


def _dot(a: Tensor, b: Tensor) -> Tensor:
    x, y, z = a * b
    return x + y + z


def _bounds(o: Tensor, d: Tensor, radius: float = BOUND) -> tuple[Tensor, Tensor]:
    """Where unit rays enter and leave the bounding sphere; the exit is not behind the entry only where they hit it."""
    b, c = _dot(o, d), _dot(o, o) - radius * radius
    root = (b * b - c).clamp_min(0).sqrt()
    hit = b * b > c
    return torch.where(hit, (-b - root).clamp_min(0), 1.0), torch.where(hit, -b + root, 0.0)


def _march(o: Tensor, d: Tensor, t: Tensor, t_end: Tensor, spread: float, max_steps: int) -> Tensor:
    """Sphere tracing from ``t``: the distance at which the scene is within ``HIT + spread * t``; inf for a miss.

    Rays that are done stay where they are until enough of them have gathered to shrink the working set.
    """
    result = torch.full_like(t, math.inf)
    index = (t < t_end).nonzero()[:, 0]
    o, d, t, t_end = _take(index, o, d, t, t_end)
    for step in range(max_steps):
        if not len(index):
            break
        distance = _distance(torch.addcmul(o, d, t))
        near = distance < HIT + spread * t
        t = torch.where(near | (t >= t_end), t, t + (distance - spread * t).clamp_min_(0.5 * HIT))
        alive = ~near & (t < t_end)
        if int(alive.sum()) < 0.8 * len(index) or step + 1 == max_steps:  # compaction costs about as much as a step
            result[index[near]] = t[near]
            index, o, d, t, t_end = _take(alive.nonzero()[:, 0], index, o, d, t, t_end)
    result[index] = t  # still creeping along a silhouette: call it arrived
    return result


def _take(index: Tensor, *tensors: Tensor) -> list[Tensor]:
    return [x.index_select(-1, index) for x in tensors]


# Shading -------------------------------------------------------------------------------------------------------------


def _normal(p: Tensor) -> Tensor:
    """Unit normals by differences at the corners of a tetrahedron."""
    total = torch.zeros_like(p)
    for corner in torch.tensor([[1.0, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])[..., None]:
        total += _distance(p + 1e-3 * corner) * corner
    return total / _dot(total, total).sqrt().clamp_min_(1e-9)


def _shadow(p: Tensor, n: Tensor) -> Tensor:
    """Share of the key light that arrives [N]: a ray that passes an occluder closely is partly shaded."""
    o = p + 4e-3 * n
    t, lit = torch.full_like(p[0], 0.02), torch.ones_like(p[0])
    for _ in range(18):
        distance = _distance(o + t * LIGHT[:, None])
        lit = torch.minimum(lit, 9 * distance / t)
        t = t + distance.clamp_(0.02, 0.25)
    lit = lit.clamp_(0, 1)
    return lit * lit * (3 - 2 * lit)


def _occlusion(p: Tensor, n: Tensor) -> Tensor:
    """Openness of the surroundings [N] in [0, 1]."""
    blocked = torch.zeros_like(p[0])
    for h, weight in ((0.03, 1.0), (0.10, 0.6), (0.22, 0.35)):
        blocked += weight * (h - _distance(p + h * n)) / h
    return (1 - 0.45 * blocked).clamp_(0.15, 1)


def _rgb(value: str) -> Tensor:
    """Linear RGB [3] of an sRGB hex colour."""
    srgb = torch.tensor([int(value[i : i + 2], 16) / 255 for i in (0, 2, 4)])
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _albedo(shape: Tensor, p: Tensor) -> Tensor:
    """Linear RGB [N, 3] of the textures."""

    def two(mask: Tensor, a: str, b: str) -> Tensor:
        return torch.where(mask[:, None], _rgb(a), _rgb(b))

    def floor(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        u, v = _turn(x, y, 0.3)
        checks = two((torch.floor(u / 0.2) + torch.floor(v / 0.2)) % 2 == 0, "e9dfc9", "3d5467")
        radius = torch.hypot(x, y)
        grain = 0.5 + 0.5 * torch.sin(55 * radius + 3 * torch.sin(3 * torch.atan2(y, x)) + 30 * z)
        wood = torch.lerp(_rgb("7a4a2e"), _rgb("a9714b"), grain[:, None])
        wood = torch.where((radius < 1.018)[:, None], _rgb("d9b44a"), wood)
        return torch.where((radius > 1.0)[:, None], wood, checks)

    def sphere(x: Tensor, y: Tensor, z: Tensor) -> Tensor:  # marble: bent stripes
        u, v, w = x + 0.36, y - 0.36, z - (FLOOR + 0.40)
        bent = w + 0.10 * torch.sin(7 * u + 1.5 * torch.sin(9 * v)) + 0.06 * torch.sin(13 * v + 4 * u)
        t = (0.5 + 0.5 * torch.sin(16 * bent))[:, None] ** 2
        return torch.lerp(_rgb("0f4c5c"), _rgb("7fd1c7"), t)

    def torus(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        u, v = _turn(x - 0.46, y - 0.42, -0.6)
        v, w = _turn(v, z - (FLOOR + 0.385), 0.25)
        angle = torch.atan2(w, u) + 1.2 * torch.atan2(v, torch.hypot(u, w) - 0.28) / 2
        t = torch.sigmoid(12 * torch.sin(8 * angle))[:, None]
        return torch.lerp(_rgb("f4a259"), _rgb("c8372d"), t)

    def cube(x: Tensor, y: Tensor, z: Tensor) -> Tensor:  # grooved tiles, one colour each
        u, v = _turn(x - 0.42, y + 0.45, 0.45)
        cells = [(a / (0.5 / 3) + 1.5) for a in (u, v, z - (FLOOR + 0.25))]
        # The axis a face looks along has no tiles: its coordinate is the largest.
        size = torch.stack((u.abs(), v.abs(), (z - (FLOOR + 0.25)).abs()))
        face = size.argmax(0)
        groove = torch.zeros_like(x, dtype=torch.bool)
        code = face.float() * 3.7
        for axis, cell in enumerate(cells):
            inside = face != axis
            groove |= inside & ((cell - cell.round()).abs() < 0.05)
            code += torch.where(inside, torch.floor(cell) * (1.3 + 1.1 * axis), torch.zeros_like(cell))
        tone = torch.sin(code * 12.9898) * 43758.5453
        tone = (tone - tone.floor())[:, None]
        tiles = torch.lerp(
            torch.lerp(_rgb("5b3f8c"), _rgb("b79ced"), tone), _rgb("f2c6de"), (tone > 0.75).float() * 0.7
        )
        return torch.where(groove[:, None], _rgb("241734"), tiles)

    def capsule(x: Tensor, y: Tensor, z: Tensor) -> Tensor:  # candy stripes
        angle = torch.atan2(y + 0.43, x + 0.50)
        return two(torch.sin(2 * angle + 20 * z) > 0, "f8f4ec", "d7263d")

    def beads(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        bead = torch.round(torch.atan2(y, x) * N_BEADS / (2 * math.pi)) % N_BEADS
        phase = bead[:, None] / N_BEADS + torch.tensor([0.0, 0.33, 0.67])  # once around all hues
        return (0.5 + 0.45 * torch.cos(2 * math.pi * phase)) * 0.85

    def ball(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return _rgb("d0962a").expand(len(x), 3)

    color = torch.empty(len(shape), 3)
    for identity, texture in enumerate((floor, sphere, torus, cube, ball, capsule, beads)):
        index = (shape == identity).nonzero()[:, 0]
        color[index] = texture(*p.index_select(1, index))
    return color


def _sky(z: Tensor) -> Tensor:
    """Linear RGB [N, 3] of the sky seen in reflections; ``z`` is the height of the direction."""
    t = (0.5 + 0.5 * z)[:, None]
    return torch.lerp(
        torch.lerp(_rgb("6b5a4c"), _rgb("e8eef4"), (t * 2).clamp_max(1)), _rgb("7fb2e5"), (2 * t - 1).clamp_min(0)
    )


def _shade(p: Tensor, d: Tensor) -> Tensor:
    """sRGB colours [N, 3] of surface points seen along unit directions."""
    n = _normal(p)
    shape = torch.stack(_distances(p)).argmin(0)
    albedo = _albedo(shape, p)
    specular, shininess, mirror = MATERIALS[shape].unbind(-1)

    lit = (_dot(n, LIGHT[:, None]).clamp_min(0) * _shadow(p, n))[:, None]
    openness = _occlusion(p, n)[:, None]
    up = (0.5 + 0.5 * n[2])[:, None]
    fill = torch.lerp(torch.tensor([0.16, 0.13, 0.11]), torch.tensor([0.38, 0.44, 0.54]), up) * openness
    color = albedo * (fill + lit * torch.tensor([1.15, 1.06, 0.92]))

    facing = -_dot(n, d).clamp(-1, 0)
    reflected = d + 2 * facing * n
    fresnel = (mirror * (0.15 + 0.85 * (1 - facing) ** 4))[:, None]
    tint = torch.where((shape == BALL)[:, None], albedo, torch.ones(3))  # metal colours what it reflects
    color = color + fresnel * openness * _sky(reflected[2]) * tint
    alignment = _dot(reflected, LIGHT[:, None]).clamp_min(0)
    color = color + (specular * alignment**shininess)[:, None] * (lit > 0.02) * lit.sqrt()

    color = color.clamp(0, None)
    color = color / (1 + 0.18 * color)  # a soft shoulder instead of clipped highlights
    srgb = torch.where(color <= 0.0031308, 12.92 * color, 1.055 * color.clamp_min(1e-6) ** (1 / 2.4) - 0.055)
    return srgb.clamp_(0, 1)


def surface_color(points: Tensor, directions: Tensor) -> Tensor:
    """sRGB colours [N, 3] of surface points [N, 3] seen along unit directions [N, 3]."""
    return _shade(points.T.contiguous(), directions.T.contiguous())


def render(cameras: Cameras, view: int) -> Tensor:
    """Straight-alpha sRGB image [H, W, 4] in [0, 1] of one undistorted camera, 2x2 samples per pixel."""
    width, height = cameras.sizes[view].tolist()
    fx, fy, cx, cy = cameras.intrinsics[view].tolist()
    s = SUPERSAMPLING
    # Samples in blocks [rows of blocks, columns of blocks, BLOCK, BLOCK]; the last ones may hang over the border.
    rows, columns = -(-height * s // BLOCK), -(-width * s // BLOCK)
    y = (torch.arange(rows * BLOCK) + 0.5) / s
    x = (torch.arange(columns * BLOCK) + 0.5) / s
    plane_x = ((x - cx) / fx).view(1, columns, 1, BLOCK).expand(rows, columns, BLOCK, BLOCK)
    plane_y = ((y - cy) / fy).view(rows, 1, BLOCK, 1).expand(rows, columns, BLOCK, BLOCK)

    def rays(px: Tensor, py: Tensor) -> tuple[Tensor, Tensor]:
        right, up, back, origin = cameras.c2w[view].T[..., None]
        return origin.expand(3, len(px)), (right * px - up * py - back) * torch.rsqrt(px * px + py * py + 1)

    # One cone per block, about its centre ray. Its slope covers the corners of the block anywhere in the image.
    slope = 0.5 * math.sqrt(2) * BLOCK / (s * min(fx, fy)) * 1.05
    o, d = rays(plane_x.mean((2, 3)).flatten(), plane_y.mean((2, 3)).flatten())
    cone_begin, cone_end = _bounds(o, d, BOUND + slope * (float(cameras.origins[view].norm()) + BOUND))
    cone_t = _march(o, d, cone_begin, cone_end, slope, 24).view(rows, columns, 1, 1)
    live = cone_t.expand(rows, columns, BLOCK, BLOCK).isfinite()

    image = torch.zeros(rows, columns, BLOCK, BLOCK, 4)
    begin = cone_t.expand_as(live)[live] * (1 - slope)  # no ray of the cone has met anything before
    o, d = rays(plane_x[live], plane_y[live])
    samples = torch.zeros(len(begin), 4)
    for chunk in torch.arange(len(begin)).split(1 << 16):  # stays in cache, and outweighs the calls
        ro, rd = _take(chunk, o, d)
        t = _march(ro, rd, begin[chunk], _bounds(ro, rd)[1], 0.0, 48)
        hit = t.isfinite().nonzero()[:, 0]
        ro, rd, t = _take(hit, ro, rd, t)
        color = _shade(torch.addcmul(ro, rd, t), rd)
        samples[chunk[hit]] = torch.nn.functional.pad(color, (0, 1), value=1.0)
    image[live] = samples

    image = image.permute(0, 2, 1, 3, 4).reshape(rows * BLOCK, columns * BLOCK, 4)[: height * s, : width * s]
    image = image.view(height, s, width, s, 4).mean((1, 3))
    image[..., :3] /= image[..., 3:].clamp_min(1e-6)  # premultiplied by its coverage so far
    return image


def orbit_cameras(n: int, resolution: int, seed: int) -> Cameras:
    """``n`` cameras on a spiral over the upper hemisphere, jittered, all looking at the middle of the scene."""
    rng = np.random.default_rng(seed)
    low, high = math.sin(math.radians(4)), math.sin(math.radians(78))  # elevations
    height = low + (high - low) * (np.arange(n) + rng.uniform(0.2, 0.8, n)) / max(n, 1)
    angle = math.pi * (3 - math.sqrt(5)) * np.arange(n) + rng.uniform(0, 2 * math.pi)
    ring = np.sqrt(1 - height**2)
    origins = torch.from_numpy(CAMERA_RADIUS * np.stack((ring * np.cos(angle), ring * np.sin(angle), height), axis=1))
    c2w = look_at(origins, torch.tensor([0.0, 0.0, -0.3]).double(), torch.tensor([0.0, 0.0, 1.0]))
    return alike(c2w, focal_length(CAMERA_ANGLE_X, resolution), (resolution, resolution))


def procedural_scene(
    n_train: int = 60,
    n_test: int = 20,
    resolution: int = 200,
    seed: int = 0,
    options: SceneOptions | None = None,
) -> Scene:
    """The scene that :func:`write_scene` writes, without a folder and without any package that reads images; of
    ``options`` it follows what does not change its own split and transparency."""
    options = options or SceneOptions()
    splits = _cameras(n_train, n_test, resolution, seed)
    train, test = (_views(cameras, split, options.downscale) for split, cameras in splits.items())
    path = Path(f"procedural:train={n_train},test={n_test},resolution={resolution},seed={seed}")
    box = Box(cube(torch.zeros(3), NORMAL_HALF))
    return make_scene(train, test, lambda _: box, path, "procedural_scene", options, "procedural")


def _views(cameras: Cameras, split: str, downscale: int) -> Views:
    """Views of all cameras, reduced."""
    images = _one_per_thread(lambda view: reduce_image(to_uint8(render(cameras, view)), downscale), range(len(cameras)))
    return Views(
        cameras.c2w,
        cameras.intrinsics / downscale,
        cameras.sizes // downscale,
        data=torch.cat([torch.empty(0, 4, dtype=torch.uint8), *(torch.from_numpy(x).view(-1, 4) for x in images)]),
        names=tuple(f"./{split}/r_{view:03d}" for view in range(len(cameras))),
    )


def _one_per_thread(work: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[Any]:
    """What ``work`` makes of jobs, in order. One image per thread scales better than threads inside these small
    operations."""
    threads, n_workers = torch.get_num_threads(), threads_in_use()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(max_workers=n_workers) as pool:
            yield from pool.map(work, jobs)
    finally:
        torch.set_num_threads(threads)


def _cameras(n_train: int, n_test: int, resolution: int, seed: int) -> dict[str, Cameras]:
    if n_train < 1 or n_test < 0 or resolution < BLOCK:
        got = f"{n_train}, {n_test} and {resolution}"
        raise ValueError(f"`n_train` must be at least 1, `n_test` 0 and `resolution` {BLOCK}, got {got}")
    return {
        "train": orbit_cameras(n_train, resolution, 2 * seed),
        "test": orbit_cameras(n_test, resolution, 2 * seed + 1),
    }


def write_scene(
    out_dir: str | Path,
    n_train: int = 60,
    n_test: int = 20,
    resolution: int = 200,
    seed: int = 0,
    bar: bool = False,
) -> Path:
    """Render the scene to ``out_dir`` as `transforms_{train,test}.json` with RGBA images; returns the folder.

    The same arguments give the same folder. The JSON files come last, so an interrupted run leaves no broken scene.

    Args:
        out_dir: folder to write to, made where needed.
        n_train, n_test: number of views.
        resolution: width and height in pixels.
        seed: of the camera positions.
        bar: whether to show a bar of the progress.
    """
    splits = _cameras(n_train, n_test, resolution, seed)
    optional_import("imageio.v3")  # before a minute of rendering, not after it
    out_dir = Path(out_dir)
    jobs = [(split, view) for split, cameras in splits.items() for view in range(len(cameras))]

    def work(job: tuple[str, int]) -> None:
        split, view = job
        atomic_write_image(out_dir / split / f"r_{view:03d}.png", render(splits[split], view))

    written = _one_per_thread(work, jobs)
    for _ in optional_import("tqdm").tqdm(written, "scene", len(jobs), unit="view") if bar else written:
        pass
    bottom = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    for split, cameras in splits.items():
        frames = [
            {"file_path": f"./{split}/r_{view:03d}", "transform_matrix": torch.cat((c2w, bottom)).tolist()}
            for view, c2w in enumerate(cameras.c2w)
        ]
        if frames:
            atomic_write_json(
                out_dir / f"transforms_{split}.json", {"camera_angle_x": CAMERA_ANGLE_X, "frames": frames}
            )
    return out_dir


def procedural_folder(path: Path = Path("outputs") / "procedural_scene") -> Path:
    """A folder with the scene, rendered where it is not there yet."""
    if not (path / "transforms_test.json").is_file():
        print(f"no SOURCE given: rendering a procedural scene to {path}", flush=True)
        write_scene(path, bar=True)
    return path
