"""A headless Chromium, driven by the DevTools protocol."""

from __future__ import annotations

import base64
import io
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--mute-audio",
    "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--remote-debugging-port=0",
)  # fmt: skip


def wait_for(condition: Callable[[], Any], seconds: float = 60.0, every: float = 0.2) -> Any:
    """What a condition says once it says something; an error when it does not in time."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"nothing within {seconds} s"
        time.sleep(every)
    return found


class Tab:
    """A page, driven over a websocket of its own."""

    def __init__(self, address: str, name: str) -> None:
        self.name = name
        self._socket = pytest.importorskip("websockets.sync.client").connect(address, max_size=None)
        self._number = itertools.count(1)

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to one command."""
        number = next(self._number)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv(timeout=120))
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def value(self, expression: str) -> Any:
        """What a line of JavaScript says."""
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def picture(self) -> np.ndarray:
        """What is on the screen [h, w, 3] uint8."""
        data = self.ask("Page.captureScreenshot", format="png")["data"]
        pixels: np.ndarray = pytest.importorskip("imageio.v3").imread(io.BytesIO(base64.b64decode(data)))
        return pixels[..., :3]

    def _inputs(self, label: str) -> str:
        """JavaScript: the inputs beside a label."""
        return f"""(() => {{
            let node = [...document.querySelectorAll('*')].find(
                x => [...x.childNodes].some(y => y.nodeType === 3 && y.data.trim() === {json.dumps(label)}));
            while (node && !node.querySelector('input')) node = node.parentElement;
            return node ? [...node.querySelectorAll('input')] : [];
        }})()"""

    def type_into(self, label: str, *texts: str) -> None:
        """Replaces what stands in the inputs beside a label."""
        for i, text in enumerate(texts):
            self.value(f"{{const x = {self._inputs(label)}[{i}]; x.focus(); x.select()}}")
            self.ask("Input.insertText", text=text)
            self.value("document.activeElement.blur()")

    def click_input(self, label: str) -> None:
        """Clicks the input beside a label."""
        wait_for(lambda: self.value(f"{self._inputs(label)}.length"))
        self.value(f"{self._inputs(label)}[0].click()")

    def click(self, text: str) -> None:
        """Clicks the button of a text."""
        found = f"[...document.querySelectorAll('button')].find(x => x.innerText.trim() === {json.dumps(text)})"
        wait_for(lambda: self.value(f"!!{found}"))
        self.value(f"{found}.click()")

    def drag(self, start: tuple[int, int], end: tuple[int, int], button: str = "left") -> None:
        """Moves the mouse from one place to another with a button down."""
        mouse = {"button": button, "buttons": 1 if button == "left" else 2, "clickCount": 1}
        self.ask("Input.dispatchMouseEvent", type="mousePressed", x=start[0], y=start[1], **mouse)
        for i in range(1, 9):
            x, y = (a + (b - a) * i / 8 for a, b in zip(start, end, strict=True))
            self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, **mouse)
        self.ask("Input.dispatchMouseEvent", type="mouseReleased", x=end[0], y=end[1], **mouse)


class Browser:
    """A browser with a profile of its own, until it is closed or killed."""

    def __init__(self, folder: Path, size: tuple[int, int] = (640, 480)) -> None:
        self.size = size
        program = next(filter(None, map(shutil.which, NAMES)), None)
        if program is None:
            pytest.skip("no Chromium")
        window = f"--window-size={size[0]},{size[1]}"
        command = [program, *FLAGS, window, f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file = folder / "DevToolsActivePort"
        text = wait_for(lambda: port_file.is_file() and port_file.read_text())
        self._base = f"http://127.0.0.1:{text.split()[0]}"

    def _get(self, path: str, method: str = "GET") -> Any:
        with urllib.request.urlopen(urllib.request.Request(self._base + path, method=method), timeout=60) as reply:
            return reply.read()

    def open(self, address: str) -> Tab:
        """A new tab, of the window's size: what bars of the browser come and go takes nothing from it."""
        target = json.loads(self._get("/json/new?about:blank", "PUT"))
        tab = Tab(target["webSocketDebuggerUrl"], target["id"])
        width, height = self.size
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        tab.ask("Emulation.setDeviceMetricsOverride", **sizes)
        tab.ask("Page.navigate", url=address)
        return tab

    def shut(self, tab: Tab) -> None:
        """Closes a tab."""
        self._get(f"/json/close/{tab.name}")

    def kill(self) -> None:
        """Ends it at once, as a crash does."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
