"""New samples from a process of its own, at a bounded share of the CPU.

A process, because libigl keeps Python's lock while it measures distances; a plain command with pipes, because
``multiprocessing`` would import the user's script once more.
"""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from typing import IO

import numpy as np

from hashgrid.data.distances import DistanceRecipe, make_chunk
from hashgrid.data.mesh import Mesh
from hashgrid.geometry.boxes import Placement


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
        # one chunk waits here, one in the pipe: a trainer that reads slowly stops the process
        self._chunks: queue.Queue[tuple[np.ndarray, np.ndarray]] = queue.Queue(maxsize=1)
        message = pickle.dumps((mesh.vertices, mesh.faces, recipe, seed, first, size, n_urgent))
        threading.Thread(target=self._talk, args=(message,), daemon=True).start()

    def _talk(self, message: bytes) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(message)
            self._process.stdin.flush()
            while True:
                self._chunks.put(pickle.load(self._process.stdout))
        except (OSError, ValueError, EOFError, pickle.UnpicklingError):  # closed while reading or writing
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
    """Reads what :class:`Refresh` was given from ``source`` and writes chunks to ``sink`` until nobody reads them."""
    vertices, faces, recipe, seed, first, size, n_urgent = pickle.load(source)
    mesh = Mesh(vertices, faces, Placement(), watertight=True, name="")
    index = first
    while True:
        if index == first + n_urgent and hasattr(os, "nice"):
            os.nice(19)  # training waits at barriers for each of its threads
        begin = time.process_time()
        chunk = make_chunk(mesh, recipe, size, index, seed)
        used = time.process_time() - begin
        pickle.dump(chunk, sink, protocol=5)
        sink.flush()
        if index >= first + n_urgent:
            time.sleep(used * (1 / recipe.refresh_share - 1))
        index += 1


if __name__ == "__main__":
    try:
        serve(sys.stdin.buffer, sys.stdout.buffer)
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(0)  # without the interpreter's flush of a closed pipe
