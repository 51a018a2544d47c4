"""The field and the sampler that options name, for a scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid.data.scene import Scene
from hashgrid.fields.base import RadianceField
from hashgrid.fields.proposal import Proposal, ProposalConfig
from hashgrid.nn import OccupancyGrid
from hashgrid.rendering.error_bounded import ErrorBoundedSampler, laplace_field
from hashgrid.rendering.first_hit import make_first_hit
from hashgrid.rendering.proposals import ProposalSampler, TwiceSampler
from hashgrid.rendering.samplers import CoarseToFineSampler, OccupancySampler, Sampler, SamplerConfig, StratifiedSampler
from hashgrid.train.checkpoint import load_checkpoint, with_prefix
from hashgrid.util.config import Config


def decided(config: Any, scene: Scene) -> Any:
    """The options of a task with what they leave open decided for a scene. Without an end it is contracted and asked
    where proposals say, on a CPU, by fields that would step through a grid's occupied cells: after 600 steps on a
    capture of a toy, 23.2 dB instead of 22.5 by cascades of boxes, and a tenth of the time to look. On a GPU kernels
    that march, ask and composite in one are what is fast, and steps of a fixed size are for them alone. Fields of
    what is in a box have another one around it instead, and no end of their own.

    Raises:
        ValueError: space is to be contracted into a box that has a field around it, or there is no such start.
    """
    if config.init is not None:
        config = config.replace(field=start_of(config.init, config.fields[config.field.name])[0])
    kind, on_cpu = config.fields[config.field.name], torch.device(config.device).type == "cpu"
    sampler, contraction = config.sampling.sampler, config.sampling.contraction
    in_box, behind = kind.boxed and not scene.bounded and contraction == "auto", config.capture.background_model
    if behind == "auto":
        behind = "field" if in_box and not scene.train.has_alpha else "none"
    if behind == "field" and contraction not in ("auto", "none"):
        raise ValueError(f"`contraction` must be none with a field around the box, got {contraction!r}")
    contraction = "none" if in_box or behind == "field" else contraction
    endless = on_cpu and not scene.bounded and contraction != "none"
    endless = endless and kind.sampler == "occupancy" and sampler in ("auto", "proposal")
    if contraction == "auto":
        contraction = "cube" if endless else "none"
    if sampler == "auto":
        sampler = "proposal" if endless else kind.sampler
    ends = config.depths.depth_weight > 0 and scene.train.ends is not None
    fixed_size = config.fixed_size and sampler == "occupancy" and not ends and not config.capture.learns
    fixed_size = fixed_size and not config.labelling.semantic
    chosen = {"sampler": sampler, "contraction": contraction, "background_model": behind}
    return config.replace(**chosen, fixed_size=fixed_size and behind != "field")


def needed(config: Any, field: RadianceField, scene: Scene) -> set[str]:
    """What rays of training batches have to know, for a field and what else options have learned."""
    asked = {
        "ends": config.depths.depth_weight > 0 and scene.train.ends is not None,
        "camera": config.capture.learns,
        "labels": config.labelling.semantic,
    }
    return {*field.needs, *(name for name, is_asked in asked.items() if is_asked)}


def placed(config: Any, scene: Scene) -> Scene:
    """The scene in the coordinates of a field that options, as :func:`decided`, are of."""
    return (scene.in_box() if config.capture.background_model == "field" else scene).normalized()


def field_of(config: Any, scene: Scene) -> RadianceField:
    """The field that options, as :func:`decided`, name, for a scene that is :func:`placed`; with the parameters that
    were learned elsewhere, where they say so."""
    kind = config.fields[config.field.name]
    field = make_field(kind, config.field, config.sampling, scene, config.backend)
    if config.init is not None:
        field.load_state_dict({**field.state_dict(), **start_of(config.init, kind)[1]})
    return field.to(config.device)


def start_of(path: Path, kind: type[RadianceField]) -> tuple[Config, dict[str, Tensor]]:
    """Options and parameters of a field of the class ``kind`` from a checkpoint of ``hashgrid generalize``; for any
    box.

    Raises:
        ValueError: the checkpoint cannot be read, or is not of such a field.
    """
    if not path.is_file():
        raise ValueError(f"`--init` must be a checkpoint of `hashgrid generalize`, there is no `{path}`")
    tensors, metadata = load_checkpoint(path)
    task, options = metadata.get("task"), metadata.get("config", {}).get("field", {})
    if (task, options.get("name")) != ("generalize", kind.Config.name):
        found = f"one of `hashgrid {task}` and the field {options.get('name')!r}"
        raise ValueError(
            f"`--init` must be a checkpoint of `hashgrid generalize --field {kind.Config.name}`, `{path}` is {found}"
        )
    state = {name: value for name, value in with_prefix(tensors, "model.").items() if name != "aabb"}
    return kind.Config.from_dict(options, f"`{path}`"), state


def make_field(
    kind: Any, config: Config, sampling: SamplerConfig, scene: Scene, backend: str = "native"
) -> RadianceField:
    """A field of the class ``kind`` for a normalised scene: in the box of all cascades, or, where space is contracted,
    with the innermost one in its middle."""
    contracted = sampling.contraction not in ("auto", "none")
    box = (scene.aabb, 1) if contracted else (scene.outer_aabb, scene.n_cascades)
    field = kind(config, *box, backend)
    field.see_views(scene.train, lambda view: scene.train.image_rgb(view, torch.ones(3)))
    for part in (field, field.coarse):
        if part is not None:
            part.contraction = sampling.contraction if contracted else part.contraction
            part.calm_distance = 0.0 if scene.bounded else sampling.calm_distance
            part.initial_density = sampling.average_init_density if contracted else 1.0
    return field


def make_sampler(
    config: SamplerConfig, field: RadianceField, scene: Scene, seed: int = 0, backend: str = "native"
) -> Sampler:
    """The sampler of a field in a normalised scene, on the field's device: that of the field unless ``config`` says
    otherwise. An occupancy grid knows from the start what no training view sees; ``seed`` is of the cells it looks at.

    Raises:
        ValueError: the field is none that the sampler is for.
    """
    name = field.sampler if config.sampler == "auto" else config.sampler
    if name == "coarse_to_fine":
        return CoarseToFineSampler(field.n_coarse, field.n_fine, scene.near, backend)
    if name == "twice":
        return TwiceSampler(field.n_coarse, field.n_fine, scene.near, backend)
    if name == "proposal":
        add_proposals(field, config, backend)
        how = config.picture_block, config.picture_colors, config.proposal_interval
        return ProposalSampler((*config.proposal_samples, config.samples), scene.near, backend, *how)
    if name == "error_bounded":
        laplace_field(field)
        return ErrorBoundedSampler(near=scene.near, backend=backend)
    if name == "first_hit":
        return make_first_hit(field, scene, backend)
    if name == "stratified":
        return StratifiedSampler(field.n_coarse, scene.near, backend)
    grid, train = OccupancyGrid(scene.aabb, config.occupancy_resolution, scene.n_cascades, backend), scene.train
    grid.to(field.aabb.device)
    if not bool(train.lens.any()):  # others see to their sides
        grid.mark_invisible_cells(train.c2w, train.intrinsics, train.sizes, near=scene.near)
    step_size = float((scene.aabb[3:] - scene.aabb[:3]).max()) * 3**0.5 / config.steps_per_diagonal
    return OccupancySampler(grid, step_size, scene.cone_angle, scene.near, config, seed).to(field.aabb.device)


def add_proposals(field: RadianceField, config: SamplerConfig, backend: str) -> None:
    """Gives a field the density fields that say where it is asked.

    Raises:
        ValueError: there are not as many resolutions as numbers of samples.
    """
    if len(config.proposal_resolutions) != len(config.proposal_samples):
        got = f"{config.proposal_resolutions} and {config.proposal_samples}"
        raise ValueError(f"`proposal_resolutions` and `proposal_samples` must be as many, got {got}")
    for size in config.proposal_resolutions:
        proposal = Proposal(ProposalConfig(max_resolution=size), field.aabb, backend)
        proposal.contraction, proposal.initial_density = field.contraction, field.initial_density
        field.proposals.append(proposal.to(field.aabb.device))
