"""Codec losses against closed forms, and the gradients that training lives on."""

import logging

import pytest
import torch

from medgen.codecs.losses import (
    AutoencoderLoss,
    CodecLosses,
    Critic,
    balance,
    gradient_loss,
    hinge_critic,
    hinge_generator,
    kl_divergence,
    ms_ssim,
    structure_loss,
)
from medgen.codecs.lpips import Lpips, find_trunk
from medgen.errors import CheckpointError, MissingExtraError
from medgen.types import Schema


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def disk(size: int = 64) -> torch.Tensor:
    at = torch.linspace(-1, 1, size)
    return torch.tanh(20 * (0.5 - (at[:, None] ** 2 + at[None, :] ** 2).sqrt()))[None, None] * 0.8


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    from torchvision.models import alexnet as build

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("trunk") / "alexnet-random.pth"
    weights = build(weights=None).state_dict()
    torch.save({key: value for key, value in weights.items() if "features" in key}, path)
    return path


class TestHinge:
    def test_closed_form(self):
        real = torch.tensor([[[[2.0, 0.5]]], [[[-1.0, 1.0]]]])
        fake = torch.tensor([[[[-3.0, 0.0]]], [[[1.0, -0.5]]]])
        torch.testing.assert_close(hinge_critic(real, fake), torch.tensor([0.375, 1.125]))
        torch.testing.assert_close(hinge_generator(fake), torch.tensor([1.5, -0.25]))

    def test_the_generators_gradient_never_dies(self):
        for level in (-50.0, 0.0, 50.0):
            fake = torch.full((2, 1, 3, 3), level, requires_grad=True)
            hinge_generator(fake).sum().backward()
            torch.testing.assert_close(fake.grad, torch.full_like(fake, -1 / 9))

    def test_a_critic_that_is_right_by_a_margin_stops_learning(self):
        real = torch.full((1, 1, 2, 2), 1.5, requires_grad=True)
        fake = torch.full((1, 1, 2, 2), -0.5, requires_grad=True)
        hinge_critic(real, fake).sum().backward()
        assert real.grad is not None
        assert real.grad.abs().max() == 0
        torch.testing.assert_close(fake.grad, torch.full_like(fake, 0.125))

    def test_critic_learns_to_tell_blurred_from_sharp(self):
        torch.manual_seed(0)
        critic = Critic(Schema(size=(16, 16)), channels=8)
        optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-3)
        sharp = noise(8, 1, 16, 16)
        blurred = torch.nn.functional.avg_pool2d(sharp, 3, stride=1, padding=1)
        first = hinge_critic(critic(sharp), critic(blurred)).mean().item()
        for _ in range(40):
            optimizer.zero_grad()
            loss = hinge_critic(critic(sharp), critic(blurred)).mean()
            loss.backward()
            optimizer.step()
        assert loss.item() < 0.2 * first

    def test_critic_of_one_image_ignores_its_neighbours(self):
        critic = Critic(Schema(size=(16, 16)), channels=8)
        images = noise(4, 1, 16, 16)
        torch.testing.assert_close(critic(images)[:1], critic(images[:1]), atol=1e-5, rtol=1e-4)

    def test_critic_judges_patches_of_volumes(self):
        critic = Critic(Schema(size=(16, 20, 16)), channels=8)
        volumes = noise(2, 1, 16, 20, 16)
        judged = critic(volumes)
        assert judged.shape[:2] == (2, 1)
        assert judged.ndim == 5
        moved = critic(torch.cat([volumes[:1], volumes[1:] + 1]))
        torch.testing.assert_close(moved[:1], judged[:1], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(moved[1:], judged[1:], atol=1e-3)

    def test_critic_refuses_tiny_images(self):
        with pytest.raises(ValueError, match="at least 16"):
            Critic(Schema(size=(8, 8)))


def test_balance_makes_the_gradients_equally_long():
    weights = torch.tensor([3.0, 4.0], requires_grad=True)
    loss, adversarial = (weights**2).sum(), 0.01 * weights.sum()
    scale = balance(loss, adversarial, weights)
    assert not scale.requires_grad
    assert scale.item() == pytest.approx(10 / (0.01 * 2**0.5 + 1e-6), rel=1e-5)
    assert balance(loss, 0 * weights.sum(), weights).item() == 1e4


def test_kl_closed_form_and_minimum():
    mean, logvar = torch.full((2, 3, 4, 4), 2.0), torch.full((2, 3, 4, 4), 0.5)
    expected = 0.5 * (4 + torch.tensor(0.5).exp() - 1.5)
    torch.testing.assert_close(kl_divergence(mean, logvar), expected.expand(2))
    assert kl_divergence(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)).item() == 0


