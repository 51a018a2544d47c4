"""Sounds as signals: WAV, FLAC and what else libsndfile reads, and a generated one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hashgrid.data.signals import Signal, SignalError
from hashgrid.util.files import atomic_path
from hashgrid.util.optional import optional_import


@dataclass
class Sound:
    """Amplitudes [N, C] in -1..1 of C channels."""

    name: str
    signal: Signal
    rate: int  # samples per second
    subtype: str = "PCM_16"  # how libsndfile calls the depth it was stored in

    def describe(self) -> str:
        seconds = len(self.signal) / self.rate
        return f"{self.name}: {seconds:.2f} s at {self.rate} Hz, {self.signal.n_channels} channel(s)"

    def write(self, path: Path, values: torch.Tensor) -> None:
        """Writes amplitudes [N, C] as WAV, in the depth that was read."""
        soundfile = optional_import("soundfile")
        subtype = self.subtype if soundfile.check_format("WAV", self.subtype) else "PCM_16"
        with atomic_path(path) as temporary:
            soundfile.write(str(temporary), values.clamp(-1, 1).numpy(), self.rate, subtype=subtype)


def read_sound(path: Path) -> Sound:
    """A sound of a file.

    Raises:
        SignalError: the file is missing, empty or not a sound.
    """
    if not path.is_file():
        raise SignalError(f"`SOUND` must be a WAV or FLAC file, `{path}` does not exist")
    soundfile = optional_import("soundfile")
    try:
        info = soundfile.info(str(path))
        values, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (RuntimeError, OSError) as error:  # the library's own kinds derive from these
        raise SignalError(f"`{path}` cannot be read as a sound: {error}") from error
    if not len(values):
        raise SignalError(f"`{path}` must hold at least one sample, got none")
    return Sound(path.name, Signal(torch.from_numpy(values)), rate, info.subtype)


def generated_sound(seconds: float = 5.0, rate: int = 44100) -> Sound:
    """Something like speech: pulses of a gliding voice through resonances that change from vowel to vowel, noise
    between them, pauses (formant synthesis, after Klatt 1980)."""
    generator = np.random.default_rng(0)
    n, syllable = round(seconds * rate), 0.25
    t = np.arange(n) / rate
    pitch = 110 + 25 * np.sin(2 * np.pi * 0.7 * t) + 10 * np.sin(2 * np.pi * 2.3 * t)
    phase = np.cumsum(pitch) / rate
    voice = np.exp(-40 * (phase % 1.0)) - 0.025  # a pulse per period, falling off
    noise = generator.standard_normal(n)
    vowels = [(730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410)]
    out = np.zeros(n)
    for i in range(math.ceil(seconds / syllable)):
        begin, end = round(i * syllable * rate), min(n, round((i + 1) * syllable * rate))
        if begin >= end or i % 7 == 6:
            continue
        length = end - begin
        rise = np.clip(np.minimum(np.arange(length), np.arange(length)[::-1]) / (0.03 * rate), 0, 1)
        burst = np.exp(-np.arange(length) / (0.02 * rate)) * noise[begin:end]
        source = voice[begin:end] * rise + 0.3 * burst
        out[begin:end] += _resonated(source, vowels[i % len(vowels)], rate)
    out *= 0.9 / np.abs(out).max()
    return Sound("generated", Signal(torch.from_numpy(out.astype(np.float32))[:, None]), rate)


def _resonated(source: np.ndarray, formants: tuple[int, ...], rate: int) -> np.ndarray:
    """The source through resonances 80 to 160 Hz wide, by its spectrum."""
    frequency = np.fft.rfftfreq(2 * len(source), 1 / rate)
    gain = np.zeros(len(frequency), np.complex128)
    for k, formant in enumerate(formants):
        width = 80 * (1 + 0.5 * k)
        gain += formant**2 / (formant**2 - frequency**2 + 1j * width * frequency) / (1 + k)
    return np.fft.irfft(np.fft.rfft(source, 2 * len(source)) * gain)[: len(source)]
