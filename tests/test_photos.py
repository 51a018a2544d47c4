"""Pictures of every kind are read as what they show: depths, colour spaces, transparency, orientation."""

from __future__ import annotations

import json
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

Image = pytest.importorskip("PIL.Image")

from PIL import ImageCms, ImageOps  # noqa: E402

from hashgrid.cli import main  # noqa: E402
from hashgrid.data.errors import SceneError, SceneWarning  # noqa: E402
from hashgrid.data.images import (  # noqa: E402
    PhotoError,
    load_photo,  # noqa: E402
    read_photo,
)
from hashgrid.data.scene import load_scene  # noqa: E402

RNG = np.random.default_rng(0)
SMOOTH = np.stack(np.meshgrid(np.linspace(20, 230, 24), np.linspace(40, 200, 16)), axis=-1)
RGB = np.concatenate((SMOOTH, 255 - SMOOTH[..., :1]), axis=2).astype(np.uint8)  # [16, 24, 3], kind to JPEG
ALPHA = np.where(np.arange(24) < 9, 0, 255).astype(np.uint8)[None].repeat(16, axis=0)
RGBA = np.concatenate((RGB, ALPHA[..., None]), axis=2)


def png(path: Path, values: np.ndarray, bits: int, kind: int, key: tuple[int, ...] = (), filters: bool = False) -> None:
    """A PNG [H, W, C] of any depth and colour type; ``filters`` goes through the five of them, row by row."""
    height, width, channels = values.shape
    if bits == 16:
        rows = values.astype(">u2").view(np.uint8).reshape(height, -1)
    elif bits == 8:
        rows = values.astype(np.uint8).reshape(height, -1)
    else:
        unpacked = np.unpackbits(values.astype(np.uint8).reshape(height, width, 1), axis=2)[..., 8 - bits :]
        rows = np.packbits(unpacked.reshape(height, -1), axis=1)
    step, above, lines = max(1, bits * channels // 8), np.zeros(rows.shape[1], np.int64), []
    for y, row in enumerate(rows.astype(np.int64)):
        left, corner = (np.concatenate((np.zeros(step, np.int64), line[:-step])) for line in (row, above))
        estimate = left + above - corner
        distance = np.abs(estimate - np.stack((left, above, corner)))
        paeth = np.choose(distance.argmin(axis=0), (left, above, corner))
        kind_of_row = y % 5 if filters else 0
        predicted = (0, left, above, (left + above) // 2, paeth)[kind_of_row]
        lines.append(bytes([kind_of_row]) + ((row - predicted) % 256).astype(np.uint8).tobytes())
        above = row
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))]
    chunks += [(b"tRNS", struct.pack(f">{len(key)}H", *key))] if key else []
    chunks += [(b"IDAT", zlib.compress(b"".join(lines))), (b"IEND", b"")]
    packed = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def scene_of(folder: Path, name: str, **meta) -> Path:
    """A scene of the picture ``name`` and of three copies of it."""
    angles = [0.3 * i for i in range(4)]
    poses = [np.diag([1.0, 1, 1, 1]) for _ in angles]
    for pose, angle in zip(poses, angles, strict=True):
        pose[:3, 3] = (np.sin(angle), 0.2, 4 * np.cos(angle))
    frames = []
    for i, pose in enumerate(poses):
        copy = folder / f"{i}_{name}" if i else folder / name
        if i and (folder / name).exists():
            copy.write_bytes((folder / name).read_bytes())
        frames.append({"file_path": copy.name, "transform_matrix": pose.tolist()})
    (folder / "transforms.json").write_text(json.dumps({"fl_x": 30.0, "frames": frames, **meta}))
    return folder


# Transparency --------------------------------------------------------------------------------------------------------


def save_palette(path: Path) -> None:
    Image.fromarray(RGBA).quantize(32, method=Image.Quantize.FASTOCTREE).save(path)


def save_palette_index(path: Path) -> None:
    image = Image.fromarray(RGB).quantize(16)
    image.save(path, transparency=int(np.array(image)[0, 0]))


def save_gif(path: Path) -> None:
    save_palette_index(path.with_suffix(".gif"))
    path.with_suffix(".gif").rename(path)


