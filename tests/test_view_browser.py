"""The page of `hashgrid view` in a headless Chromium: what a person sees and clicks."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems.browser import Browser, Tab, wait_for
from problems.nerf import OPTIONS, nerf_trainer

from hashgrid.util.files import to_uint8
from hashgrid.viewer import subject_of
from hashgrid.viewer.page import Page
from hashgrid.viewer.subject import camera_at

pytest.importorskip("viser")
pytestmark = pytest.mark.full

ALIKE = 0.03  # share of pixels that may differ: edges, where few pixels are stretched to many
SIZE, WATCHED = (720, 480), 380  # pixels of the window, and of what is looked at left of the panel


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"), SIZE)
    yield browser
    browser.close()


class Served:
    """A page, and the thread that draws for it."""

    def __init__(self, page: Page) -> None:
        self.page, self.error = page, None
        self._going = True
        self._thread = threading.Thread(target=self._draw)
        self._thread.start()

    def _draw(self) -> None:
        try:
            while self._going:
                if not self.page.painter.paint():
                    self.page.wake.wait(0.05)
        except Exception as error:
            self.error = error

    def rests(self, n_clients: int = 1) -> bool:
        """Whether so many clients have the sharpest picture."""
        assert self.error is None
        painter = self.page.painter
        seats = [seat for seat in list(painter.seats.values()) if seat.look is not None]
        return len(seats) == n_clients and all(seat.drawn == seat.moved for seat in seats) and (
            painter.next_picture(False) is None and painter.patience() > 0.1
        )  # fmt: skip

    def close(self) -> None:
        self._going = False
        self._thread.join()
        self.page.close()


@pytest.fixture(scope="module")
def served(scene: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    trainer = nerf_trainer(scene, steps=120)
    trainer.train()
    folder = tmp_path_factory.mktemp("run")
    served = Served(Page(subject_of(trainer.task), "127.0.0.1", free_port(), folder, "a scene"))
    yield served
    served.close()


@pytest.fixture(scope="module")
def tab(browser: Browser, served: Served) -> Iterator[Tab]:
    """A page at rest, without cameras."""
    tab = browser.open(served.page.address)
    wait_for(lambda: served.rests(), 120)
    assert tab.value("document.title") == "Viser" and "a scene" in tab.value("document.body.innerText")
    tab.value("document.querySelector('[class*=Notification] button')?.click()")  # of how slow it is
    tab.click_input("cameras")
    yield tab
    browser.shut(tab)
    wait_for(lambda: not served.page.painter.seats)


def on_screen(tab: Tab) -> np.ndarray:
    """What is left of the panel, once it no longer changes."""
    before = tab.picture()
    for _ in range(20):
        time.sleep(0.7)
        now = tab.picture()
        if np.array_equal(before, now):
            break
        before = now
    return before[:, :WATCHED].astype(int)


def expected(served: Served) -> np.ndarray:
    """What that should be, with the only client there is. A slow one draws fewer pixels, and stretches them."""
    painter = served.page.painter
    (look,) = (seat.look for seat in painter.seats.values())
    assert look is not None
    camera = camera_at(look.c2w, look.fov, SIZE)
    return to_uint8(painter.subject.draw(camera, painter.mode, painter.crop).color)[:, :WATCHED].astype(int)


def differ(a: np.ndarray, b: np.ndarray) -> float:
    """Share of pixels that differ visibly."""
    return float((np.abs(a - b).max(-1) > 24).mean())


def test_the_picture_follows_the_camera(tab: Tab, served: Served) -> None:
    first = on_screen(tab)
    assert first.std() > 10 and differ(first, expected(served)) < ALIKE
    tab.drag((150, 300), (260, 330))
    time.sleep(0.5)
    wait_for(lambda: served.rests(), 120)
    second = on_screen(tab)
    assert differ(first, second) > 0.05 and differ(second, expected(served)) < ALIKE


def test_the_crop_box_removes_content(tab: Tab, served: Served) -> None:
    """What is above a height goes, and comes again."""
    whole = on_screen(tab)
    tab.type_into("high", "1.5", "1.5", "-1.2")
    tab.click_input("only inside of a box")
    wait_for(lambda: served.page.painter.crop is not None)
    assert served.page.painter.crop.tolist() == pytest.approx([-1.5, -1.5, -1.5, 1.5, 1.5, -1.2])
    wait_for(lambda: served.rests(), 120)
    gone = (whole.min(-1) < 200) & (expected(served).min(-1) > 250)
    assert gone.mean() > 0.01 and (on_screen(tab)[gone].min(-1) > 200).mean() > 0.85  # but for the frame
    tab.click_input("only inside of a box")
    wait_for(lambda: served.page.painter.crop is None and served.rests(), 120)
    assert differ(on_screen(tab), whole) < ALIKE


def test_two_tabs_a_closed_one_and_a_killed_browser(tab: Tab, browser: Browser, served: Served, tmp_path: Path) -> None:
    """None disturbs the others."""
    seats = served.page.painter.seats
    (first,) = seats
    second = browser.open(served.page.address)
    other = Browser(tmp_path, SIZE)
    third = other.open(served.page.address)
    wait_for(lambda: served.rests(3), 180)
    before = {key: seat.look for key, seat in seats.items()}
    second.drag((150, 300), (200, 320))
    time.sleep(0.5)
    wait_for(lambda: served.rests(3), 120)
    moved = [key for key, look in before.items() if look is None or not look.is_like(seats[key].look)]
    assert len(moved) == 1 and first not in moved and third.value("document.title") == "Viser"
    browser.shut(second)
    wait_for(lambda: len(seats) == 2)
    other.kill()
    wait_for(lambda: list(seats) == [first])
    still = on_screen(tab)
    tab.drag((150, 300), (200, 300))
    time.sleep(0.5)
    wait_for(lambda: served.rests(), 120)
    assert differ(still, on_screen(tab)) > 0.02 and served.error is None


def test_training_goes_on_without_its_client(scene_path: Path, tmp_path: Path) -> None:
    """Paused, advanced by one step, and then the browser is killed: the run ends as any other."""
    port, out = free_port(), tmp_path / "run"
    words = ["nerf", str(scene_path), "--steps", "400", "--no-video", "--views", "1", *OPTIONS]
    words += ["--out", str(out), "--view", "--port", str(port)]
    log = open(tmp_path / "log", "w+")  # noqa: SIM115
    process = subprocess.Popen([sys.executable, "-m", "hashgrid", *words], stdout=log, stderr=subprocess.STDOUT)

    def step() -> int:
        found = re.findall(r"step (\d+): .* paused", browser_tab.value("document.body.innerText") or "")
        return int(found[0]) if found else 0

    try:
        wait_for(lambda: "page at" in Path(log.name).read_text(), 120)
        browser = Browser(tmp_path / "profile", SIZE)
        browser_tab = browser.open(f"http://127.0.0.1:{port}")
        browser_tab.click("pause")
        paused = wait_for(step)
        time.sleep(1)
        assert step() == paused and process.poll() is None
        browser_tab.click("one step")
        wait_for(lambda: step() == paused + 1)
        browser_tab.click("go on")
        browser.kill()
        assert process.wait(120) == 0
        assert json.loads((out / "results.json").read_text())["train"]["steps"] == 400
    finally:
        process.kill()
        process.wait()
        log.close()
