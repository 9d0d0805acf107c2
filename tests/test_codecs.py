"""Codecs: lossless where they say so, unit variance, shapes, refusals."""

import pytest
import torch

from medgen import registry
from medgen.codecs.pixels import Pixels, cosine_basis
from medgen.types import Schema


def smooth(count: int, size: tuple[int, ...], channels: int = 1, seed: int = 0) -> torch.Tensor:
    """Images whose spectrum falls like a radiograph's, in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    mode = {2: "bilinear", 3: "trilinear"}[len(size)]
    image = torch.zeros(count, channels, *size)
    for level, weight in ((2, 0.5), (4, 0.25), (8, 0.1)):
        noise = torch.randn(count, channels, *[level] * len(size), generator=generator)
        image += weight * torch.nn.functional.interpolate(noise, size=size, mode=mode)
    return (image + 0.01 * torch.randn(image.shape, generator=generator) - 0.2).clamp(-1, 1)


class TestPixels:
    @pytest.mark.parametrize("size", [(8, 12), (8, 4, 12)])
    @pytest.mark.parametrize("patch", [1, 2, 4])
    @pytest.mark.parametrize("whiten", ["global", "channel"])
    def test_is_lossless(self, size, patch, whiten):
        codec = Pixels(Schema(size=size, channels=3), patch, whiten=whiten)
        images = smooth(6, size, channels=3)
        codec.fit(images)
        z = codec.encode(images)
        assert z.shape[1:] == codec.latent.shape
        torch.testing.assert_close(codec.decode(z), images, atol=1e-6, rtol=0)

    @pytest.mark.parametrize("axes", [1, 2, 3])
    def test_basis_is_orthonormal_and_starts_with_the_mean(self, axes):
        basis = cosine_basis(4, axes)
        torch.testing.assert_close(basis @ basis.T, torch.eye(4**axes), atol=1e-6, rtol=0)
        torch.testing.assert_close(basis[0], torch.full((4**axes,), 4 ** (-axes / 2)))

    def test_a_block_becomes_the_coefficients_of_that_block(self):
        codec = Pixels(Schema(size=(4, 6), channels=2), 2)
        image = torch.zeros(1, 2, 4, 6)
        image[0, 1, 2:4, 4:6] = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
        z = codec.encode(image)
        expected = torch.zeros_like(z)
        expected[0, 4:, 1, 2] = torch.tensor([0.5, -0.1, -0.2, 0.0])
        torch.testing.assert_close(z, expected, atol=1e-6, rtol=0)

    def test_global_whitening_keeps_the_geometry_of_image_space(self):
        codec = Pixels(Schema(size=(16, 16)), 2)
        images = smooth(32, (16, 16))
        codec.fit(images)
        z = codec.encode(images)
        assert z.var(dim=(0, 2, 3), correction=0).mean().item() == pytest.approx(1, abs=1e-4)
        torch.testing.assert_close(z.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
        in_image = (images[0] - images[1]).square().sum()
        in_latent = (z[0] - z[1]).square().sum()
        other = (z[2] - z[3]).square().sum() / (images[2] - images[3]).square().sum()
        assert (in_latent / in_image).item() == pytest.approx(other.item(), rel=1e-4)

    def test_channel_whitening_gives_every_channel_unit_variance(self):
        codec = Pixels(Schema(size=(16, 16)), 2, whiten="channel")
        codec.fit(images := smooth(32, (16, 16)))
        std = codec.encode(images).std(dim=(0, 2, 3), correction=0)
        torch.testing.assert_close(std, torch.ones(4), atol=1e-3, rtol=0)

    def test_scale_travels_with_the_weights(self):
        images = smooth(8, (8, 8))
        first, second = (Pixels(Schema(size=(8, 8)), 2) for _ in range(2))
        first.fit(images)
        assert not torch.equal(first.encode(images), second.encode(images))
        second.load_state_dict(first.state_dict())
        assert torch.equal(first.encode(images), second.encode(images))

    def test_constant_images_stay_finite(self):
        codec = Pixels(Schema(size=(4, 4)), 2, whiten="channel")
        codec.fit(torch.full((3, 1, 4, 4), 0.25))
        assert codec.encode(torch.full((1, 1, 4, 4), 0.25)).abs().max() == 0

    def test_is_registered_with_schema_wired(self):
        codec = registry.build("codec", "pixels", {"patch": 2}, schema=Schema(size=(8, 8)))
        assert codec.latent.shape == (4, 4, 4)

    def test_refuses_what_does_not_divide(self):
        with pytest.raises(ValueError, match="do not divide into blocks of 3"):
            Pixels(Schema(size=(8, 9)), 3)
        with pytest.raises(ValueError, match="1 or more"):
            Pixels(Schema(size=(8, 8)), 0)
        with pytest.raises(ValueError, match="whiten"):
            Pixels(Schema(size=(8, 8)), whiten="none")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="got none"):
            Pixels(Schema(size=(8, 8))).fit(torch.zeros(0, 1, 8, 8))
