"""A client of viser without a browser: it says where it looks, and takes what it is sent."""

from __future__ import annotations

import socket
import struct
import threading
from typing import Any

import numpy as np


class Client:
    """Connected to a page on a port of this machine, until it leaves or is killed."""

    def __init__(self, port: int, size: tuple[int, int] = (64, 48)) -> None:
        import msgspec
        import viser
        import websockets.sync.client

        self._encode, self.size, self.n_bytes = msgspec.msgpack.encode, size, 0
        protocol: Any = f"viser-v{viser.__version__}"
        self._socket = websockets.sync.client.connect(
            f"ws://127.0.0.1:{port}", subprotocols=[protocol], max_size=None, compression=None
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            for message in self._socket:
                self.n_bytes += len(message)
        except Exception:  # it was killed
            pass

    def look(self, position: tuple[float, float, float], fov: float = 0.7) -> None:
        """From a place, along z, with y down."""
        width, height = self.size
        message = {
            "type": "ViewerCameraMessage", "wxyz": (1.0, 0.0, 0.0, 0.0), "position": position, "fov": fov, "near": 0.01,
            "far": 100.0, "image_height": height, "image_width": width, "look_at": tuple(np.add(position, (0, 0, 1.0))),
            "up_direction": (0.0, -1.0, 0.0),
        }  # fmt: skip
        self._socket.send(self._encode({**message, "look_at": [float(x) for x in message["look_at"]]}))

    def leave(self) -> None:
        self._socket.close()

    def kill(self) -> None:
        """Is gone without a word, as a process that was killed: the system resets its connection."""
        raw = self._socket.socket
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.shutdown(socket.SHUT_RD)
        raw.close()
