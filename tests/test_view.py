"""What a page draws against shapes in closed form; who gets a picture when; a page by viser, without a browser."""

from __future__ import annotations

import json
import math
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems.browser import wait_for
from problems.nerf import OPTIONS, nerf_trainer
from problems.viser_client import Client
from torch import Tensor, nn

from hashgrid.cli import main
from hashgrid.data.camera_paths import CameraPath, read_camera_path, write_camera_path
from hashgrid.data.loaders.boxes import found_box
from hashgrid.data.pictures import Picture
from hashgrid.data.procedural import orbit_cameras
from hashgrid.data.scene import SceneOptions, make_scene
from hashgrid.data.shape import Shape
from hashgrid.data.signals import Signal
from hashgrid.data.volumes import Volume
from hashgrid.geometry.boxes import Placement
from hashgrid.geometry.cameras import Cameras, look_at
from hashgrid.rendering.volume import render_image
from hashgrid.tasks.audio import Audio
from hashgrid.tasks.image import Image
from hashgrid.tasks.sdf import Sdf
from hashgrid.tasks.trained import restored
from hashgrid.tasks.volume import VolumeTask
from hashgrid.train.checkpoint import load_checkpoint
from hashgrid.train.loop import Trainer
from hashgrid.train.run import CHECKPOINT
from hashgrid.util.pictures import colorize
from hashgrid.viewer import SUBJECTS, Drawn, Subject, subject_of
from hashgrid.viewer.image import PictureSubject
from hashgrid.viewer.nerf import ERROR_SCALE, RadianceSubject, SceneSubject
from hashgrid.viewer.painter import MAX_SIDE, REST, Look, Painter, Seat, full, pose_of
from hashgrid.viewer.sdf import ShapeSubject
from hashgrid.viewer.subject import camera_at, draw_in_parts
from hashgrid.viewer.volume import VolumeSubject

RADIUS = 0.3
UP = torch.tensor([0.0, 1, 0])


class Ball(nn.Module):
    """Distances to a ball in the middle of the unit cube."""

    device = torch.device("cpu")

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5).norm(dim=-1) - RADIUS


def camera(origin: list[float], target: list[float], size: tuple[int, int] = (33, 25), fov: float = 0.7) -> Cameras:
    return camera_at(look_at(torch.tensor(origin).float(), torch.tensor(target).float(), UP), fov, size)


