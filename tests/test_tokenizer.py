"""Tokenizers: tokens are codes, every quantizer, exact resume, the gate that notices a collapse."""

import json

import pytest
import torch
from test_codec_training import Blobs, KilledError, train
from test_codecs import smooth

from medgen import registry
from medgen.codecs.health import check_health
from medgen.codecs.losses import CodecLosses
from medgen.codecs.quantizers import FSQ, LFQ, VQ, codebook_use, make_quantizer
from medgen.codecs.tokenizer import Tokenizer
from medgen.settings import TrainSettings
from medgen.training.codec_learner import CodecLearner
from medgen.training.loop import Loop
from medgen.types import Schema

KINDS = {
    "vq": {"quantizer": "vq", "vocab": 32, "width": 4},
    "fsq": {"quantizer": "fsq", "levels": (4, 3, 3)},
    "lfq": {"quantizer": "lfq", "vocab": 32},
}
LOSSES = CodecLosses(perceptual="features", perceptual_weight=0.2, critic_channels=8)
SETTINGS = TrainSettings(
    images=96, batch=8, lr=2e-3, warmup=16, ema_halflife=40, flip=True,
    checkpoint_every=32, validate_every=48, autoencoder_warmup=40,
)  # fmt: skip


def small(kind: str = "vq", *, size: tuple[int, ...] = (16, 16), seed: int = 0) -> Tokenizer:
    torch.manual_seed(seed)
    return Tokenizer(Schema(size=size), channels=(8, 16), blocks=1, patch=2, **KINDS[kind])


def placed(quantizer: VQ) -> VQ:
    """With a codebook placed on vectors of its own."""
    torch.manual_seed(1)
    quantizer.train()(torch.randn(8, quantizer.width, 8, 8))
    return quantizer.eval()


@pytest.mark.parametrize("quantizer", [placed(VQ(32, 4)), FSQ((4, 3, 3)), LFQ(32)])
def test_tokens_and_codes_are_one_to_one(quantizer):
    every = torch.arange(quantizer.vocab)[None]
    codes = quantizer.codes(every)[0].T  # v d
    apart = torch.cdist(codes, codes) + torch.eye(quantizer.vocab)
    assert apart.min() > 1e-3
    for axes in (1, 2, 3):
        made = quantizer.eval()(torch.randn(3, quantizer.width, *[4] * axes))
        assert made.tokens.dtype == torch.int64
        assert made.tokens.shape == (3, *[4] * axes)
        assert torch.equal(quantizer.codes(made.tokens), made.codes)
        nearest = torch.cdist(made.codes.flatten(2).transpose(1, 2), codes[None]).argmin(-1)
        assert torch.equal(nearest, made.tokens.flatten(1))


@pytest.mark.parametrize("quantizer", [VQ(16, 4), FSQ((4, 3)), LFQ(16)])
def test_gradients_pass_through_and_penalties_are_per_sample(quantizer):
    torch.manual_seed(0)
    z = torch.randn(3, quantizer.width, 6, 6, requires_grad=True)
    made = quantizer.train()(z)
    made.codes.sum().backward()
    assert z.grad.abs().sum() > 0
    assert all(penalty.shape == (3,) for penalty in made.penalties.values())
    assert set(made.penalties) == {
        VQ: {"commitment"}, FSQ: set(), LFQ: {"commitment", "entropy"},
    }[type(quantizer)]  # fmt: skip


def test_commitment_is_the_distance_to_the_code():
    quantizer = placed(VQ(8, 4))
    z = torch.randn(2, 4, 5)
    unit = torch.nn.functional.normalize(z, dim=1)
    made = quantizer(z)
    expected = (unit - made.codes).square().flatten(1).mean(1)
    torch.testing.assert_close(made.penalties["commitment"], expected)
    torch.testing.assert_close(
        made.tokens, torch.einsum("bdn,dv->bnv", unit, quantizer.codes(torch.arange(8)[None])[0])
        .argmax(-1),
    )  # fmt: skip


def test_dead_codes_are_revived():
    torch.manual_seed(0)
    quantizer = VQ(16, 2).train()
    angles = torch.linspace(0, 2 * torch.pi, 64)
    circle = torch.stack([angles.cos(), angles.sin()])[None]  # 1 2 64
    quantizer(circle[..., :16].repeat(1, 1, 4))  # the codes lie on a quarter of the circle
    for _ in range(400):
        quantizer(circle)
    share, perplexity = codebook_use(quantizer.eval()(circle).tokens, 16)
    assert share == 1
    assert perplexity > 10


def test_only_training_mode_learns():
    codec, images = small(), smooth(8, (16, 16))
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    codec.eval()(images)
    codec.train().encode(images)
    assert all(torch.equal(before[name], value) for name, value in codec.state_dict().items())
    codec.train()(images)
    assert not torch.equal(
        before["quantizer.net._codebook.embed"], codec.quantizer.net._codebook.embed
    )
    assert torch.equal(codec.eval()(images).tokens, codec.encode(images))


