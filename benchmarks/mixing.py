"""What mixing in synthetic studies from disk costs a training step.

    python benchmarks/mixing.py [--studies 256] [--epochs 9]

A step of medgen's own small classifier (32 images of 64 x 64) on real studies held in memory, and
on as many studies half of which are synthetic, from the PNG files of an exported dataset: read and
decoded at every use, or, as by default, held in memory once read. CPU time of the process that
trains, one thread; epochs of both take turns, so that neither gains from what else the machine
does. The median of the ratios of paired epochs is shown, with the least and the largest.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from medgen.augmentation.tasks import task_for
from medgen.data import folder
from medgen.data.export import write_folder
from medgen.data.folder import Folder
from medgen.data.mixing import mix
from medgen.data.simulated import Simulated
from medgen.data.splits import Subset, load
from medgen.data.synthetic import SyntheticDataset
from medgen.protocols import Dataset
from medgen.types import Batch, Provenance

SIZE = (64, 64)
FINDINGS = ("cardiomegaly", "consolidation", "effusion", "nodule", "pneumothorax")
CASES = (
    ("held in memory once read", folder.CACHE_BYTES, 0),
    ("read at every use, by a worker of the loader", 0, 1),
    ("read at every use, by the training process", 0, 0),
)
BATCH = 32


def write_both(root: Path, count: int) -> tuple[Path, Path]:
    """Training studies as a folder of real ones and, the same files, as a synthetic dataset."""
    simulated = Simulated(count=count, size=SIZE)
    simulated.studies = tuple(replace(study, split="train") for study in simulated.studies)
    real = write_folder(simulated, root / "real")
    synthetic = Path(shutil.copytree(real, root / "synthetic"))
    (synthetic / "table.csv").rename(synthetic / "labels.csv")
    lines = [asdict(Provenance(study.id, True, "benchmark")) for study in simulated.studies]
    (synthetic / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    about = {"synthetic": True, "schema": asdict(simulated.schema)}
    (synthetic / "dataset.json").write_text(json.dumps(about))
    return real, synthetic


class Training:
    """A classifier that learns from a dataset, timed by the epoch.

    Args:
        dataset: studies with findings.
        workers: processes that read studies.
    """

    def __init__(self, dataset: Dataset, workers: int = 0) -> None:
        torch.manual_seed(0)
        self.task = task_for("classification", dataset.schema)
        self.network = self.task.network()
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=1e-3)
        self.loader = DataLoader(
            dataset,
            BATCH,
            shuffle=True,
            collate_fn=Batch.concat,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    def epoch(self) -> float:
        """CPU seconds a step, over one epoch."""
        began = time.process_time()
        for batch in self.loader:
            loss = self.task.loss(self.network(batch.image), self.task.targets(batch)).mean()
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
        return (time.process_time() - began) / len(self.loader)


def main() -> None:
    """Measure and print a step's cost with and without synthetic studies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=256, help="in an epoch (default 256)")
    parser.add_argument("--epochs", type=int, default=9, help="of each (default 9)")
    given = parser.parse_args()
    if given.studies < 2 * BATCH or given.epochs < 2:
        parser.error(f"expected {2 * BATCH} studies and 2 epochs or more")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        real_folder, synthetic_folder = write_both(Path(scratch), given.studies)
        real = Folder(real_folder, SIZE, findings=FINDINGS)
        load(real)
        half = Subset(real, range(given.studies // 2))
        print("| synthetic studies | ms a step, real only | with synthetic | ratio |")
        print("|---|---|---|---|")
        for title, cache, workers in CASES:
            folder.CACHE_BYTES = cache
            mixed = mix(half, SyntheticDataset(synthetic_folder), ratio=1, seed=0)
            plain, trained = Training(real, workers), Training(mixed, workers)
            times = [(plain.epoch(), trained.epoch()) for _ in range(given.epochs)]
            without, with_synthetic = (statistics.median(each) for each in zip(*times, strict=True))
            ratios = sorted(b / a for a, b in times)
            print(
                f"| {title} | {1000 * without:.1f} | {1000 * with_synthetic:.1f} | "
                f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}) |"
            )


if __name__ == "__main__":
    main()
