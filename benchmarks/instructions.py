"""Counts the instructions of every CPU kernel on a fixed input: a figure of speed that no busy machine changes.

``python benchmarks/instructions.py`` runs every kernel under valgrind's callgrind, one thread, AVX2 (valgrind knows no
AVX-512), and prints the counts beside the stored ones; ``--check`` fails where one differs by more than 5 %, and
``--store`` writes ``results/instructions.json``. Counts depend on the compiler: those of another one are not compared.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

STORED = Path(__file__).parent / "results" / "instructions.json"
TOLERANCE = 0.05
ROOT = Path(__file__).parents[1]
KERNEL = re.compile(r"hashgrid::avx2::(\w+)_range\(")
FUNCTION = re.compile(r"(c?)fn=\((\d+)\)(?: (.*))?")  # its name comes with its first mention
COST = re.compile(r"[+*-]?\d* (\d+)$")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="fail where a count differs by more than 5 %%")
    parser.add_argument("--store", action="store_true", help="write the counts")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work()
        return 0
    if shutil.which("valgrind") is None:
        print("valgrind is not installed; nothing counted", file=sys.stderr)
        return 1
    compiler, counts = count()
    stored = json.loads(STORED.read_text()) if STORED.exists() else {"compiler": None, "kernels": {}}
    comparable = stored["compiler"] == compiler
    off = report(counts, stored["kernels"] if comparable else {})
    if args.store:
        from hashgrid.util.files import atomic_write_json

        atomic_write_json(STORED, {"compiler": compiler, "capability": "avx2", "threads": 1, "kernels": counts})
        return 0
    if not comparable:
        print(f"stored counts are of compiler {stored['compiler']}, this is {compiler}: not compared")
        return 0
    return 1 if args.check and off else 0


def count() -> tuple[str, dict[str, int]]:
    """The compiler's version and the instructions of each kernel, those of what it calls included."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind.out"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", sys.executable, __file__, "--work"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"`{' '.join(command)}` failed:\n{result.stderr[-2000:]}")
        return result.stdout.strip(), parse(out)


def parse(path: Path) -> dict[str, int]:
    """Inclusive costs of the kernels in a file of callgrind: of a function's block, its own lines and its calls'."""
    names: dict[str, str] = {}
    counts: dict[str, int] = {}
    kernel = None
    with path.open() as lines:
        for line in lines:
            function = FUNCTION.match(line)
            if function is not None:
                called, number, name = function.groups()
                names.setdefault(number, name)
                if not called:
                    found = KERNEL.match(names[number])
                    kernel = None if found is None else found[1]
            elif kernel is not None and (cost := COST.match(line)) is not None:
                counts[kernel] = counts.get(kernel, 0) + int(cost[1])
    return dict(sorted(counts.items()))


def report(counts: dict[str, int], stored: dict[str, int]) -> list[str]:
    """Prints the table; returns the kernels that are off."""
    off = []
    print(f"{'kernel':42}{'instructions':>14}{'stored':>14}")
    for name in sorted({*counts, *stored}):
        now, before = counts.get(name), stored.get(name)
        change = "" if now is None or before is None else f"{now / before - 1:+9.1%}"
        if stored and (now is None or before is None or abs(now / before - 1) > TOLERANCE):
            off.append(name)
            change += "  <-"
        print(f"{name:42}{now or '-':>14}{before or '-':>14}{change}")
    return off


def work() -> None:
    """Every kernel on inputs that never change."""
    import torch

    import hashgrid
    from hashgrid import _extension, ops
    from hashgrid.ops import _ngp
    from hashgrid.optim import Adam

    torch.manual_seed(0)
    n = 1 << 12
    x = torch.rand(n, 3, requires_grad=True)
    for interpolation in ("linear", "smoothstep"):
        grid = hashgrid.HashGrid(3, log2_hashmap_size=14, interpolation=interpolation)
        mlp = hashgrid.FusedMLP(32, 16, n_neurons=64, n_hidden_layers=2, activation="silu")
        y = mlp(grid(x))
        (slope,) = torch.autograd.grad(y[:, 0].sum(), x, create_graph=True)
        ((slope.norm(dim=-1) - 1).square().mean() + y.square().mean()).backward()
        level_weights = torch.ones(16, requires_grad=True)
        slope, _ = torch.autograd.grad(grid(x, level_weights).sum(), (x, level_weights), create_graph=True)
        slope.square().sum().backward()
        Adam([{"params": [grid.table], "skip_zero": True}, {"params": list(mlp.parameters())}]).step()
    hashgrid.FusedMLP(32, 16, n_neurons=64, n_hidden_layers=2)(torch.rand(n, 32)).sum().backward()

    ops.counter_uniform(0, 0, torch.arange(n))
    _ngp.sample_positions(*torch.rand(2, 64, 3), torch.arange(n) // 64, *torch.rand(2, n))
    _ngp.pixel_loss(torch.rand(n, 3), torch.rand(n), *torch.rand(2, n, 3))
    sizes, offsets = torch.tensor([[64, 48]]), torch.tensor([0, 64 * 48])
    data = torch.randint(256, (64 * 48, 4), dtype=torch.uint8)
    _ngp.sample_rays(0, 0, n, data, offsets, sizes, torch.eye(4)[None, :3], torch.tensor([[32.0, 32, 32, 24]]))

    directions = torch.nn.functional.normalize(torch.randn(n, 3), dim=-1).requires_grad_()
    ops.sh_encode(directions, 4).sum().backward()
    ops.frequency_encode(x, 10).sum().backward()

    aabb = torch.tensor([-1.0, -1, -1, 1, 1, 1])
    origins = 3 * torch.nn.functional.normalize(torch.randn(512, 3), dim=-1)
    rays = torch.nn.functional.normalize(0.3 * torch.randn(512, 3) - origins, dim=-1)
    t_min, t_max = ops.ray_aabb(origins, rays, aabb)
    ops.sphere_trace(lambda p: p.norm(dim=-1) - 0.5, origins, rays, t_min, t_max)
    hashgrid.OccupancyGrid(aabb, resolution=32).mark_invisible_cells(
        torch.eye(4)[None, :3], torch.tensor([[32.0, 32, 16, 16]]), torch.tensor([[32.0, 32]])
    )
    occupancy = hashgrid.OccupancyGrid(aabb, resolution=32)
    occupancy.update(lambda p: 20.0 * (p.norm(dim=-1) < 0.7), step=0)
    samples = occupancy.march(origins, rays, step_size=0.02, seed=0)
    sigmas = (5 * torch.rand(len(samples.t_starts))).requires_grad_()
    colors = torch.rand(len(sigmas), 3, requires_grad=True)
    ops.composite(sigmas, colors, samples.t_starts, samples.t_ends, samples.packed_info)[0].sum().backward()
    _ngp.visible_samples(sigmas.detach(), samples.t_starts, samples.t_ends, samples.packed_info, 1e-4)
    samples.window(origins, rays, sigmas.detach(), 4, 20)
    shapes = ((64, 32), (16, 64)), ((64, 32), (64, 64), (3, 64))
    networks = ([torch.randn(shape, requires_grad=True) for shape in layers] for layers in shapes)
    radiance = _ngp.radiance_mlp(torch.rand(n, 32), torch.rand(8, 16), torch.arange(n) % 8, *networks)
    (radiance[0].mean() + radiance[1].sum()).backward()
    print(_extension.require().compiler())


if __name__ == "__main__":
    sys.exit(main())
