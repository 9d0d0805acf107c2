"""Codecs of frames: a clip is its frames, and the first one stands alone."""

import pytest
import torch
from toy_hearts import beating

from medgen.codecs.frames import FrameAutoencoder, FrameTokenizer
from medgen.codecs.losses import CodecLosses
from medgen.data.splits import by_split
from medgen.rng import Rng
from medgen.settings import TrainSettings
from medgen.training.codec import train_codec
from medgen.types import Schema

CLIPS = beating(20, frames=4)
SMALL = {"channels": (8, 8), "blocks": 1}


def build(kind):
    torch.manual_seed(0)
    more = {"latent_channels": 2} if kind is FrameAutoencoder else {"quantizer": "fsq"}
    return kind(CLIPS.schema, **SMALL, **more).eval()


@pytest.mark.parametrize("kind", [FrameAutoencoder, FrameTokenizer])
def test_every_frame_is_an_image_of_its_own(kind):
    codec, clips = build(kind), CLIPS.batch.image[:3]
    codec.fit(clips)
    z = codec.encode(clips)
    assert z.shape == (3, *codec.latent.shape)
    along = 1 if codec.latent.domain == "tokens" else 2
    first = z.narrow(along, 0, 1)
    alone = codec.encode(clips[:, :, :1])
    assert torch.equal(first, alone) if along == 1 else torch.allclose(first, alone, atol=1e-5)
    decoded = codec.decode(z)
    assert decoded.shape == clips.shape
    torch.testing.assert_close(codec.decode(first), decoded[:, :, :1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [FrameAutoencoder, FrameTokenizer])
def test_penalties_are_one_a_clip_whatever_stands_beside_it(kind):
    codec, clips = build(kind), CLIPS.batch.image[:3]
    made = codec(clips, Rng([1, 2, 3]))
    alone = codec(clips[1:2], Rng([2]))
    assert made.image.shape == clips.shape
    torch.testing.assert_close(made.image[1:2], alone.image, atol=1e-5, rtol=0)
    for name, value in made.penalties.items():
        assert value.shape == (3,)
        torch.testing.assert_close(value[1:2], alone.penalties[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [FrameAutoencoder, FrameTokenizer])
def test_they_learn(kind, tmp_path):
    settings = TrainSettings(images=480, batch=4, lr=5e-3, warmup=8, ema_halflife=20)
    result = train_codec(
        build(kind),
        by_split(CLIPS, "train"),
        by_split(CLIPS, "validation"),
        settings,
        tmp_path,
        losses=CodecLosses(adversarial_weight=0.0, perceptual="features"),
        metadata={},
        device="cpu",
        progress=False,
    )
    assert result.health.explained > 0.2


def test_other_studies_are_refused():
    with pytest.raises(ValueError, match="takes clips"):
        FrameTokenizer(Schema(size=(16, 16, 16)))
