"""What was learned of a capture beside its scene: as cameras, as figures, and before test views are scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid.data.camera_files import write_cameras
from hashgrid.data.masks import write_masks
from hashgrid.data.scene import Scene, Views
from hashgrid.fields.base import RadianceField
from hashgrid.geometry.cameras import Cameras, nearest_point_to_axes
from hashgrid.geometry.motions import Similarity, angle_between, so3_exp, umeyama
from hashgrid.rendering import scores
from hashgrid.rendering.label_scores import score_labels
from hashgrid.rendering.refinement import Capture
from hashgrid.rendering.samplers import Sampler
from hashgrid.rendering.volume import render

FIT_PIXELS, FIT_STEPS, FIT_RATE = 1024, 60, 0.1
POSE_STEPS, LEAST_GAIN = 10, 1e-3  # of a squared error


def score_capture(
    field: RadianceField,
    sampler: Sampler,
    scene: Scene,
    background: str,
    out: Path,
    most: int,
    scoring: scores.Scoring,
) -> dict[str, Any]:
    """Scores of ``most`` test views at most, how they were scored, and what was learned beside the scene that was
    trained on: ``test``, ``protocol`` and ``capture``, and ``training_views`` where there are labels. Writes
    ``transforms.json`` where cameras are others now, and ``masks.png`` of masks."""
    capture, seen, color = field.capture, refined(scene, field.capture), scene.background(background)
    fit = fitter(field, sampler, seen.test, color)
    n_views = most if scoring.views is None else min(most, scoring.views)
    test = scores.evaluate(field, sampler, seen.test, color, out, n_views, scoring, fit)
    if capture is not None:
        capture.code_of_others = None  # what is shown from now on is no test view
    labels, few = score_labels(field, sampler, seen, n_views, out)
    found, how = figures(scene, capture), protocol(capture)
    lines = [*lines_of(found), *(f"{name} of test views: {text}" for name, text in how.items())]
    print("".join(f"{line}\n" for line in lines), end="", flush=True)
    if capture is not None and capture.config.refines:
        write_cameras(seen, out / "transforms.json")
    write_masks(out / "masks.png", scene.train, color)
    known = {"test": test | labels, "protocol": scoring.protocol(scene, background) | how, **few}
    return known | ({"capture": found} if found else {})


@torch.no_grad()
def refined(scene: Scene, capture: Capture | None) -> Scene:
    """The scene with cameras as they are now thought to be: training views where they were moved to, test views by the
    similarity that takes the training views there, from where they truly are if that is known, or else from where the
    file has them."""
    if capture is None or not capture.config.refines:
        return scene
    train, test = scene.train, scene.test
    if capture.moves is not None:
        device = capture.rotations.device
        poses = capture.poses(train.c2w.to(device).float()).cpu()
        known = train.c2w if capture.truth is None else capture.truth
        move = alignment(known, poses)
        if move is not None:
            test = replace(test, c2w=move.poses(test.c2w.double()).to(test.c2w.dtype))
        train = replace(train, c2w=poses.to(train.c2w.dtype))
    if capture.lens is not None:
        train, test = (_through(views, capture) for views in (train, test))
    return replace(scene, train=train, test=test)


def alignment(source: Tensor, target: Tensor) -> Similarity | None:
    """The similarity that takes cameras of poses ``source`` [N, 3, 4] to those of ``target``; None where too few, or
    their places on one line, say none."""
    try:
        return umeyama(source[:, :, 3].cpu(), target[:, :, 3].cpu())
    except ValueError:
        return None


def _through(views: Views, capture: Capture) -> Views:
    """Views through the lens as it is now thought to be."""
    zoom, added = (x.cpu() for x in capture.lens_changes())
    factors = torch.stack((zoom, zoom, torch.ones_like(zoom), torch.ones_like(zoom)))
    coefficients = views.distortion + torch.nn.functional.pad(added, (0, views.distortion.shape[1] - 2))
    return replace(views, intrinsics=views.intrinsics * factors, distortion=coefficients)


@torch.no_grad()
def pose_errors(poses: Tensor, truth: Tensor, distance: float) -> dict[str, float]:
    """Means over cameras ``poses`` [N, 3, 4] after the similarity that takes them nearest to ``truth``: ``rotation`` in
    degrees, ``translation`` in percent of ``distance``. Without one, as they are."""
    move = alignment(poses, truth)
    moved = poses.double() if move is None else move.poses(poses.double())
    turned = angle_between(moved[:, :, :3], truth[:, :, :3].double()).rad2deg().mean()
    shifted = (moved[:, :, 3] - truth[:, :, 3].double()).norm(dim=-1).mean()
    return {"rotation": float(turned), "translation": 100 * float(shifted) / distance}


@torch.no_grad()
def figures(scene: Scene, capture: Capture | None) -> dict[str, Any]:
    """What was learned, for ``results.json``: ``scene`` is the one trained on."""
    found: dict[str, Any] = {}
    if capture is None:
        return found
    given = scene.train.c2w.cpu().float()
    origins = scene.train.origins.double()
    distance = float((origins - nearest_point_to_axes(scene.train)).norm(dim=-1).mean())
    poses = refined(scene, capture).train.c2w.float()
    if capture.moves is not None:
        found["moved"] = pose_errors(poses, given, distance)
    if capture.truth is not None:
        truth = capture.truth.cpu()
        found["pose_errors"] = {
            "before": pose_errors(given, truth, distance),
            "after": pose_errors(poses, truth, distance),
        }
    if capture.lens is not None:
        zoom, added = capture.lens_changes()
        found["lens"] = {"focal_factor": float(zoom), "k1_added": float(added[0]), "k2_added": float(added[1])}
    if capture.codes is not None and capture.config.appearance == "exposure":
        stops = capture.codes() - capture.codes.centre()
        found["exposure_stops"] = stops[:, 0].tolist()
    return found


def lines_of(found: dict[str, Any]) -> list[str]:
    """Figures of :func:`figures` for people."""
    lines = []
    if moved := found.get("moved"):
        lines.append(f"cameras moved by {moved['rotation']:.3f} degrees, {moved['translation']:.3f} % of the distance")
    for when, errors in found.get("pose_errors", {}).items():
        lines.append(f"pose errors {when}: {errors['rotation']:.3f} degrees, {errors['translation']:.3f} %")
    if lens := found.get("lens"):
        added = f"k1 {lens['k1_added']:+.4f}, k2 {lens['k2_added']:+.4f}"
        lines.append(f"lens: focal length times {lens['focal_factor']:.5f}, {added}")
    if stops := found.get("exposure_stops"):
        lines.append(f"exposures from {min(stops):+.2f} to {max(stops):+.2f} stops")
    return lines


def protocol(capture: Capture | None) -> dict[str, str]:
    """How test views were scored, where there is anything to say."""
    said = {}
    if capture is not None and capture.codes is not None:
        fitted = "fitted to the left half of each test view, the right half is scored"
        neutral = "the mean of the training views"
        said["appearance"] = fitted if capture.config.test_appearance == "fitted" else neutral
    if capture is not None and capture.moves is not None:
        known = "given" if capture.truth is None else "true"
        said["poses"] = f"moved by the similarity from {known} to refined training cameras"
        if capture.config.test_poses == "fitted":
            said["poses"] += ", then each fitted to the left half of its view, the right half is scored"
    return said


def fitter(
    field: RadianceField, sampler: Sampler, views: Views, background: Tensor
) -> Callable[[Cameras, int], None] | None:
    """What moves a view's camera to where its left half is best seen from, and has the field show the view's own
    appearance, as that half has it, from then on; None where neither is to be fitted."""
    capture = field.capture
    if capture is None:
        return None
    fits_pose = capture.moves is not None and capture.config.test_poses == "fitted"
    fits_code = capture.codes is not None and capture.config.test_appearance == "fitted"
    if not fits_pose and not fits_code:
        return None
    background = background.to(field.aabb.device)

    def fit(cameras: Cameras, view: int) -> None:
        capture.code_of_others = None
        pixels, target = left_half(views, view, background)
        if not len(target):
            return
        if fits_pose:
            cameras.c2w[view] = fit_pose(field, sampler, cameras, pixels, target, background)
        if fits_code:
            fit_code(field, sampler, replace(cameras.rays(*pixels), camera=None), target, background)

    return fit


def left_half(views: Views, view: int, background: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Random pixels of the left half of a view that count, their number, columns and rows [R] each, and their colours
    [R, 3] before ``background`` [3], on its device."""
    width, height = views.size(view)
    counts, mask = torch.ones(height, width, dtype=torch.bool), views.mask(view)
    counts = counts if mask is None else counts & mask
    counts[:, width // 2 :] = False
    rows = counts.nonzero()
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(view))[:FIT_PIXELS]
    y, x = rows[chosen].unbind(-1)
    target = views.image_rgb(view, background.cpu())[y, x]
    return tuple(i.to(background.device) for i in (torch.full_like(x, view), x, y)), target.to(background.device)


