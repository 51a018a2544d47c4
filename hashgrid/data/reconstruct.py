"""Poses of photos, by COLMAP's library: `pip install 'torch-hashgrid[colmap]'`.

Features, matches and models are made in steps of one image each, which are what a second run need not do again, and
what bars count. Models grow with a lens of one coefficient: with more of them three images fit almost anything.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hashgrid.data.errors import SceneError, some
from hashgrid.data.loaders.colmap import MODELS
from hashgrid.data.loaders.poses import from_opencv, images_in, inverse, read_json
from hashgrid.util.files import atomic_path, atomic_write_json
from hashgrid.util.optional import optional_import
from hashgrid.util.threads import usable_cores

FEW_FEATURES = 100  # below which an image has too little to be found again
FEW_MATCHES = 15  # that agree, below which a pair is no pair
SEEN_POINTS = 20  # that an image has to see of a model to join it
SEED, TRIALS = 0, 2000  # of the search for a motion: of 57 pairs 10000 find no other ones, in twice the time
OURS, STAMP, DATABASE = "reconstruction", "recipe.json", "database.db"  # a folder in that of the scene; its files
PREPARED = ("transforms.json", "transforms_train.json", "sparse")  # of a scene that somebody else has made


@dataclass(frozen=True)
class Recipe:
    """How images are matched and placed."""

    matching: Literal["exhaustive", "sequential"] = "exhaustive"  # all pairs, or neighbours in the order of names
    mapper: Literal["auto", "incremental", "global"] = "auto"  # auto: global where it places more, and agrees
    camera_model: str = "SIMPLE_RADIAL"  # of `MODELS`; perspective or OPENCV_FISHEYE, which transforms.json has
    single_camera: bool = True  # one lens took all images of a size
    max_image_size: int = 2000  # longer side at which features are looked for
    max_features: int = 4096  # of an image, largest first
    affine: bool = True  # features as ellipses, described at several sizes: slower, found again from further aside
    guided: bool = False  # more matches, along the lines on which they have to be

    def check(self) -> None:
        """Raises a ValueError for an option out of range."""
        known = [name for name, (kind, _) in MODELS.items() if kind == "perspective" and name != "FULL_OPENCV"]
        if self.camera_model not in (*known, "OPENCV_FISHEYE"):
            raise ValueError(f"`camera_model` must be of {', '.join(known)}, OPENCV_FISHEYE, got {self.camera_model!r}")
        for name, least in (("max_image_size", 64), ("max_features", FEW_FEATURES)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}")

    @property
    def first_model(self) -> str:
        """The lens with which a model grows."""
        if self.camera_model in ("SIMPLE_PINHOLE", "PINHOLE"):
            return self.camera_model
        return "SIMPLE_RADIAL_FISHEYE" if "FISHEYE" in self.camera_model else "SIMPLE_RADIAL"


@dataclass
class Account:
    """What became of one image."""

    registered: bool = False
    features: int = 0
    matches: int = 0  # with the image that it has most in common with
    inliers: int = 0  # of these, on which one motion of the camera agrees
    partner: str = ""  # that image
    part: int | None = None  # number of the model that has it, the largest is 0
    why_not: str = ""


@dataclass
class _Work:
    """The files of one reconstruction, and its settings."""

    colmap: Any
    folder: Path
    images: Path
    names: list[str]
    recipe: Recipe
    say: Any
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def database(self) -> Path:
        return self.folder / DATABASE

    def open(self) -> Any:
        return closing(self.colmap.Database.open(self.database))

    def bar(self, items: Iterable[Any], what: str, unit: str) -> Iterable[Any]:
        return optional_import("tqdm").tqdm(items, what, unit=unit, disable=self.say is None)


def reconstruct(images: Path | Sequence[Path], out: Path, recipe: Recipe, say: Any = print) -> dict[str, Any]:
    """Finds where images were taken from, and writes ``transforms.json``, ``points.ply``, the model, ``sparse/0``, and
    ``reconstruction.json`` to ``out``.

    A second run takes features and matches of images that did not change from the first one's ``reconstruction``.

    Args:
        images: folder of pictures, or pictures of one folder.
        out: folder of the scene; ``images`` may be in its folder `images`, else they are copied there.
        recipe: how.
        say: is told what happens; None for silence.

    Returns:
        What is in ``reconstruction.json``: ``registered`` and ``left_out``, names with why; ``other_models``, names
        of each; ``images``, with features and matches; ``points``; ``reprojection_error`` in pixels.

    Raises:
        SceneError: there are too few images, none of them fit together, or ``out`` holds a scene made by other means.
        ImportError: pycolmap is not installed.
    """
    recipe.check()
    optional_import("PIL.Image")  # first: PNGs that are written with Pillow's zlib after COLMAP's was loaded crash
    pycolmap = optional_import("pycolmap")
    found = images_in(images) if isinstance(images, Path) else sorted(images)
    place = str(images) if isinstance(images, Path) else str(out / "images")
    if len(found) < 3:
        raise SceneError(f"`{place}` must hold at least 3 images (PNG, JPEG), got {len(found)}")
    work = _Work(pycolmap, out / OURS, out / "images", [image.name for image in found], recipe, say)
    claim(out)
    _gather(work, found)
    level, pycolmap.logging.minloglevel = pycolmap.logging.minloglevel, 3  # COLMAP's log; we say what went wrong
    try:
        _find_features(work)
        _match(work)
        models = _map(work)
        for model in models[:1]:
            _refine(work, model)
    finally:
        pycolmap.logging.minloglevel = level
    accounts = _accounts(work, models)
    if not models:
        raise SceneError(_nothing_fits(place, accounts))
    return _write(out, models, accounts, recipe)


def claim(out: Path) -> None:
    """Makes the folder of the scene ours.

    Raises:
        SceneError: it holds a scene that was made by other means.
    """
    if not (out / OURS / STAMP).is_file():
        theirs = next((name for name in PREPARED if (out / name).exists()), None)
        if theirs is not None:
            raise SceneError(f"`{out}` must be a new folder, it holds a scene ({theirs}) that was made by other means")
    (out / OURS).mkdir(parents=True, exist_ok=True)


def _gather(work: _Work, found: list[Path]) -> None:
    """Copies images, and forgets features of an earlier run that had others of them or another recipe."""
    stamp: dict[str, Any] = {name: vars(work.recipe)[name] for name in vars(work.recipe) if name != "mapper"}
    stamp = {**stamp, "camera_model": work.recipe.first_model, "colmap": work.colmap.__version__, "images": {}}
    ours = (work.folder / STAMP).is_file()
    for image in found:
        content = image.read_bytes()
        stamp["images"][image.name] = hashlib.sha256(content).hexdigest()
        target = work.images / image.name
        if target.is_file() and target.read_bytes() == content:
            continue
        if target.exists() and not ours:
            raise SceneError(f"`{target}` is another picture than `{image}`; name a new folder")
        with atomic_path(target) as temporary:
            temporary.write_bytes(content)
    if not ours or read_json(work.folder / STAMP) != stamp:
        for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"):
            (work.folder / name).unlink(missing_ok=True)
        atomic_write_json(work.folder / STAMP, stamp)


# Steps ---------------------------------------------------------------------------------------------------------------


def _find_features(work: _Work) -> None:
    """Features of each image; images of one size share a lens if the recipe says so."""
    colmap, recipe = work.colmap, work.recipe
    options = colmap.FeatureExtractionOptions(max_image_size=recipe.max_image_size, num_threads=usable_cores())
    options.sift.max_num_features = recipe.max_features
    options.sift.estimate_affine_shape = options.sift.domain_size_pooling = recipe.affine
    mode = colmap.CameraMode.SINGLE if recipe.single_camera else colmap.CameraMode.PER_IMAGE
    with work.open() as opened:
        done = {image.name: image.camera_id for image in opened.read_all_images()}
    lenses: dict[tuple[int, int], int] = {}
    for name in work.bar(work.names, "features", "image"):
        try:
            size, masks = _look_at(work, name)
        except (OSError, SyntaxError, ValueError) as error:  # Pillow's, of broken files
            work.unreadable[name] = f"cannot be read as an image: {' '.join(str(error).split())}"
            continue
        if name not in done:
            reader = colmap.ImageReaderOptions(camera_model=recipe.first_model)
            if masks is not None:
                reader.mask_path = masks
            if recipe.single_camera and size in lenses:
                reader.existing_camera_id = lenses[size]
            colmap.extract_features(
                work.database, work.images, image_names=[name], camera_mode=mode, reader_options=reader,
                extraction_options=options,
            )  # fmt: skip
            with work.open() as opened:
                image = opened.read_image_with_name(name)
            if image is None:
                work.unreadable[name] = "cannot be read as an image by COLMAP: convert it to PNG or JPEG"
                continue
            done[name] = image.camera_id
        lenses.setdefault(size, done[name])


def _look_at(work: _Work, name: str) -> tuple[tuple[int, int], Path | None]:
    """The size of an image, and the folder of its mask, where it has transparent pixels: no features are there."""
    pillow = optional_import("PIL.Image")
    with pillow.open(work.images / name) as image:
        if "A" not in image.getbands():
            image.load()  # all of it, as half of a photo is no photo
            return image.size, None
        alpha = image.getchannel("A")
    folder = work.folder / "masks"
    with atomic_path(folder / f"{name}.png") as temporary:
        alpha.point(lambda value: 255 * (value > 127)).save(temporary)
    return alpha.size, folder


def _match(work: _Work) -> None:
    """Matches of pairs of images, and which of them one motion of the camera explains."""
    colmap, names = work.colmap, [name for name in work.names if name not in work.unreadable]
    options = colmap.FeatureMatchingOptions(num_threads=usable_cores(), guided_matching=work.recipe.guided)
    verification = colmap.TwoViewGeometryOptions(min_num_inliers=FEW_MATCHES)
    verification.ransac.random_seed, verification.ransac.max_num_trials = SEED, TRIALS
    what = f"{work.recipe.matching} matching"
    if any(re.search(r"\s|^#", name) for name in names):  # lists of pairs cannot have such names
        exhaustive = work.recipe.matching == "exhaustive"
        for match in work.bar([colmap.match_exhaustive if exhaustive else colmap.match_sequential], what, "step"):
            match(work.database, matching_options=options, verification_options=verification)
        return
    pairs = image_pairs(len(names), work.recipe.matching)
    listed = colmap.ImportedPairingOptions(match_list_path=str(work.folder / "pairs.txt"))
    for i in work.bar(range(len(names)), what, "image"):
        partners = [names[b] for a, b in pairs if a == i]
        if partners:
            Path(listed.match_list_path).write_text("".join(f"{names[i]} {other}\n" for other in partners), "utf-8")
            colmap.match_image_pairs(
                work.database, matching_options=options, pairing_options=listed, verification_options=verification
            )


def image_pairs(n: int, matching: str) -> list[tuple[int, int]]:
    """Which of ``n`` images are compared: all with all, or each with the ten that follow it, some that are powers of
    two away, and about 24 of them, evenly chosen, with each other, so that a path that returns is closed.

    Example:
        >>> image_pairs(3, "exhaustive")
        [(0, 1), (0, 2), (1, 2)]
        >>> len(image_pairs(120, "exhaustive")), len(image_pairs(120, "sequential"))
        (7140, 1624)
    """
    if matching == "exhaustive":
        return list(itertools.combinations(range(n), 2))
    steps = [*range(1, 11), *(2**k for k in range(4, 10))]
    pairs = {(i, i + step) for i in range(n) for step in steps if i + step < n}
    return sorted(pairs | set(itertools.combinations(range(0, n, max(5, n // 24)), 2)))


def _map(work: _Work) -> list[Any]:
    """Models, that of most images first."""
    if work.recipe.mapper == "global":
        return _global(work)
    models = _incremental(work)
    n = models[0].num_reg_images() if models else 0
    if work.recipe.mapper == "incremental" or n >= len(work.names) - len(work.unreadable):
        return models
    other = _global(work)
    if other and other[0].num_reg_images() > n and (not models or agree(models[0], other[0])):
        return other
    return models


def _incremental(work: _Work) -> list[Any]:
    """One image joins after the other."""
    options = work.colmap.IncrementalPipelineOptions(num_threads=usable_cores(), random_seed=SEED, min_model_size=3)
    options.mapper.init_min_num_inliers, options.mapper.init_min_tri_angle = 50, 8.0
    options.mapper.abs_pose_min_num_inliers = SEEN_POINTS
    bar = optional_import("tqdm").tqdm(
        total=len(work.names), desc="incremental mapping", unit="image", disable=work.say is None
    )
    with bar, _folder(work, "incremental") as folder:
        models = work.colmap.incremental_mapping(
            work.database, work.images, folder, options,
            initial_image_pair_callback=lambda: bar.update(2), next_image_callback=lambda: bar.update(1),
        )  # fmt: skip
    return _by_size(models)


def _global(work: _Work) -> list[Any]:
    """All images are placed at once: faster, closes loops, and is misled by wrong matches more easily."""
    if work.say is not None:
        work.say("global mapping")
    with _folder(work, "global") as folder:
        options = work.colmap.GlobalPipelineOptions(num_threads=usable_cores(), random_seed=SEED)
        return _by_size(work.colmap.global_mapping(work.database, work.images, folder, options))


@contextmanager
def _folder(work: _Work, name: str) -> Iterator[Path]:
    """An empty folder for what a mapper writes, gone afterwards."""
    folder = work.folder / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _by_size(models: dict[int, Any]) -> list[Any]:
    return sorted(models.values(), key=lambda model: model.num_reg_images(), reverse=True)


def agree(a: Any, b: Any, degrees: float = 5.0) -> bool:
    """Whether two models turn 90 % of the images that both have alike, up to one rotation of the world; False where
    they have less than three in common."""
    turns = [
        {image.name: image.cam_from_world().rotation.matrix() for image in model.images.values() if image.has_pose}
        for model in (a, b)
    ]
    shared = sorted(turns[0].keys() & turns[1].keys())
    if len(shared) < 3:
        return False
    between = np.stack([turns[0][name].T @ turns[1][name] for name in shared])
    # The one that most others are near to: a mean would be drawn away by those that are wrong.
    cosines = (np.einsum("aij,bij->ab", between, between) - 1) / 2
    near = cosines > np.cos(np.radians(degrees))
    return bool(near.mean(axis=1).max() >= 0.9)


def _refine(work: _Work, model: Any) -> None:
    """Fits the lens that was asked for, together with poses and points; the first one stays where that fails."""
    wanted = work.recipe.camera_model
    if wanted == work.recipe.first_model:
        return
    before = {number: (camera.model, camera.params.copy()) for number, camera in model.cameras.items()}
    for camera in model.cameras.values():
        known = dict(zip(MODELS[camera.model_name][1], camera.params.tolist(), strict=True))
        if "f" in known:
            known["fx"] = known["fy"] = known["f"]
        camera.model = work.colmap.CameraModelId.__members__[wanted]
        camera.params = [known.get(name, 0.0) for name in MODELS[wanted][1]]
    options = work.colmap.BundleAdjustmentOptions(print_summary=False)
    options.ceres.solver_options.num_threads = usable_cores()
    options.ceres.loss_function_type = work.colmap.LossFunctionType.SOFT_L1
    work.colmap.bundle_adjustment(model, options)
    if any(camera.has_bogus_params(0.1, 10.0, 1.0) for camera in model.cameras.values()):
        if work.say is not None:
            work.say(f"too few points for a lens with the coefficients of {wanted}: {work.recipe.first_model} it stays")
        for number, (kind, params) in before.items():
            model.cameras[number].model, model.cameras[number].params = kind, params
        work.colmap.bundle_adjustment(model, options)
    model.update_point_3d_errors()


# Results -------------------------------------------------------------------------------------------------------------


def _accounts(work: _Work, models: list[Any]) -> dict[str, Account]:
    """What became of each image, by name."""
    accounts = {name: Account(why_not=work.unreadable.get(name, "")) for name in work.names}
    with work.open() as opened:
        names = {image.image_id: image.name for image in opened.read_all_images() if image.name in accounts}
        for number, name in names.items():
            accounts[name].features = opened.num_keypoints_for_image(number)
        found = dict(zip(*opened.read_num_matches(), strict=True))
        agreed = dict(zip(*opened.read_two_view_geometry_num_inliers(), strict=True))
    for pair, matches in found.items():
        ends = pair if isinstance(pair, tuple) else work.colmap.pair_id_to_image_pair(pair)
        for one, other in (ends, ends[::-1]):
            account, rank = accounts[names[one]], (agreed.get(pair, 0), matches)
            if rank > (account.inliers, account.matches):
                account.inliers, account.matches, account.partner = *rank, names[other]
    for part, model in reversed(list(enumerate(models))):
        for image in model.images.values():
            if image.has_pose:
                accounts[image.name].part, accounts[image.name].registered = part, part == 0
    for account in accounts.values():
        if not account.registered and not account.why_not:
            account.why_not = _why_not(account, models)
    return accounts


def _why_not(account: Account, models: list[Any]) -> str:
    if account.part is not None:
        n = models[account.part].num_reg_images()
        return f"one of {n} images that fit each other but not the rest: take some between them"
    if account.features < FEW_FEATURES:
        return f"only {account.features} features: blurred, dark or without texture"
    found = f"{account.features} features, at most {account.matches} matches with another image"
    if account.inliers < FEW_MATCHES:
        return f"{found}, {account.inliers} of which agree: too little overlap"
    return (
        f"{found}, {account.inliers} of which agree ({account.partner}): fewer than {SEEN_POINTS} of them are points"
        " that others see, too"
    )


def _nothing_fits(place: str, accounts: dict[str, Account]) -> str:
    best = max(accounts.values(), key=lambda account: (account.inliers, account.features))
    features = sorted(account.features for account in accounts.values())
    unread = [name for name, account in accounts.items() if "cannot be read" in account.why_not]
    also = f"; {len(unread)} cannot be read as images: {some(unread)}" if unread else ""
    return (
        f"`{place}`: no images fit together: {features[len(features) // 2]} features in the median image, at most"
        f" {best.matches} matches of two images, {best.inliers} of which agree; take more images, with more overlap"
        f" and texture{also}"
    )


def _write(out: Path, models: list[Any], accounts: dict[str, Account], recipe: Recipe) -> dict[str, Any]:
    """Writes the largest model and the report; ``transforms.json``, which makes it a scene, is last."""
    model, fresh, sparse = models[0], out / OURS / "sparse", out / "sparse" / "0"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    model.write_binary(fresh)
    shutil.rmtree(sparse, ignore_errors=True)
    sparse.parent.mkdir(parents=True, exist_ok=True)
    fresh.replace(sparse)
    with atomic_path(out / "points.ply") as temporary:
        model.export_PLY(temporary)
    others = [sorted(image.name for image in other.images.values() if image.has_pose) for other in models[1:]]
    report = {
        "registered": [name for name, account in accounts.items() if account.registered],
        "left_out": {name: account.why_not for name, account in accounts.items() if not account.registered},
        "other_models": others,
        "points": model.num_points3D(),
        "reprojection_error": model.compute_mean_reprojection_error(),
        "recipe": vars(recipe),
        "images": {name: vars(account) for name, account in accounts.items()},
    }
    atomic_write_json(out / "reconstruction.json", report)
    write_transforms(model, out)
    return report


def write_transforms(model: Any, out: Path) -> list[str]:
    """Writes the images of a COLMAP model as nerfstudio's ``transforms.json``, in its coordinates; returns names."""
    frames, names = [], []
    for image in sorted(model.images.values(), key=lambda image: image.name):
        if not image.has_pose:
            continue
        camera = image.camera
        values = dict(zip(MODELS[camera.model_name][1], camera.params.tolist(), strict=True))
        if "f" in values:
            values["fx"] = values["fy"] = values.pop("f")
        lens = {"fl_x": values.pop("fx"), "fl_y": values.pop("fy"), **values, "w": camera.width, "h": camera.height}
        pose = from_opencv(inverse(np.asarray(image.cam_from_world().matrix())))
        kind = "OPENCV_FISHEYE" if "FISHEYE" in camera.model_name else "OPENCV"
        frame = {"file_path": f"images/{image.name}", "transform_matrix": [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]]}
        frames.append({**frame, **lens, "camera_model": kind})
        names.append(image.name)
    atomic_write_json(out / "transforms.json", {"ply_file_path": "points.ply", "frames": frames})
    return names
