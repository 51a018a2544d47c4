"""Signals of every kind: where their samples lie, what files hold, what is written, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hashgrid.cli import main
from hashgrid.data.differences import bending, levelled
from hashgrid.data.pictures import generated_picture, read_mask, read_picture
from hashgrid.data.signals import Signal, SignalError
from hashgrid.data.sound import generated_sound, read_sound
from hashgrid.data.videos import generated_video, read_video
from hashgrid.data.volumes import generated_volume, read_volume
from hashgrid.tasks.image import Image
from hashgrid.train.loop import Trainer

iio = pytest.importorskip("imageio.v3")


def test_samples_lie_where_they_are_stored() -> None:
    """Places are (x, y, t) of [T, H, W, C]: the middle of a sample, by arithmetic of our own."""
    values = torch.arange(2 * 3 * 4 * 2).view(2, 3, 4, 2).to(torch.uint8)
    signal = Signal(values, 0.0, 255.0)
    index = torch.tensor([0, 3, 4, 23])
    expected = torch.tensor([[0.125, 1 / 6, 0.25], [0.875, 1 / 6, 0.25], [0.125, 0.5, 0.25], [0.875, 5 / 6, 0.75]])
    torch.testing.assert_close(signal.places(index), expected)
    torch.testing.assert_close(signal.at(index) * 255, values.view(-1, 2)[index].float())
    again = signal.sampled(lambda x: torch.stack((x[:, 0] * 4 - 0.5, x[:, 2] * 2 - 0.5), dim=1) / 255)
    assert again[..., 0].unique(dim=2).tolist() == [[[0, 1, 2, 3]] * 3] * 2
    assert torch.equal(again[..., 1], torch.tensor([0, 1])[:, None, None].expand(2, 3, 4).byte())
    ahead, exists = signal.neighbours(index, 1)
    assert ahead.tolist() == [[1, 4, 12], [3, 7, 15], [5, 8, 16], [23, 23, 23]]
    assert exists.tolist() == [[True] * 3, [False, True, True], [True] * 3, [False] * 3]
    behind, exists = signal.neighbours(index, -1)
    assert behind.tolist()[3] == [22, 19, 11] and exists.tolist()[0] == [False] * 3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.float32])
def test_stored_values_survive(dtype: torch.dtype) -> None:
    low, high = (
        (-2.5, 7.0) if dtype.is_floating_point else (float(torch.iinfo(dtype).min), float(torch.iinfo(dtype).max))
    )
    values = torch.tensor([low, 0.25 * low + 0.75 * high, high]).round().to(torch.int32).to(dtype)[:, None]
    signal = Signal(values, low, high)
    torch.testing.assert_close(signal.stored(signal.at(torch.arange(3))), values)
    if not dtype.is_floating_point:
        assert torch.equal(signal.stored(signal.at(torch.arange(3))), values)
        assert signal.stored(torch.tensor([[-9.0], [9.0]])).tolist() == [[round(low)], [round(high)]]


def test_psnr_is_pooled_over_what_is_asked() -> None:
    truth = torch.randint(0, 256, (30, 40, 3), dtype=torch.uint8)
    other = torch.randint(0, 256, (30, 40, 3), dtype=torch.uint8)
    where = torch.rand(30, 40) > 0.7
    signal = Signal(truth, 0.0, 255.0)
    squares = (truth.double() - other.double()).square() / 255**2
    assert signal.psnr(other) == pytest.approx(-10 * math.log10(squares.mean()), abs=1e-9)
    assert signal.psnr(other, where) == pytest.approx(-10 * math.log10(squares[where].mean()), abs=1e-9)
    assert signal.psnr(truth) == math.inf and math.isnan(signal.psnr(other, torch.zeros(30, 40, dtype=torch.bool)))


def test_a_share_of_samples_is_kept() -> None:
    signal = Signal(torch.rand(50, 60, 1)).keep(0.1, seed=3)
    assert 200 < len(signal.known) < 400 and int(signal.known_mask().sum()) == len(signal.known)
    drawn = signal.draw(5000, 0, 1)
    assert signal.known_mask().view(-1)[drawn].all() and len(drawn.unique()) > 0.9 * len(signal.known)
    assert torch.equal(drawn, signal.draw(5000, 0, 1)) and not torch.equal(drawn, signal.draw(5000, 0, 2))
    assert len(Signal(torch.rand(2, 1)).keep(1e-9, seed=0).known) == 1


def test_signals_without_samples_or_sense_are_refused() -> None:
    for values, message in (
        (torch.zeros(0, 3), r"must have samples, shape \[..., C\], got shape \[0, 3\]"),
        (torch.zeros(3), "must have samples"),
        (torch.tensor([[0.0], [math.nan], [math.inf]]), "must be finite, got 2 of 3 values"),
    ):
        with pytest.raises(SignalError, match=message):
            Signal(values)
    with pytest.raises(SignalError, match="a sample to learn from"):
        Signal(torch.zeros(3, 1), known=torch.zeros(0, dtype=torch.int64))


# ---- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pictures_are_written_as_they_were_read(dtype: type, channels: int, tmp_path: Path) -> None:
    """By readers that are not ours; colours behind full transparency are nobody's."""
    from PIL import Image as Pillow

    generator, largest = np.random.default_rng(0), np.iinfo(dtype).max
    pixels = generator.integers(0, largest + 1, (300, 7, channels)).astype(dtype)
    if channels in (2, 4):
        pixels[..., -1] = generator.choice([0, largest], (300, 7))
        pixels[pixels[..., -1] == 0] = 0
    path, again = tmp_path / "in.png", tmp_path / "out.png"
    from hashgrid.data.pictures import write_png

    with open(path, "wb") as file:
        write_png(file, pixels, profile=b"profile" * 30)
    with Pillow.open(path) as image:
        assert image.info["icc_profile"] == b"profile" * 30
        if dtype == np.uint8 or channels == 1:
            assert np.array_equal(np.array(image).reshape(pixels.shape), pixels)
    picture = read_picture(path)
    assert picture.signal.values.numpy().dtype == dtype and picture.signal.values.shape == pixels.shape
    assert np.array_equal(picture.signal.values.numpy(), pixels) and picture.profile == b"profile" * 30
    picture.write(again, picture.signal.values)
    assert np.array_equal(read_picture(again).signal.values.numpy(), pixels)
    assert picture.shown(picture.signal.values).shape == (300, 7, 3)


