"""Small-data mode: a run on few studies ends when it learns them by heart, a healthy one not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from test_resume import StopError, outputs, stop_at
from tiny_run import SETTINGS, build

from medgen.checkpoint import read_weights
from medgen.errors import DataError
from medgen.training.generator import train_generator
from medgen.training.learner import TrainingData
from medgen.training.memorization import MemorizationWatch, rise_p_value
from medgen.types import Batch

WATCHED = replace(
    SETTINGS,
    images=6400,
    batch=16,
    lr=4e-3,
    ema_halflife=400,
    validate_every=800,
    checkpoint_every=1600,
    snapshots=0,
    stop_when_memorizing=True,
)


def patches(count, seed):
    """Four random grey levels a study: nothing else can be learned, or everything by heart."""
    rng = torch.Generator().manual_seed(seed)
    image = torch.randn(count, 1, 2, 2, generator=rng).repeat_interleave(4, 2)
    label = torch.eye(2, dtype=torch.int64)[torch.randint(2, (count,), generator=rng)]
    return TrainingData(image.repeat_interleave(4, 3), Batch(label=label))


def train(out, count, settings=WATCHED, held_out=32, **changes):
    return train_generator(
        build(),
        patches(count, seed=1),
        patches(held_out, seed=2) if held_out else None,
        settings,
        out,
        metadata={},
        device="cpu",
        progress=False,
        **changes,
    )


def looks(out):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "watched_held_out_loss" in line]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    out = tmp_path_factory.mktemp("stopped")
    return out, train(out, 8)


def test_a_generator_on_eight_images_stops(stopped):
    out, result = stopped
    assert result.stopped
    assert result.kept < result.images < WATCHED.images
    *before, last = looks(out)
    best = min(before, key=lambda line: line["watched_held_out_loss"])
    assert result.kept == best["images"]
    assert last["memorization_began"] == 1
    assert last["memorization_p"] < 0.01
    assert last["watched_held_out_loss"] > 1.01 * best["watched_held_out_loss"]
    assert last["watched_training_loss"] < best["watched_training_loss"]


def test_the_weights_of_the_lowest_held_out_loss_are_kept(stopped, tmp_path):
    """They are those of the same run ended there."""
    out, result = stopped
    train(tmp_path, 8, replace(WATCHED, images=result.kept))
    kept, _ = read_weights(out / "model.safetensors")
    there, _ = read_weights(tmp_path / "model.safetensors")
    assert all(torch.equal(kept[name], there[name]) for name in there)


def test_a_generator_on_many_images_does_not_stop(tmp_path):
    result = train(tmp_path, 1000)
    assert not result.stopped
    assert result.images == result.kept == WATCHED.images
    assert len(looks(tmp_path)) == 8


def test_without_the_setting_nothing_is_watched_and_nothing_stops(tmp_path):
    settings = replace(WATCHED, stop_when_memorizing=False, images=3200)
    assert not train(tmp_path, 8, settings).stopped
    assert looks(tmp_path) == []


def test_an_interrupted_run_stops_at_the_same_bytes(stopped, tmp_path):
    out, result = stopped
    for images in (1600, result.images):
        with pytest.raises(StopError):
            train(tmp_path, 8, preview=stop_at(images))
    again = train(tmp_path, 8)
    assert (again.stopped, again.kept, again.images) == (True, result.kept, result.images)
    assert outputs(tmp_path) == outputs(out)


def test_a_stopped_run_is_left_as_it_is(stopped):
    out, result = stopped
    before = outputs(out)
    again = train(out, 8)
    assert outputs(out) == before
    assert again.resumed == again.images == result.images
    assert again.kept == result.kept
    assert again.stopped


def test_it_needs_held_out_studies(tmp_path):
    with pytest.raises(DataError, match="stop_when_memorizing: needs validation studies"):
        train(tmp_path, 8, held_out=0)


class Weights:
    """Averaged weights that say which look they are of."""

    def __init__(self):
        self.tensors = {"w": torch.zeros(1)}


def watch(training, held_out):
    """A watch at which losses of these means are looked at, one look after another."""
    rng = torch.Generator().manual_seed(0)
    studies = 0.01 * torch.randn(50, generator=rng)
    pairs = iter([(t + studies, h + studies) for t, h in zip(training, held_out, strict=True)])
    watching = MemorizationWatch(Weights(), lambda: next(pairs))
    for number in range(len(training)):
        watching.average.tensors["w"].fill_(number)
        watching.look(100 * number)
        if watching.began:
            break
    return watching


def test_a_rise_of_both_losses_is_divergence_not_memorization():
    assert watch([1.0, 0.9, 0.8], [1.0, 1.0, 1.2]).began
    assert not watch([1.0, 1.1, 1.2], [1.0, 1.0, 1.2]).began


def test_a_rise_within_the_margin_is_none():
    assert not watch([1.0, 0.9], [1.0, 1.009]).began
    assert watch([1.0, 0.9], [1.0, 1.011]).began
    best = watch([1.0, 0.9, 0.8, 0.7], [1.0, 0.9, 0.905, 1.0])
    assert best.images == 100


def test_false_alarms_of_the_rise_are_as_rare_as_stated():
    """Losses that rose by just the margin: 1 % of 2000 tests; bound of five standard errors."""
    rng = torch.Generator().manual_seed(0)
    before = 1 + 0.1 * torch.randn(2000, 40, generator=rng)
    after = before + 0.01 * before.mean(1, keepdim=True) + torch.randn(2000, 40, generator=rng) / 20
    alarms = [rise_p_value(b, a) < 0.01 for b, a in zip(before, after, strict=True)]
    assert sum(alarms) / 2000 == pytest.approx(0.01, abs=5 * (0.01 * 0.99 / 2000) ** 0.5)
    assert rise_p_value(torch.ones(1), torch.ones(1) * 2) == 1
    assert rise_p_value(torch.ones(3), torch.ones(3) * 2) == 0
