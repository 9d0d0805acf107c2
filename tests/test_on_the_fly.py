"""Samples drawn in the background: the plan's, renewed every epoch, and loud when they end."""

import os
import signal

import pytest
import torch
from torch.utils.data import DataLoader

from medgen.assembly import from_pretrained
from medgen.data.folder import Folder
from medgen.data.mixing import mix
from medgen.data.splits import by_split, load
from medgen.data.synthetic import SyntheticDataset
from medgen.errors import DataError, HealthError
from medgen.synthesis.draw import synthesize
from medgen.synthesis.on_the_fly import OnTheFly, epoch_seed
from medgen.synthesis.plan import Plan, plan
from medgen.types import Batch


@pytest.fixture(scope="module")
def model(trained):
    return from_pretrained(trained)


@pytest.fixture(scope="module")
def wanted(model):
    return plan(model, count=10)


def written(model, wanted, out):
    """What `synthesize` writes for a plan, read back."""
    return load(SyntheticDataset(synthesize(model, wanted, out, workers=1).folder))


def test_every_epoch_is_what_its_seeds_draw(trained, model, wanted, simulated_folder, tmp_path):
    real = by_split(
        Folder(simulated_folder, (32, 32), findings=("cardiomegaly", "effusion")), "train"
    )
    with OnTheFly(trained, wanted) as synthetic:
        first = load(synthetic)
        assert torch.equal(first.image, written(model, wanted, tmp_path / "first").image)
        assert torch.equal(first.label, wanted.conditions.label)
        assert first.provenance[3].seed == wanted.seeds[3]
        assert first.provenance[3].source == model.source
        mixed = mix(real, synthetic, ratio=0.3, seed=0)
        drawn = len(mixed) - len(real)
        shown = {}
        for epoch in range(3):
            synthetic.set_epoch(epoch)
            loader = DataLoader(mixed, 8, sampler=mixed.sampler, collate_fn=Batch.concat)
            batches = Batch.concat(list(loader))
            rows = [i for i, origin in enumerate(batches.provenance) if origin.synthetic]
            assert len(rows) == drawn > 0
            shown |= {batches.provenance[i].seed: batches.image[i] for i in rows}
        assert len(shown) == 3 * drawn
        seeds = tuple(epoch_seed(seed, 2) for seed in wanted.seeds)
        last = written(model, Plan(wanted.conditions, seeds), tmp_path / "last")
        assert torch.equal(load(synthetic).image, last.image)
        process = synthetic._process
    assert not process.is_alive()
    with pytest.raises(DataError, match="inside a `with` block alone"):
        synthetic.set_epoch(1)


def test_workers_of_a_loader(trained, wanted):
    with OnTheFly(trained, wanted, epoch=4) as synthetic:
        loader = DataLoader(
            synthetic, 5, collate_fn=Batch.concat, num_workers=1, persistent_workers=True
        )
        synthetic.set_epoch(4)
        batch = Batch.concat(list(loader))
        assert torch.equal(batch.image, load(synthetic).image)
        synthetic.set_epoch(5)
        with pytest.raises(DataError, match="persistent_workers"):
            list(loader)


def test_a_dead_process_is_told_of_and_an_epoch_can_be_drawn_again(trained, wanted):
    def advance(synthetic, epochs):
        for epoch in range(1, epochs):
            synthetic.set_epoch(epoch)

    with OnTheFly(trained, wanted) as synthetic:
        synthetic.set_epoch(0)
        first = load(synthetic).image
        os.kill(synthetic._process.pid, signal.SIGKILL)
        # The pipe may hold some epochs of images so small.
        with pytest.raises(HealthError, match=r"died \(exit code -9\) before epoch"):
            advance(synthetic, 50)
        synthetic.set_epoch(0)
        assert torch.equal(load(synthetic).image, first)


def test_an_error_of_the_process_is_told_of(trained, wanted):
    with (
        OnTheFly(trained, wanted, device="abacus") as synthetic,
        pytest.raises(HealthError, match=r"(?s)failed:.*abacus"),
    ):
        synthetic.set_epoch(0)


def test_outside_its_block_nothing_is_drawn(trained, wanted):
    synthetic = OnTheFly(trained, wanted)
    assert {study.split for study in synthetic.studies} == {"train"}
    with pytest.raises(DataError, match="inside a `with` block alone"):
        synthetic[0]
