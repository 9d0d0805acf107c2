"""Two processes that share every batch equal one process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import SETTINGS, run

from medgen.checkpoint import read_weights

PROGRAM = Path(__file__).with_name("tiny_run.py")


def start_two(out: Path, images: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node=2", str(PROGRAM), str(out)),
            *("--images", str(images)),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    done = start_two(out, images=40)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_weights_after_five_steps_are_those_of_one_process(two, tmp_path):
    run(tmp_path, replace(SETTINGS, images=40))
    one_state, _ = read_weights(tmp_path)
    two_state, _ = read_weights(two)
    assert one_state.keys() == two_state.keys()
    for name, tensor in one_state.items():
        torch.testing.assert_close(two_state[name], tensor, atol=1e-6, rtol=0)


def test_only_the_first_process_writes(two):
    assert len((two / "log.jsonl").read_text().splitlines()) == 5
    assert len(list((two / "state").glob("*.json"))) == 1
