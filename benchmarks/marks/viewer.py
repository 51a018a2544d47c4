"""What a page costs a run of `hashgrid nerf`: CPU time of its pictures and of the threads that serve it.

    python benchmarks/marks/viewer.py  # a minute of training before a client that rests; writes results/viewer.json

The client is one of 1280x720 pixels that said once where it looks and takes what it is sent. Its CPU time is that of
another process. The run's own is that of all its threads; the page's is that of drawing, on the thread that trains, and
of all threads that the page has started.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from hashgrid.bench.environment import environment
from hashgrid.data.procedural import procedural_scene
from hashgrid.tasks.nerf import Nerf, NerfConfig
from hashgrid.train.loop import Trainer
from hashgrid.util.threads import own_threads
from hashgrid.viewer.live import LiveView

ROOT = Path(__file__).resolve().parents[2]
CLIENT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from problems.viser_client import Client
client = Client(int(sys.argv[2]), (1280, 720))
client.look((0.0, 0.0, -4.0))
time.sleep(float(sys.argv[3]))
"""


def thread_seconds(native: int) -> float:
    """CPU time of a thread."""
    fields = Path(f"/proc/self/task/{native}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def measure(seconds: float, port: int) -> dict[str, Any]:
    """Figures of the last two thirds of a run, when pictures have found their size."""
    trainer = Trainer(Nerf(NerfConfig(device="cpu", time_limit=seconds), procedural_scene(12, 1, 100)))
    before = {thread.native_id for thread in threading.enumerate()}
    live = LiveView(trainer, Path(tempfile.mkdtemp()), port=port)
    pictures, drawing = 0, 0.0
    begin: dict[str, float] = {}
    paint = live.page.painter.paint

    def counted(training: bool = False) -> bool:
        nonlocal pictures
        drawn = paint(training)
        pictures += drawn
        return drawn

    live.page.painter.paint = counted  # type: ignore[method-assign]

    def serving() -> float:
        ours = [thread.native_id for thread in threading.enumerate() if thread.native_id not in before]
        return sum(thread_seconds(native) for native in ours if native is not None)

    def step(progress: Any) -> None:
        nonlocal drawing, pictures
        if not begin and progress.seconds > seconds / 3:
            begin.update(cpu=time.process_time(), serving=serving(), wall=time.perf_counter(), step=progress.step)
            drawing, pictures = 0.0, 0
        start = time.thread_time()
        live.step(progress)
        drawing += time.thread_time() - start

    command = [sys.executable, "-c", CLIENT, str(ROOT / "tests"), str(port), str(10 * seconds)]
    client = subprocess.Popen(command)
    try:
        trainer.train(step)
        cpu, served = time.process_time() - begin["cpu"], serving() - begin["serving"]
        wall, steps = time.perf_counter() - begin["wall"], trainer.progress.step - begin["step"]
    finally:
        client.kill()
        client.wait()
        live.close()
    return {
        "seconds": wall, "steps": steps, "cpu_seconds": cpu, "pictures": pictures,
        "drawing_cpu_seconds": drawing, "serving_cpu_seconds": served, "share": (drawing + served) / cpu,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=90.0, help="of the run")
    parser.add_argument("--port", type=int, default=8231)
    args = parser.parse_args()
    with own_threads(1) as n_threads:  # whose CPU time is that of the thread that trains
        figures = measure(args.seconds, args.port)
    print(figures, flush=True)
    out = Path(__file__).parent / "results" / "viewer.json"
    out.write_text(json.dumps({**figures, "threads": n_threads, "environment": environment("cpu")}, indent=1) + "\n")


if __name__ == "__main__":
    main()
