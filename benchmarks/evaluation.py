"""Time and memory of the distribution metrics at 10,000 studies against 10,000.

    OMP_NUM_THREADS=2 python benchmarks/evaluation.py [--count 10000] [--width 128 1280]

Random features; every metric is measured with its half-samples, against synthetic studies and
against other real ones (the floor), as an evaluation does. CPU time is what all threads together
spent; memory is the highest that the process rose above what it held with the features loaded.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import numpy as np

from medgen.evaluation.distribution import Frechet, Kid, Mmd
from medgen.evaluation.diversity import Prdc, Vendi
from medgen.evaluation.feature_metric import FeatureMetric, Features

METRICS: dict[str, type[FeatureMetric]] = {
    "frechet": Frechet,
    "kid": Kid,
    "mmd": Mmd,
    "prdc": Prdc,
    "vendi": Vendi,
}


def measure(name: str, count: int, width: int) -> tuple[float, float, float]:
    """CPU seconds, wall seconds and MiB above the features of one metric."""
    rng = np.random.default_rng(0)
    train, held, drawn, other = rng.normal(size=(4, count, width))
    patients = [str(i) for i in range(count)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, wall = time.process_time(), time.perf_counter()
    metric = METRICS[name]()
    fitted = metric.fit(lambda: train)
    for rows in (drawn, other):
        metric.between(Features(held, patients), Features(rows, patients), fitted)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return time.process_time() - cpu, time.perf_counter() - wall, (after - before) / 1024


def main() -> None:
    """Measure every metric in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="studies a side")
    parser.add_argument("--width", type=int, nargs="+", default=[128, 1280], help="of features")
    parser.add_argument("--one", choices=METRICS, help="measure this metric alone")
    asked = parser.parse_args()
    if asked.one:
        print(*measure(asked.one, asked.count, asked.width[0]))
        return
    print(f"{asked.count} studies a side\n")
    print("| width | metric | CPU s | wall s | MiB above the features |\n|---|---|---|---|---|")
    for width in asked.width:
        totals = np.zeros(3)
        for name in METRICS:
            command = [sys.executable, __file__, "--one", name, "--count", str(asked.count)]
            done = subprocess.run(
                [*command, "--width", str(width)], check=True, capture_output=True, text=True
            )
            figures = np.array([float(x) for x in done.stdout.split()])
            totals = np.append(totals[:2] + figures[:2], max(totals[2], figures[2]))
            print(f"| {width} | {name} | {figures[0]:.0f} | {figures[1]:.0f} | {figures[2]:.0f} |")
        print(f"| {width} | all | {totals[0]:.0f} | {totals[1]:.0f} | {totals[2]:.0f} |")


if __name__ == "__main__":
    main()
