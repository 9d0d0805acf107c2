"""Simulated CT against real CT: HU by structure, and the spectrum of noise.

    python benchmarks/simulated_ct.py FOLDER --count 6

FOLDER holds ct-chest/ct_2mm.nii.gz and labels_2mm.nii.gz with TotalSegmentator's structures (in
`structures.csv`), and ct-organs/ct_b_3mm.nii.gz with ct_b_3mm_labels117.nii.gz. Prints a table: the
5th, 50th and 95th percentile of HU in each structure eroded by one voxel (vessels
are no part of the simulator's lobes, and are of the real ones), and the earth mover's
distance of its histograms; then where the noise of liver and muscle has its power.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.stats import wasserstein_distance

from medgen.data.volumes import read_volume
from medgen.simulate.scan import scan
from medgen.simulate.scanner import Protocol
from medgen.simulate.structures import CODE

PAIRS = {
    "lung_upper_lobe_left": ("lung_upper_lobe_left",),
    "lung_lower_lobe_left": ("lung_lower_lobe_left",),
    "lung_upper_lobe_right": ("lung_upper_lobe_right",),
    "lung_middle_lobe_right": ("lung_middle_lobe_right",),
    "lung_lower_lobe_right": ("lung_lower_lobe_right",),
    "airway": ("trachea",),
    "bone": ("vertebrae_T5", "vertebrae_T7", "vertebrae_T9", "rib_left_5", "rib_right_6"),
    "heart": ("heart",),
    "aorta": ("aorta",),
    "liver": ("liver",),
    "spleen": ("spleen",),
    "kidney": ("kidney_right", "kidney_left"),
}
"""Structures of the simulator, and TotalSegmentator's that they stand for."""


def by_structure(volume, labels, values) -> dict[str, np.ndarray]:
    """HU of each structure's inner voxels."""
    found = {}
    for name, wanted in values.items():
        inside = np.isin(labels, wanted)
        inner = binary_erosion(inside)
        inner = inner if inner.sum() > 200 else inside
        if inner.sum() > 50:
            found[name] = volume[inner].astype(np.float64)
    return found


def spectrum(volume, inside, spacing, side=16) -> np.ndarray:
    """Power of the noise in patches (slices) that lie wholly inside: shares of 4 bands, and HU."""
    blocks = []
    detrended = volume - gaussian_filter(volume.astype(np.float32), (6, 6, 0))
    for k in range(volume.shape[2]):
        for i in range(0, volume.shape[0] - side, side):
            for j in range(0, volume.shape[1] - side, side):
                place = (slice(i, i + side), slice(j, j + side), k)
                if inside[place].all():
                    blocks.append(detrended[place])
    if not blocks:
        return np.full(5, np.nan)
    power = np.mean([np.abs(np.fft.fft2(b - b.mean())) ** 2 for b in blocks], axis=0)
    f = np.fft.fftfreq(side)
    radius = np.hypot(f[:, None], f[None])
    bands = [power[(radius > lo) & (radius <= lo + 0.125)].sum() for lo in (0, 0.125, 0.25, 0.375)]
    return np.append(np.array(bands) / np.sum(bands), np.sqrt(np.mean(np.square(blocks))))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=6)
    chosen = parser.parse_args()
    groups = {"heart": tuple(n for n in CODE if n.startswith("heart_"))}
    own = {n: [CODE[s] for s in groups.get(n, (n,))] for n in PAIRS}
    with (chosen.folder / "ct-chest/structures.csv").open() as file:
        number = {row["structure"]: int(row["id"]) for row in csv.DictReader(file)}
    ours = {n: [number[s] for s in names if s in number] for n, names in PAIRS.items()}
    for stem, labels, spacing, phase in (
        ("ct-chest/ct_2mm", "ct-chest/labels_2mm", 2.0, "arterial"),
        ("ct-organs/ct_b_3mm", "ct-organs/ct_b_3mm_labels117", 3.0, "native"),
    ):
        real = read_volume(chosen.folder / f"{stem}.nii.gz").voxels
        held = read_volume(chosen.folder / f"{labels}.nii.gz").voxels
        truth = by_structure(real, held, ours)
        made: dict[str, list[np.ndarray]] = {}
        noise = []
        for seed in range(chosen.count):
            s = scan(seed, spacing=(spacing,) * 3, protocol=Protocol(phase=phase))
            for name, values in by_structure(s.volume, s.labels, own).items():
                made.setdefault(name, []).append(values)
            x = s.volume.transpose(2, 1, 0)
            noise.append(spectrum(x, s.labels.transpose(2, 1, 0) == CODE["liver"], spacing))
        print(f"\n{stem}, {spacing:g} mm; simulated: {chosen.count} patients, {phase} phase")
        print(f"{'structure':24s}{'real 5/50/95':>22s}{'simulated 5/50/95':>22s}{'EMD':>7s}")
        for name, values in truth.items():
            simulated = np.concatenate(made.get(name, [np.zeros(1)]))
            cells = [
                "/".join(f"{q:.0f}" for q in np.percentile(v, [5, 50, 95]))
                for v in (values, simulated)
            ]
            rng = np.random.default_rng(0)
            distance = wasserstein_distance(*(rng.choice(v, 5000) for v in (values, simulated)))
            print(f"{name:24s}{cells[0]:>22s}{cells[1]:>22s}{distance:7.0f}")
        seen = spectrum(real, np.isin(held, ours["liver"]), spacing)
        for who, row in (("real", seen), ("simulated", np.nanmean(noise, axis=0))):
            shares = " ".join(f"{share:.2f}" for share in row[:4])
            print(f"noise in the liver, {who}: {row[4]:.1f} HU; power from low to high: {shares}")


if __name__ == "__main__":
    main()
