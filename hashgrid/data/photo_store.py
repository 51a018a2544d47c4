"""Where the pixels of photographs are kept: in memory, or in a file that is mapped into it where they are many.

The file takes what memory would not hold and is found again at the next start. Beside it lies a log, a line of JSON for
each image whose pixels are on the disk: what a killed process has not finished, the next one does.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import sys
import threading
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from hashgrid.data.errors import SceneError
from hashgrid.util.memory import free_memory

VERSION = 1  # of the layout of a file
MOST_IN_MEMORY = 4 << 30  # bytes of pixels; with more, a run would not fit into 8 GB
RESERVE = 1 << 30  # bytes of a disk that stay free
PAGE = 4096
# Bytes that one access makes resident: the system maps what is around a page, too; 140 kB were measured.
AROUND = 1 << 17
MOST_RESIDENT = 1 << 30  # bytes of a mapped file


@dataclass
class Pages:
    """Keeps small what of a mapped file counts as memory of this process. Its pages stay in the cache of the system
    as long as there is room: those that are dropped and asked for again are not read from the disk.

    Attributes:
        memory: the mapped file.
        touched: accesses since pages were dropped.
    """

    memory: mmap.mmap
    touched: int = 0

    def touch(self, n: int) -> None:
        """Notes ``n`` accesses to places anywhere."""
        self.touched += n
        if self.touched * AROUND > MOST_RESIDENT:
            self.drop()

    def drop(self) -> None:
        """Drops all pages."""
        self.touched = 0
        if hasattr(mmap, "MADV_DONTNEED"):
            self.memory.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class Plan:
    """What is to be kept.

    Attributes:
        counts: pixels of each image.
        channels: of a pixel, 3 or 4.
        masked: whether there is a flag for each pixel, too.
        source: what the pixels are made of, as JSON: files with their sizes and times, and how they are read.
        name: of a file for them.
        what: in words, as in "60 images".
        remedy: the option that makes them a quarter.
    """

    counts: tuple[int, ...]
    channels: int
    masked: bool
    source: Any = None
    name: str = "photos"
    what: str = "images"
    remedy: str = "--downscale 2"

    @property
    def n_pixels(self) -> int:
        return sum(self.counts)

    @property
    def size(self) -> int:
        """Bytes of all pixels and flags."""
        return self.n_pixels * (self.channels + self.masked)

    @property
    def begin(self) -> int:
        """Where the pixels lie in a file, behind the flags."""
        return -(-self.n_pixels * self.masked // PAGE) * PAGE


class InMemory:
    """Pixels [P, C] uint8 and flags [P] bool in memory."""

    pages: Pages | None = None

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.facts: dict[int, dict[str, Any]] = {}
        self._firsts = np.cumsum((0, *plan.counts)).tolist()
        self._data = np.empty((plan.n_pixels, plan.channels), dtype=np.uint8)
        self._counts = np.ones(plan.n_pixels, dtype=bool) if plan.masked else None

    def put(self, i: int, pixels: np.ndarray, counts: np.ndarray | None, facts: dict[str, Any]) -> None:
        """Keeps the pixels [n, C] of image ``i``, their flags [n], and what has to be known of it besides."""
        part = slice(self._firsts[i], self._firsts[i + 1])
        self._data[part] = pixels
        if self._counts is not None and counts is not None:
            self._counts[part] = counts
        self.facts[i] = facts

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        """Pixels and flags."""
        return torch.from_numpy(self._data), None if self._counts is None else torch.from_numpy(self._counts)

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class OnDisk:
    """Pixels and flags in a file of a folder. An image is there when its line is in the log, which is written after its
    pixels are on the disk.

    Raises:
        SceneError: another process is writing the file, or the disk has too little space.
    """

    plan: Plan
    folder: Path
    facts: dict[int, dict[str, Any]] = field(default_factory=dict)
    pages: Pages | None = None

    def __post_init__(self) -> None:
        self.path, self.log = self.folder / f"{self.plan.name}.pixels", self.folder / f"{self.plan.name}.jsonl"
        self._lock, self._firsts = threading.Lock(), np.cumsum((0, *self.plan.counts)).tolist()
        parts = json.dumps([VERSION, self.plan.counts, self.plan.channels, self.plan.masked, self.plan.source])
        self.fingerprint = hashlib.sha256(parts.encode()).hexdigest()
        self.facts = self._known()
        if self.is_complete:
            return
        self._check_space()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stream: IO[str] = self.log.open("a")
        if not _locked(self._stream):
            self._stream.close()
            raise SceneError(f"{self.path}: another process is writing it; wait for it, or pass another `--cache`")
        if not self.facts:
            self._stream.truncate(0)
            self.path.unlink(missing_ok=True)  # not emptied: a run may still look at it
            self._write_line({"of": self.fingerprint})
        self._stream.write("\n")  # the last line of a process that was killed may be cut
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        os.ftruncate(self._file, self._bytes)

    @property
    def _bytes(self) -> int:
        return self.plan.begin + self.plan.n_pixels * self.plan.channels

    @property
    def is_complete(self) -> bool:
        return len(self.facts) == len(self.plan.counts)

    def _known(self) -> dict[int, dict[str, Any]]:
        """The images that are in the file, if it is made of the same."""
        if not self.log.is_file() or not self.path.is_file() or self.path.stat().st_size != self._bytes:
            return {}
        lines = self.log.read_text().splitlines()
        entries = []
        for line in lines:
            with suppress(ValueError):  # the last one of a process that was killed
                entries.append(json.loads(line))
        if not entries or entries[0].get("of") != self.fingerprint:
            return {}
        return {entry.pop("image"): entry for entry in entries[1:]}

    def _check_space(self) -> None:
        there = next(folder for folder in (self.folder, *self.folder.absolute().parents) if folder.exists())
        if not there.is_dir():
            raise SceneError(f"`--cache` must be a folder, memory or auto, got {self.folder}; {there} is a file")
        free, old = shutil.disk_usage(there).free, _allocated(self.path)
        needed = self._bytes - old
        if needed + RESERVE > free:
            raise SceneError(
                f"the pixels of {self.plan.what} take {_gb(self._bytes)}, and {there} has {_gb(free)} free; pass"
                f" `{self.plan.remedy}` ({_gb(self._bytes // 4)}), `--cache FOLDER` of a larger disk, or `--cache"
                " memory`"
            )

    def put(self, i: int, pixels: np.ndarray, counts: np.ndarray | None, facts: dict[str, Any]) -> None:
        """As of :class:`InMemory`; it is on the disk afterwards."""
        first, flags = self._firsts[i], self.plan.masked
        with self._lock:
            if flags:
                self._write(np.ones(len(pixels), bool) if counts is None else counts, first)
            self._write(pixels, self.plan.begin + first * self.plan.channels)
        os.fsync(self._file)  # else a power cut leaves the line without the pixels
        with self._lock:
            self._write_line({"image": i, **facts})
            self.facts[i] = facts

    def _write(self, values: np.ndarray, place: int) -> None:
        rest = memoryview(np.ascontiguousarray(values).view(np.uint8).data).cast("B")
        os.lseek(self._file, place, os.SEEK_SET)
        while rest:
            rest = rest[os.write(self._file, rest) :]

    def _write_line(self, content: dict[str, Any]) -> None:
        self._stream.write(json.dumps(content) + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        """Pixels and flags, mapped: they take memory as they are looked at. What is written to them stays in memory."""
        with self.path.open("rb") as file:
            if sys.platform == "linux":  # a private copy that is never made needs no room set aside for it
                flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000)
                memory = mmap.mmap(file.fileno(), 0, flags, mmap.PROT_READ | mmap.PROT_WRITE)
            else:
                memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if hasattr(mmap, "MADV_RANDOM"):
            memory.madvise(mmap.MADV_RANDOM)
        self.pages = Pages(memory)
        n, channels = self.plan.n_pixels, self.plan.channels
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = np.frombuffer(memory, np.uint8, n * channels, self.plan.begin).reshape(n, channels)
            counts = np.frombuffer(memory, np.bool_, n) if self.plan.masked else None
            return torch.from_numpy(data), None if counts is None else torch.from_numpy(counts)

    def close(self) -> None:
        """Closes what only writing needs."""
        if hasattr(self, "_file"):
            os.close(self._file)
            self._stream.close()
            del self._file


def make_store(plan: Plan, cache: str) -> InMemory | OnDisk:
    """Where the pixels of a plan go, told where it is not memory.

    Args:
        plan: what they are.
        cache: "memory"; a folder for a file; or "auto": memory for up to 4 GiB and half of what is free, else a file
            in :func:`default_folder`.
    """
    most = min(MOST_IN_MEMORY, free_memory() // 2)
    if cache == "memory" or (cache == "auto" and plan.size <= most) or not plan.n_pixels:
        return InMemory(plan)
    folder = default_folder() if cache == "auto" else Path(cache)
    store = OnDisk(plan, folder)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = f"{_gb(shutil.disk_usage(there).free)} are free there"
    why = f", more than the {_gb(most)} that are kept in memory" if cache == "auto" else ""
    state = f"{len(store.facts)} images are there already" if store.facts else free
    if store.is_complete:
        state = "it is there already"
    print(f"{plan.what}: {_gb(plan.size)} of pixels{why}, in a file: {store.path} ({state})", flush=True)
    return store


def default_folder() -> Path:
    """``HASHGRID_CACHE``, or ``hashgrid`` in the user's folder of caches."""
    if "HASHGRID_CACHE" in os.environ:
        return Path(os.environ["HASHGRID_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hashgrid"


def _allocated(path: Path) -> int:
    """Bytes that a file takes of its disk."""
    try:
        stat = path.stat()
    except OSError:
        return 0
    return getattr(stat, "st_blocks", 0) * 512 or stat.st_size


def _locked(stream: IO[str]) -> bool:
    """Whether this process has a file for itself, until it closes it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _gb(n: int) -> str:
    return f"{n / 1e9:.1f} GB"
