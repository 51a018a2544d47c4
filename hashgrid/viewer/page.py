"""The page, by viser: cameras, what a painter draws of the subject, a panel of settings."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from hashgrid.data.camera_paths import CameraPath, between, quaternion, write_camera_path
from hashgrid.data.scene import Views
from hashgrid.geometry.cameras import Cameras
from hashgrid.geometry.lenses import KINDS
from hashgrid.util.files import to_uint8
from hashgrid.util.optional import optional_import
from hashgrid.util.pictures import blend
from hashgrid.viewer.painter import Look, Painter, Seat, pose_of
from hashgrid.viewer.subject import Subject, camera_at

HOST, PORT = "127.0.0.1", 8080
MOST_VIEWS = 150  # cameras of a group that are shown, at most, evenly spread
THUMBNAIL = 96  # pixels of the longer side of their images
MOST_POINTS = 200_000
CURVE_POINTS = 400
WIDEST, NARROWEST = 1.6, 0.1  # radians over the height of a camera that is shown
COLORS = {"train": (60, 90, 200), "test": (210, 90, 40)}


class Page:
    """Serves the page of a subject until it is closed. Whoever owns it calls ``painter.paint`` in a loop, and may wait
    for ``wake`` between two calls.

    Args:
        subject: what is shown.
        host, port: where it is served.
        folder: where camera paths are written.
        title: of the panel.
        training: whether there is something to pause.

    Raises:
        ImportError: viser is not installed.
        OSError: the port is taken, or the host is not one of this machine.
    """

    def __init__(
        self, subject: Subject, host: str, port: int, folder: Path, title: str, training: bool = False
    ) -> None:
        viser = optional_import("viser")
        check_free(host, port)
        self.subject, self.painter, self.folder = subject, Painter(subject), folder
        self.wake, self.paused, self.steps = threading.Event(), False, 0  # steps to be taken though it is paused
        self._keys: list[Cameras] = []
        logging.getLogger("websockets").setLevel(logging.CRITICAL)  # it tells of every client that was cut off
        with contextlib.redirect_stdout(io.StringIO()):  # its own box of addresses
            self.server = viser.ViserServer(host=host, port=port, label=title, verbose=False)
        if self.server.get_port() != port:  # it takes another one without a word
            self.server.stop()
            raise OSError(f"`port` must be free, {port} was taken meanwhile; choose another one")
        self.address = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
        self.server.gui.configure_theme(show_logo=False, show_share_button=False)
        self._show_scene()
        self._status = self.server.gui.add_markdown("", order=0)
        if training:
            self._add_training()
        self._curve: Any = None
        if subject.modes:
            self._add_picture()
            self._add_crop()
        if subject.has_paths:
            self._add_path()
        self.server.on_client_connect(self._welcome)
        self.server.on_client_disconnect(self._dismiss)

    def close(self) -> None:
        """Ends the page for everybody."""
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.stop()

    def say(self, text: str) -> None:
        """Shows a line above everything else."""
        if self._status.content != text:
            self._status.content = text

    def plot(self, curve: Sequence[dict[str, float]]) -> None:
        """Shows the PSNR of training batches over seconds, or their loss where that is no mean squared error."""
        some = list(curve)[:: max(1, -(-len(curve) // CURVE_POINTS))]
        if len(some) < 2:
            return
        name, of = ("PSNR [dB]", "mse") if "mse" in some[0] else ("log10 of the loss", "loss")
        factor = -10.0 if of == "mse" else 1.0
        x = np.array([point["seconds"] for point in some])
        y = np.array([factor * math.log10(max(point[of], 1e-10)) for point in some])
        if self._curve is not None:
            self._curve.data = (x, y)
            return
        series = ({"label": "seconds"}, {"label": name, "stroke": "#4c78a8", "width": 2})
        scales = {"x": {"time": False, "auto": True}, "y": {"auto": True}}
        self._curve = self.server.gui.add_uplot((x, y), series, scales=scales, title=name, aspect=1.8, order=0.5)

    # Clients, called by viser's threads ------------------------------------------------------------------------------

    async def _welcome(self, client: Any) -> None:
        def show(color: np.ndarray, depth: np.ndarray, final: bool) -> None:
            quality = 92 if final else 75
            client.scene.set_background_image(color, format="jpeg", jpeg_quality=quality, depth=depth)

        seat = Seat(show)
        self.painter.seats[client.client_id] = seat

        async def moved(camera: Any) -> None:
            size = camera.image_width, camera.image_height
            if min(size) > 0 and self.painter.look(seat, Look(pose_of(camera.wxyz, camera.position), camera.fov, size)):
                self.wake.set()

        client.camera.on_update(moved)
        await moved(client.camera)

    async def _dismiss(self, client: Any) -> None:
        seat = self.painter.seats.pop(client.client_id, None)
        if seat is not None:
            seat.gone = True

    def _change(self, **settings: object) -> None:
        self.painter.change(**settings)
        self.wake.set()

    # What is in the space ---------------------------------------------------------------------------------------------

    def _show_scene(self) -> None:
        subject, server = self.subject, self.server
        up = tuple(subject.up.tolist())
        server.scene.set_up_direction(up)
        server.initial_camera.position = tuple(subject.start.tolist())
        server.initial_camera.look_at = tuple(subject.target.tolist())
        server.initial_camera.up = up
        server.initial_camera.fov = min(max(subject.fov, NARROWEST), WIDEST)
        self._frames: list[Any] = []
        scale = 0.08 * float((subject.box[3:] - subject.box[:3]).max()) / 2
        for name, views in subject.views.items():
            for view in spread(len(views), MOST_VIEWS):
                self._frames.append(
                    self._add_frustum(f"/{name}/{view}", views, view, scale, COLORS.get(name, (80,) * 3))
                )
        if subject.points is not None and len(subject.points):
            points = subject.points[spread(len(subject.points), MOST_POINTS)].float().numpy()
            server.scene.add_point_cloud("/points", points, (70, 70, 70), point_size=0.05 * scale, precision="float32")
        if self._frames:
            switch = server.gui.add_checkbox("cameras", True, hint="Click one to look from there.", order=0.7)
            switch.on_update(lambda event: self._show_frames(event.target.value))
            self._switch = switch

    def _show_frames(self, visible: bool) -> None:
        for frame in self._frames:
            frame.visible = visible

    def _add_frustum(self, name: str, views: Cameras, view: int, scale: float, color: tuple[int, ...]) -> Any:
        width, height = views.size(view)
        is_flat = KINDS[int(views.lens[view])] == "perspective"
        fov = 2 * math.atan(0.5 * height / float(views.intrinsics[view, 1])) if is_flat else 1.0
        image = thumbnail(views, view, self.subject.background) if isinstance(views, Views) else None
        wxyz, position = opencv_pose(views.c2w[view])
        frame = self.server.scene.add_camera_frustum(
            name, fov=min(max(fov, NARROWEST), WIDEST), aspect=width / height, scale=scale, thickness=0.03 * scale,
            color=color, image=image, format="jpeg", wxyz=wxyz, position=position, cast_shadow=False,
        )  # fmt: skip

        async def look_from_there(event: Any) -> None:
            self._switch.value = False  # else its own image is before the eye
            self._show_frames(False)
            with event.client.atomic():
                event.client.camera.position, event.client.camera.wxyz = position, wxyz
                event.client.camera.fov = frame.fov

        if name.startswith(("/train", "/test")):
            frame.on_click(look_from_there)
        return frame

    # The panel --------------------------------------------------------------------------------------------------------

    def _add_training(self) -> None:
        with self.server.gui.add_folder("Training", order=1):
            pause = self.server.gui.add_button("pause")
            step = self.server.gui.add_button("one step", disabled=True)
            share = self.server.gui.add_slider(
                "time for pictures [%]", 1, 50, 1, round(100 * self.painter.share),
                hint="Of training, while the camera rests. While it moves it gets what it needs; a pause, sharp ones.",
            )  # fmt: skip

        def switch(_: object) -> None:
            self.paused = not self.paused
            pause.label, step.disabled = ("go on" if self.paused else "pause"), not self.paused
            self.wake.set()

        def advance(_: object) -> None:
            self.steps += 1
            self.wake.set()

        pause.on_click(switch)
        step.on_click(advance)
        share.on_update(lambda event: self._change(share=event.target.value / 100))

    def _add_picture(self) -> None:
        subject = self.subject
        with self.server.gui.add_folder("Picture", order=2):
            mode = self.server.gui.add_dropdown("shows", tuple(subject.modes), initial_value=subject.modes[0])
            mode.on_update(lambda event: self._change(mode=event.target.value))
            if subject.times is not None:
                low, high = subject.times
                moment = self.server.gui.add_slider("time", low, high, (high - low) / 200 or 1.0, low)
                moment.on_update(lambda event: self._change(moment=event.target.value))

    def _add_crop(self) -> None:
        gui, placement = self.server.gui, self.subject.placement
        corners = self.subject.box.split(3)
        step = float((corners[1] - corners[0]).max()) * placement.unit / 100
        with gui.add_folder("Crop", order=3):
            switch = gui.add_checkbox("only inside of a box", False)
            numbers = [
                gui.add_vector3(name, tuple(placement.to_file(corner).tolist()), step=step)
                for name, corner in zip(("low", "high"), corners, strict=True)
            ]
        handles = [
            self.server.scene.add_transform_controls(
                f"/crop/{name}", scale=0.3, disable_rotations=True, visible=False, position=tuple(corner.tolist())
            )
            for name, corner in zip(("low", "high"), corners, strict=True)
        ]
        frame = self.server.scene.add_line_segments(
            "/crop/box", edges(self.subject.box), (200, 60, 60), thickness=1.5, thickness_units="screen", visible=False
        )

        def crop() -> Tensor:
            ends = torch.stack([placement.from_file(torch.tensor(vector.value)) for vector in numbers])
            return torch.cat((ends.amin(0), ends.amax(0))).float()

        def take(_: object = None) -> None:
            box = crop()
            for node in (*handles, frame):
                node.visible = switch.value
            for handle, vector in zip(handles, numbers, strict=True):
                place = placement.from_file(torch.tensor(vector.value)).numpy()
                if np.abs(handle.position - place).max() > 1e-6:
                    handle.position = place
            frame.points = edges(box)
            self._change(crop=box if switch.value else None)

        def drag(handle: Any, vector: Any) -> Callable[[object], None]:
            def follow(_: object) -> None:
                vector.value = tuple(placement.to_file(torch.from_numpy(handle.position)).tolist())
                take()

            return follow

        for control in (switch, *numbers):
            control.on_update(take)
        for handle, vector in zip(handles, numbers, strict=True):
            handle.on_update(drag(handle, vector))

    def _add_path(self) -> None:
        gui = self.server.gui
        with gui.add_folder("Camera path", order=4, expand_by_default=False):
            add, drop = gui.add_button("add this view"), gui.add_button("remove the last")
            seconds = gui.add_number("seconds", 4.0, min=0.1, step=0.5)
            fps = gui.add_number("frames per second", 30, min=1, step=1)
            write = gui.add_button("write", disabled=True)
            said = gui.add_markdown("Two views at least.")

        def tell(text: str) -> None:
            write.disabled, said.content = len(self._keys) < 2, text

        def take(event: Any) -> None:
            seat = self.painter.seats.get(event.client_id)
            if seat is not None and seat.look is not None:
                self.add_key(seat.look)
                tell(f"{len(self._keys)} views.")

        def forget(_: object) -> None:
            if self._keys:
                self._keys.pop()
                self.server.scene.remove_by_name(f"/path/{len(self._keys)}")
            tell(f"{len(self._keys)} views.")

        def save(_: object) -> None:
            try:
                file = self.write_path(float(seconds.value), float(fps.value))
                tell(f"`{file}`; fly it by `hashgrid render RUN --path {file}`")
            except (OSError, ValueError) as error:
                tell(f"not written: {error}")

        add.on_click(take)
        drop.on_click(forget)
        write.on_click(save)

    def add_key(self, look: Look) -> None:
        """One more view that the path goes through."""
        size = look.size[0] // 2 * 2, look.size[1] // 2 * 2  # as videos want them
        key = camera_at(look.c2w, look.fov, size, self.painter.moment)
        self._add_frustum(f"/path/{len(self._keys)}", key, 0, 0.06, (200, 50, 50))
        self._keys.append(key)

    def write_path(self, seconds: float, fps: float) -> Path:
        """Writes the path through all views that were added, and the crop, in the coordinates of the file, to
        ``camera_path.json`` or, where that is taken, to ``camera_path_2.json`` and so on."""
        first, times = self._keys[0], [key.times for key in self._keys]
        keys = Cameras(
            torch.cat([key.c2w for key in self._keys]), torch.cat([key.intrinsics for key in self._keys]),
            torch.cat([key.sizes for key in self._keys]),
            times=None if times[0] is None else torch.cat([time for time in times if time is not None]),
        )  # fmt: skip
        placement, crop = self.subject.placement, self.painter.crop
        path = between(keys, max(2, round(seconds * fps)), first.size(0))
        for cameras in (keys, path):
            places = placement.to_file(cameras.origins)[..., None]
            cameras.c2w = torch.cat((cameras.c2w[:, :, :3].double(), places), dim=-1)
        box = None if crop is None else torch.cat([placement.to_file(corner) for corner in crop.split(3)])
        names = ("camera_path.json", *(f"camera_path_{i}.json" for i in range(2, 1000)))
        file = next(self.folder / name for name in names if not (self.folder / name).exists())
        write_camera_path(file, CameraPath(path, fps, box, tuple(self.subject.background.tolist())), keys)
        return file


def check_free(host: str, port: int) -> None:
    """Raises an ``OSError`` where nothing can be served at a host and port."""
    if not 0 < port < 65536:
        raise ValueError(f"`port` must be in 1..65535, got {port}")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        what = f"`host` {host!r} and `port` {port} must be free to be served at"
        raise OSError(f"{what}: {error.strerror or error}; choose another one, as `--port {port + 1}`") from error


def edges(box: Tensor) -> np.ndarray:
    """The ends [12, 2, 3] of the edges of a box [6]."""
    corners = torch.cartesian_prod(*box.view(2, 3).T)
    pairs = [(i, i | bit) for i in range(8) for bit in (1, 2, 4) if not i & bit]
    ends: np.ndarray = corners[torch.tensor(pairs)].float().numpy()
    return ends


def spread(n: int, most: int) -> list[int]:
    """At most so many of 0 to n - 1, evenly."""
    count = min(n, most)
    return [i * n // count for i in range(count)]


def thumbnail(views: Views, view: int, background: Tensor) -> np.ndarray:
    """A small copy of an image [h, w, 3] uint8."""
    image = views.image(view)
    step = max(1, max(image.shape[:2]) // (4 * THUMBNAIL))
    pixels = image[::step, ::step].float() / 255
    pixels = blend(pixels, background) if views.has_alpha else pixels
    factor = min(1.0, THUMBNAIL / max(pixels.shape[:2]))
    size = [max(1, round(side * factor)) for side in pixels.shape[:2]]
    return to_uint8(interpolate(pixels.permute(2, 0, 1)[None], size, mode="area")[0].permute(1, 2, 0).contiguous())


def opencv_pose(c2w: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """``w, x, y, z`` and place of one of our poses [3, 4] with y down and z ahead, as viser has them."""
    turn = c2w[:, :3].double() * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    return tuple(quaternion(turn).tolist()), tuple(c2w[:, 3].tolist())