def test_floats_of_exr_survive(tmp_path: Path) -> None:
    exr = pytest.importorskip("OpenEXR")
    light = np.random.default_rng(0).exponential(3, (6, 5, 3)).astype(np.float32) ** 3
    light[0, 0] = -0.5
    exr.File({"compression": exr.ZIP_COMPRESSION, "type": exr.scanlineimage}, {"RGB": light}).write(
        str(tmp_path / "a.exr")
    )
    picture = read_picture(tmp_path / "a.exr")
    assert picture.is_linear and picture.signal.low < 0 and picture.extension == "exr"
    picture.write(tmp_path / "b.exr", picture.signal.values)
    with exr.File(str(tmp_path / "b.exr")) as file:
        np.testing.assert_allclose(file.channels()["RGB"].pixels, light, rtol=1e-5, atol=1e-6)
    assert picture.shown(picture.signal.values).dtype == torch.uint8
    light[1, 1] = np.nan
    exr.File({"type": exr.scanlineimage}, {"RGB": light}).write(str(tmp_path / "c.exr"))
    with pytest.raises(ValueError, match="must be finite, got 3 values"):
        read_picture(tmp_path / "c.exr")
    (tmp_path / "d.exr").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot be read as OpenEXR"):
        read_picture(tmp_path / "d.exr")


def test_inpainting_learns_nothing_of_what_is_masked(tmp_path: Path) -> None:
    """The same picture with other colours under the mask gives the same bits; elsewhere it does not."""
    picture = generated_picture(40, 30)
    mask = np.zeros((30, 40), np.uint8)
    mask[8:16, 10:30] = 255
    iio.imwrite(tmp_path / "mask.png", mask)
    trained = []
    for spoilt in (None, mask > 0, mask == 0):
        values = picture.signal.values.clone()
        if spoilt is not None:
            values[torch.from_numpy(spoilt)] = 7
        other = generated_picture(40, 30)
        other.signal = Signal(values, 0.0, 255.0)
        config = Image.defaults(None, torch.device("cpu"), set()).replace(
            steps=4, batch=256, log2_hashmap_size=8, n_levels=4, device="cpu", inpaint=tmp_path / "mask.png"
        )
        task = Image(config, other)
        Trainer(task).train()
        trained.append(torch.cat([p.detach().flatten() for p in task.model.parameters()]))
    assert torch.equal(trained[0], trained[1]) and not torch.equal(trained[0], trained[2])
    iio.imwrite(tmp_path / "mask.png", mask[:, :-1])
    with pytest.raises(SignalError, match="must have the size of the photo, got 39x30 and 40x30"):
        read_mask(tmp_path / "mask.png", (30, 40))
    iio.imwrite(tmp_path / "mask.png", 0 * mask)
    with pytest.raises(SignalError, match="must have bright and dark pixels, all are dark"):
        read_mask(tmp_path / "mask.png", (30, 40))


