"""A made-up ECG whose beats, leads and laws are known."""

import numpy as np

from medgen.data.signals import LEADS, LIMB, Signal


def toy_ecg(seconds=4.0, rate=250, beats=75, *, first=0.4, leads=LEADS) -> Signal:
    """QRS spikes at known times, a T wave after each, limb leads bound by their laws."""
    times = np.arange(round(seconds * rate)) / rate
    peaks = np.arange(first, seconds, 60 / beats)

    def bump(delay, width):
        return np.exp(-((times[:, None] - peaks - delay) ** 2) / (2 * width**2)).sum(axis=1)

    qrs, t = bump(0, 0.012), bump(0.25, 0.05)
    sway = 0.02 * np.sin(2 * np.pi * 0.4 * times)  # no lead keeps one value
    one, two = 0.6 * qrs + 0.2 * t + sway, 1.1 * qrs + 0.25 * t + 3 * sway
    chest = {f"V{k}": (k - 2.5) / 3 * qrs + 0.3 * t + sway for k in range(1, 7)}
    rows = {name: a * one + b * two for name, (a, b) in LIMB.items()} | chest
    values = np.stack([rows[name] for name in leads]).astype(np.float32)
    return Signal(np.round(values, 3).astype(np.float32), tuple(leads), float(rate))


def peak_times(seconds=4.0, beats=75, first=0.4):
    return np.arange(first, seconds, 60 / beats)
