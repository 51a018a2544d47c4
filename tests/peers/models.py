"""Trains third-party models, written for tiny-cuda-nn and nerfacc, on hashgrid's layers and on plain PyTorch.

    python tests/peers/models.py                   # all, fetched from GitHub into scratch/peers
    python tests/peers/models.py co_slam --mirrors DIR

Each model is unchanged but for the words in ``replaced``, and trained three times from the same start on the same rays:
on hashgrid's layers, on the formulas of ``plain_tcnn`` and ``plain_nerfacc`` in float32, and on those in float64. What
hashgrid is off by may be twice what plain float32 is off by. Writes ``models.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import NamedTuple

import torch
from on_cpu import put_on_cpu
from run import HERE, ROOT, Suite, fetch
from torch import Tensor, nn

import hashgrid.compat

STEPS = 20
VARIANTS = ("hashgrid", "plain32", "plain64")


class Built(NamedTuple):
    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[int], Tensor]  # of a step
    look: Callable[[], Tensor]  # what it shows in the end


def rays(step: int, n: int = 256) -> tuple[Tensor, Tensor]:
    """Origins and unit directions [n, 3] from a sphere of radius 3 to places around the middle of it."""
    random = torch.Generator().manual_seed(step)
    origins = 3 * nn.functional.normalize(torch.randn(n, 3, generator=random, dtype=torch.float32), dim=1)
    towards = torch.rand(n, 3, generator=random) - 0.5
    return place(origins), place(nn.functional.normalize(towards - origins, dim=1))


def colors(directions: Tensor) -> Tensor:
    return 0.5 + 0.5 * torch.sin(4 * directions)


def place(x: Tensor) -> Tensor:
    return x.to(torch.get_default_dtype())


def co_slam(folder: Path) -> Built:
    """Co-SLAM's scene of one room (Wang et al. 2023): a hash grid, OneBlob, two networks, colours and depths."""
    import yaml

    config = yaml.safe_load((folder / "configs/Replica/replica.yaml").read_text())
    config["decoder"]["tcnn_network"] = True  # its option; linear layers else
    scene = import_module("model.scene_rep")
    bounds = torch.tensor([[-3.0, 3.0], [-4.0, 2.5], [-2.0, 2.5]])
    model = finish(scene.JointEncoding(config, bounds))
    model.bounding_box = place(bounds)
    optimizer = torch.optim.Adam(
        [
            {"params": model.decoder.parameters(), "weight_decay": 1e-6, "lr": config["mapping"]["lr_decoder"]},
            {"params": model.embed_fn.parameters(), "eps": 1e-15, "lr": config["mapping"]["lr_embed"]},
        ],
        betas=(0.9, 0.99),
    )
    weights = {name: config["training"][f"{name}_weight"] for name in ("rgb", "depth", "sdf", "fs")}

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        _, directions = rays(step)
        return torch.zeros_like(directions), directions, colors(directions), 1.5 + 0.2 * directions[:, :1]

    def loss(step: int) -> Tensor:
        found = model(*batch(step))
        return sum(weight * found[f"{name}_loss"] for name, weight in weights.items())

    def look() -> Tensor:
        found = model(*batch(STEPS))
        return torch.cat((found["rgb"], found["depth"][:, None]), dim=1)

    return Built(model, optimizer, loss, look)