@pytest.mark.parametrize("domain", ["gradients", "laplacian"])
def test_pictures_are_learned_from_differences_alone(domain: str, tmp_path: Path) -> None:
    """Waves, whose level is not in the data: without the fit of it they are no picture."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")
    waves = torch.stack((torch.sin(0.9 * x), torch.cos(0.7 * y), torch.sin(0.6 * x + 0.5 * y)), dim=-1)
    picture = generated_picture(32, 24)
    picture.signal = Signal((127.5 + 127.5 * waves).round().byte(), 0.0, 255.0)
    config = Image.defaults(None, torch.device("cpu"), set()).replace(
        steps=250, batch=768, n_levels=4, base_resolution=4, log2_hashmap_size=10, device="cpu", domain=domain
    )
    task = Image(config, picture)
    Trainer(task).train()
    signal = task.signal
    with torch.no_grad():
        learned = task.model(signal.places(torch.arange(24 * 32))).double().view(24, 32, 3)
    truth = signal.values.double() / 255
    if domain == "gradients":
        assert (
            signal.psnr(signal.sampled(levelled(task.model, signal, torch.arange(24 * 32))))
            > 30
            > 20
            > signal.psnr(signal.sampled(task.model))
        )
    else:  # harmonic functions are free: what is learned is the Laplacian
        stencils = [
            v[2:, 1:-1] + v[:-2, 1:-1] + v[1:-1, 2:] + v[1:-1, :-2] - 4 * v[1:-1, 1:-1] for v in (learned, truth)
        ]
        assert float((stencils[0] - stencils[1]).square().mean()) < 0.05 * float(stencils[1].square().mean())


def test_bending_does_not_count_along_slopes() -> None:
    """Lengths of Hessians without their part along the slopes' direction, by eigenvectors of the structure tensor;
    planes do not bend, straight edges hardly, at any angle."""
    ndimage = pytest.importorskip("scipy.ndimage")
    signal, rng = Signal(torch.zeros(24, 30, 2)), np.random.default_rng(0)
    patches = signal.draw_patches(2, 20, 0, 0)

    def cost(picture: Tensor) -> float:  # [24, 30, 2]
        def field(x: Tensor) -> Tensor:
            return picture[(x[:, 1] * 24).long(), (x[:, 0] * 30).long()]

        return float(bending(field, signal, patches))

    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(30.0), indexing="ij")
    assert cost(torch.stack((3 * rows - columns, 0.1 * columns), dim=-1)) == pytest.approx(1e-3, rel=1e-2)
    noise = torch.from_numpy(rng.normal(size=(24, 30, 2)))
    straight, round_ = (
        cost(torch.sigmoid(torch.stack((2 * height, height), dim=-1)))
        for height in (0.8 * columns - 0.6 * rows - 4, (rows - 12).hypot(columns - 15) - 5)
    )
    assert straight < 0.15 * round_ < 0.15 * 0.3 * cost(noise)

    expected = []
    for patch in patches:
        x = noise.numpy()[patch.numpy() // 30, patch.numpy() % 30]
        hessian = np.zeros((18, 18, 2, 2, 2))  # rows, columns, channel, matrix
        hessian[..., 0, 0] = x[1:-1, 2:] - 2 * x[1:-1, 1:-1] + x[1:-1, :-2]
        hessian[..., 1, 1] = x[2:, 1:-1] - 2 * x[1:-1, 1:-1] + x[:-2, 1:-1]
        hessian[..., 0, 1] = hessian[..., 1, 0] = (x[2:, 2:] - x[2:, :-2] - x[:-2, 2:] + x[:-2, :-2]) / 4
        slope = np.stack((x[1:-1, 2:] - x[1:-1, :-2], x[2:, 1:-1] - x[:-2, 1:-1]), axis=-1) / 2
        tensor = np.einsum("ijca,ijcb->ijab", slope, slope)
        for a, b in np.ndindex(2, 2):
            tensor[..., a, b] = ndimage.gaussian_filter(tensor[..., a, b], 6.0, mode="constant", truncate=3.0)
        (low, high), directions = np.moveaxis(np.linalg.eigh(tensor)[0], -1, 0), np.linalg.eigh(tensor)[1]
        much = np.sqrt((high - low) / (high + low + 1e-6))[..., None, None]
        kept = np.eye(2) - much * directions[..., :, 1:] * directions[..., None, :, 1]
        expected.append(np.sqrt(((hessian @ kept[:, :, None]) ** 2).sum((-1, -2, -3)) + 1e-6).mean())
    assert cost(noise) == pytest.approx(np.mean(expected), rel=1e-5)


def test_a_paste_has_no_seam(tmp_path: Path) -> None:
    """Steps of a brighter picture come in, its brightness does not (Pérez et al. 2003): what is pasted differs by the
    same amount from what is around."""
    base, other = torch.full((24, 24, 3), 80, dtype=torch.uint8), torch.full((24, 24, 3), 180, dtype=torch.uint8)
    other[10:14, 10:14] = 220
    mask = torch.zeros(24, 24, 3, dtype=torch.uint8)
    mask[4:20, 4:20] = 255
    for name, pixels in (("base", base), ("other", other), ("mask", mask)):
        iio.imwrite(tmp_path / f"{name}.png", pixels.numpy())
    config = Image.defaults(None, torch.device("cpu"), set()).replace(
        steps=400, batch=576, n_levels=3, base_resolution=6, max_resolution=24, log2_hashmap_size=10, device="cpu",
        paste=tmp_path / "other.png", mask=tmp_path / "mask.png",
    )  # fmt: skip
    task = Image(config, read_picture(tmp_path / "base.png"))
    Trainer(task).train()
    image = task.signal.sampled(task.model).float()[..., 0]
    assert abs(image[:4].mean() - 80) < 6 and abs(image[6:9, 6:18].mean() - 80) < 12
    assert abs(image[11:13, 11:13].mean() - 120) < 14


def test_image_options_that_exclude_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--paste", "a.png"], "`paste` and `mask` must be given together"),
        (["--paste", "a.png", "--mask", "b.png", "--domain", "gradients"], "`paste` goes with neither"),
        (["--keep", "0"], "`keep` must be in (0, 1], got 0.0"),
        (["--zoom", "-1"], "`zoom` must be at least 0"),
        (["--batch", "0"], "`batch` must be at least 1"),
        (["--final-learning-rate", "1"], "`final_learning_rate` must be in (0, `learning_rate`], got 1.0 and 0.01"),
    ):
        assert main(["image", "--out", str(tmp_path / "out"), "--steps", "1", *words]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


# ---- sounds, videos, volumes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("extension", "subtype"), [("wav", "PCM_16"), ("wav", "FLOAT"), ("flac", "PCM_24")])
def test_sounds_are_read_and_written(extension: str, subtype: str, tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    waves = np.random.default_rng(0).uniform(-1, 1, (200, 2)).astype(np.float32)
    soundfile.write(tmp_path / f"a.{extension}", waves, 8000, subtype=subtype)
    sound = read_sound(tmp_path / f"a.{extension}")
    assert sound.rate == 8000 and sound.signal.values.shape == (200, 2)
    np.testing.assert_allclose(sound.signal.values.numpy(), waves, atol=2**-14 if subtype == "PCM_16" else 1e-6)
    sound.write(tmp_path / "b.wav", sound.signal.values)
    again, _ = soundfile.read(tmp_path / "b.wav", dtype="float32")
    np.testing.assert_allclose(again, sound.signal.values.numpy(), atol=1e-6)
    assert soundfile.info(tmp_path / "b.wav").subtype == subtype


def test_generated_signals_are_what_they_say() -> None:
    sound = generated_sound(1.0, 8000)
    assert sound.signal.values.shape == (8000, 1) and 0.8 < float(sound.signal.values.abs().max()) <= 1
    assert generated_video(5, 16).signal.shape == (5, 16, 16)
    volume = generated_volume(32).signal.values
    assert volume.shape == (32, 32, 32, 1) and 0 < float((volume > 0.5).float().mean()) < 0.5


def test_videos_are_read(tmp_path: Path) -> None:
    """Frames in their order, as FFmpeg's own command stores them, up to what its coding loses."""
    pytest.importorskip("av")
    pytest.importorskip("imageio_ffmpeg")
    video = generated_video(6, 32)
    video.write(tmp_path / "a.mp4", video.signal.values)
    read = read_video(tmp_path / "a.mp4")
    assert read.signal.shape == (6, 32, 32) and read.rate == 24
    assert video.signal.psnr(read.signal.values) > 20
    assert video.signal.psnr(read.signal.values.roll(1, 0)) < video.signal.psnr(read.signal.values) - 1
    assert read_video(tmp_path / "a.mp4", max_frames=2, downscale=4).signal.shape == (2, 8, 8)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(SignalError, match="b.mp4` cannot be read as a video"):
        read_video(tmp_path / "b.mp4")
    with pytest.raises(SignalError, match="does not exist"):
        read_video(tmp_path / "c.mp4")


