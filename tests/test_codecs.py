"""Codecs: lossless where they say so, unit variance, shapes, refusals."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from medgen import registry
from medgen.codecs.autoencoder import Autoencoder
from medgen.codecs.health import check_health
from medgen.codecs.losses import kl_divergence
from medgen.codecs.pixels import Pixels, cosine_basis
from medgen.codecs.whitening import Whitening
from medgen.errors import HealthError
from medgen.rng import Rng
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
    @pytest.mark.parametrize("whiten", ["global", "half", "channel"])
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

    def test_half_whitening_halves_the_ratios_of_deviations_in_logarithm(self):
        images = smooth(32, (16, 16))
        plain, half = (Pixels(Schema(size=(16, 16)), 2, whiten=w) for w in ("global", "half"))
        std = []
        for codec in (plain, half):
            codec.fit(images)
            std.append(codec.encode(images).std(dim=(0, 2, 3), correction=0))
        torch.testing.assert_close(std[1][0] / std[1], (std[0][0] / std[0]).sqrt())
        assert std[1].square().mean().item() == pytest.approx(1, abs=1e-4)

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


class TestAutoencoder:
    @pytest.mark.parametrize(
        ("size", "settings", "shape"),
        [
            ((16, 24), {"channels": (8, 8, 16)}, (4, 4, 6)),
            ((16, 16), {"channels": (8, 16), "patch": 2, "latent_channels": 3}, (3, 4, 4)),
            ((8, 16, 8), {"channels": (8, 8), "attention": True}, (4, 4, 8, 4)),
        ],
    )
    def test_shapes_two_and_three_axes(self, size, settings, shape):
        codec = Autoencoder(Schema(size=size, channels=2), blocks=1, **settings)
        images = smooth(3, size, channels=2)
        assert codec.latent.shape == shape
        z = codec.encode(images)
        assert z.shape == (3, *shape)
        assert codec.decode(z).shape == images.shape
        made, mean = codec(images), codec.posterior(images)[0]
        assert mean.shape == z.shape
        assert made.tokens is None
        torch.testing.assert_close(made.image, codec.reconstruct(mean))

    def test_fit_gives_unit_variance_and_changes_no_reconstruction(self, tiny):
        codec, images = tiny
        before = codec.decode(codec.encode(images))
        codec.fit(images)
        z = codec.encode(images)
        torch.testing.assert_close(z.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
        torch.testing.assert_close(
            z.std(dim=(0, 2, 3), correction=0), torch.ones(4), atol=1e-3, rtol=0
        )
        torch.testing.assert_close(codec.decode(z), before, atol=1e-4, rtol=0)

    def test_forward_draws_from_the_posterior(self, tiny):
        codec, images = tiny
        seeds = range(len(images))
        made, (mean, logvar) = codec(images, Rng(seeds)), codec.posterior(images)
        drawn = mean + Rng(seeds).normal(codec.latent.shape) * (logvar / 2).exp()
        torch.testing.assert_close(made.image, codec.reconstruct(drawn))
        torch.testing.assert_close(made.penalties["kl"], kl_divergence(mean, logvar))

    def test_encode_is_deterministic_and_decode_in_range(self, tiny):
        codec, images = tiny
        assert torch.equal(codec.encode(images), codec.encode(images))
        assert codec.decode(100 * codec.encode(images)).abs().max() <= 1

    def test_learns_to_reconstruct(self, tiny):
        codec, images = tiny
        optimizer = torch.optim.AdamW(codec.parameters(), lr=3e-3)
        for _ in range(120):
            optimizer.zero_grad()
            loss = (codec(images).image - images).square().mean()
            loss.backward()
            optimizer.step()
        assert loss.item() < 0.1 * images.var().item()

    def test_last_layer_moves_every_pixel(self, tiny):
        codec, images = tiny
        assert codec.last_layer.shape[:2] == (1 * 2**2, 8)
        with torch.no_grad():
            codec.last_layer.zero_()
        flat = codec.reconstruct(codec.posterior(images)[0])
        assert flat.std(dim=0).max() < 1e-6

    def test_weights_load_into_the_same_network_only(self, tiny):
        codec, images = tiny
        codec.fit(images)
        twin = Autoencoder(Schema(size=(16, 16)), channels=(8, 8), patch=2, blocks=1)
        twin.load_state_dict(codec.state_dict())
        assert torch.equal(twin.encode(images), codec.encode(images))

    @pytest.mark.parametrize(
        ("size", "settings", "message"),
        [
            ((18, 16), {}, r"not divisible by 4; use images of \(20, 16\)"),
            ((16, 16), {"channels": (8, 12)}, "multiples of 8"),
            ((16, 16), {"channels": ()}, "multiples of 8"),
            ((16, 16), {"latent_channels": 0}, "1 or more"),
            ((16,), {}, "2 or 3 axes"),
        ],
    )
    def test_refusals(self, size, settings, message):
        with pytest.raises(ValueError, match=message):
            Autoencoder(Schema(size=size), **settings)


@pytest.fixture
def tiny():
    """A small untrained autoencoder, f4, and images for it."""
    torch.manual_seed(0)
    codec = Autoencoder(Schema(size=(16, 16)), channels=(8, 8), patch=2, blocks=1)
    return codec, smooth(8, (16, 16))


@pytest.fixture(scope="module")
def trained():
    """An autoencoder trained for seconds until its gate opens, and held-out images."""
    torch.manual_seed(0)
    codec = Autoencoder(Schema(size=(16, 16)), channels=(16, 16), blocks=1)
    images = smooth(64, (16, 16))
    optimizer = torch.optim.AdamW(codec.parameters(), lr=3e-3)
    for step in range(150):
        part = images[(step * 16) % 64 :][:16]
        reconstruction, mean = codec(part).image, codec.posterior(part)[0]
        optimizer.zero_grad()
        ((reconstruction - part).square().mean() + 1e-4 * mean.square().mean()).backward()
        optimizer.step()
    codec.fit(images)
    return codec.eval(), smooth(32, (16, 16), seed=1)


class TestHealth:
    def test_a_trained_codec_is_healthy(self, trained):
        codec, images = trained
        health = check_health(codec, images)
        assert health.problems == ()
        assert health.require() is health
        assert health.images == 32
        assert health.latent_std == pytest.approx([1] * 4, abs=0.3)
        error = (codec.decode(codec.encode(images)) - images).square().flatten(1).mean(1)
        assert health.psnr == pytest.approx((10 * (4 / error).log10()).mean().item(), abs=1e-3)
        assert health.explained > 0.8

    @pytest.mark.parametrize("whiten", ["global", "half", "channel"])
    def test_pixels_are_lossless_and_healthy(self, whiten):
        codec = Pixels(Schema(size=(16, 16)), 4, whiten=whiten)
        codec.fit(smooth(64, (16, 16)))
        health = check_health(codec, smooth(32, (16, 16), seed=1)).require()
        assert health.psnr == 100
        assert health.ssim == pytest.approx(1, abs=1e-4)

    def test_volumes_are_judged_too(self):
        volumes = smooth(6, (16, 12, 16), seed=1)
        codec = Pixels(Schema(size=(16, 12, 16)), 2)
        codec.fit(volumes)
        assert check_health(codec, volumes).require().psnr == 100
        untrained = Autoencoder(Schema(size=(16, 12, 16)), channels=(8, 8))
        untrained.fit(volumes)
        self.expect(check_health(untrained, volumes), "expected at least 20 dB", "train the codec")

    def test_unfitted_scale(self, trained):
        codec = copy.deepcopy(trained[0])
        codec.whitening = Whitening(4, "channel")
        self.expect(check_health(codec, trained[1]), "never measured", "codec.fit")
        pixels = Pixels(Schema(size=(16, 16)), 2)
        self.expect(check_health(pixels, trained[1]), "never measured")

    @pytest.mark.parametrize("whiten", ["global", "half", "channel"])
    def test_scale_of_other_images(self, whiten):
        codec = Pixels(Schema(size=(16, 16)), 2, whiten=whiten)
        codec.fit(0.05 * smooth(64, (16, 16)))
        self.expect(check_health(codec, smooth(32, (16, 16))), "standard deviation", "codec.fit")

    def test_nan_weights_are_named(self, trained):
        codec = copy.deepcopy(trained[0])
        with torch.no_grad():
            codec.last_layer[0, 0, 0, 0] = float("nan")
        health = check_health(codec, trained[1])
        self.expect(health, "1 of its weights hold NaN", "net.decoder.blocks")
        assert math.isnan(health.psnr)

    def test_dead_channel(self, trained):
        codec = copy.deepcopy(trained[0])
        with torch.no_grad():
            codec.net.quant_conv_mu.conv.weight[2] = 0
        codec.fit(smooth(64, (16, 16)))
        assert "channels [2] of 4 are dead" in " ".join(check_health(codec, trained[1]).problems)

    def test_untrained_decoder(self, trained):
        codec = copy.deepcopy(trained[0])
        codec.net.decoder.load_state_dict(
            Autoencoder(Schema(size=(16, 16)), channels=(16, 16), blocks=1).net.decoder.state_dict()
        )
        self.expect(check_health(codec, trained[1]), "expected at least 20 dB", "train the codec")

    def test_decoder_that_draws_the_average_image(self, trained):
        codec = copy.deepcopy(trained[0])
        faint = 0.1 * trained[1]
        codec.fit(faint)
        with torch.no_grad():
            codec.last_layer.zero_()
            codec.net.decoder.blocks[-1].conv.bias.fill_(faint.mean())
        health = check_health(codec, faint, min_ssim=0)
        assert health.psnr > 20
        self.expect(health, "draws an average image")

    def test_outliers(self, trained):
        codec = copy.deepcopy(trained[0])
        encode = codec.encode

        def spiked(image):
            z = encode(image).clone()
            z[0, 0, 0, 0] = 60
            return z

        codec.encode = spiked
        self.expect(check_health(codec, trained[1]), "[0] hold values up to 60", "no generator")

    def test_nan_latents_and_wrong_shape(self, trained):
        codec = copy.deepcopy(trained[0])
        codec.encode = lambda image: trained[0].encode(image) * math.nan
        assert "100.0% of its latents are NaN" in " ".join(check_health(codec, trained[1]).problems)
        codec = copy.deepcopy(trained[0])
        codec.latent = replace(codec.latent, channels=3)
        assert "declares (3, 8, 8)" in " ".join(check_health(codec, trained[1]).problems)

    def test_bad_images_and_restored_mode(self, trained):
        codec, images = trained
        with pytest.raises(ValueError, match="finite"):
            check_health(codec, images * math.nan)
        with pytest.raises(ValueError, match="finite"):
            check_health(codec, images[:0])
        codec.train()
        check_health(codec, images)
        assert codec.training
        codec.eval()

    @staticmethod
    def expect(health, *texts):
        assert len(health.problems) == 1, health.problems
        for text in texts:
            assert text in health.problems[0]
        with pytest.raises(HealthError, match="not fit to train"):
            health.require()
