"""Kill a run at any moment, run it again: the same weights and log, to the last bit."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import SETTINGS, build, run, studies

from medgen.errors import CheckpointError, OutputError
from medgen.training.generator import train_generator
from medgen.training.state import StateFolder, load_optimizer, optimizer_tensors, part

PROGRAM = Path(__file__).with_name("tiny_run.py")


def outputs(out: Path) -> dict[str, str]:
    """Digests of all that a run leaves, but for the state and TensorBoard's event files."""
    return {
        str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(out.rglob("*"))
        if file.is_file() and not {"state", "tensorboard"} & set(file.parts)
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    run(out)
    return outputs(out)


class StopError(Exception):
    pass


def stop_at(images: int):
    def preview(model, seen):
        if seen >= images:
            raise StopError

    return preview


def test_stopped_run_resumes_to_the_same_bytes(tmp_path, whole):
    """Stopped again and again: before and after a state was saved, and at the last step."""
    settings = replace(SETTINGS, validate_every=8)
    for images, states in ((8, 0), (40, 0), (48, 1), (168, 2), (320, 2)):
        with pytest.raises(StopError):
            run(tmp_path / "stopped", settings, preview=stop_at(images))
        assert not (tmp_path / "stopped" / "model.safetensors").exists()
        assert len(list((tmp_path / "stopped" / "state").glob("*.json"))) == states
    assert run(tmp_path / "stopped", settings).resumed == 280
    run(tmp_path / "uninterrupted", settings)
    assert outputs(tmp_path / "stopped") == outputs(tmp_path / "uninterrupted")
    # Looking at validation more often changes the log but not the weights.
    assert outputs(tmp_path / "stopped")["model.safetensors"] == whole["model.safetensors"]


def test_finished_run_is_left_as_it_is(tmp_path):
    first = run(tmp_path)
    before = outputs(tmp_path)
    again = run(tmp_path)
    assert outputs(tmp_path) == before
    assert (again.digest, again.loss, again.validation) == (
        first.digest,
        first.loss,
        first.validation,
    )
    assert again.resumed == again.images


def kill_and_resume(out: Path, kills: int) -> int:
    """Start the program and kill it soon after its first new log line; returns kills that hit."""
    moments = random.Random(kills)
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[1]), "OMP_NUM_THREADS": "1"}
    log, hits = out / "log.jsonl", 0
    for _ in range(kills):
        before = log.stat().st_size if log.is_file() else 0
        process = subprocess.Popen([sys.executable, str(PROGRAM), str(out)], env=environment)
        while process.poll() is None and (log.stat().st_size if log.is_file() else 0) <= before:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.1))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        hits += 1
    run(out)
    return hits


def test_killed_at_random_moments(tmp_path, whole):
    assert kill_and_resume(tmp_path, kills=2) >= 1
    assert outputs(tmp_path) == whole


@pytest.mark.slow
def test_killed_at_many_random_moments(tmp_path, whole):
    for round_ in range(5):
        assert kill_and_resume(tmp_path / str(round_), kills=3 + round_) >= 2
        assert outputs(tmp_path / str(round_)) == whole


def test_state_of_another_run_is_refused(tmp_path):
    run(tmp_path, replace(SETTINGS, images=40))
    before = outputs(tmp_path)
    for changed in (
        {"settings": replace(SETTINGS, images=40, lr=1e-4)},
        {"settings": replace(SETTINGS, images=40), "identity": "another recipe"},
    ):
        with pytest.raises(OutputError, match="the state of another run"):
            run(tmp_path, **changed)
    other, settings = studies(20, seed=5), replace(SETTINGS, images=40)
    rest = {"metadata": {}, "device": "cpu", "progress": False}
    with pytest.raises(OutputError, match="the state of another run"):
        train_generator(build(), other, None, settings, tmp_path, **rest)
    assert outputs(tmp_path) == before


def test_damaged_newest_state_falls_back_to_the_one_before(tmp_path, whole, caplog, monkeypatch):
    # A library that configures logging may have disabled the loggers that were there before.
    monkeypatch.setattr(logging.getLogger("medgen.training.state"), "disabled", False)
    with pytest.raises(StopError):
        run(tmp_path, preview=stop_at(320))
    newest = max((tmp_path / "state").glob("*.safetensors"))
    raw = bytearray(newest.read_bytes())
    raw[len(raw) // 2] ^= 255
    newest.write_bytes(raw)
    with caplog.at_level(logging.WARNING, logger="medgen.training.state"):
        result = run(tmp_path)
    assert "trying the state before it" in caplog.text
    assert result.resumed == 240
    assert outputs(tmp_path) == whole


def test_every_state_damaged(tmp_path):
    run(tmp_path, replace(SETTINGS, images=80))
    for file in (tmp_path / "state").glob("*.json"):
        file.write_text(file.read_text().replace('"images"', '"image"'))
    with pytest.raises(CheckpointError, match=r"every saved state is damaged .*delete the folder"):
        run(tmp_path, replace(SETTINGS, images=80))


def test_tampered_numbers_are_noticed(tmp_path):
    states = StateFolder(tmp_path, "a run")
    states.save(8, {"a": torch.ones(2)}, {"x": 1.0})
    record = tmp_path / "000000000008.json"
    values = json.loads(record.read_text())
    values["scalars"]["x"] = 2.0
    record.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="damaged"):
        states.load()


def test_two_generations_are_kept_and_none_that_was_not_resumed(tmp_path):
    states = StateFolder(tmp_path, "a run")
    for images in (8, 16, 24):
        states.save(images, {"a": torch.full((2,), float(images))})
    assert sorted(file.stem for file in tmp_path.glob("*.json")) == ["000000000016", "000000000024"]
    states.save(20, {"a": torch.zeros(2)})  # 24 was damaged, 16 was resumed
    assert sorted(file.stem for file in tmp_path.glob("*.json")) == ["000000000016", "000000000020"]
    assert len(list(tmp_path.iterdir())) == 4
    loaded = states.load()
    assert loaded.images == states.latest == 20


def test_no_state_at_all(tmp_path):
    assert StateFolder(tmp_path / "absent", "a run").load() is None


def test_optimiser_round_trip():
    def fresh():
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)

    def step(layer, optimizer):
        optimizer.zero_grad()
        layer(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()

    layer, optimizer = fresh()
    step(layer, optimizer)
    kept = {name: value.clone() for name, value in optimizer_tensors(optimizer, "o").items()}
    weights = {name: value.clone() for name, value in layer.state_dict().items()}
    step(layer, optimizer)
    other, resumed = fresh()
    other.load_state_dict(weights)
    load_optimizer(resumed, kept, "o")
    step(other, resumed)
    assert all(map(torch.equal, layer.parameters(), other.parameters()))
    assert part({"o.a": torch.ones(1), "other.b": torch.ones(1)}, "o").keys() == {"a"}