def test_volumes_are_read_and_written(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(-3000, 3000, (4, 5, 6)).astype(np.int16)
    np.save(tmp_path / "a.npy", array)
    volume = read_volume(tmp_path / "a.npy")
    assert volume.signal.shape == (4, 5, 6) and volume.signal.low == array.min()
    volume.write(tmp_path / "b.npy", volume.signal.values)
    assert np.array_equal(np.load(tmp_path / "b.npy"), array)
    for name, content, message in (
        ("flat.npy", np.zeros((3, 4)), r"must hold an array \[D, H, W\], got shape \[3, 4\]"),
        ("empty.npy", np.zeros((0, 3, 4)), r"got shape \[0, 3, 4\]"),
        ("complex.npy", np.zeros((2, 2, 2), complex), "must hold real numbers, got complex128"),
        ("nan.npy", np.full((2, 2, 2), np.nan), "must be finite, got 8 of 8"),
        ("objects.npy", np.array([[[None]]]), "cannot be read as a volume"),
    ):
        np.save(tmp_path / name, content)
        with pytest.raises(SignalError, match=message):
            read_volume(tmp_path / name)
    with pytest.raises(SignalError, match="must be one of .npy, .nii"):
        (tmp_path / "a.raw").write_bytes(b"")
        read_volume(tmp_path / "a.raw")


def test_volumes_of_other_libraries_are_read(tmp_path: Path) -> None:
    nibabel, tifffile = pytest.importorskip("nibabel"), pytest.importorskip("tifffile")
    array = np.random.default_rng(0).integers(0, 1000, (4, 5, 6)).astype(np.uint16)
    affine = np.array([[2.0, 0, 0, -7], [0, 3, 0, 1], [0, 0, 4, 2], [0, 0, 0, 1]])
    nibabel.Nifti1Image(array, affine).to_filename(tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    assert np.array_equal(volume.signal.values.squeeze(-1).numpy(), array) and np.array_equal(volume.affine, affine)
    volume.write(tmp_path / "b.nii.gz", volume.signal.values)
    again = nibabel.load(tmp_path / "b.nii.gz")
    assert np.array_equal(np.asarray(again.dataobj), array) and np.array_equal(again.affine, affine)
    tifffile.imwrite(tmp_path / "a.tif", array)
    assert np.array_equal(read_volume(tmp_path / "a.tif").signal.values.squeeze(-1).numpy(), array)


@pytest.mark.parametrize("command", ["audio", "video", "volume"])
def test_commands_write_and_judge_again(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("soundfile", "matplotlib", "imageio_ffmpeg", "skimage", "igl"):
        pytest.importorskip(package)
    monkeypatch.setattr("hashgrid.tasks.audio.generated_sound", lambda: generated_sound(0.05, 8000))
    monkeypatch.setattr("hashgrid.tasks.video.generated_video", lambda: generated_video(4, 16))
    monkeypatch.setattr("hashgrid.tasks.volume.generated_volume", lambda: generated_volume(16))
    words = [command, "--out", str(tmp_path / "out"), "--steps", "60", "--batch", "1024", "--device", "cpu"]
    words += ["--frames-between", "1"] if command == "video" else []
    words += ["--log2-hashmap-size", "10", "--n-levels", "4"]
    assert main(words) == 0
    written = {
        "audio": ["reconstruction.wav", "waves.png"],
        "volume": ["reconstruction.npy", "slices.png", "surface.ply"],
    }
    written["video"] = ["reconstruction.mp4", "interpolated.mp4", "comparison.png"]
    assert all((tmp_path / "out" / name).is_file() for name in written[command])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["psnr"] > 12 and results.get("f_score", 1.0) > 0.5 and results["train"]["steps"] == 60
    checkpoint = str(tmp_path / "out" / "checkpoint.safetensors")
    assert main([command, "--eval", checkpoint, "--out", str(tmp_path / "again")]) == 0
    assert json.loads((tmp_path / "again" / "results.json").read_text())["psnr"] == results["psnr"]