class TestStructure:
    @pytest.mark.parametrize(
        "shape", [(2, 1, 8, 8), (1, 1, 11, 11), (2, 3, 33, 20), (1, 1, 128, 128), (1, 1, 16, 16, 8)]
    )
    def test_zero_for_equal_images_of_any_size(self, shape):
        image = noise(*shape).clamp(-1, 1)
        torch.testing.assert_close(ms_ssim(image, image), torch.ones(shape[0]), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            structure_loss(image, image), torch.zeros(shape[0]), atol=1e-5, rtol=0
        )

    @pytest.mark.parametrize("shape", [(2, 2, 13, 12), (1, 1, 13, 9, 11)])
    def test_one_scale_equals_torchmetrics_with_box_windows(self, shape):
        from torchmetrics.functional.image import structural_similarity_index_measure as reference

        a = (0.3 * noise(*shape)).clamp(-1, 1)
        b = (a + 0.2 * noise(*shape, seed=1)).clamp(-1, 1)
        _, similarity = reference(
            (a + 1) / 2, (b + 1) / 2, gaussian_kernel=False, kernel_size=7, data_range=1.0,
            return_full_image=True,
        )  # fmt: skip
        inner = similarity[(..., *[slice(3, -3)] * (len(shape) - 2))]  # without padded borders
        expected = inner.flatten(1).mean(dim=1)
        torch.testing.assert_close(ms_ssim(a, b), expected, atol=1e-4, rtol=0)

    def test_opposite_images_have_a_finite_gradient(self):
        image = disk(32)
        guess = (-image).requires_grad_()
        structure_loss(guess, image).sum().backward()
        assert torch.isfinite(guess.grad).all()

    def test_per_image(self):
        a, b = noise(2, 1, 32, 32), noise(2, 1, 32, 32, seed=1)
        b[0] = a[0]
        loss = structure_loss(a.clamp(-1, 1), b.clamp(-1, 1))
        assert loss.shape == (2,)
        assert loss[0] < 1e-5 < 0.1 < loss[1]

    def test_blur_costs_more_than_a_shift_of_brightness_of_the_same_error(self):
        image = disk()
        blurred = torch.nn.functional.avg_pool2d(image, 5, stride=1, padding=2)
        error = (image - blurred).square().mean().sqrt()
        assert structure_loss(blurred, image) > 2 * structure_loss(image + error, image)

    def test_gradient_loss_closed_form(self):
        ramp = torch.arange(8.0).expand(1, 1, 8, 8)
        zero = torch.zeros_like(ramp)
        # slopes along (height, width): (0, 1) at full size, (0, 2) at half, (0, 4) at a quarter
        torch.testing.assert_close(gradient_loss(ramp, zero), torch.tensor([(0.5 + 1 + 2) / 3]))
        assert gradient_loss(ramp, ramp + 3).item() == 0

    def test_gradient_reaches_the_reconstruction(self):
        image = disk(32)
        guess = torch.zeros_like(image, requires_grad=True)
        structure_loss(guess, image).sum().backward()
        assert guess.grad is not None
        assert torch.isfinite(guess.grad).all()
        assert guess.grad.abs().max() > 0


