"""``hashgrid audio``: amplitude as a function of time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashgrid.data.sound import Sound, generated_sound, read_sound
from hashgrid.tasks.signal import SignalConfig, SignalTask
from hashgrid.train.task import Report
from hashgrid.util.files import atomic_path
from hashgrid.util.optional import optional_import


@dataclass(frozen=True)
class AudioConfig(SignalConfig):
    """Defaults of fitting sounds."""


class Audio(SignalTask):
    """Fits a field to a sound.

    Args:
        config: the recipe.
        sound: what to fit.
        path: its file, if it has one.
    """

    name = "audio"
    Config = AudioConfig
    metric = "snr"
    preview = "waves.png"
    summary = "Fits amplitude as a function of time to a sound, and writes what was learned."
    source_help = "sound: WAV or FLAC; a generated one like speech if none"
    packages = ("soundfile", "matplotlib")
    extra = "signals"

    def __init__(self, config: AudioConfig, sound: Sound, path: Path | None = None) -> None:
        self.sound, self.path = sound, path
        self.energy = float(sound.signal.values.double().square().mean())
        super().__init__(config, sound.signal)

    @classmethod
    def make(cls, config: AudioConfig, source: Path | None, notes: dict[str, Any]) -> Audio:
        source = Path(notes["sound"]) if source is None and notes.get("sound") else source
        return cls(config, generated_sound() if source is None else read_sound(source), source)

    def describe(self) -> str:
        return self.sound.describe()

    def notes(self) -> dict[str, Any]:
        return {"sound": None if self.path is None else str(self.path.resolve())}

    def in_decibels(self, mse: float) -> float:
        return 10 * math.log10(max(self.energy, 1e-12)) + super().in_decibels(mse)

    def evaluate(self, report: Report) -> dict[str, Any]:
        values, truth = self.signal.sampled(self.model), self.signal.values.cpu()
        self.sound.write(report.out / "reconstruction.wav", values)
        figures = {"sound": str(self.path or "generated"), "rate": self.sound.rate, **self.quality(values)}
        figures["snr"] = self.in_decibels(float((values.double() - truth.double()).square().mean()))
        plot_waves(report.out / "waves.png", truth[:, 0], values[:, 0], self.sound.rate)
        report.say(f"{self.describe()}, SNR {figures['snr']:.2f} dB")
        return figures


def plot_waves(path: Path, truth: Tensor, learned: Tensor, rate: int) -> None:
    """A picture of two sounds [N] and their difference: all of it, 20 ms from where it is loudest, and the spectra."""
    figure = optional_import("matplotlib.figure").Figure(figsize=(9, 6), layout="constrained")
    whole, part, spectrum = figure.subplots(3, 1)
    seconds = [i / rate for i in range(len(truth))]
    whole.plot(seconds, truth, color="#4c78a8", linewidth=0.4, label="sound")
    whole.plot(seconds, truth - learned, color="#d62728", linewidth=0.4, label="error")
    n = min(len(truth), max(2, rate // 50))
    start = max(0, min(len(truth) - n, int(truth.abs().argmax()) - n // 2))
    shown = slice(start, start + n)
    part.plot(seconds[shown], truth[shown], color="#4c78a8", linewidth=1.5, label="sound")
    part.plot(seconds[shown], learned[shown], color="#222222", linewidth=0.8, linestyle="--", label="learned")
    for axes in (whole, part):
        axes.set(xlabel="seconds", ylabel="amplitude")
        axes.legend(frameon=False, loc="upper right")
    size = min(1024, len(truth))
    for wave, color, label in ((truth, "#4c78a8", "sound"), (truth - learned, "#d62728", "error")):
        power = wave[: len(wave) // size * size].reshape(-1, size).double()
        power = 10 * (torch.fft.rfft(power * torch.hann_window(size)).abs().square().mean(0) / size + 1e-12).log10()
        spectrum.plot([rate * k / size for k in range(len(power))], power, color=color, linewidth=1, label=label)
    spectrum.set(xlabel="Hz", ylabel="dB")
    spectrum.legend(frameon=False, loc="upper right")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
