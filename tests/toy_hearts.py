"""Small in-memory clips whose truth is known: a disc that beats in noise, driven by an ECG."""

from __future__ import annotations

import numpy as np
import torch
from toy_studies import Studies, split_of

from medgen.types import Batch, Provenance, Schema, Study

SIDE, FPS, RATE = 24, 16.0, 250.0
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
GAINS = {"I": 0.6, "II": 1.0, "V1": -0.5, "V2": -0.3, "V3": 0.4, "V4": 0.8, "V5": 1.1, "V6": 0.9}
SCALARS = ("ejection_fraction", "heart_rate", "end_diastolic_frame", "end_systolic_frame")
DELAY = 0.04
"""From the R peak to the fullest ventricle, s."""


def contraction(times: np.ndarray, beats: np.ndarray) -> np.ndarray:
    """How far the ventricle has emptied, in [0, 1], of R peaks at `beats` (s, evenly spaced)."""
    rr = np.diff(beats).mean()
    phase = ((times[:, None] - beats[None] - DELAY) / rr).astype(float)
    phase = np.where((phase >= 0) & (phase < 1), phase, np.nan)
    systole = 0.35
    up = (1 - np.cos(np.pi * np.clip(phase / systole, 0, 1))) / 2
    down = (1 + np.cos(np.pi * np.clip((phase - systole) / (1 - systole), 0, 1))) / 2
    return np.nan_to_num(np.nanmax(np.where(phase < systole, up, down), axis=1))


def twelve_leads(times: np.ndarray, beats: np.ndarray, qrs: float = 0.09) -> np.ndarray:
    """An ECG (12, samples) in mV with P, QRS and T of every beat; the limb leads obey Einthoven."""
    rr = np.diff(beats).mean()
    waves = (
        (-0.16, 0.02, 0.15),
        (-qrs / 4, qrs / 14, -0.12),
        (0.0, qrs / 8, 1.0),
        (qrs / 4, qrs / 14, -0.2),
        (0.27 * np.sqrt(rr), 0.04, 0.3),
    )
    wave = sum(
        height * np.exp(-((times[:, None] - beats[None] - at) ** 2) / (2 * wide**2)).sum(axis=1)
        for at, wide, height in waves
    )
    leads = {name: gain * wave for name, gain in GAINS.items()}
    leads["III"] = leads["II"] - leads["I"]
    leads["aVR"] = -(leads["I"] + leads["II"]) / 2
    leads["aVL"] = leads["I"] - leads["II"] / 2
    leads["aVF"] = leads["II"] - leads["I"] / 2
    return np.stack([leads[name] for name in LEADS])


def beating(
    count: int,
    *,
    seed: int = 0,
    synthetic: bool = False,
    frames: int = 24,
    noise: float = 0.2,
    late: int = 0,
    asked: float | None = None,
    swapped: bool = False,
    still: bool = False,
) -> Studies:
    """Clips of a bright disc in noise whose volume (that of a sphere) follows an ECG.

    Args:
        count: clips, one a patient; 6, 2 and 2 of ten train, validate and test.
        seed: another seed, other clips.
        synthetic: what the provenance says; synthetic studies are all in the training split.
        frames: of a clip, at 16 a second.
        noise: standard deviation of white noise.
        late: frames by which the clip lags behind its ECG.
        asked: by how many points the ejection fraction asked for is above that shown.
        swapped: the ECG is of another clip.
        still: nothing moves.
    """
    rng = np.random.default_rng(seed)
    times = np.arange(frames) / FPS
    fine = np.arange(round(frames / FPS * RATE)) / RATE
    rows, columns = np.mgrid[:SIDE, :SIDE]
    clips, masks, ecgs, scalars = [], [], [], []
    for _ in range(count):
        rate, fraction = rng.uniform(60, 110), rng.uniform(25, 75)
        rr = 60 / rate
        beats = -rng.uniform(1, 2) * rr + rr * np.arange(12)
        emptied = contraction(times - late / FPS, beats) * (0 if still else 1)
        volume = 1 - fraction / 100 * emptied
        radius = rng.uniform(6, 8) * volume ** (1 / 3)
        row, column = rng.uniform(10, 14, 2)
        far = np.hypot(rows - row, columns - column)[None]
        inside = 1 / (1 + np.exp(4 * (far - radius[:, None, None])))
        texture = rng.normal(0, 0.1, (SIDE, SIDE))
        image = inside - 0.5 + texture + noise * rng.normal(size=inside.shape)
        clips.append(image)
        masks.append(far < radius[:, None, None])
        ecgs.append(twelve_leads(fine, beats))
        full, empty = volume.argmax(), volume.argmin()
        scalars.append([fraction + (asked or 0), rate, full, empty])
    if swapped:
        ecgs = ecgs[1:] + ecgs[:1]
    name = "s" if synthetic else "r"
    ids = [f"{name}{seed}-{i}" for i in range(count)]
    cuts = np.cumsum((6, 2, 2))
    schema = Schema(
        size=(frames, SIDE, SIDE),
        mask_classes=("background", "cavity"),
        scalars=SCALARS,
        spacing=(1 / FPS, 1.0, 1.0),
        time=True,
        leads=LEADS,
        ecg_rate=RATE,
    )
    batch = Batch(
        image=torch.tensor(np.stack(clips), dtype=torch.float32)[:, None].clamp(-1, 1),
        mask=torch.tensor(np.stack(masks), dtype=torch.int64),
        scalar=torch.tensor(scalars, dtype=torch.float32),
        ecg=torch.tensor(np.stack(ecgs), dtype=torch.float32),
        spacing=torch.tensor([[1 / FPS, 1.0, 1.0]]).expand(count, -1),
        provenance=tuple(Provenance(id=i, synthetic=synthetic, source="toy") for i in ids),
    )
    splits = ["train" if synthetic else split_of(i, cuts) for i in range(count)]
    studies = [Study(i, i, split) for i, split in zip(ids, splits, strict=True)]
    return Studies(schema, studies, batch)


def toy_frames(frames=12, height=20, width=34) -> np.ndarray:
    """Grey levels (t h w) that differ along every axis: a bright disc that shrinks and grows."""
    t, y, x = np.ogrid[:frames, :height, :width]
    radius = (0.32 + 0.1 * np.cos(2 * np.pi * t / frames)) * min(height, width)
    disc = (y - height / 2) ** 2 + (x - width / 3) ** 2 < radius**2
    return (disc * 150 + y * 3 + x + np.zeros_like(t)).clip(0, 255).astype(np.uint8)


def toy_masks(frames=12, height=20, width=34) -> np.ndarray:
    """Classes (t h w) of that disc: 1 inside, 0 outside."""
    return (toy_frames(frames, height, width) >= 150).astype(np.int64)