@torch.no_grad()
def fit_pose(
    field: RadianceField,
    sampler: Sampler,
    cameras: Cameras,
    pixels: tuple[Tensor, ...],
    target: Tensor,
    background: Tensor,
) -> Tensor:
    """The pose [3, 4] near to the one that a camera has from which pixels (its number, columns and rows [R]) show
    colours nearest to ``target`` [R, 3]: by Levenberg and Marquardt's steps, of differences over half a pixel, since
    turning and moving nearly cancel, which takes gradient descent hundreds."""
    rays, view = replace(cameras.rays(*pixels), camera=None), int(pixels[0][0])
    width = 0.5 / float(cameras.intrinsics[view, 0])
    steps = torch.eye(6, dtype=torch.float64) * width  # of a rotation in radians, and a translation
    steps[:3] *= float((field.aabb[3:] - field.aabb[:3]).max())

    def motion(move: Tensor) -> tuple[Tensor, Tensor]:
        return so3_exp(move[None, 3:])[0], move[:3]

    def errors(move: Tensor) -> Tensor:
        rotation, shift = (x.to(rays.origins) for x in motion(move))
        moved = replace(rays, origins=rays.origins + shift, directions=rays.directions @ rotation.T)
        return (render(field, sampler, moved, background).colors - target).double().flatten().cpu()

    move, damping = torch.zeros(6, dtype=torch.float64), 1e-3
    error = errors(move)
    for _ in range(POSE_STEPS):
        jacobian = torch.stack([errors(move + step) - error for step in steps], dim=1)  # per step
        normal, slope = jacobian.T @ jacobian, jacobian.T @ error
        diagonal = normal.diagonal() + 1e-9 * normal.trace() + 1e-30
        change = torch.linalg.solve(normal + torch.diag(damping * diagonal), -slope) @ steps
        tried = errors(move + change)
        gain = 1 - float(tried.square().sum() / error.square().sum().clamp_min(1e-30))
        if gain > 0:
            move, error, damping = move + change, tried, damping / 5
        else:
            damping *= 25
        if 0 <= gain < LEAST_GAIN:
            break
    rotation, shift = (x.to(cameras.c2w.device) for x in motion(move))
    given = cameras.c2w[view].double()
    return torch.cat((rotation @ given[:, :3], given[:, 3:] + shift[:, None]), dim=1).to(cameras.c2w.dtype)


def fit_code(field: RadianceField, sampler: Sampler, rays: Any, target: Tensor, background: Tensor) -> None:
    """Leaves the code with which rays show colours nearest to ``target`` [R, 3] as that of all rays of no training
    camera."""
    capture: Capture = field.capture
    code = capture.neutral().clone().requires_grad_()
    optimizer = torch.optim.Adam([code], lr=FIT_RATE if capture.config.appearance != "affine" else FIT_RATE / 5)
    is_of_colors = capture.config.appearance != "code"
    if is_of_colors:  # what the field says does not change
        field.capture = None
        with torch.no_grad():
            out = render(field, sampler, rays)
        field.capture = capture
    for _ in range(FIT_STEPS):
        capture.code_of_others = code
        with torch.enable_grad():
            if is_of_colors:
                colors = capture.finish(out, rays, background).colors
            else:
                colors = render(field, sampler, rays, background).colors
            loss = (colors - target).square().mean()
        (code.grad,) = torch.autograd.grad(loss, code)
        optimizer.step()
    capture.code_of_others = code.detach()
