"""Real material for the filters: a photograph, a plucked chord, a room's impulse response and a low-pass filter."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources

import numpy as np

__all__ = ["SAMPLE_RATE", "chord", "low_pass", "photograph", "room_response"]

SAMPLE_RATE = 44_100
CHORD = (110.0, 164.81, 220.0, 277.18, 329.63)  # A major, in hertz


@lru_cache(maxsize=1)
def photograph() -> np.ndarray:
    """NASA's portrait of the astronaut Eileen Collins (public domain), luminance, (512, 512) uint8, read-only."""
    path = resources.files("fastconv.bench") / "data" / "photograph.npz"
    with path.open("rb") as file, np.load(file) as archive:
        pixels = archive["pixels"]
    pixels.flags.writeable = False
    return pixels


def chord(seconds: float = 10.0) -> np.ndarray:
    """A chord plucked every two seconds, one string after the other: decaying harmonics, float32 within [-1, 1]."""
    length = int(seconds * SAMPLE_RATE)
    sound = np.zeros(length, dtype=np.float32)
    for pluck in range(0, length, 2 * SAMPLE_RATE):
        for string, pitch in enumerate(CHORD):
            start = pluck + string * SAMPLE_RATE // 25
            if start < length:
                sound[start:] += _string(pitch, length - start)
    return sound / np.abs(sound).max()


def _string(pitch: float, length: int) -> np.ndarray:
    time = np.arange(length, dtype=np.float32) / np.float32(SAMPLE_RATE)
    sound = np.zeros(length, dtype=np.float32)
    for harmonic in range(1, 6):
        # The n-th harmonic starts at 1/n of the amplitude and dies n times as fast, as on a plucked string.
        sound += np.exp(-1.5 * harmonic * time) * np.sin(2 * np.pi * pitch * harmonic * time) / harmonic
    return sound


def room_response(taps: int = 4096) -> np.ndarray:
    """Impulse response of a small room: the direct sound, then exponentially decaying noise of unit energy, float32."""
    noise = np.random.default_rng(1).standard_normal(taps)
    tail = noise * np.exp(-6.9 * np.arange(taps) / taps)  # exp(-6.9) is -60 dB, the usual definition of the decay time
    response = tail / np.linalg.norm(tail)
    response[0] = 1.0
    return response.astype(np.float32)


def low_pass(taps: int = 127, cutoff: float = 4000.0) -> np.ndarray:
    """Windowed-sinc low-pass filter with a Hamming window and unit gain at zero frequency, float32; cutoff in hertz."""
    position = np.arange(taps) - (taps - 1) / 2
    response = np.sinc(2 * cutoff / SAMPLE_RATE * position) * np.hamming(taps)
    return (response / response.sum()).astype(np.float32)
