"""Arms in several processes: the same results, one message on failure, resumed after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_studies import discs

from medgen.augmentation.arms import Arm, plan
from medgen.augmentation.experiment import prove
from medgen.augmentation.sweep import sweep
from medgen.augmentation.trial import Bench, Part, Trial
from medgen.augmentation.verdict import REAL
from medgen.errors import OutputError
from medgen.settings import ProveSettings

SETTINGS = ProveSettings(task="classification", repeats=2, steps=4, batch=8)
PROGRAM = """
import sys
sys.path.insert(0, "{tests}")
from pathlib import Path
import torch
from test_sweep import experiment
if __name__ == "__main__":
    torch.set_num_threads(1)
    experiment(Path("{out}"), workers=2)
"""


def experiment(out, workers=1):
    real, synthetic = discs(80), discs(40, seed=1, synthetic=True)
    saw = {"studies": 10, "patients": 10}
    return prove(real, synthetic, SETTINGS, out=out, generator_saw=saw, workers=workers)


def results(out):
    """Every arm's file, without its cost."""
    read = {path.name: json.loads(path.read_text()) for path in (out / "prove").glob("*.json")}
    return {name: {**content, "seconds": 0} for name, content in read.items()}


def bench(folder: Path) -> Bench:
    studies = discs(20)
    image, label = studies.batch.image, studies.batch.label
    parts = [Part(image.clone(), label.clone()) for _ in range(4)]
    return Bench(studies.schema, SETTINGS, *parts, masks=None, folder=folder, digest="digest")


def test_two_processes_and_a_kill_change_nothing(tmp_path):
    """Two processes killed halfway, one that takes up what they left, one alone: equal bits."""
    whole = experiment(tmp_path / "whole")
    cut = tmp_path / "cut"
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(tests=Path(__file__).parent, out=cut))
    parent = subprocess.Popen([sys.executable, str(program)])
    deadline = time.monotonic() + 300
    while not list((cut / "prove").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    first = results(cut)
    assert 0 < len(first) < len(plan(SETTINGS))
    stamps = {path: path.stat().st_mtime_ns for path in (cut / "prove").glob("*.json")}
    again = experiment(cut)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert results(cut) == results(tmp_path / "whole")
    assert {row["threads"] for row in again.rows} == {1}
    assert again.comparisons == whole.comparisons
    assert again.verdicts == whole.verdicts


class Deadly(list):
    """Indices that end the process they are sent to."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_failing_arm_stops_the_sweep_with_its_message(tmp_path):
    sound = Trial(Arm(1.0, REAL, 0.0, 0), [0, 1, 2], [])
    broken = Trial(Arm(1.0, REAL, 0.0, 1), [10_000], [])
    with pytest.raises(IndexError, match="10000 is out of bounds"):
        sweep(bench(tmp_path), [sound, broken], 2, lambda done, arm: None)
    with pytest.raises(IndexError, match="10000 is out of bounds"):
        sweep(bench(tmp_path), [sound, broken], 1, lambda done, arm: None)
    assert [path.name for path in tmp_path.glob("*.json")] == [sound.arm.file]
    killed = replace(broken, real=Deadly())
    other = replace(sound, arm=replace(sound.arm, repeat=2))
    with pytest.raises(OutputError, match="fewer --workers"):
        sweep(bench(tmp_path), [sound, killed, other], 2, lambda done, arm: None)
    assert torch.get_num_threads() == 1
