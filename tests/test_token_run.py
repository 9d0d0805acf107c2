"""Token generators from end to end: latents, training, resume, samples, determinism."""

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from medgen.assembly import from_pretrained
from medgen.backbones.token_transformer import TokenTransformer
from medgen.cli.main import cli
from medgen.conditioners.joint import JointConditioner
from medgen.conditioners.label import LabelConditioner
from medgen.model import GenerativeModel
from medgen.objectives.tokens import MaskedTokens, NextToken
from medgen.pipeline import Run
from medgen.protocols import Codec
from medgen.recipe import load_recipe
from medgen.samplers.guidance import ClassifierFree
from medgen.samplers.tokens import Autoregressive, MaskGIT
from medgen.settings import TrainSettings
from medgen.training.generator import TrainingData, train_generator
from medgen.training.loop import Loop
from medgen.types import Batch, LatentSpec, Schema

TINY = [
    "data={type: simulated, count: 40, size: [32, 32], findings: [cardiomegaly, effusion]}",
    "codec.channels=[8, 16]", "codec.vocab=16", "codec.train.images=32", "codec.train.batch=8",
    "codec.losses={perceptual: none, adversarial_weight: 0.0}",
    "backbone.depth=1", "backbone.width=32", "backbone.heads=2",
    "train.images=64", "train.batch=16", "train.warmup=16", "train.flip=true",
    "train.validate_every=64", "train.checkpoint_every=64", "sample.count=6",
    "sample.micro_batch=4",
]  # fmt: skip
ONE_BY_ONE = ["objective={type: next_token}", "sampler={type: autoregressive, top_k: 8}"]
SCHEMA = Schema(size=(5, 5), findings=("low", "high"), exclusive=True)
KINDS = {"masked": (MaskedTokens, MaskGIT), "causal": (NextToken, Autoregressive)}


@pytest.fixture(scope="module", params=["masked", "causal"])
def finished(request, tmp_path_factory):
    """The folder of a run."""
    out = tmp_path_factory.mktemp(request.param) / "run"
    overrides = TINY + (ONE_BY_ONE if request.param == "causal" else ["sampler.steps=3"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medgen.codecs.health.Health.require", lambda self: self)
        return Run(load_recipe("cxr/maskgit-64", overrides), out, device="cpu").train()


def test_latents_are_tokens_on_disk(finished):
    held = [load_file(path)["latents"] for path in (finished / "latents").iterdir()]
    assert len(held) == 4  # two splits, each mirrored too
    for latents in held:
        assert latents.dtype == torch.int64
        assert latents.shape[1:] == (8, 8)
        assert latents.max() < 16


def test_the_log_and_the_previews_are_there(finished):
    last = json.loads((finished / "log.jsonl").read_text().splitlines()[-1])
    assert len(last["validation_loss_by_t"]) == 4
    assert 0 < last["validation_loss"] < 3  # log 16 is 2.77
    assert (finished / "samples" / "000000064.png").stat().st_size > 100


def test_samples_are_asked_for_and_drawn_again(finished, tmp_path):
    out = tmp_path / "drawn"
    commands = (
        ["sample", str(finished), "--out", str(out), "--count", "5", "--device", "cpu"],
        ["verify", str(out), "--model", str(finished), "--count", "2"],
    )
    for command in commands:
        done = CliRunner().invoke(cli, command)
        assert done.exit_code == 0, done.output


def test_a_sample_depends_on_its_own_seed(finished):
    model = from_pretrained(finished)
    asked = Batch(label=torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0], [1, 0]]))
    together = model.sample(asked, [10, 11, 12, 13, 14]).image
    alone = model.sample(asked.select([4]), [14]).image
    torch.testing.assert_close(alone[0], together[4], atol=0, rtol=0)
    assert (together[0] - together[4]).abs().max() > 0
    assert together.abs().max() <= 1


class Given(Codec):
    """The tokens are the grey levels of the image."""

    domain = "tokens"
    latent = LatentSpec("tokens", (5, 5), vocab=4)

    def encode(self, image):
        return ((image[:, 0] + 1) * 1.5).round().long()

    def decode(self, z):
        return z[:, None] / 1.5 - 1

    def fit(self, images):
        """Nothing."""


def rows(count: int = 256, seed: int = 0) -> TrainingData:
    """Grids of constant rows; a finding says whether they hold tokens 0 and 1, or 2 and 3."""
    rng = torch.Generator().manual_seed(seed)
    high = torch.randint(2, (count,), generator=rng)
    tokens = torch.randint(2, (count, 5, 1), generator=rng) + 2 * high[:, None, None]
    label = torch.nn.functional.one_hot(high, 2)
    return TrainingData(tokens.expand(-1, -1, 5).contiguous(), Batch(label=label))


def build(kind: str, *, seed: int = 0) -> GenerativeModel:
    torch.manual_seed(seed)
    objective, sampler = KINDS[kind]
    codec = Given()
    conditioner = JointConditioner({"finding": LabelConditioner(SCHEMA, width=16)})
    backbone = TokenTransformer(
        codec.latent, conditioner.spec, objective.causal, depth=2, width=32, heads=2, dropout=0.1
    )
    return GenerativeModel(
        SCHEMA, codec, conditioner, backbone, objective=objective(codec.latent),
        sampler=sampler(), guidance=ClassifierFree(1.5),
    )  # fmt: skip


def train(kind: str, out, images: int = 96, model: GenerativeModel | None = None):
    settings = TrainSettings(
        images=images, batch=16, lr=3e-3, warmup=64, ema_halflife=200, checkpoint_every=32,
        validate_every=max(48, images // 2),
    )  # fmt: skip
    model = model or build(kind)
    result = train_generator(
        model, rows(), rows(32, seed=1), settings, out, metadata={}, device="cpu", progress=False
    )
    return model, result


class KilledError(Exception):
    """Stands for kill -9 at some step."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_resumes_to_the_same_bits(kind, tmp_path, monkeypatch):
    _, expected = train(kind, tmp_path / "whole")
    advance = Loop.advance

    def dies(run, step):
        advance(run, step)
        if step == 3:
            raise KilledError

    monkeypatch.setattr(Loop, "advance", dies)
    with pytest.raises(KilledError):
        train(kind, tmp_path / "killed")
    monkeypatch.setattr(Loop, "advance", advance)
    _, result = train(kind, tmp_path / "killed", model=build(kind, seed=9))
    assert result.resumed == 64
    assert result.digest == expected.digest
    logs = [(tmp_path / name / "log.jsonl").read_bytes() for name in ("whole", "killed")]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_learns_grids_and_what_is_asked_for(kind, tmp_path):
    model, result = train(kind, tmp_path, images=4000)
    asked = Batch(label=torch.eye(2, dtype=torch.long).repeat(32, 1))
    drawn = model.sample(asked, list(range(64)))
    z = model.codec.encode(drawn.image)
    asked_high = asked.label[:, 1, None, None] == 1
    assert float(((z >= 2) == asked_high).float().mean()) > 0.95
    constant = (z == z[:, :, :1]).all(-1).float().mean()
    assert constant > 0.8
    cond = model.conditioner.encode(asked.select([0, 1]))
    masked = model.objective.prior(Given.latent, [0, 1])
    t = torch.zeros(2)
    apart = model.backbone(masked, t, cond) - model.backbone(masked, t, model.conditioner.null(2))
    assert apart.abs().max() > 0.5  # the null condition is another one, and was trained
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["validation_loss"] < log[0]["loss"] / 2
    assert result.validation == log[-1]["validation_loss"]
