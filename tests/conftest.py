import hashlib
from pathlib import Path

import pytest
import torch

from medgen.data.export import write_folder
from medgen.data.simulated import Simulated
from medgen.pipeline import Run
from medgen.recipe import load_recipe

TINY = [
    "data.count=40",
    "data.size=[32, 32]",
    "backbone.channels=[32, 32]",
    "backbone.attention=[false, false]",
    "train.images=128",
    "train.warmup=16",
    "train.batch=16",
    "train.validate_every=64",
    "train.checkpoint_every=64",
    "sampler.steps=2",
    "sample.count=10",
    "sample.micro_batch=4",
]
"""Overrides that make `cxr/quickstart` a matter of seconds."""


@pytest.fixture(autouse=True)
def one_thread():
    """Tests share two cores; one thread each keeps them steady."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def simulated_folder(tmp_path_factory) -> Path:
    """A folder of 40 simulated radiographs with findings, masks, reports and a table."""
    folder = tmp_path_factory.mktemp("studies") / "simulated"
    return write_folder(Simulated(count=40, size=(32, 32), text=True), folder)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The folder of a finished tiny training run."""
    out = tmp_path_factory.mktemp("trained") / "run"
    return Run(load_recipe("cxr/quickstart", TINY), out, device="cpu").train()


@pytest.fixture(scope="session")
def digests():
    """A function: folder -> SHA-256 of every file in it, by relative path."""

    def every(folder: Path) -> dict[str, str]:
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return {
            str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
        }

    return every