@pytest.mark.parametrize("size", [(16, 24), (8, 16, 8)])
@pytest.mark.parametrize("kind", KINDS)
def test_shapes_two_and_three_axes(kind, size):
    codec = small(kind, size=size).train()
    images = smooth(3, size)
    made = codec(images)
    tokens = codec.encode(images)
    assert codec.latent.shape == tuple(side // 4 for side in size)
    assert codec.latent.vocab == {"vq": 32, "fsq": 36, "lfq": 32}[kind]
    assert made.image.shape == images.shape
    assert tokens.shape == made.tokens.shape == (3, *codec.latent.shape)
    assert codec.eval().decode(tokens).shape == images.shape
    torch.testing.assert_close(codec.decode(tokens), codec(images).image.clamp(-1, 1))


def test_bfloat16_does_not_move_tokens():
    codec, images = small(), smooth(8, (16, 16))
    codec.train()(images)
    z = codec._vectors(images)
    with torch.autocast("cpu", torch.bfloat16):
        low = codec.quantizer.eval()(z).tokens
    assert torch.equal(low, codec.quantizer(z).tokens)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, *train(out, settings=SETTINGS, losses=LOSSES, codec=small())


def test_a_killed_run_resumes_to_the_same_bits(whole, tmp_path, monkeypatch):
    out, _, expected = whole
    advance = Loop.advance

    def dies(run, step):
        advance(run, step)
        if step == 6:
            raise KilledError

    monkeypatch.setattr(Loop, "advance", dies)
    with pytest.raises(KilledError):
        train(tmp_path, settings=SETTINGS, losses=LOSSES, codec=small())
    monkeypatch.setattr(Loop, "advance", advance)
    torch.manual_seed(77)
    _, result = train(tmp_path, settings=SETTINGS, losses=LOSSES, codec=small(seed=5))
    assert result.resumed == 32
    assert result.digest == expected.digest
    for name in ("model.safetensors", "log.jsonl", "health.json"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_the_log_tells_use_and_perplexity(whole):
    out, codec, result = whole
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    looked = [line for line in lines if "validation_psnr" in line]
    assert [line["images"] for line in looked] == [48, 96]
    tokens = codec.encode(Blobs(12, seed=1).images)
    assert looked[-1]["validation_usage"] == codebook_use(tokens, 32)[0]
    assert looked[-1]["validation_perplexity"] == pytest.approx(codebook_use(tokens, 32)[1])
    assert lines[0]["commitment"] > 0
    assert "kl" not in lines[0]
    assert json.loads((out / "health.json").read_text())["perplexity"] == result.health.perplexity


@pytest.mark.parametrize("kind", KINDS)
def test_learns_until_the_gate_opens(kind, tmp_path):
    settings = TrainSettings(
        images=2400, batch=16, lr=4e-3, warmup=160, decay="cosine", ema_halflife=100,
        checkpoint_every=2400, validate_every=2400,
    )  # fmt: skip
    losses = CodecLosses(perceptual="none", adversarial_weight=0)
    _, result = train(tmp_path, settings=settings, losses=losses, codec=small(kind), data=Blobs(64))
    assert result.health.require().psnr > 20
    assert result.health.usage > 0.3


def test_micro_batches_train_too():
    settings = TrainSettings(images=16, batch=8, warmup=0, micro_batch=3)
    learner = CodecLearner(small(), settings, LOSSES, device="cpu")
    assert learner.step(Blobs(24), 0)["loss"] > 0


def test_a_collapsed_codebook_is_unfit(whole):
    codec, images = small(), Blobs(32).images
    codec.train()(images)
    codes = codec.averaged["quantizer.embed"]
    codes.copy_(codes[:, :1].clone())
    found = " ".join(check_health(codec, images, min_psnr=0, min_ssim=-1).problems)
    assert "its codebook collapsed: 3% of its 32 codes" in found
    assert "perplexity of 1" in found


def test_use_and_perplexity():
    assert codebook_use(torch.tensor([0, 1, 2, 3]), 8) == (0.5, pytest.approx(4))
    assert codebook_use(torch.zeros(5, dtype=torch.long), 8) == (1 / 8, 1)


def test_a_recipe_builds_it():
    settings = {"channels": [8, 8], "quantizer": "fsq", "levels": [4, 3]}
    codec = registry.build("codec", "tokenizer", settings, schema=Schema(size=(8, 8)))
    assert codec.latent.vocab == 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "fsq", "vocab": 8}, "'fsq' has none; it takes levels"),
        ({"name": "lfq", "width": 8}, "'lfq' has none"),
        ({"name": "lfq", "vocab": 12}, "power of 2"),
        ({"name": "fsq", "levels": (2, 3)}, "3 or more"),
        ({"name": "vq", "vocab": 1}, "2 or more"),
        ({"name": "ema"}, "expected vq, fsq, lfq"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        make_quantizer(**settings)
