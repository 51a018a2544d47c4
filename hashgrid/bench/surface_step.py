"""A whole training step of ``hashgrid surface``: native kernels against the reference backend, and against a step of
``hashgrid nerf``, per sample that counts.

March, distances with their gradients, compositing, colours, loss with the eikonal term, backward and optimiser, from
one checkpoint of a half-trained field. Occupancy updates are left out: the trainer keeps them below a fixed share of a
run's time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from hashgrid.bench import harness
from hashgrid.bench.harness import EAGER, OURS, Case, Contender
from hashgrid.bench.nerf_step import Stepper, colors_and_gradients, resumed
from hashgrid.data.procedural import procedural_scene
from hashgrid.tasks.nerf import Nerf, NerfConfig
from hashgrid.tasks.surface import Surface, SurfaceConfig
from hashgrid.train.loop import Trainer

NERF = "hashgrid nerf"


def main(argv: Sequence[str] | None = None) -> Path:
    """Measures training steps; returns the JSON file."""
    options = harness.parser(__doc__)
    options.add_argument("--warm-steps", type=int, default=None, help="training before the clock starts; 300 if none")
    options.add_argument("--target-samples", type=int, default=None, help="per step; that of each command if none")
    args = options.parse_args(argv)
    suite = harness.Suite("surface_step", "sample", args)
    n_train, resolution = (2, 12) if args.tiny else (12, 100)
    scene = procedural_scene(n_train, 1, resolution, args.seed)
    small = {"log2_hashmap_size": 10, "occupancy_resolution": 16, "steps_per_diagonal": 64, "max_rays": 256}
    steppers: dict[str, Stepper] = {}
    with tempfile.TemporaryDirectory() as folder:
        rows: Sequence[tuple[str, type[Nerf], NerfConfig]] = (
            ("surface", Surface, SurfaceConfig()),
            ("nerf", Nerf, NerfConfig()),
        )
        for kind, task, defaults in rows:
            target = args.target_samples or (1 << 9 if args.tiny else defaults.target_samples)
            config = defaults.replace(device=args.device, seed=args.seed, steps=10**6, target_samples=target)
            config = config.replace(**small) if args.tiny else config
            warm = Trainer(task(config, scene))
            while warm.progress.step < harness.size(args, args.warm_steps, 300, 300, 2, 150):
                warm.step()
            warm.save(checkpoint := Path(folder) / f"{kind}.safetensors")
            names = {OURS: config, EAGER: config.replace(backend="reference")} if kind == "surface" else {NERF: config}
            for name, of in names.items():
                steppers[name] = Stepper(resumed(task, scene, of, checkpoint), config, count_rays=False)

    def contender(name: str, is_checked: bool) -> Contender:
        stepper = steppers[name]
        check = colors_and_gradients(stepper.trainer) if is_checked else lambda: ()
        return Contender(name, stepper.run, points=stepper.points, check=check)

    case = Case("a step", config.target_samples, [contender(name, True) for name in (EAGER, OURS)], tolerance=1e-2)
    suite.run(case)
    # of other fields with other samples: nothing they have in common could be compared
    suite.run(Case("beside nerf", config.target_samples, [contender(name, False) for name in (NERF, OURS)]))
    return suite.write()


if __name__ == "__main__":
    main()