class TestLpips:
    def test_reads_the_trunk_and_measures(self, alexnet):
        loss = Lpips(alexnet)
        weights = torch.load(alexnet, weights_only=True)
        assert torch.equal(loss.net.net.slice2[1].weight, weights["features.3.weight"])
        image = disk()
        guess = (image + 0.3 * noise(*image.shape)).requires_grad_()
        assert loss(image, image).item() == 0
        value = loss(guess, image)
        assert value.shape == (1,)
        assert value.item() > 0
        value.sum().backward()
        assert guess.grad is not None
        assert guess.grad.abs().max() > 0
        assert not any(parameter.requires_grad for parameter in loss.parameters())
        loss.train()
        assert not loss.net.training

    def test_two_channels_are_the_mean_of_each(self, alexnet):
        loss = Lpips(alexnet)
        a, b = noise(2, 2, 64, 64).clamp(-1, 1), noise(2, 2, 64, 64, seed=1).clamp(-1, 1)
        apart = (loss(a[:, :1], b[:, :1]) + loss(a[:, 1:], b[:, 1:])) / 2
        torch.testing.assert_close(loss(a, b), apart)

    def test_a_volume_is_the_mean_of_slices_in_three_planes(self, alexnet):
        loss = Lpips(alexnet)
        a, b = (noise(2, 1, 32, 36, 33, seed=seed).clamp(-1, 1) for seed in (0, 1))
        planes = []
        for axis in (2, 3, 4):
            looked_at = range(2, a.shape[axis], 5)
            each = [loss(a.select(axis, at), b.select(axis, at)) for at in looked_at]
            planes.append(torch.stack(each).mean(dim=0))
        torch.testing.assert_close(loss(a, b), torch.stack(planes).mean(dim=0))

    def test_refuses_other_files(self, tmp_path):
        wrong = tmp_path / "wrong.pth"
        torch.save({"features.0.weight": torch.zeros(4, 3, 7, 7)}, wrong)
        with pytest.raises(CheckpointError, match="AlexNet or VGG-16"):
            Lpips(wrong)
        wrong.write_bytes(b"not weights")
        with pytest.raises(CheckpointError, match="not readable"):
            Lpips(wrong)

    def test_finds_the_cache_or_says_what_is_missing(self, tmp_path, monkeypatch, alexnet):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr(torch.hub, "_hub_dir", None)
        assert find_trunk(None) is None
        with pytest.raises(MissingExtraError, match="perceptual: features"):
            find_trunk(None, required=True)
        with pytest.raises(MissingExtraError, match="no file"):
            find_trunk(tmp_path / "absent.pth")
        cache = tmp_path / "hub" / "checkpoints"
        cache.mkdir(parents=True)
        (cache / "alexnet-0000.pth").write_bytes(alexnet.read_bytes())
        assert find_trunk(None) == cache / "alexnet-0000.pth"


class TestAutoencoderLoss:
    def test_parts_weigh_what_the_settings_say(self):
        settings = CodecLosses(
            reconstruction="mse", perceptual="features", perceptual_weight=3.0, kl_weight=2.0
        )
        loss = AutoencoderLoss(Schema(size=(32, 32)), settings)
        image = disk(32).expand(2, -1, -1, -1)
        parts = loss(image + 0.1, image, {"kl": torch.full((2,), 0.5)})
        torch.testing.assert_close(parts["reconstruction"], torch.full((2,), 0.01))
        torch.testing.assert_close(parts["kl"], torch.ones(2))
        torch.testing.assert_close(parts["perceptual"], 3 * structure_loss(image + 0.1, image))

    def test_auto_falls_back_loudly_and_takes_the_trunk_where_given(
        self, alexnet, tmp_path, monkeypatch, caplog
    ):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr(torch.hub, "_hub_dir", None)
        with caplog.at_level(logging.WARNING, logger="medgen"):
            assert AutoencoderLoss(Schema(size=(64, 64)), CodecLosses()).kind == "features"
        assert "no LPIPS trunk" in caplog.text
        with_trunk = AutoencoderLoss(Schema(size=(64, 64)), CodecLosses(), trunk=alexnet)
        assert with_trunk.kind == "lpips"
        image = disk()
        assert with_trunk(-image, image, {})["perceptual"].item() > 0

    def test_none_and_three_axes(self):
        off = AutoencoderLoss(Schema(size=(16, 16)), CodecLosses(perceptual="none"))
        assert set(off(disk(16), disk(16), {"kl": torch.zeros(1)})) == {"reconstruction", "kl"}
        volume = Schema(size=(16, 16, 16))
        assert AutoencoderLoss(volume, CodecLosses()).kind == "features"
        clips = Schema(size=(32, 32, 32), time=True)
        assert AutoencoderLoss(clips, CodecLosses()).kind == "features"
        for schema in (volume, clips):
            with pytest.raises(ValueError, match="at least 32 pixels a side"):
                AutoencoderLoss(schema, CodecLosses(perceptual="lpips"))

    def test_volumes_take_the_trunk_too(self, alexnet):
        loss = AutoencoderLoss(Schema(size=(32, 32, 32)), CodecLosses(), trunk=alexnet)
        assert loss.kind == "lpips"
        image = noise(1, 1, 32, 32, 32).clamp(-1, 1)
        assert loss(-image, image, {})["perceptual"].item() > 0
