"""What learned starts are worth: the loss of unseen signals after three steps from them, beside a random start's.

    python benchmarks/marks/learned_starts.py [METHOD ...] [--families images shapes solids photos] [--seeds 0 1 2]

A random start gets the best of seven rates for its steps. ``photos`` are those of ``HASHGRID_DATA``/data/image, by
default ../shared/data/image beside the repository; without them that family is left out. Also reports by how much
MAML's gradients differ from their closed form on a linear model. Writes results/learned_starts.json; what is not named
keeps its rows.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hashgrid.bench.environment import environment, warn_if_busy
from hashgrid.data.signal_families import GENERATED, Family, generated_family, photo_family
from hashgrid.tasks.meta import RECIPES, Meta, MetaConfig
from hashgrid.train.loop import Trainer
from hashgrid.train.meta import Learner, Maml, Reptile, Samples
from hashgrid.train.task import Report
from hashgrid.util.files import atomic_write_json
from hashgrid.util.threads import own_threads

PATH = Path(__file__).parent / "results" / "learned_starts.json"
PHOTOS = Path(os.environ.get("HASHGRID_DATA", Path(__file__).resolve().parents[3] / "shared")) / "data" / "image"
STEPS = {"maml": 800, "reptile": 600, "metasdf": 800, "hypernet": 1500, "coinpp": 1500}
VARIANTS: dict[str, dict[str, Any]] = {**{name: {"method": name} for name in RECIPES}}
VARIANTS["first_order_maml"] = {"method": "maml", "first_order": True}


def linear_model_errors() -> dict[str, float]:
    """Distances of gradients to their closed forms for f = w x, (w x - y)^2 and one step of rate a."""
    w, x, y, a = 0.7, 1.3, -0.4, 0.11
    after = w - 2 * a * x * (w * x - y)
    slope = 2 * x * (after * x - y)
    expected = {"maml": slope * (1 - 2 * a * x**2), "first_order_maml": slope, "reptile": w - after}
    errors = {}
    for name, gradient in expected.items():
        model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        nn.init.constant_(model.weight, w)
        learner: Learner = Maml(model, 1, a, first_order=name != "maml") if "maml" in name else Reptile(model, 1, a)
        learner(Samples(*(torch.tensor([[value]], dtype=torch.float64) for value in (x, y)))).backward()
        assert model.weight.grad is not None
        errors[name] = abs(model.weight.grad.item() - gradient)
    return errors


def family_of(name: str) -> Family:
    if name == "photos":
        return photo_family(PHOTOS, GENERATED["images"].size)
    return generated_family(name, GENERATED[name].size)


def measure(variant: str, family: Family, name: str, seed: int, share: float) -> dict[str, Any]:
    """Learns one start with its own defaults."""
    changes = VARIANTS[variant]
    steps = max(1, round(share * STEPS[changes["method"]]))
    config = MetaConfig().replace(**changes, steps=steps, seed=seed, device="cpu", n_unseen=32)
    task = Meta(config.replace(family="images" if name == "photos" else name), family)
    trainer = Trainer(task)
    trainer.train()
    with tempfile.TemporaryDirectory() as folder:
        figures = task.evaluate(Report(Path(folder), trainer.progress))
    kept = ("loss", "loss_random", "ratio", "random_rate", "losses", "losses_random")
    row: dict[str, Any] = {"method": variant, "family": name, "seed": seed}
    return row | {"seconds": trainer.progress.seconds, "steps": steps} | {key: figures[key] for key in kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=[*VARIANTS], metavar="METHOD", help=", ".join(VARIANTS))
    parser.add_argument("--families", nargs="+", default=["images", "shapes", "solids", "photos"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--share", type=float, default=1.0, help="of each method's steps, for a quick try")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=PATH)
    args = parser.parse_args()
    if unknown := set(args.methods) - set(VARIANTS):
        parser.error(f"METHOD must be of {', '.join(VARIANTS)}, got {', '.join(sorted(unknown))}")
    warn_if_busy()
    torch.set_num_threads(args.threads)
    rows = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    for name in args.families:
        if name == "photos" and not PHOTOS.is_dir():
            print(f"no photos at {PHOTOS}: left out")
            continue
        family = family_of(name)
        for variant in args.methods:
            for seed in args.seeds:
                with own_threads(args.threads):
                    row = measure(variant, family, name, seed, args.share)
                key = (variant, name, seed)
                rows = [old for old in rows if (old["method"], old["family"], old["seed"]) != key] + [row]
                text = f"{row['loss']:.2e} after 3 steps, {row['ratio']:.1f} times less than a random start"
                print(
                    f"{variant} on {name}, seed {seed}: {text} ({row['steps']} steps, {row['seconds']:.0f} s)",
                    flush=True,
                )
                report = {"linear_model_errors": linear_model_errors(), "rows": rows}
                atomic_write_json(args.out, {**report, "environment": environment(torch.device("cpu"))})


if __name__ == "__main__":
    main()