TRANSPARENT = {
    "palette with alpha": save_palette,
    "palette with a transparent index": save_palette_index,
    "GIF": save_gif,
    "colour key": lambda path: Image.fromarray(RGB).save(path, transparency=tuple(RGB[0, 0].tolist())),
    "grey key": lambda path: Image.fromarray(RGB[..., 0]).save(path, transparency=int(RGB[0, 0, 0])),
    "1-bit key": lambda path: Image.fromarray(RGB[..., 0] > 99).save(path, transparency=0),
    "grey and alpha": lambda path: Image.fromarray(RGBA).convert("LA").save(path),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparency_of_every_kind_is_alpha(kind: str, tmp_path: Path) -> None:
    """As Pillow converts it to RGBA; over white in a photo, and behind the object in a scene, which it bounds."""
    path = tmp_path / "picture.png"
    TRANSPARENT[kind](path)
    with Image.open(path) as image:
        right = np.array(image.convert("RGBA"))
    assert 0 < (right[..., 3] == 0).mean() < 1
    pixels = read_photo(path)
    pixels = (
        np.concatenate((pixels[..., :1].repeat(3, axis=2), pixels[..., 1:]), axis=2) if pixels.shape[2] == 2 else pixels
    )
    assert np.array_equal(pixels, right)
    over_white = right[..., :3] / 255 * (right[..., 3:] / 255) + 1 - right[..., 3:] / 255
    torch.testing.assert_close(load_photo(path).double(), torch.from_numpy(over_white), rtol=0, atol=1e-6)
    scene = load_scene(scene_of(tmp_path, "picture.png", aabb=[[-1, -1, -1], [1, 1, 1]]))
    assert scene.train.has_alpha and np.array_equal(scene.train.image(0).numpy(), right)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_transparent_grey_of_every_depth(bits: int, tmp_path: Path) -> None:
    values = np.arange(16)[None, :, None].repeat(3, axis=0) % 2 ** min(bits, 4) << max(bits - 4, 0)
    png(tmp_path / "grey.png", values, bits, 0, key=(int(values[0, 1, 0]),))
    pixels = read_photo(tmp_path / "grey.png")
    largest = np.iinfo(pixels.dtype).max
    assert pixels.dtype == (np.uint16 if bits == 16 else np.uint8)
    grey, alpha = pixels[..., :1].astype(np.int64), pixels[..., -1:]
    assert np.array_equal(grey, values * largest // (2**bits - 1))
    assert np.array_equal(alpha, np.where(values == values[0, 1], 0, largest))


# Colour spaces -------------------------------------------------------------------------------------------------------


def save_ycck(path: Path) -> None:
    """Photoshop's way: the inks as luma and chroma, black beside them; the Adobe marker says so."""
    luma_chroma = np.array(Image.fromarray(255 - RGB).convert("YCbCr"))
    planes = np.concatenate((255 - luma_chroma, np.zeros_like(RGB[..., :1])), axis=2)
    Image.fromarray(planes, mode="CMYK").save(path, quality=100)
    content = path.read_bytes()
    place = content.index(b"Adobe") + 11
    assert content[place] == 0
    path.write_bytes(content[:place] + b"\x02" + content[place + 1 :])


def save_lab(path: Path, **options) -> None:
    lab = ImageCms.createProfile("LAB")
    ImageCms.profileToProfile(Image.fromarray(RGB), ImageCms.createProfile("sRGB"), lab, outputMode="LAB").save(
        path, **options
    )


COLOURS = {
    "CMYK.jpg": lambda path: Image.fromarray(RGB).convert("CMYK").save(path, quality=100),
    "YCCK.jpg": save_ycck,
    "CMYK.tif": lambda path: Image.fromarray(RGB).convert("CMYK").save(path),
    "profile of something else.tif": lambda path: Image.fromarray(RGB).convert("CMYK").save(
        path, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    ),
    "LAB.tif": save_lab,
    "LAB with profile.tif": lambda path: save_lab(
        path, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    ),
    "YCbCr.tif": lambda path: Image.fromarray(RGB).convert("YCbCr").save(path),
    "RGBX.tif": lambda path: Image.fromarray(RGB).convert("RGBX").save(path),
}  # fmt: skip


@pytest.mark.parametrize("name", COLOURS)
def test_colours_of_every_space_are_rgb(name: str, tmp_path: Path) -> None:
    """The fourth channel of inks is no alpha: it made the object of a white page vanish, with a PSNR of inf."""
    COLOURS[name](tmp_path / name)
    pixels = read_photo(tmp_path / name)
    assert pixels.shape == RGB.shape and np.abs(pixels.astype(int) - RGB).mean() < 3
    scene = load_scene(scene_of(tmp_path, name))
    assert not scene.train.has_alpha and not scene.bounded


def test_inks_without_adobe_marker_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "inks.jpg"
    Image.fromarray(RGB).convert("CMYK").save(path)
    content = path.read_bytes()
    marker = content.index(b"\xff\xee")
    path.write_bytes(content[:marker] + content[marker + 2 + int.from_bytes(content[marker + 2 : marker + 4], "big") :])
    with pytest.raises(PhotoError, match="inks.jpg` has four channels and no Adobe marker.*convert it to RGB"):
        read_photo(path)


def test_white_is_zero(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    for dtype in (np.uint8, np.uint16):
        values = RNG.integers(0, np.iinfo(dtype).max, (5, 6), dtype)
        tifffile.imwrite(tmp_path / "fax.tif", values, photometric="miniswhite")
        assert np.array_equal(read_photo(tmp_path / "fax.tif")[..., 0], np.iinfo(dtype).max - values)


# Depths --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_of_png_are_kept(channels: int, tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (11, 7, channels), np.uint16)
    path = tmp_path / "deep.png"
    png(path, values, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], filters=True)
    assert np.array_equal(read_photo(path), values)
    if channels == 3:
        png(path, values, 16, 2, key=tuple(values[4, 3].tolist()), filters=True)
        pixels = read_photo(path)
        hidden = np.argwhere(pixels[..., 3] == 0)
        assert np.array_equal(pixels[..., :3], values) and hidden.tolist() == [[4, 3]]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_16_bits_of_tiff_are_kept(order: str, channels: int, compression: str | None, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = RNG.integers(0, 65536, (11, 7, channels), np.uint16)
    path = tmp_path / "deep.tif"
    options = {"photometric": "minisblack" if channels == 1 else "rgb", "compression": compression, "byteorder": order}
    tifffile.imwrite(path, values[..., 0] if channels == 1 else values, **options)
    assert np.array_equal(read_photo(path), values)
    if channels == 4:  # premultiplied: colours come out straight
        values[..., 3] |= 1 << 15
        values[..., :3] = values[..., :3].astype(np.int64) * values[..., 3:] // 65535
        tifffile.imwrite(path, values, extrasamples=["assocalpha"], **options)
        pixels = read_photo(path).astype(np.float64)
        assert np.abs(pixels[..., :3] * pixels[..., 3:] / 65535 - values[..., :3]).max() <= 0.5
        assert np.array_equal(pixels[..., 3], values[..., 3])


def test_channels_of_a_tiff_may_lie_apart(tmp_path: Path) -> None:
    """And there may be some that are neither colour nor alpha."""
    tifffile = pytest.importorskip("tifffile")
    values = RNG.integers(0, 65536, (11, 7, 5), np.uint16)
    for dtype, extra in ((np.uint16, ["unassalpha"]), (np.uint8, ["unassalpha"]), (np.uint16, ["unspecified"] * 2)):
        stored = np.moveaxis(values[..., : 3 + len(extra)], 2, 0).astype(dtype)
        options = {"photometric": "rgb", "planarconfig": "separate", "extrasamples": extra}
        tifffile.imwrite(tmp_path / "planes.tif", np.ascontiguousarray(stored), **options)
        right = stored[:4] if extra == ["unassalpha"] else stored[:3]
        assert np.array_equal(read_photo(tmp_path / "planes.tif"), np.moveaxis(right, 0, 2))


@pytest.mark.parametrize("largest", [1023, 65535])
def test_grey_maps_of_16_bits(largest: int, tmp_path: Path) -> None:
    values = RNG.integers(0, largest + 1, (5, 7))
    (tmp_path / "grey.pgm").write_bytes(b"P5 7 5 %d\n" % largest + values.astype(">u2").tobytes())
    pixels = read_photo(tmp_path / "grey.pgm")
    assert pixels.dtype == np.uint16 and np.abs(pixels[..., 0] - values * 65535 / largest).max() <= 1


def test_other_depths_are_refused(tmp_path: Path) -> None:
    for dtype, name in ((np.float32, "float32"), (np.int32, "int32")):
        Image.fromarray(np.zeros((4, 5), dtype)).save(tmp_path / "wide.tif")
        with pytest.raises(PhotoError, match=f"wide.tif` must have 8 or 16 bits per channel, got {name}"):
            read_photo(tmp_path / "wide.tif")


# Orientation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png", "tif"])
def test_photos_stand_upright(extension: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"turned.{extension}"
    Image.fromarray(RGB).save(path, exif=exif, quality=100, subsampling=0)
    with Image.open(path) as image:
        right = np.array(ImageOps.exif_transpose(image))
    assert right.shape == ((24, 16, 3) if orientation >= 5 else (16, 24, 3))
    assert np.array_equal(read_photo(path), right)
    assert np.abs((load_photo(path) * 255).numpy() - right).max() < 1e-3


@pytest.mark.parametrize("extension", ["jpg", "tif"])
def test_cameras_decide_whether_a_scene_is_turned(extension: str, tmp_path: Path) -> None:
    """The side on which `w` and `h` are; where both fit, or nothing is said, the stored pixels, with a warning."""
    name = f"turned.{extension}"

    def load(orientation: int, **meta):
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(RGB).save(tmp_path / name, exif=exif, quality=100, subsampling=0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            views = load_scene(scene_of(tmp_path, name, **meta), holdout=0).train
        assert all(issubclass(w.category, SceneWarning) for w in caught)
        return views.image(0).numpy(), [str(w.message) for w in caught]

    close = lambda a, b: a.shape == b.shape and np.abs(a.astype(int) - b).mean() < 3  # noqa: E731
    for sizes in ({"w": 24, "h": 16}, {"w": 48, "h": 32}):
        pixels, said = load(6, **sizes)
        assert close(pixels, RGB) and not said
    assert len(load(6, w=0, h=16)[1]) == 1
    pixels, said = load(6, w=16, h=24)
    assert close(pixels, RGB[::-1].swapaxes(0, 1)) and not said
    for orientation, sizes in ((6, {}), (3, {"w": 24, "h": 16})):
        pixels, said = load(orientation, **sizes)
        assert close(pixels, RGB) and len(said) == 1
        assert said[0].startswith("4 image(s) have an EXIF orientation") and name in said[0]
    assert not load(1)[1]


# Several in one, none, and too large ---------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", ["gif", "png", "tif", "webp"])
def test_several_pictures_in_a_file_are_refused(extension: str, tmp_path: Path) -> None:
    path = tmp_path / f"several.{extension}"
    pages = [Image.fromarray(np.roll(RGB, 4 * i, axis=1)) for i in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    message = f"several.{extension}` must hold one picture, it holds 3; save the one"
    with pytest.raises(ValueError, match=message):
        load_photo(path)
    with pytest.raises(SceneError, match=message):
        load_scene(scene_of(tmp_path, path.name))
    pages[0].save(path, save_all=True)
    assert read_photo(path).shape[:2] == (16, 24)


def test_reduced_copies_beside_a_picture_do_not_count(tmp_path: Path) -> None:
    """As in pyramids, which most TIFFs of many megapixels are."""
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as file:
        file.write(RGB, photometric="rgb")
        file.write(RGB[::2, ::2], photometric="rgb", subfiletype=1)
    assert np.array_equal(read_photo(tmp_path / "pyramid.tif"), RGB)


def test_first_picture_of_a_phone_counts(tmp_path: Path) -> None:
    """The others of a multi-picture JPEG are its depth, its gain map or the second eye's."""
    pages = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    pages[0].save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=pages[1:], quality=100)
    with Image.open(tmp_path / "phone.jpg") as image:
        assert image.n_frames == 2
    assert np.abs(read_photo(tmp_path / "phone.jpg").astype(int) - RGB).mean() < 3


def test_one_bit_pictures_are_black_and_white(tmp_path: Path) -> None:
    bits = RGB[..., 0] > 99
    Image.fromarray(bits).save(tmp_path / "bits.png")
    assert np.array_equal(read_photo(tmp_path / "bits.png")[..., 0], bits * 255)
    assert load_photo(tmp_path / "bits.png").unique().tolist() == [0, 1]


def test_a_scene_of_nothing_but_transparency_is_refused(tmp_path: Path) -> None:
    """It would be fitted by nothing at all, with a PSNR of inf."""
    Image.fromarray(np.concatenate((RGB, np.zeros_like(RGB[..., :1])), axis=2)).save(tmp_path / "hidden.png")
    with pytest.raises(SceneError, match="every pixel of all 3 images is transparent"):
        load_scene(scene_of(tmp_path, "hidden.png"))


def test_huge_pictures_are_read_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word up to the limit, and above it with `allow_huge`; the limit is Pillow's, which stays as it was."""
    Image.fromarray(RGB).save(tmp_path / "huge.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
        assert np.array_equal(read_photo(tmp_path / "huge.png"), RGB)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 190)
        with pytest.raises(ValueError, match="huge.png` has 24 x 16 pixels, .*`--allow-huge`"):
            load_photo(tmp_path / "huge.png")
        assert load_photo(tmp_path / "huge.png", allow_huge=True).shape == RGB.shape
        scene = scene_of(tmp_path, "huge.png")
        with pytest.raises(SceneError, match="`allow_huge=True`"):
            load_scene(scene)
        assert len(load_scene(scene, allow_huge=True).train) == 3
        command = [
            "image",
            str(tmp_path / "huge.png"),
            "--out",
            str(tmp_path / "out"),
            "--steps",
            "1",
            "--device",
            "cpu",
        ]
        # letters of a caption are pictures, too, for Pillow
        monkeypatch.setattr("hashgrid.rendering.picture_views.write_comparison", lambda *args, **options: None)
        assert main(command) == 1 and main([*command, "--allow-huge"]) == 0
    assert Image.MAX_IMAGE_PIXELS == 190
