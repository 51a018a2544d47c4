"""A page while something is trained, and without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hashgrid.viewer import subject_of
from hashgrid.viewer.page import HOST, PORT, Page

if TYPE_CHECKING:
    from hashgrid.train.loop import Trainer
    from hashgrid.train.task import Progress

EVERY = 2.0  # seconds between two looks at the figures


class LiveView:
    """Told after every step, as reporters are; draws then, on the thread that trains, and waits there while training is
    paused. What it takes does not count as time of the run, and no step depends on it.

    Args:
        trainer: what trains.
        out: folder of the results.
        host, port: where the page is served.

    Raises:
        ValueError: there is nothing to be seen of the task.
    """

    def __init__(self, trainer: Trainer, out: Path, host: str = HOST, port: int = PORT) -> None:
        self.trainer, task = trainer, trainer.task
        self.page = Page(subject_of(task), host, port, out, f"hashgrid {task.name}", training=True)
        self._told = -EVERY
        print(greeting(self.page, host), flush=True)

    def step(self, progress: Progress) -> None:
        page = self.page
        page.painter.version += 1
        if page.painter.clock() - self._told >= EVERY and page.painter.seats:
            self._tell(progress)
        if page.paused or page.painter.next_picture(training=True) is not None:
            with self.trainer.pause():
                self._paint()
                if page.paused:
                    self._tell(progress)
                while page.paused and page.steps == 0:
                    page.wake.clear()
                    if not self._paint():
                        page.wake.wait(page.painter.patience())
                page.steps = max(0, page.steps - 1)

    def _paint(self) -> bool:
        painter, averages = self.page.painter, self.trainer.task.ema_decay is not None
        training = not self.page.paused
        if not averages or painter.next_picture(training) is None:
            return painter.paint(training)
        with self.trainer.optimizer.swap_ema():  # what the evaluation will show
            return painter.paint(training)

    def _tell(self, progress: Progress) -> None:
        self._told = self.page.painter.clock()
        state = "paused" if self.page.paused else f"{progress.seconds_left:.0f} s left"
        self.page.say(f"step {progress.step}: {self.trainer.task.headline(progress)}, {state}")
        self.page.plot(self.trainer.curve)

    def close(self) -> None:
        self.page.say("training is over; `hashgrid view` shows what it has left")
        self.page.close()


def serve(page: Page, host: str, said: str, curve: Sequence[dict[str, float]] = ()) -> None:
    """Draws for all who look at a page, until Ctrl-C."""
    print(greeting(page, host), flush=True)
    page.say(said)
    page.plot(curve)
    try:
        while True:
            page.wake.clear()
            if not page.painter.paint():
                page.wake.wait(page.painter.patience())
    except KeyboardInterrupt:
        pass
    finally:
        page.close()


def greeting(page: Page, host: str) -> str:
    """Where the page is, and who else sees it."""
    others = "" if host in (HOST, "localhost", "::1") else "; whoever reaches this machine can look and pause"
    return f"page at {page.address}{others}"
