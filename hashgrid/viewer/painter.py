"""Who gets a picture when, and how large: coarse ones while a camera moves, finer ones when it rests."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.loaders.poses import of_quaternion
from hashgrid.util.files import to_uint8
from hashgrid.viewer.subject import Drawn, Subject, camera_at, draw_in_parts

MOVING = 0.15  # seconds of a picture while the camera moves,
RESTING = 0.3  # and of one during training while it rests
REST = 0.12  # seconds after which a camera rests
FINER = 4.0  # times as many pixels in each picture of one that rests
PART = 0.1  # seconds between two looks at whether a picture is still wanted
FIRST_RATE = 2e4  # pixels per second, before any is drawn
PATIENCE = 0.5  # seconds to wait for something to do, at most: so that Ctrl-C is heard
LEAST = 32  # pixels of the shorter side
MAX_SIDE = 2048  # pixels of the longer side
DEPTH_SIDE = 200  # pixels of the longer side of depths, which only hide cameras behind surfaces


@dataclass
class Look:
    """From where a client looks: a pose [3, 4], an angle over the height in radians, width and height of its window."""

    c2w: Tensor
    fov: float
    size: tuple[int, int]

    def is_like(self, other: Look | None) -> bool:
        return (
            other is not None
            and self.size == other.size
            and abs(self.fov - other.fov) < 1e-6
            and bool((self.c2w - other.c2w).abs().max() < 1e-6)
        )


@dataclass
class Seat:
    """One client.

    Attributes:
        show: takes its pictures: colours [h, w, 3] uint8, depths [h', w'], and whether it is the final one.
        look: where it looks from; None until it says.
        moved: when that, or what is shown, changed last.
        drawn: ``moved`` of the last picture, which had so many ``pixels``, and was of weights number ``version``.
        next: when it may be drawn again with other weights.
    """

    show: Callable[[np.ndarray, np.ndarray, bool], None]
    look: Look | None = None
    moved: float = 0.0
    drawn: float = -1.0
    pixels: int = 0
    version: int = -1
    next: float = 0.0
    gone: bool = False


@dataclass
class Painter:
    """Draws a subject for all who look at it, one picture per call, on the thread that calls.

    Attributes:
        subject: what is drawn.
        mode, crop, moment: how: see :meth:`Subject.draw`; the time of what moves.
        share: of the time of a training run, for pictures that nobody moved the camera for.
        version: of the weights; whoever changes them counts on.
        clock: seconds.
    """

    subject: Subject
    mode: str = ""
    crop: Tensor | None = None
    moment: float | None = None
    share: float = 0.03
    version: int = 0
    clock: Callable[[], float] = time.perf_counter
    seats: dict[int, Seat] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)  # pixels per second of each mode

    def __post_init__(self) -> None:
        self.mode = self.mode or next(iter(self.subject.modes), "")
        self.moment = self.subject.times[0] if self.subject.times else None

    def look(self, seat: Seat, look: Look) -> bool:
        """Takes notice of where a client looks from; whether that is somewhere else."""
        if look.is_like(seat.look):
            return False
        seat.look, seat.moved = look, self.clock()
        return True

    def change(self, **settings: object) -> None:
        """Takes other settings: everybody gets another picture."""
        vars(self).update(settings)
        for seat in list(self.seats.values()):
            seat.moved = self.clock()

    def next_picture(self, training: bool) -> tuple[Seat, int, bool] | None:
        """Whose turn it is, with how many pixels, and whether the picture may be given up; None if nobody's is."""
        if not self.subject.modes:
            return None
        now, rate = self.clock(), self.rates.get(self.mode, FIRST_RATE)
        waiting = sorted((seat for seat in list(self.seats.values()) if seat.look is not None), key=lambda s: s.next)
        for seat in waiting:
            if seat.moved != seat.drawn:
                return seat, min(full(seat), int(rate * MOVING)), False
        for seat in waiting:
            stale = seat.version != self.version
            if training:
                if stale and now >= seat.next:
                    return seat, min(full(seat), int(rate * RESTING)), False
            elif stale or seat.pixels < full(seat):
                if now >= seat.moved + REST:
                    return seat, min(full(seat), int(FINER * max(seat.pixels, 1))), True
        return None

    def patience(self) -> float:
        """Seconds to wait for a client to do something, where nothing is to be drawn now."""
        coming = any(seat.look is not None and seat.pixels < full(seat) for seat in list(self.seats.values()))
        return REST / 2 if coming and self.subject.modes else PATIENCE

    def paint(self, training: bool = False) -> bool:
        """Draws the next picture, if any; returns whether there was one."""
        turn = self.next_picture(training)
        if turn is None:
            return False
        seat, pixels, optional = turn
        moved, look, mode, begin = seat.moved, seat.look, self.mode, self.clock()
        assert look is not None
        size = fitted(look.size, pixels)
        rows = max(4, int(self.rates.get(mode, FIRST_RATE) * PART / size[0]))
        camera = camera_at(look.c2w, look.fov, size, self.moment)
        version = self.version

        def wanted() -> bool:
            return not seat.gone and (not optional or seat.moved == moved)

        drawn = draw_in_parts(self.subject, camera, mode, self.crop, rows, wanted)
        if drawn is not None:
            self.rates[mode] = size[0] * size[1] / max(self.clock() - begin, 1e-4)
            seat.drawn, seat.pixels, seat.version = moved, size[0] * size[1], version
            seat.show(to_uint8(drawn.color), small_depths(drawn), seat.pixels >= full(seat))
            now = self.clock()
            seat.next = now + (now - begin) * max(1, len(self.seats)) / self.share
        return True


def full(seat: Seat) -> int:
    """Pixels of the sharpest picture of a client."""
    assert seat.look is not None
    width, height = fitted(seat.look.size, MAX_SIDE**2)
    return width * height


def fitted(window: tuple[int, int], pixels: int) -> tuple[int, int]:
    """Width and height of a picture in the proportions of a window, no larger, of about so many pixels.

    >>> fitted((800, 600), 480_000), fitted((800, 600), 4800), fitted((4096, 2048), 1 << 30)
    ((800, 600), (80, 60), (2048, 1024))
    """
    factor = max((pixels / (window[0] * window[1])) ** 0.5, LEAST / min(window))
    factor = min(1.0, factor, MAX_SIDE / max(window))
    return max(1, round(window[0] * factor)), max(1, round(window[1] * factor))


def small_depths(drawn: Drawn) -> np.ndarray:
    """Every so many-th depth."""
    step = -(-max(drawn.depth.shape) // DEPTH_SIDE)
    small: np.ndarray = drawn.depth[::step, ::step].numpy()
    return small


def pose_of(wxyz: np.ndarray, position: np.ndarray) -> Tensor:
    """A pose [3, 4] of our cameras, y up and looking along -z, of one with y down that looks along z."""
    rotation = torch.from_numpy(of_quaternion(wxyz.tolist(), "a client's camera")) * torch.tensor([1.0, -1.0, -1.0])
    return torch.cat((rotation, torch.from_numpy(position)[:, None]), dim=1).float()
