"""New samples from a process of its own, at a bounded share of the CPU.

A process, because libigl keeps Python's lock while it measures distances; a plain command with pipes, because
``multiprocessing`` would import the user's script once more.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import subprocess
import sys
import threading
import time
from typing import IO, TYPE_CHECKING

import numpy as np

from hashgrid.data.mesh import Mesh
from hashgrid.geometry.boxes import Placement

if TYPE_CHECKING:
    from hashgrid.data.distances import DistanceRecipe


class Refresh:
    """Chunks of samples made in the background.

    Args:
        mesh: where they lie.
        recipe: which they are; ``recipe.refresh_share`` of one CPU core is used at most.
        seed: of everything random.
        first: index of the first chunk.
        size: samples per chunk.
        n_urgent: chunks that are made as fast as possible, before the share is bounded.
    """

    def __init__(self, mesh: Mesh, recipe: DistanceRecipe, seed: int, first: int, size: int, n_urgent: int = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._size = size
        # one chunk waits here, one in the pipe: a trainer that reads slowly stops the process
        self._chunks: queue.Queue[tuple[np.ndarray, np.ndarray]] = queue.Queue(maxsize=1)
        header = {"recipe": dataclasses.asdict(recipe), "seed": seed, "first": first, "size": size}
        header |= {"n_urgent": n_urgent, "n_vertices": len(mesh.vertices)}
        message = json.dumps(header).encode() + b"\n" + mesh.vertices.tobytes() + mesh.faces.tobytes()
        threading.Thread(target=self._talk, args=(message,), daemon=True).start()

    def _talk(self, message: bytes) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(len(message).to_bytes(8, "little") + message)
            self._process.stdin.flush()
            while data := self._process.stdout.read(self._size * 16):
                if len(data) == self._size * 16:
                    values = np.frombuffer(bytearray(data), np.float32)
                    self._chunks.put((values[: 3 * self._size].reshape(-1, 3), values[3 * self._size :]))
        except (OSError, ValueError):  # closed while reading or writing
            return

    def poll(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Points [size, 3] and distances [size], or None where none are ready. Never waits.

        Raises:
            RuntimeError: the process died.
        """
        try:
            return self._chunks.get_nowait()
        except queue.Empty:
            status = self._process.poll()
            if status is not None:
                raise RuntimeError(
                    f"the process that makes samples ended with status {status}; train without it: `refresh_share=0`"
                ) from None
            return None

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()


def serve(source: IO[bytes], sink: IO[bytes]) -> None:
    """Reads a mesh and a recipe from ``source`` and writes chunks to ``sink`` until nobody reads them."""
    message = source.read(int.from_bytes(source.read(8), "little"))
    header_text, _, arrays = message.partition(b"\n")
    header = json.loads(header_text)
    split = header["n_vertices"] * 24
    mesh = Mesh(
        np.frombuffer(arrays[:split], np.float64).reshape(-1, 3),
        np.frombuffer(arrays[split:], np.int64).reshape(-1, 3),
        Placement(),
        watertight=True,
        name="",
    )
    from hashgrid.data.distances import DistanceRecipe, make_chunk

    recipe = DistanceRecipe(**header["recipe"])
    index, end_of_urgent = header["first"], header["first"] + header["n_urgent"]
    while True:
        urgent = index < end_of_urgent
        if index == end_of_urgent and hasattr(os, "nice"):
            os.nice(19)  # training waits at barriers for each of its threads
        begin = time.process_time()
        points, distances = make_chunk(mesh, recipe, header["size"], index, header["seed"])
        used = time.process_time() - begin
        sink.write(points.tobytes() + distances.tobytes())
        sink.flush()
        index += 1
        if not urgent:
            time.sleep(used * (1 / recipe.refresh_share - 1))


def _main() -> None:
    try:
        serve(sys.stdin.buffer, sys.stdout.buffer)
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(0)  # without the interpreter's flush of a closed pipe


if __name__ == "__main__":
    _main()
