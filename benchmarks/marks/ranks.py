"""What several processes cost and bring: steps per second, bytes, and the share of time that sums of gradients take.

    python benchmarks/marks/ranks.py --cores 0,1          # on a quiet machine; minutes
    python benchmarks/marks/ranks.py --only hosts --steps 10 --samples 4096

`hashgrid nerf`'s recipe for the CPU on the procedural scene, the same batch in each row, of several sizes:

    one        one process on one core
    threads    one process on all cores
    local      a process on each core, under torchrun
    bfloat16   the same, table gradients halved on the way
    hosts      two network namespaces as two hosts, a core each, `--mbit` between them (needs root and iproute2)

A step is timed after `WARM` others. Break-even is the smallest batch at which a row is faster than `one`; that it beats
`threads`, too, decides whether processes are worth it on one machine. Parameters of all processes have to be equal bit
by bit at the end, or the row says so. Writes results/ranks.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hashgrid.data.procedural import write_scene
from hashgrid.data.scene import load_scene
from hashgrid.tasks.nerf import Nerf, NerfConfig
from hashgrid.train import ranks
from hashgrid.train.loop import Trainer
from hashgrid.util.files import atomic_write_json
from hashgrid.util.info import describe
from hashgrid.util.threads import threads_for

RESULTS = Path(__file__).parent / "results" / "ranks.json"
ROWS = ("one", "threads", "local", "bfloat16", "hosts")
WARM = 20  # steps in which the number of rays finds its place
HOSTS = ("hashgrid-a", "hashgrid-b")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


def worker(args: argparse.Namespace) -> None:
    """One process of a row: trains, and writes what it took."""
    with ranks.joined("cpu", args.dtype), threads_for("native"):
        config = NerfConfig(device="cpu", steps=WARM + args.steps, seed=1)
        config = config.replace(target_samples=args.samples, max_rays=max(1024, args.samples), occupancy_time_share=1.0)
        trainer = Trainer(Nerf(config, load_scene(args.scene)))
        for _ in range(WARM):
            trainer.step()
        team = ranks._team
        team.seconds, team.bytes, team.steps = 0.0, 0, 0
        begin, samples = time.perf_counter(), trainer.progress.samples
        for _ in range(args.steps):
            trainer.step()
        seconds = time.perf_counter() - begin
        digest = 0
        for value in trainer.task.model.parameters():
            digest = zlib.crc32(value.detach().numpy().tobytes(), digest)
        found = {
            "steps_per_second": args.steps / seconds,
            "samples_per_step": (trainer.progress.samples - samples) / args.steps,
            **ranks.costs(seconds),
            "digest": digest,
            "table_bytes": trainer.task.model.grid.table.nbytes,
            "loss": trainer.progress.loss,
        }
        atomic_write_json(args.out / f"rank{team.rank}.json", found)


@contextlib.contextmanager
def two_hosts(mbit: float) -> Iterator[None]:
    """Network namespaces with a cable of so many Mbit/s between them.

    Raises:
        OSError: this machine does not let us.
    """
    a, b = HOSTS
    to_a, to_b = (["ip", "netns", "exec", host] for host in HOSTS)
    shape = ["root", "tbf", "rate", f"{mbit}mbit", "burst", "256kb", "latency", "50ms"]
    try:
        for words in (
            *(["ip", "netns", "add", host] for host in HOSTS),
            ["ip", "link", "add", "hg0", "netns", a, "type", "veth", "peer", "name", "hg0", "netns", b],
            [*to_a, "ip", "addr", "add", "10.77.0.1/24", "dev", "hg0"],
            [*to_b, "ip", "addr", "add", "10.77.0.2/24", "dev", "hg0"],
            *([*to, "ip", "link", "set", name, "up"] for to in (to_a, to_b) for name in ("lo", "hg0")),
            *([*to, "tc", "qdisc", "add", "dev", "hg0", *shape] for to in (to_a, to_b) if mbit > 0),
        ):
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                raise OSError(f"`{' '.join(words)}`: {done.stderr.strip()}")
        yield
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", host], capture_output=True, check=False)


def run_row(row: str, scene: Path, samples: int, args: argparse.Namespace) -> dict[str, Any]:
    """Figures of a row, from all of its processes."""
    cores = [int(core) for core in args.cores.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        dtype = "bfloat16" if row == "bfloat16" else "float32"
        words = [str(Path(__file__).resolve()), "--worker", "--scene", str(scene), "--out", folder, "--dtype", dtype]
        words += ["--samples", str(samples), "--steps", str(args.steps)]
        n_processes = len(cores) if row in ("local", "bfloat16") else 2 if row == "hosts" else 1
        used = cores[:1] if row == "one" else cores
        env = {**os.environ, "OMP_NUM_THREADS": str(len(used) if row == "threads" else 1)}
        pin = ["taskset", "-c", ",".join(map(str, used))]
        if row == "hosts":
            env["GLOO_SOCKET_IFNAME"] = "hg0"
            meet = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "10.77.0.1", "--master-port", "29511"]
            with two_hosts(args.mbit):
                started = []
                for i, host in enumerate(HOSTS):
                    prefix = ["ip", "netns", "exec", host, "taskset", "-c", str(cores[i % len(cores)])]
                    command = [*prefix, *TORCHRUN, *meet, "--node-rank", str(i), *words]
                    started.append(subprocess.Popen(command, env=env))
                if any([process.wait() for process in started]):
                    raise RuntimeError("a host failed, see above")
        elif n_processes == 1:
            subprocess.run([*pin, sys.executable, *words], env=env, check=True)
        else:
            launch = [*TORCHRUN, "--standalone", "--nproc-per-node", str(n_processes)]
            subprocess.run([*pin, *launch, *words], env=env, check=True)
        found = [json.loads((Path(folder) / f"rank{i}.json").read_text()) for i in range(n_processes)]
    return {**found[0], "equal": len({one["digest"] for one in found}) == 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", default="0,1", help="one for each process")
    parser.add_argument("--steps", type=int, default=100, help="that are timed")
    parser.add_argument("--samples", type=int, nargs="+", default=[1 << 13, 1 << 15, 1 << 17], help="per step")
    parser.add_argument("--mbit", type=float, default=1000.0, help="between hosts; 0 for no limit")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--scene", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="float32", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        args.samples = args.samples[0]
        return worker(args)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        write_scene(Path(folder), n_train=40, n_test=1, resolution=128)
        for samples in args.samples:
            for row in args.only:
                try:
                    found = run_row(row, Path(folder), samples, args)
                except OSError as error:
                    print(f"{row}: left out, {error}")
                    continue
                rows.append({"row": row, "target_samples": samples, **found})
                print(
                    f"{samples:7d} samples {row:9} {found['steps_per_second']:7.2f} steps/s,"
                    f" {found['bytes_per_step'] / 1e6:6.2f} MB per step,"
                    f" {found['share_of_time']:4.0%} in sums, equal: {found['equal']}",
                    flush=True,
                )
    for row in args.only:
        speeds = {r["target_samples"]: r["steps_per_second"] for r in rows if r["row"] == row}
        alone = {r["target_samples"]: r["steps_per_second"] for r in rows if r["row"] == "one"}
        won = [n for n, speed in speeds.items() if speed > alone.get(n, float("inf"))]
        if row != "one" and alone:
            print(
                f"{row}: faster than one from {min(won)} samples per step" if won else f"{row}: never faster than one"
            )
    machine = dict(describe())
    facts = {"cores": args.cores, "steps": args.steps, "mbit": args.mbit, "torch": torch.__version__}
    atomic_write_json(args.out, {**facts, "machine": machine, "rows": rows})


if __name__ == "__main__":
    main()
