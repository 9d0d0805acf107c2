"""Causal codecs of clips: what depends on what, in encoder and decoder, and a training of them."""

import pytest
import torch

from medgen.codecs.causal import CausalAutoencoder, CausalTokenizer
from medgen.rng import Rng
from medgen.types import Schema

CLIPS = Schema(size=(9, 16, 16), time=True, spacing=(0.1, 1.0, 1.0))
TINY = {"channels": (8, 8, 8), "patch": 2}


def reach(outputs, inputs, axis):
    """Which frames of the inputs each frame of the outputs depends on."""
    rows = []
    for k in range(outputs.shape[axis]):
        (gradient,) = torch.autograd.grad(
            outputs.select(axis, k).square().sum(), inputs, retain_graph=True
        )
        rows.append(gradient.abs().sum(dim=(0, 1, 3, 4)) > 0)
    return torch.stack(rows)


@pytest.mark.parametrize("time", [1, 2, 4])
def test_nothing_looks_ahead(time):
    torch.manual_seed(0)
    codec = CausalAutoencoder(CLIPS, **TINY, time=time)
    latents = 1 + 8 // time
    assert codec.latent.size == (latents, 2, 2)
    image = torch.randn(1, 1, 9, 16, 16, requires_grad=True)
    seen = reach(codec.encode(image), image, 2)
    for k in range(latents):
        assert not seen[k, time * k + 1 :].any()
        assert seen[k, max(time * k - time + 1, 0) : time * k + 1].all()  # its own frames
    z = torch.randn(1, 4, latents, 2, 2, requires_grad=True)
    made = codec._image(z)
    assert made.shape == image.shape
    used = reach(made, z, 2)
    for frame in range(9):
        own = -(-frame // time)
        assert not used[frame, own + 1 :].any()
        assert used[frame, own]


def test_the_first_frame_is_decoded_alone():
    torch.manual_seed(0)
    codec = CausalTokenizer(CLIPS, **TINY, vocab=16, width=4).eval()
    image = torch.rand(2, 1, 9, 16, 16) * 2 - 1
    tokens = codec.encode(image)
    assert tokens.shape == (2, 3, 2, 2)
    whole = codec.decode(tokens)
    torch.testing.assert_close(codec.decode(tokens[:, :1]), whole[:, :, :1])
    torch.testing.assert_close(codec.decode(tokens[:, :2]), whole[:, :, :5])
    assert torch.equal(codec.encode(image[:, :, :1]), tokens[:, :1])


@pytest.mark.parametrize("quantizer", ["vq", "fsq", "lfq"])
def test_every_quantizer_fits(quantizer):
    settings = {"fsq": {"levels": (3, 3)}, "lfq": {"vocab": 16}, "vq": {"vocab": 16, "width": 4}}
    codec = CausalTokenizer(CLIPS, **TINY, quantizer=quantizer, **settings[quantizer])
    made = codec(torch.rand(2, 1, 9, 16, 16))
    assert made.image.shape == (2, 1, 9, 16, 16)
    made.image.sum().backward()
    assert codec.encoder[0].convolution.weight.grad.abs().sum() > 0
    assert made.tokens.max() < codec.latent.vocab


def test_it_learns_a_moving_edge():
    """An edge that moves a column a frame; a steady mean picture would leave all its variance."""
    torch.manual_seed(0)
    at = torch.arange(16).view(1, 1, 1, 1, 16)
    start = torch.arange(4, 8).view(4, 1, 1, 1, 1)
    clips = (at > start + torch.arange(9).view(1, 1, 9, 1, 1)).float() * 2 - 1
    clips = clips.expand(-1, -1, -1, 16, -1)
    codec = CausalAutoencoder(CLIPS, channels=(16, 16, 16), patch=2, latent_channels=8)
    optimiser = torch.optim.Adam(codec.parameters(), lr=1e-3)
    for _ in range(100):
        optimiser.zero_grad()
        loss = (codec(clips).image - clips).square().mean()
        loss.backward()
        optimiser.step()
    codec.fit(clips)
    z = codec.encode(clips)
    torch.testing.assert_close(z.mean(dim=(0, 2, 3, 4)), torch.zeros(8), atol=1e-4, rtol=0)
    left = (codec.decode(z) - clips).square().mean() / (
        clips - clips.mean(dim=2, keepdim=True)
    ).square().mean()
    assert left < 0.5
    assert codec(clips, Rng([0, 1, 2, 3])).penalties["kl"].shape == (4,)


@pytest.mark.parametrize(
    ("size", "settings", "text"),
    [
        ((8, 16, 16), {}, "use 5 frames"),
        ((9, 12, 16), {}, "not divisible by 8"),
        ((9, 16, 16), {"time": 3}, "expected 1, 2 or 4"),
        ((9, 16, 16), {"time": 4, "channels": (8, 8)}, "for 2 levels"),
    ],
)
def test_what_does_not_fit_is_told(size, settings, text):
    schema = Schema(size=size, time=True, spacing=(0.1, 1.0, 1.0))
    with pytest.raises(ValueError, match=text):
        CausalAutoencoder(schema, **{**TINY, **settings})
    with pytest.raises(ValueError, match="takes clips"):
        CausalAutoencoder(Schema(size=(9, 16, 16)), **TINY)