def middle(drawn: Drawn) -> tuple[list[float], float]:
    """Colour and depth of the pixel in the middle."""
    row, column = (n // 2 for n in drawn.depth.shape)
    return drawn.color[row, column].tolist(), float(drawn.depth[row, column])


# ---- subjects --------------------------------------------------------------------------------------------------------


def test_a_ball_of_distances() -> None:
    ball = ShapeSubject(Ball(), Shape(Path("ball"), "ball", Placement()))  # type: ignore[arg-type]
    assert "error" not in ball.modes  # nothing to compare with
    front = camera([0.5, 0.5, 2.5], [0.5, 0.5, 0.5])
    color, depth = middle(ball.draw(front, "normals"))
    assert depth == pytest.approx(2 - RADIUS, abs=1e-3) and color == pytest.approx([0.5, 0.5, 1], abs=0.01)
    mask = ball.draw(front, "accumulation")
    angle = math.asin(RADIUS / 2)  # of the outline
    columns = (torch.arange(33) + 0.5 - 16.5) / (0.5 * 25 / math.tan(0.35))
    assert torch.equal(mask.color[12, :, 0] > 0.5, columns.abs() < math.tan(angle))
    assert torch.equal(mask.color[..., 0] > 0.5, mask.depth.isfinite())
    crop = torch.tensor([0.0, 0, 0, 1, 1, 0.5])  # the half that looks at the camera goes: a disc is left, seen as one
    color, depth = middle(ball.draw(front, "normals", crop))
    assert depth == pytest.approx(2, abs=1e-5) and color == pytest.approx([0.5, 0.5, 1], abs=1e-6)
    assert not ball.draw(front, "colour", torch.tensor([0.9, 0.9, 0.9, 1, 1, 1])).depth.isfinite().any()


class BallValues(nn.Module):
    """1 in the middle of the unit cube, less by 1 per unit of length."""

    def forward(self, x: Tensor) -> Tensor:
        return (1 - (x - 0.5).norm(dim=-1, keepdim=True)).float()


def test_a_ball_of_values() -> None:
    """The page's coordinates are twice as long as the cube's."""
    signal = Signal(torch.zeros(4, 4, 4, 1))
    ball = VolumeSubject(BallValues(), Volume("ball", signal), iso=1 - RADIUS)  # type: ignore[arg-type]
    front = camera([0, 0, 4], [0, 0, 0])
    color, depth = middle(ball.draw(front, "normals"))
    assert depth == pytest.approx(4 - 2 * RADIUS, abs=0.01) and color == pytest.approx([0.5, 0.5, 1], abs=0.02)
    assert middle(ball.draw(front, "maximum"))[0] == pytest.approx([1, 1, 1], abs=0.01)
    assert not ball.draw(camera([0, 0, 4], [4, 0, 0]), "colour").depth.isfinite().any()
    aside = camera([0.5, 0.5, 4], [0.5, 0.5, 0])
    color, depth = middle(ball.draw(aside, "slices"))
    assert depth == pytest.approx(4) and color == pytest.approx([1 - math.hypot(0.25, 0.25)] * 3, abs=1e-3)
    error = middle(ball.draw(aside, "error"))[0]  # to a volume of zeros, beyond the scale
    assert error == pytest.approx(colorize(torch.tensor(1.0)).tolist())
    color, depth = middle(ball.draw(front, "colour", torch.tensor([-1.0, -1, -1, 1, 1, 0.2])))
    assert depth == pytest.approx(3.8) and color == pytest.approx([0.9] * 3, abs=1e-3)  # the cut shows values


def test_a_volume_has_the_proportions_of_its_voxels() -> None:
    volume = Volume("flat", Signal(torch.zeros(10, 20, 40, 1)), np.diag([2.0, 1, 1, 1]))
    assert VolumeSubject(BallValues(), volume).box.tolist() == [-1, -0.5, -0.5, 1, 0.5, 0.5]  # type: ignore[arg-type]


def test_a_window_of_a_picture() -> None:
    """Red and green are the place itself, so a screen tells what it shows, at its own resolution."""

    def field(x: Tensor) -> Tensor:
        return torch.cat((x, torch.zeros(len(x), 1)), dim=1)

    picture = Picture("ramp", Signal(torch.zeros(20, 40, 3, dtype=torch.uint8), 0.0, 255.0))
    subject = PictureSubject(field, picture)
    near = camera([0.5, 0.25, 0.02], [0.5, 0.25, 0], (51, 51))  # at three quarters across and a quarter down
    color, _ = middle(subject.draw(near, "colour"))
    assert color == pytest.approx([0.75, 0.25, 0], abs=2 / 255)
    reach = 0.02 * math.tan(0.35) / 2  # of the window to each side, in widths of the picture
    shown = subject.draw(near, "colour").color[25, :, 0]
    assert float(shown[-1] - shown[0]) == pytest.approx(2 * reach, abs=2 / 255)
    whole = camera(subject.start.tolist(), [0, 0, 0], (80, 40))
    cropped = subject.draw(whole, "colour", torch.tensor([-1.0, -1, -1, 0, 1, 1]))
    assert bool(cropped.depth[2:38, 3:38].isfinite().all()) and not bool(cropped.depth[:, 42:].isfinite().any())
    assert torch.equal(cropped.color[:, 42:], subject.background.expand(40, 38, 3))


@pytest.fixture(scope="module")
def trained(scene: Any) -> Trainer:
    trainer = nerf_trainer(scene, steps=60)
    trainer.train()
    return trainer


def test_a_radiance_field(trained: Trainer) -> None:
    """Colours are those of an evaluation; in a crop without anything there is background; errors against photos that
    are its own renders are none from where they were taken, and what is planted in the photo otherwise."""
    task: Any = trained.task
    subject = subject_of(task)
    assert isinstance(subject, RadianceSubject) and set(subject.modes) >= {"colour", "depth", "normals", "error"}
    view = task.scene.train.select([3])
    white = torch.ones(3)
    color, opacity, distance = render_image(task.model, task.sampler, view, 0, white)
    drawn = subject.draw(view, "colour")
    assert torch.equal(drawn.color, color)
    solid = opacity > 0.5
    assert 0 < int(solid.sum()) and torch.equal(drawn.depth.isfinite(), solid)
    t = (distance / opacity.clamp_min(1e-6)).view(-1)
    ahead = view.view_rays(0).directions @ -view.c2w[0, :, 2]
    torch.testing.assert_close(drawn.depth[solid], (t * ahead).view(48, 48)[solid])
    assert torch.equal(subject.draw(view, "accumulation").color[..., 0], opacity)
    assert torch.equal(subject.draw(view, "colour", torch.tensor([5.0, 5, 5, 6, 6, 6])).color, torch.ones(48, 48, 3))

    data = (torch.cat([render_image(task.model, task.sampler, task.scene.train, v, white)[0].view(-1, 3)
                       for v in range(len(task.scene.train))]) * 255).round()  # fmt: skip
    begin = int(task.scene.train.offsets[3])
    data[begin : begin + 48 * 10] -= 0.1 * 255
    photos = replace(task.scene.train, data=data.clamp(0, 255).byte())
    scene = replace(task.scene, train=photos, test=replace(task.scene.test))
    error = RadianceSubject(task.model, task.sampler, scene, white).draw(view, "error").color
    planted = colorize(torch.tensor(0.1), 0, ERROR_SCALE)
    torch.testing.assert_close(error[:10], planted.expand(10, 48, 3), atol=0.04, rtol=0)  # photos are rounded
    torch.testing.assert_close(error[10:], colorize(torch.tensor(0.0)).expand(38, 48, 3), atol=0.04, rtol=0)


def test_pictures_in_parts_are_the_whole_ones(trained: Trainer) -> None:
    ball = ShapeSubject(Ball(), Shape(Path("ball"), "ball", Placement()))  # type: ignore[arg-type]
    values = VolumeSubject(BallValues(), Volume("ball", Signal(torch.zeros(4, 4, 4, 1))))  # type: ignore[arg-type]
    cases: list[tuple[Subject, Cameras]] = [
        (ball, camera([1.0, 0.9, 1.2], [0.5, 0.5, 0.5], (17, 13))),
        (values, camera([1.0, 0.9, 2.2], [0, 0, 0], (17, 13))),
        (subject_of(trained.task), orbit_cameras(1, 20, 3).scaled(1.0)),
    ]
    for subject, view in cases:
        for mode in subject.modes:
            whole, parts = subject.draw(view, mode), draw_in_parts(subject, view, mode, rows=5)
            assert parts is not None
            torch.testing.assert_close(parts.color, whole.color, msg=f"{type(subject).__name__} {mode}")
            torch.testing.assert_close(parts.depth, whole.depth)
    assert draw_in_parts(ball, cases[0][1], "colour", wanted=lambda: False) is None


def test_sparse_points_are_where_the_file_has_them(scene: Any) -> None:
    points = np.random.default_rng(0).uniform(-3, 5, (20, 3))
    made = make_scene(scene.train, scene.test, found_box(points), Path("x"), "x", SceneOptions())
    subject = SceneSubject(made.normalized())
    assert subject.modes == () and subject.points is not None and subject.placement != Placement()
    np.testing.assert_allclose(subject.placement.to_file(subject.points).numpy(), points)


def test_every_subject_says_what_it_is() -> None:
    class Unseen:
        name = "audio"

    assert set(SUBJECTS) == {"nerf", "surface", "sdf", "volume", "image"}
    with pytest.raises(ValueError, match="must be of nerf, surface, sdf, volume or image, got 'audio'"):
        subject_of(Unseen())


# ---- pictures in time ------------------------------------------------------------------------------------------------


class Slow(Subject):
    """Takes a second for ten thousand pixels, by a clock of its own."""

    modes = ("colour",)

    def __init__(self) -> None:
        super().__init__(torch.tensor([-1.0, -1, -1, 1, 1, 1]), UP, UP, 0 * UP)
        self.now, self.spent = 0.0, 0.0

    def draw(self, camera: Cameras, mode: str, crop: Tensor | None = None) -> Drawn:
        width, height = camera.size(0)
        self.now += width * height / 1e4
        self.spent += width * height / 1e4
        return Drawn(torch.zeros(height, width, 3), torch.zeros(height, width))


class Audience:
    """Clients that note what they are shown."""

    def __init__(self, n: int = 1) -> None:
        self.subject = Slow()
        self.painter = Painter(self.subject, clock=lambda: self.subject.now)
        self.shown: list[list[tuple[tuple[int, int], bool]]] = [[] for _ in range(n)]
        for i in range(n):
            self.painter.seats[i] = Seat(lambda c, d, final, i=i: self.shown[i].append((c.shape[1::-1], final)))  # type: ignore[misc]
            self.look(i, 0.0)

    def look(self, i: int, x: float) -> bool:
        pose = torch.eye(4)[:3].clone()
        pose[0, 3] = x
        return self.painter.look(self.painter.seats[i], Look(pose, 0.7, (400, 300)))


def test_coarse_while_it_moves_sharp_when_it_rests() -> None:
    audience = Audience()
    painter, (shown,) = audience.painter, audience.shown
    assert not audience.look(0, 0.0)  # nowhere else
    for x in (0.0, 0.1, 0.2):
        audience.look(0, x)
        begin = audience.subject.now
        assert painter.paint()
    assert audience.subject.now - begin < 0.25  # the rate is known by now
    n_coarse = len(shown)
    audience.subject.now = painter.seats[0].moved + 0.9 * REST  # it may be moving still
    assert not painter.paint() and painter.patience() < REST
    while audience.subject.now < 200:
        if not painter.paint():
            audience.subject.now += painter.patience()
    sizes = [size for size, _ in shown[n_coarse:]]
    assert sizes == sorted(sizes) and sizes[-1] == (400, 300) and 3 <= len(sizes) <= 6
    assert [final for _, final in shown[n_coarse:]] == [size == (400, 300) for size in sizes]
    assert not painter.paint() and painter.patience() > REST  # nothing is left to do
    painter.change(mode="colour")
    assert painter.paint() and not shown[-1][1]


def test_a_sharp_picture_is_given_up_for_a_camera_that_moves() -> None:
    audience = Audience()
    painter, (shown,), seat = audience.painter, audience.shown, audience.painter.seats[0]
    while seat.pixels < 30_000:
        if not painter.paint():
            audience.subject.now += REST
    draw, parts = audience.subject.draw, []

    def draw_and_move(*args: Any) -> Drawn:
        parts.append(1)
        if len(parts) == 2:
            audience.look(0, 5.0)
        return draw(*args)

    audience.subject.draw = draw_and_move  # type: ignore[method-assign]
    n_shown = len(shown)
    assert painter.paint() and len(shown) == n_shown and len(parts) == 2
    assert painter.paint() and len(shown) == n_shown + 1 and not shown[-1][1]
    audience.look(0, 6.0)
    seat.gone = True  # in the middle of it, or before
    assert painter.paint() and len(shown) == n_shown + 1


@pytest.mark.parametrize("n_clients", [1, 3])
def test_clients_that_rest_take_a_share_of_training(n_clients: int) -> None:
    audience = Audience(n_clients)
    painter, subject = audience.painter, audience.subject

    def train(seconds: float) -> None:
        end = subject.now + seconds
        while subject.now < end:
            subject.now += 0.02
            painter.version += 1
            painter.paint(training=True)

    train(60)
    spent, begin, before = subject.spent, subject.now, [len(shown) for shown in audience.shown]
    train(300)
    share = (subject.spent - spent) / (subject.now - begin)
    assert 0.5 * painter.share < share <= 1.05 * painter.share
    counts = [len(shown) - n for shown, n in zip(audience.shown, before, strict=True)]
    assert min(counts) > 5 and max(counts) - min(counts) <= 1
    n_shown, version = sum(map(len, audience.shown)), painter.version
    for _ in range(1000):  # nothing is learned: nothing is drawn
        subject.now += 0.1
        painter.version = version
        painter.paint(training=True)
    assert sum(map(len, audience.shown)) <= n_shown + n_clients


def test_no_picture_is_larger_than_needed() -> None:
    seat = Seat(lambda *_: None, Look(torch.eye(4)[:3], 0.7, (8000, 100)))
    assert full(seat) == MAX_SIDE * round(100 * MAX_SIDE / 8000)


def test_poses_of_viser() -> None:
    """Its cameras have y down and look along z."""
    rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    turn = rotation.random(rng=np.random.default_rng(0))
    pose = pose_of(turn.as_quat()[[3, 0, 1, 2]], np.array([1.0, 2, 3]))
    expected = np.concatenate((turn.as_matrix() * [1, -1, -1], [[1], [2], [3]]), axis=1)
    np.testing.assert_allclose(pose.numpy(), expected, atol=1e-6)


# ---- paths -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(scene_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `hashgrid nerf`."""
    folder = tmp_path_factory.mktemp("run")
    words = ["nerf", str(scene_path), "--steps", "30", "--no-video", "--views", "0", "--out", str(folder), *OPTIONS]
    assert main(words) == 0
    return folder


def test_a_path_comes_back_and_is_rendered(run: Path, tmp_path: Path) -> None:
    """A frame of `hashgrid render` along a written path is a direct render, in the crop and before its background."""
    views = orbit_cameras(2, 24, 1)
    views.times = torch.tensor([0.25, 0.5])
    crop, colour = torch.tensor([-1.0, -0.5, -2, 1, 0.75, 2]), (1.0, 0.5, 0.25)
    file = tmp_path / "camera_path.json"
    write_camera_path(file, CameraPath(views, 12.0, crop, colour), views)
    read = read_camera_path(file)
    torch.testing.assert_close(read.cameras.c2w, views.c2w, check_dtype=False)
    torch.testing.assert_close(read.cameras.intrinsics, views.intrinsics)
    assert read.cameras.sizes.tolist() == views.sizes.tolist() and read.fps == 12
    assert read.cameras.times is not None and read.cameras.times.tolist() == [0.25, 0.5]
    assert read.crop is not None and read.crop.tolist() == crop.tolist() and read.background == pytest.approx(colour)
    assert len(json.loads(file.read_text())["keyframes"]) == 2

    assert main(["render", str(run), "--path", str(file), "--no-video", "--out", str(tmp_path / "frames")]) == 0
    iio = pytest.importorskip("imageio.v3")
    frame = iio.imread(tmp_path / "frames" / "frames" / "00001.png")
    assert frame.shape == (24, 24, 3) and frame[0, 0].tolist() == [255, 128, 64]


# ---- the page --------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def reaches(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


@pytest.fixture
def page(trained: Trainer, tmp_path: Path) -> Iterator[Any]:
    pytest.importorskip("viser")
    from hashgrid.viewer.page import Page

    task: Any = trained.task
    moved = RadianceSubject(task.model, task.sampler, task.scene, torch.ones(3))
    moved.placement = Placement((10.0, 20.0, 30.0), 5.0)
    page = Page(moved, "127.0.0.1", free_port(), tmp_path, "a test")
    yield page
    page.close()


def test_a_page_is_served_to_this_machine_alone(page: Any) -> None:
    port = page.server.get_port()
    assert reaches("127.0.0.1", port) and not reaches("127.0.0.2", port)


def test_clients_come_and_go(page: Any) -> None:
    """Each gets pictures of its own camera; one that leaves, or is killed, disturbs nobody."""
    port, painter = page.server.get_port(), page.painter
    clients = [Client(port), Client(port, (32, 32)), Client(port)]
    for i, client in enumerate(clients):
        client.look((float(i), 0.0, -4.0))
        wait_for(lambda i=i: len(painter.seats) == i + 1 and all(seat.look for seat in painter.seats.values()))
    looks = [seat.look for seat in painter.seats.values()]
    assert [look.size for look in looks] == [(64, 48), (32, 32), (64, 48)]
    assert [look.c2w[:, 3].tolist() for look in looks] == [[i, 0, -4] for i in range(3)]
    assert looks[0].c2w[:, :3].tolist() == torch.diag(torch.tensor([1.0, -1, -1])).tolist()
    before = [client.n_bytes for client in clients]
    while painter.paint():
        pass
    wait_for(lambda: all(client.n_bytes > n + 500 for client, n in zip(clients, before, strict=True)))
    clients[0].leave()
    wait_for(lambda: len(painter.seats) == 2)
    clients[1].kill()
    wait_for(lambda: len(painter.seats) == 1)
    clients[2].look((0.0, 1.0, -4.0))
    wait_for(lambda: painter.next_picture(False) is not None)
    assert painter.paint()
    clients[2].leave()
    wait_for(lambda: not painter.seats)


def test_a_recorded_path_is_in_the_coordinates_of_the_file(page: Any, tmp_path: Path) -> None:
    for x in (1.0, 2.0):
        page.add_key(Look(camera([x, 0, 3], [0, 0, 0]).c2w[0], 0.7, (33, 25)))
    page.painter.change(crop=torch.tensor([-1.0, -1, -1, 1, 1, 1]))
    file = page.write_path(2.0, 5.0)
    read = read_camera_path(file)
    assert file == tmp_path / "camera_path.json" and len(read.cameras) == 10 and read.fps == 5
    assert read.cameras.sizes[0].tolist() == [32, 24]  # as videos want them
    torch.testing.assert_close(read.cameras.origins[0], torch.tensor([15.0, 20, 45]), check_dtype=False)
    torch.testing.assert_close(read.cameras.origins[-1], torch.tensor([20.0, 20, 45]), check_dtype=False)
    torch.testing.assert_close(
        read.cameras.c2w[0, :, :3], camera([1, 0, 3], [0, 0, 0]).c2w[0, :, :3], check_dtype=False
    )
    assert read.crop is not None and read.crop.tolist() == [5, 15, 25, 15, 25, 35]
    assert page.write_path(1.0, 5.0) == tmp_path / "camera_path_2.json"  # the other one stays


def test_looking_changes_no_bit_of_a_run(scene: Any, tmp_path: Path) -> None:
    """Weights are those of a run without a page; a paused one goes on by steps, and its clock stands."""
    pytest.importorskip("viser")
    from hashgrid.viewer.live import LiveView

    plain, watched = (nerf_trainer(scene, steps=25) for _ in range(2))
    plain.train()
    live = LiveView(watched, tmp_path, port=free_port())
    seen: list[tuple[int, float]] = []
    seat = Seat(lambda *_: seen.append((watched.progress.step, watched.progress.seconds)))
    live.page.painter.seats[0] = seat

    def look_around(progress: Any) -> None:
        pose = camera([3.0, 0.1 * progress.step, 1.0], [0, 0, 0]).c2w[0]
        live.page.painter.look(seat, Look(pose, 0.7, (32, 32)))
        live.page.paused, live.page.steps = progress.step == 10, 1
        live.step(progress)

    watched.train(look_around)
    live.close()
    assert {step for step, _ in seen} == set(range(1, 26)) and watched.progress.step == 25
    for a, b in zip(plain.task.model.parameters(), watched.task.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_runs_checkpoints_and_scenes_are_viewed(run: Path, scene_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is found out by what it is, and a scene needs no model."""
    pytest.importorskip("viser")
    shown: list[tuple[Subject, Any]] = []

    def serve(page: Any, host: str, said: str, curve: Any = ()) -> None:
        shown.append((page.subject, page.server.get_host()))
        assert main(["view", str(run), "--port", str(page.server.get_port())]) == 1  # its port is taken
        page.close()

    monkeypatch.setattr("hashgrid.tasks.view.serve", serve)
    for what in (run, run / CHECKPOINT, scene_path):
        assert main(["view", str(what), "--port", str(free_port()), "--device", "cpu"]) == 0
    assert [host for _, host in shown] == ["127.0.0.1"] * 3
    assert [len(subject.modes) for subject, _ in shown] == [5, 5, 0]
    assert all(set(subject.views) == {"train", "test"} for subject, _ in shown)


@pytest.mark.parametrize("kind", [Sdf, VolumeTask, Image], ids=lambda kind: kind.name)
def test_every_kind_of_run_is_drawn(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its checkpoint, in every mode."""
    monkeypatch.chdir(tmp_path)  # where the generated shape goes
    small = {"device": "cpu", "steps": 0, "n_levels": 2, "log2_hashmap_size": 8}
    Trainer(kind.make(kind.Config().replace(**small), None, {})).save(Path(CHECKPOINT))
    subject = subject_of(restored(kind, load_checkpoint(CHECKPOINT), "cpu"))
    start = camera_at(look_at(subject.start, subject.target, subject.up), subject.fov, (12, 9))
    for mode in subject.modes:
        drawn = subject.draw(start, mode, subject.box)
        assert drawn.color.shape == (9, 12, 3) and bool(((drawn.color >= 0) & (drawn.color <= 1)).all()), mode
    assert subject.modes[0] == "colour" and "error" in subject.modes


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["view", "nowhere"], "does not exist"),
        (["view", "empty"], "is no scene of a known format"),
        (["view", "audio.safetensors"], "must be of nerf, surface, sdf, volume or image, .* is of 'audio'"),
        (["image", "--host", "0.0.0.0", "--steps", "1"], "`--host` and `--port` are of `--view`"),
        (["image", "--eval", "x.safetensors", "--view"], "no checkpoint|hashgrid view CHECKPOINT"),
        (
            ["audio", "--view", "--steps", "1", "--out", "out"],
            "must be of nerf, surface, sdf, volume or image, got 'audio'",
        ),
    ],
)
def test_what_cannot_be_viewed_is_one_error(
    words: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("viser")
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    if "audio.safetensors" in words:
        Trainer(Audio.make(Audio.Config(steps=0, device="cpu"), None, {})).save(Path("audio.safetensors"))  # type: ignore[arg-type]
    assert main(words) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert re.search(why, lines[-1])


def test_a_taken_port_is_one_error() -> None:
    from hashgrid.viewer.page import check_free

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"`port` {port} must be free to be served at: .*--port {port + 1}"):
            check_free("127.0.0.1", port)
    with pytest.raises(ValueError, match="`port` must be in 1..65535, got 70000"):
        check_free("127.0.0.1", 70000)
