"""The generator's loop and what loops share."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from tiny_run import SETTINGS, build, run, studies

from medgen.checkpoint import content_digest, load_into, read_metadata, read_weights
from medgen.errors import DataError, DeviceError, HealthError, OutputError, RecipeError
from medgen.objectives.flow_matching import FlowMatching
from medgen.rng import Rng
from medgen.settings import TrainSettings
from medgen.training.common import (
    Gradients,
    due,
    indices,
    learning_rate,
    make_accelerator,
    make_optimizer,
    resolve_device,
    share,
    step_seeds,
)
from medgen.training.generator import TrainingData, train_generator
from medgen.training.learner import Learner
from medgen.types import Batch


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


# order of studies, seeds, shares


def test_every_epoch_shows_every_study_once():
    seen = [i for step in range(15) for i in indices(3, 10, step, 4)]  # 60 = 6 epochs of 10
    assert Counter(seen) == dict.fromkeys(range(10), 6)
    epochs = [tuple(seen[start : start + 10]) for start in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(epochs)) > 1


def test_order_depends_on_seed_and_step_alone():
    asked_late = indices(5, 100, 7, 8)
    for step in range(7):
        indices(5, 100, step, 8)
    assert indices(5, 100, 7, 8) == asked_late
    assert indices(6, 100, 7, 8) != asked_late


def test_order_does_not_depend_on_the_batch():
    small = [i for step in range(12) for i in indices(1, 9, step, 3)]
    large = [i for step in range(3) for i in indices(1, 9, step, 12)]
    assert small == large


def test_seeds_of_steps_differ():
    seeds = [seed for step in range(50) for seed in step_seeds(0, step, 16)]
    assert len(set(seeds)) == len(seeds)


def test_shares_make_up_the_batch():
    batch = list(range(12))
    assert [i for rank in range(3) for i in share(batch, rank, 3)] == batch
    with pytest.raises(RecipeError, match="5 processes cannot share 12"):
        share(batch, 0, 5)


def test_due_happens_once_an_interval_even_if_a_step_spans_it():
    assert [step for step in range(10) if due(step, 8, 20)] == [2, 4, 7, 9]
    assert all(due(step, 64, 10) for step in range(5))


# schedule


def test_learning_rate_warms_up_then_stays_or_falls():
    constant = TrainSettings(images=1000, lr=0.5, warmup=100)
    assert learning_rate(constant, 25) == pytest.approx(0.125)
    assert learning_rate(constant, 100) == learning_rate(constant, 999) == 0.5
    cosine = replace(constant, decay="cosine")
    assert learning_rate(cosine, 550) == pytest.approx(0.25)
    assert learning_rate(cosine, 1000) == pytest.approx(0, abs=1e-12)
    assert learning_rate(replace(constant, warmup=0), 0) == 0.5


def test_settings_without_sense_are_all_named():
    broken = replace(SETTINGS, images=0, lr=-1.0, micro_batch=0, warmup=-5)
    with pytest.raises(RecipeError) as caught:
        run(None, broken)
    assert len(caught.value.problems) == 4
    assert "train.lr: expected more than 0, got -1.0" in caught.value.problems


# devices


def test_devices():
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") in ("cpu", "cuda", "mps")
    with pytest.raises(DeviceError, match=r"unknown device 'cudda'\. Did you mean 'cuda'"):
        resolve_device("cudda")
    with pytest.raises(DeviceError, match="fp16 needs CUDA"):
        make_accelerator("cpu", "fp16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is present")
def test_absent_device_names_those_present():
    with pytest.raises(DeviceError, match=r"'cuda' is absent here; present: .*cpu"):
        resolve_device("cuda")


def test_precision_can_change_within_a_process():
    assert make_accelerator("cpu", "bf16").mixed_precision == "bf16"
    assert make_accelerator("cpu", "fp32").mixed_precision == "no"


# gradients and optimiser


@pytest.mark.parametrize(("fast", "expected"), [(True, "bf16"), (False, "no")])
def test_auto_precision_is_what_the_device_is_fast_in(fast, expected, monkeypatch):
    monkeypatch.setattr("medgen.training.common.computes_bfloat16", lambda device: fast)
    assert make_accelerator("cpu", "auto").mixed_precision == expected


def test_gradients_in_one_buffer_equal_autograd():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    data = torch.randn(6, 5)
    expected = torch.autograd.grad(network(data).sum(), list(network.parameters()))
    gradients = Gradients(network.parameters())
    for half in data.chunk(2):
        network(half).sum().backward()
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    norm = torch.cat([gradient.flatten() for gradient in expected]).norm()
    torch.testing.assert_close(gradients.clip(0.5), norm)
    torch.testing.assert_close(gradients.buffer.norm(), torch.tensor(0.5))
    gradients.zero()
    assert all(not parameter.grad.any() for parameter in network.parameters())


def test_small_gradients_are_not_clipped():
    parameter = torch.nn.Parameter(torch.ones(3))
    gradients = Gradients([parameter])
    (parameter.sum() * 0.1).backward()
    gradients.clip(1.0)
    torch.testing.assert_close(parameter.grad, torch.full((3,), 0.1))


def test_weight_decay_spares_vectors():
    layer = torch.nn.Linear(3, 3)
    optimizer = make_optimizer(layer.parameters(), TrainSettings(images=1, weight_decay=0.3))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay == {id(layer.weight): 0.3, id(layer.bias): 0.0}


# the loop


def test_run_leaves_what_it_promises(tmp_path):
    model = build()
    result = run(tmp_path, model=model)
    assert result.images == 320
    lines = log_of(tmp_path)
    assert [line["images"] for line in lines] == list(range(8, 321, 8))
    assert lines[-1]["loss"] == result.loss
    assert [line["images"] for line in lines if "validation_loss" in line] == [160, 320]
    by_time = [value for value in lines[-1]["validation_loss_by_t"] if value is not None]
    assert min(by_time) <= lines[-1]["validation_loss"] <= max(by_time)
    state, metadata = read_weights(tmp_path)
    assert metadata["kind"] == "generator"
    assert metadata["digest"] == result.digest
    assert content_digest(state) == content_digest(model.state_dict())
    weak, _ = read_weights(tmp_path / "weak.safetensors")
    assert weak.keys() == state.keys()
    assert content_digest(weak) != content_digest(state)
    assert len(list((tmp_path / "averages").iterdir())) == 4
    assert len(list((tmp_path / "state").iterdir())) == 4  # two generations of two files


def test_training_learns_the_condition(tmp_path):
    settings = replace(SETTINGS, images=6000, lr=4e-3, batch=16, ema_halflife=1000, snapshots=0)
    settings = replace(settings, checkpoint_every=6000, validate_every=3000)
    model = build()
    result = run(tmp_path, settings, model=model)
    first = log_of(tmp_path)[0]["loss"]
    assert result.loss < 0.6 * first
    asked = torch.eye(2, dtype=torch.long).repeat(8, 1)
    image = model.sample(Batch(label=asked), list(range(16))).image
    brighter = image[..., :4].mean(dim=(1, 2, 3)) > image[..., 4:].mean(dim=(1, 2, 3))
    assert (brighter == (asked[:, 0] == 1)).float().mean() >= 0.9


def test_codec_and_callers_random_state_stay_as_they_were(tmp_path):
    model = build()
    before = content_digest(model.codec.state_dict())
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    run(tmp_path, replace(SETTINGS, images=16), model=model)
    assert content_digest(model.codec.state_dict()) == before
    torch.testing.assert_close(torch.rand(3), expected)


def test_accumulated_gradients_equal_a_whole_batch(tmp_path):
    settings = replace(SETTINGS, images=40, batch=8)
    whole = build()
    run(tmp_path / "whole", settings, model=whole)
    for micro in (3, 4):  # 3 leaves a short last part
        parts = build()
        run(tmp_path / f"{micro}", replace(settings, micro_batch=micro), model=parts)
        for name, tensor in whole.state_dict().items():
            torch.testing.assert_close(parts.state_dict()[name], tensor, atol=1e-6, rtol=0)


def test_bf16_is_near_fp32_and_not_equal(tmp_path):
    results = {
        precision: run(tmp_path / precision, replace(SETTINGS, images=80, precision=precision))
        for precision in ("fp32", "bf16")
    }
    assert results["bf16"].loss != results["fp32"].loss
    assert results["bf16"].loss == pytest.approx(results["fp32"].loss, rel=0.02)
    state, _ = read_weights(tmp_path / "bf16")
    assert {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} == {
        torch.float32
    }


def test_seed_decides_and_dropout_is_reproducible(tmp_path):
    settings = replace(SETTINGS, images=24)
    digests = [
        run(tmp_path / str(i), replace(settings, seed=seed), model=build(dropout=0.3)).digest
        for i, seed in enumerate((0, 0, 1))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_flip_mirrors_latents_and_masks_together():
    mask = torch.arange(8).expand(2, 4, 8)
    latents = mask[:, None].float()
    data = TrainingData(latents, Batch(mask=mask), flipped=latents.flip(-1))
    z, conditions = data.take_flipped([0, 1], torch.tensor([True, False]))
    assert torch.equal(z[0], latents[0].flip(-1))
    assert torch.equal(z[1], latents[1])
    assert torch.equal(z[:, 0].long(), conditions.mask)


def test_flip_is_used_half_the_time(tmp_path):
    left = torch.zeros(4, 1, 8, 8)
    left[..., :4] = 1
    data = TrainingData(left, Batch(label=torch.eye(2).long().repeat(2, 1)), left.flip(-1))
    learner = Learner(build(), replace(SETTINGS, flip=True), device="cpu", snapshots=tmp_path)
    mirrored = []

    def watch(z, conditions, rng: Rng):
        mirrored.extend((z[:, 0, 0, 0] == 0).tolist())
        return z.flatten(1).sum(1) * next(learner.model.backbone.parameters()).sum() * 0

    learner.model.loss = watch
    for step in range(60):
        learner.step(data, step)
    # 480 draws of probability one half lie outside 0.4 to 0.6 with probability 1e-5.
    assert 0.4 < sum(mirrored) / len(mirrored) < 0.6


def test_preview_sees_averaged_weights_and_may_use_randomness(tmp_path):
    seen = {}

    def preview(model, images):
        seen[images] = content_digest(model.state_dict())
        torch.rand(5)

    settings = replace(SETTINGS, validate_every=40)
    shown = run(tmp_path / "shown", settings, preview=preview)
    plain = run(tmp_path / "plain", settings)
    assert list(seen) == list(range(40, 321, 40))
    assert seen[320] == shown.digest == plain.digest
    # The weak model is the average after an eighth of the run.
    assert read_metadata(tmp_path / "plain" / "weak.safetensors")["digest"] == seen[40]


def test_nan_stops_the_run_and_keeps_the_last_good_state(tmp_path):
    model = build()
    steps = []

    def poison(module, arguments, output):
        steps.append(1)
        return output * math.nan if len(steps) > 12 else output  # the 12th call: step 12

    model.backbone.register_forward_hook(poison)
    settings = replace(SETTINGS, validate_every=10_000)
    with pytest.raises(HealthError) as caught:
        run(tmp_path, settings, model=model)
    text = str(caught.value)
    assert "step 13 (104 images): loss = nan" in text
    assert "the state at 80 images is kept" in text
    assert not (tmp_path / "model.safetensors").exists()
    resumed = run(tmp_path, settings)
    assert resumed.resumed == 80
    assert resumed.digest == run(tmp_path / "whole", settings).digest


def test_validation_by_time_files_losses_under_their_t(tmp_path):
    class LossIsTime(FlowMatching):
        def loss(self, net, z, rng):
            t = rng.uniform()
            net(z, t)
            return t

    model = build()
    model.objective = LossIsTime()
    learner = Learner(model, SETTINGS, device="cpu", snapshots=tmp_path)
    values = learner.validate(studies(200))
    for place, mean in enumerate(values["validation_loss_by_t"]):
        assert place / 4 <= mean < (place + 1) / 4
    assert values == learner.validate(studies(200))  # the same draws every time


# wrong input


def test_no_studies_or_unequal_counts(tmp_path):
    some = studies(8)
    empty = TrainingData(some.latents[:0], some.conditions.select([]))
    short = TrainingData(some.latents[:5], some.conditions)
    unflipped = TrainingData(some.latents, some.conditions)
    rest = {"metadata": {}, "device": "cpu", "progress": False}
    with pytest.raises(DataError, match="no training studies"):
        train_generator(build(), empty, None, SETTINGS, tmp_path, **rest)
    with pytest.raises(DataError, match=r"training: 5 latents, but conditions of \[8\] studies"):
        train_generator(build(), short, None, SETTINGS, tmp_path, **rest)
    with pytest.raises(DataError, match="validation: 5 latents"):
        train_generator(build(), some, short, SETTINGS, tmp_path, **rest)
    flipping = replace(SETTINGS, flip=True)
    with pytest.raises(DataError, match=r"train\.flip"):
        train_generator(build(), unflipped, None, flipping, tmp_path, **rest)
    assert not list(tmp_path.iterdir())


def test_output_that_cannot_be_a_folder(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(OutputError, match=r"cannot write .*choose another folder"):
        run(blocked, replace(SETTINGS, images=8))
    assert blocked.read_text() == "not a folder"


def test_weights_load_into_a_fresh_model(tmp_path):
    run(tmp_path, replace(SETTINGS, images=8))
    fresh = build(seed=9)
    load_into(fresh, read_weights(tmp_path)[0])
    assert read_metadata(tmp_path)["digest"] == content_digest(fresh.state_dict())
