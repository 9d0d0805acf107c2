"""Training an autoencoder: it learns, resumes exactly, stops at NaN, and reports its health."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medgen.checkpoint import content_digest, read_weights
from medgen.codecs.autoencoder import Autoencoder
from medgen.codecs.losses import CodecLosses, hinge_critic, hinge_generator
from medgen.codecs.pixels import Pixels
from medgen.errors import DataError, HealthError, OutputError, RecipeError
from medgen.settings import TrainSettings
from medgen.training.codec import codec_health, fit_codec, train_codec, write_health
from medgen.training.codec_learner import CodecLearner, spread
from medgen.training.common import indices
from medgen.training.loop import Loop
from medgen.types import Batch, Schema, Study

SIZE = (16, 16)
LOSSES = CodecLosses(
    perceptual="features", perceptual_weight=0.2, critic_channels=8, kl_weight=1e-5
)
SETTINGS = TrainSettings(
    images=96, batch=8, lr=2e-3, warmup=16, ema_halflife=40, flip=True,
    checkpoint_every=32, validate_every=48, autoencoder_warmup=40,
)  # fmt: skip


class Blobs:
    """Studies of one soft disk each, in memory."""

    def __init__(self, count: int, *, seed: int = 0, size: tuple[int, int] = SIZE) -> None:
        generator = torch.Generator().manual_seed(seed)
        at = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, s) for s in size], indexing="ij"))
        place = torch.rand(count, 2, 1, 1, generator=generator) - 0.5
        radius = 0.3 + 0.4 * torch.rand(count, 1, 1, generator=generator)
        distance = (at[None] - place).square().sum(1).sqrt()
        self.images = (1.6 * torch.sigmoid(12 * (radius - distance)) - 0.8)[:, None]
        self.schema = Schema(size=size)
        self.studies = [Study(f"{seed}-{i}", f"p{i}", "train") for i in range(count)]

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Batch:
        return Batch(image=self.images[index : index + 1])


def small(seed: int = 0) -> Autoencoder:
    torch.manual_seed(seed)
    return Autoencoder(Schema(size=SIZE), channels=(16, 16), blocks=1)


def train(out, *, settings=SETTINGS, losses=LOSSES, codec=None, data=None, **more):
    codec = small() if codec is None else codec
    result = train_codec(
        codec,
        Blobs(24) if data is None else data,
        Blobs(12, seed=1),
        settings,
        out,
        losses=losses,
        device="cpu",
        progress=False,
        **more,
    )
    return codec, result


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    return out, *train(out)


class KilledError(Exception):
    """Stands for kill -9 at some step."""


def test_a_killed_run_resumes_to_the_same_bits(whole, tmp_path, monkeypatch):
    out, _, expected = whole
    advance = Loop.advance
    for last in (6, 9):

        def dies(run, step, last=last):
            advance(run, step)
            if step == last:
                raise KilledError

        monkeypatch.setattr(Loop, "advance", dies)
        with pytest.raises(KilledError):
            train(tmp_path)
    monkeypatch.setattr(Loop, "advance", advance)
    torch.manual_seed(77)
    _, result = train(tmp_path, codec=small(seed=5))
    assert result.resumed == 64
    assert result.digest == expected.digest
    for name in ("model.safetensors", "log.jsonl", "health.json"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_a_finished_run_is_not_trained_again(whole):
    out, _, expected = whole
    _, result = train(out, codec=small(seed=9))
    assert result.resumed == result.images == 96
    assert result.digest == expected.digest


def test_what_a_run_leaves(whole):
    out, codec, result = whole
    state, metadata = read_weights(result.weights)
    assert metadata["digest"] == result.digest == content_digest(codec.state_dict())
    assert state["whitening.fitted"].item() is True
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == list(range(8, 97, 8))
    assert "adversarial" not in lines[4]
    assert lines[5]["critic"] > 0
    assert [line["images"] for line in lines if "validation_psnr" in line] == [48, 96]
    health = json.loads((out / "health.json").read_text())
    assert health["psnr"] == result.health.psnr
    assert health["problems"] == list(result.health.problems)
    assert not any(parameter.requires_grad for parameter in codec.parameters())


def test_learns_until_the_gate_opens(tmp_path):
    settings = TrainSettings(
        images=2400, batch=16, lr=4e-3, warmup=160, decay="cosine", ema_halflife=200,
        checkpoint_every=2400, validate_every=1200,
    )  # fmt: skip
    losses = CodecLosses(perceptual="none", adversarial_weight=0, kl_weight=1e-6)
    seen = []
    codec, result = train(
        tmp_path, settings=settings, losses=losses, data=Blobs(64),
        preview=lambda codec, images: seen.append(images),
    )  # fmt: skip
    assert result.health.require().psnr > 20
    z = codec.encode(Blobs(64).images)
    torch.testing.assert_close(z.std(dim=(0, 2, 3)), torch.ones(4), atol=0.02, rtol=0)
    assert seen == [1200, 2400]


def test_micro_batches_add_up_to_the_batch():
    losses = CodecLosses(perceptual="none", adversarial_weight=0.1, adaptive=False)
    weights = []
    for micro in (None, 3):
        settings = TrainSettings(images=16, batch=8, warmup=0, micro_batch=micro, clip=1e9)
        learner = CodecLearner(small(), settings, losses, device="cpu")
        values = learner.step(Blobs(24), 0)
        weights.append((values, learner.gradients.buffer.clone()))
    assert weights[0][0]["loss"] == pytest.approx(weights[1][0]["loss"], rel=1e-5)
    assert weights[0][0]["critic"] == pytest.approx(weights[1][0]["critic"], rel=1e-5)
    torch.testing.assert_close(weights[0][1], weights[1][1], atol=1e-6, rtol=1e-4)


def test_step_moves_each_network_by_its_own_loss():
    losses = CodecLosses(perceptual="none", kl_weight=0, adversarial_weight=1.0, adaptive=False)
    settings = TrainSettings(images=64, batch=4, warmup=0, clip=1e9)
    learner = CodecLearner(small(), settings, losses, device="cpu")
    critic = learner.critic
    image = learner._draw(Blobs(8), [0, 1, 2, 3], [0, 1, 2, 3])[0]
    fake = learner.codec(image).image
    error = (fake - image).abs().mean()
    generator = torch.autograd.grad(
        error + hinge_generator(critic(fake)).mean(), learner.codec.last_layer
    )[0]
    judged = hinge_critic(critic(image), critic(fake.detach())).mean()
    first = critic.net.initial_conv.conv.weight
    expected = torch.autograd.grad(judged, first)[0]
    learner._draw = lambda data, chosen, seeds: (image, None)
    values = learner.step(Blobs(8), 0)
    torch.testing.assert_close(learner.codec.last_layer.grad, generator, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(first.grad, expected, atol=1e-6, rtol=1e-4)
    assert values["critic"] == pytest.approx(judged.item(), rel=1e-5)


def test_the_critic_starts_late_and_rises():
    settings = TrainSettings(images=800, batch=10, warmup=200, autoencoder_warmup=100)
    learner = CodecLearner(small(), settings, LOSSES, device="cpu")
    assert learner._voice(9) is None
    assert learner._voice(10) == pytest.approx(5 / 200)
    assert learner._voice(70) == 1.0
    without = CodecLosses(perceptual="none", adversarial_weight=0)
    assert CodecLearner(small(), settings, without, device="cpu").critic is None


def test_nan_stops_the_run_and_keeps_the_last_state(tmp_path):
    data = Blobs(24)
    data.images[indices(0, 24, 2, 8)[3]] = math.nan  # first seen in the third step
    settings = TrainSettings(images=64, batch=8, warmup=0, checkpoint_every=8)
    with pytest.raises(HealthError, match=r"step 3 .*loss = nan.*the state at 16 images is kept"):
        train(tmp_path, settings=settings, data=data)
    assert not (tmp_path / "model.safetensors").exists()
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
    kept, _ = read_weights(tmp_path / "state" / "000000000016.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())


def test_user_mistakes(whole, tmp_path):
    out = whole[0]
    with pytest.raises(OutputError, match="another run"):
        train(out, losses=CodecLosses(perceptual="none"))
    with pytest.raises(RecipeError, match="Pixels has nothing to train"):
        train(tmp_path, codec=Pixels(Schema(size=SIZE)))
    with pytest.raises(DataError, match="no training studies"):
        train(tmp_path, data=Blobs(0))
    with pytest.raises(DataError, match=r"\(1, 8, 16\), the codec was built for \(1, 16, 16\)"):
        train(tmp_path, data=Blobs(8, size=(8, 16)))


def test_fit_codec_is_all_that_pixels_need(tmp_path):
    codec = Pixels(Schema(size=SIZE), 2)
    fit_codec(codec, Blobs(32))
    health = codec_health(codec, Blobs(16, seed=1)).require()
    assert health.psnr == 100
    write_health(tmp_path / "health.json", health)
    assert json.loads((tmp_path / "health.json").read_text())["images"] == 16


def test_spread_covers_all_evenly():
    assert spread(10, 5) == [0, 2, 4, 6, 8]
    assert spread(3, 5) == [0, 1, 2]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """Five steps with the critic on, its weight balanced over both processes."""
    program = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import test_codec_training as t
settings = t.TrainSettings(images=40, batch=8, warmup=8, clip=1e9, ema_halflife=1)
losses = t.CodecLosses(perceptual="features", critic_channels=8)
t.train(Path(sys.argv[2]), settings=settings, losses=losses)
"""
    script = tmp_path / "program.py"
    script.write_text(program)
    states = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        command = [sys.executable, *launch, "--master-port", "0", "--standalone", str(script)]
        done = subprocess.run(
            [*command, str(Path(__file__).parent), str(out)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        states.append(read_weights(out / "state" / "000000000040.safetensors")[0])
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        if name.startswith(("codec.net", "critic.")):
            torch.testing.assert_close(tensor, states[1][name], atol=1e-5, rtol=0)