def nerfacc_ngp(folder: Path) -> Built:
    """nerfacc's own example: instant-ngp's field with an occupancy grid (``train_ngp_nerf_occ.py``)."""
    nerfacc, utils = import_module("nerfacc"), import_module("utils")
    field = import_module("radiance_fields.ngp")
    aabb = torch.tensor([-1.5, -1.5, -1.5, 1.5, 1.5, 1.5])
    estimator = nerfacc.OccGridEstimator(roi_aabb=aabb, resolution=64, levels=1)
    model = finish(field.NGPRadianceField(aabb=estimator.aabbs[-1], log2_hashmap_size=15))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-15, weight_decay=1e-6)
    options = {"render_step_size": 2e-2, "render_bkgd": place(torch.ones(3))}

    def shown(step: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(step)
        origins, directions = rays(step)
        found = utils.render_image_with_occgrid(model, estimator, utils.Rays(origins, directions), **options)
        return found[0], colors(directions)

    def loss(step: int) -> Tensor:
        torch.manual_seed(1000 + step)
        estimator.update_every_n_steps(step, lambda x: model.query_density(place(x)).float() * 2e-2, occ_thre=1e-2)
        return nn.functional.smooth_l1_loss(*shown(step))

    return Built(model, optimizer, loss, lambda: shown(STEPS)[0])


def instant_nsr(folder: Path, kind: str) -> Built:
    """instant-nsr-pl's systems, with nerfacc 0.3: what is replaced is in ``instant_nsr.py``."""
    system, loss = import_module("instant_nsr").build(kind, folder)
    finish(system)
    for name, value in vars(system.dataset).items():
        if isinstance(value, Tensor) and value.is_floating_point():
            setattr(system.dataset, name, place(value))
    optimizer = torch.optim.AdamW(system.model.parameters(), lr=1e-2 if kind == "nerf" else 1e-3, betas=(0.9, 0.99))

    def look() -> Tensor:
        torch.manual_seed(STEPS)
        found = system.model(torch.cat(rays(STEPS, 64), dim=1))
        return found["comp_rgb" if kind == "nerf" else "comp_rgb_full"]

    return Built(system.model, optimizer, loss, look)


class Model(NamedTuple):
    source: Suite
    installs: tuple[str, ...]
    build: Callable[[Path], Built]


NSR = Suite(
    "bennyguo/instant-nsr-pl",
    "e5fe3f246cf2d512494a73c727174c3ca1c3c695",
    "tinycudann,nerfacc_0_3",
    ("models", "systems", "utils", "configs"),
)
MODELS = {
    "co_slam": Model(
        Suite("HengyiWang/Co-SLAM", "3bb904e1c01bb3fd238a279e5ed3cdd291bb23b7", "tinycudann", ("model", "configs")),
        ("tinycudann",),
        co_slam,
    ),
    "nerfacc_ngp": Model(
        Suite(
            "nerfstudio-project/nerfacc",
            "57ccfa14feb94975836ea6913149a86737220f2b",
            "tinycudann,nerfacc",
            ("examples/radiance_fields", "examples/utils.py", "examples/datasets"),
        ),
        ("tinycudann", "nerfacc"),
        nerfacc_ngp,
    ),
    "instant_nsr_nerf": Model(NSR, ("tinycudann", "nerfacc_0_3"), lambda folder: instant_nsr(folder, "nerf")),
    "instant_nsr_neus": Model(NSR, ("tinycudann", "nerfacc_0_3"), lambda folder: instant_nsr(folder, "neus")),
}


def finish(model: nn.Module) -> nn.Module:
    """The model in the precision of the variant; from now on new tensors are of it, too.

    Tables start a thousand times as large as tiny-cuda-nn has them: else all densities are the same but for rounding,
    which then decides which cells are occupied.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("params"):
                parameter.mul_(torch.where(parameter.abs() <= 1e-4, 1e3, 1.0))
    if os.environ["HASHGRID_PEERS_VARIANT"] != "plain64":
        return model.train()
    model = model.double().train()
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    draw = torch.rand
    torch.rand = lambda *shape, **options: draw(*shape, **{**options, "dtype": torch.float32}).double()  # type: ignore[assignment]
    torch.rand_like = lambda x, **options: torch.rand(x.shape)  # type: ignore[assignment]
    return model


PLAIN = {"tinycudann": "plain_tcnn", "nerfacc": "plain_nerfacc", "nerfacc_0_3": "plain_nerfacc_0_3"}


def train(name: str, variant: str, folder: Path) -> dict[str, list]:
    """Losses of all steps, and what the model shows."""
    put_on_cpu()
    torch.manual_seed(0)
    for layer in MODELS[name].installs:
        if variant == "hashgrid":
            hashgrid.compat.install(layer)
        else:
            import_module(PLAIN[layer]).install()
    built, losses = MODELS[name].build(folder), []
    for step in range(STEPS):
        torch.manual_seed(100 + step)
        loss = built.loss(step)
        built.optimizer.zero_grad()
        loss.backward()
        built.optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        return {"losses": losses, "shown": built.look().double().tolist()}


def off_by(found: dict[str, list], exact: dict[str, list]) -> dict[str, float]:
    """Largest relative error of a loss, and root mean square of what is shown."""
    a, b = (torch.tensor(x["losses"], dtype=torch.float64) for x in (found, exact))
    shown = torch.tensor(found["shown"], dtype=torch.float64) - torch.tensor(exact["shown"], dtype=torch.float64)
    return {"losses": float(((a - b) / b).abs().max()), "shown": float(shown.square().mean().sqrt())}


def compare(name: str, cache: Path, mirrors: Path | None) -> dict[str, object]:
    source, found = MODELS[name].source, {}
    folder = cache / f"model_{name}"
    folder.mkdir(parents=True, exist_ok=True)
    fetch(source, folder, mirrors)
    path = os.pathsep.join(map(str, (HERE, folder, folder / "examples", ROOT)))
    for variant in VARIANTS:
        environment = {**os.environ, "PYTHONPATH": path, "HASHGRID_PEERS_VARIANT": variant}
        with tempfile.NamedTemporaryFile(suffix=".json") as out:
            command = [sys.executable, __file__, name, "--variant", variant, "--cache", str(folder), "--out", out.name]
            subprocess.run(command, check=True, env=environment)
            found[variant] = json.loads(Path(out.name).read_text())
    ours, theirs = (off_by(found[variant], found["plain64"]) for variant in VARIANTS[:2])
    agrees = all(ours[key] <= 2 * theirs[key] for key in ours)
    ends = {variant: found[variant]["losses"][::19] for variant in VARIANTS}
    facts = {
        "repo": source.repo,
        "commit": source.commit,
        "replaced": source.replaced,
        "torch": metadata.version("torch"),
    }
    return {
        **facts,
        "python": platform.python_version(),
        "losses": ends,
        "hashgrid": ours,
        "plain32": theirs,
        "agrees": agrees,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(MODELS)}; all without")
    parser.add_argument("--mirrors", type=Path, help="folder of bare repositories OWNER+NAME/repo")
    parser.add_argument("--cache", type=Path, default=ROOT / "scratch" / "peers", help="where sources are put")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=HERE / "models.json", help=argparse.SUPPRESS)
    args = parser.parse_args()
    unknown = set(args.names) - set(MODELS)
    if unknown:
        parser.error(f"`names` must be of {', '.join(MODELS)}, got {', '.join(unknown)}")
    if args.variant:
        args.out.write_text(json.dumps(train(args.names[0], args.variant, args.cache)))
        return 0
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name in args.names or MODELS:
        results[name] = compare(name, args.cache, args.mirrors)
        args.out.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        print(name, json.dumps({key: results[name][key] for key in ("losses", "hashgrid", "plain32", "agrees")}))
    return 0 if all(results[name]["agrees"] for name in args.names or MODELS) else 1


if __name__ == "__main__":
    sys.exit(main())
