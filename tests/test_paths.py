"""Paths: conversions are inverse to each other, and every path lies on the linear one."""

import itertools
import math

import numpy as np
import pytest
import torch
from mixtures import gaussian

from medgen.objectives import paths
from medgen.objectives.paths import COSINE, EDM, LINEAR, PATHS, SCALED_LINEAR, linear_field

PREDICTIONS = ("velocity", "data", "noise")
EVERY = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
TIMES = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)


def pair(count=19, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, 2, 3, 3, generator=generator, dtype=torch.float64)


@EVERY
class TestEveryPath:
    @pytest.mark.parametrize(("first", "second"), itertools.permutations(PREDICTIONS, 2))
    def test_conversions_round_trip(self, path, first, second):
        data, noise = pair()
        z = path.interpolate(data, noise, TIMES)
        there = path.target(
            *path.split(path.target(data, noise, TIMES, first), z, TIMES, first), TIMES, second
        )
        back = path.target(*path.split(there, z, TIMES, second), TIMES, first)
        torch.testing.assert_close(back, path.target(data, noise, TIMES, first), atol=1e-10, rtol=0)

    @pytest.mark.parametrize("prediction", PREDICTIONS)
    def test_split_recovers_data_and_noise(self, path, prediction):
        data, noise = pair()
        z = path.interpolate(data, noise, TIMES)
        output = path.target(data, noise, TIMES, prediction)
        found = path.split(output, z, TIMES, prediction)
        torch.testing.assert_close(found, (data, noise), atol=1e-10, rtol=0)

    def test_velocity_needs_no_division(self, path):
        data, noise = pair(2)
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        z = path.interpolate(data, noise, ends)
        output = path.target(data, noise, ends, "velocity")
        found = path.split(output, z, ends, "velocity")
        torch.testing.assert_close(found, (data, noise), atol=1e-10, rtol=0)

    def test_velocity_is_the_derivative_on_the_stated_clock(self, path):
        data, noise = pair()
        # Not where the table of a discrete schedule has a kink.
        t = (TIMES + 0.0003).requires_grad_()
        alpha, sigma = path.coefficients(t)
        rise = torch.autograd.grad(alpha.sum(), t, retain_graph=True)[0]
        fall = torch.autograd.grad(sigma.sum(), t)[0]
        clock = rise * sigma - alpha * fall
        expected = ((rise / clock).view(-1, 1, 1, 1) * data) + (
            (fall / clock).view(-1, 1, 1, 1) * noise
        )
        found = path.target(data, noise, t, "velocity")
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)

    def test_lies_on_the_linear_path(self, path):
        data, noise = pair()
        z, t = path.to_linear(path.interpolate(data, noise, TIMES), TIMES)
        torch.testing.assert_close(z, LINEAR.interpolate(data, noise, t), atol=1e-12, rtol=0)
        torch.testing.assert_close(path.from_linear(z, t)[1], TIMES, atol=1e-10, rtol=0)
        original = path.interpolate(data, noise, TIMES)
        torch.testing.assert_close(path.from_linear(z, t)[0], original, atol=1e-10, rtol=0)

    def test_linear_time_rises_and_inverts(self, path):
        t = torch.linspace(0, 1, 1013, dtype=torch.float64)
        at = path.linear_time(t)
        assert (at.diff() > 0).all()
        torch.testing.assert_close(path.time(at), t, atol=1e-10, rtol=0)
        # float32: 1e-5 of the clock where the schedule is flat, next to clean data
        torch.testing.assert_close(path.time(at.float()).double(), t, atol=2e-4, rtol=0)

    def test_coefficients_are_as_the_path_says(self, path):
        alpha, sigma = path.coefficients(torch.linspace(0, 1, 101, dtype=torch.float64))
        power = 2 if path.variance_preserving else 1
        total = alpha**power + sigma**power
        torch.testing.assert_close(total, torch.ones(101, dtype=torch.float64), atol=1e-12, rtol=0)
        assert torch.stack([alpha, sigma]).min() >= 0

    def test_float32_is_finite_at_both_ends(self, path):
        alpha, sigma = path.coefficients(torch.tensor([0.0, 1.0]))
        assert torch.stack([alpha, sigma]).isfinite().all()
        assert path.time(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]

    @pytest.mark.parametrize("prediction", PREDICTIONS)
    @pytest.mark.parametrize("clip", [None, 4.0])
    def test_field_of_the_best_network_is_the_exact_flow(self, path, prediction, clip):
        truth = gaussian(0.4, 0.7)
        t = torch.linspace(0.07, 0.997, 60, dtype=torch.float64)
        z = torch.linspace(-1.5, 1.5, 60, dtype=torch.float64)[:, None]
        field = linear_field(path, truth.net(path, prediction), prediction, clip=clip)
        torch.testing.assert_close(field(z, t), truth.velocity(z, t), atol=1e-9, rtol=0)

    @pytest.mark.parametrize("prediction", PREDICTIONS)
    @pytest.mark.parametrize("clip", [None, 1.0])
    def test_field_is_finite_everywhere(self, path, prediction, clip):
        truth = gaussian(0.4, 0.7)
        t = torch.tensor([0.0, 1e-6, 1e-3, 0.5, 0.999, 1 - 1e-6, 1.0])
        z = torch.linspace(-3, 3, 7)[:, None]
        field = linear_field(path, truth.net(path, prediction), prediction, clip=clip)
        assert field(z, t).isfinite().all()
        assert clip or field(z, t).abs().max() < 50


def test_cosine_is_the_published_formula():
    t = torch.linspace(0, 1, 50, dtype=torch.float64)
    level = torch.cos(((1 - t) + 0.008) / 1.008 * math.pi / 2).square()
    expected = level / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(COSINE.alpha(t).square(), expected, atol=1e-12, rtol=0)


def test_scaled_linear_passes_through_the_discrete_schedule():
    beta = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    expected = torch.from_numpy(np.cumprod(1 - beta))
    t = 1 - torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(SCALED_LINEAR.alpha(t).square(), expected, atol=1e-12, rtol=0)
    assert expected[-1].item() == pytest.approx(4.66e-3, rel=1e-2)
    assert SCALED_LINEAR.alpha(torch.ones(1)).item() == 1


def test_edm_is_the_published_preconditioning():
    t = torch.linspace(0, 1, 40, dtype=torch.float64)
    data, noise = pair(40)
    level = (80 ** (1 - t) * 0.002**t).view(-1, 1, 1, 1)
    noisy = data + level * noise
    c_in = (1 + level**2) ** -0.5
    c_skip, c_out = c_in**2, level * c_in
    torch.testing.assert_close(EDM.interpolate(data, noise, t), c_in * noisy, atol=1e-10, rtol=0)
    output = torch.randn(data.shape, dtype=torch.float64)
    denoised, _ = EDM.split(output, c_in * noisy, t, "velocity")
    torch.testing.assert_close(denoised, c_skip * noisy + c_out * output, atol=1e-10, rtol=0)
    torch.testing.assert_close(paths.edm_time(level.log().flatten()), t, atol=1e-12, rtol=0)


def test_clip_bounds_the_data_that_a_field_aims_at():
    z, t = torch.linspace(-2, 2, 9)[:, None], torch.full((9,), 0.3)
    for path in (LINEAR, COSINE):
        field = linear_field(path, lambda z, t: 50 * z, "noise", clip=1.5)
        aim = z + (1 - t[:, None]) * field(z, t)
        torch.testing.assert_close(aim[[0, 1, -2, -1]].abs(), torch.full((4, 1), 1.5))
        free = linear_field(path, lambda z, t: 50 * z, "noise")
        assert (z + (1 - t[:, None]) * free(z, t)).abs().max() > 15


def test_field_keeps_the_state_in_float32_under_a_half_precision_network():
    z, t = torch.randn(2, 1, 4, 4), torch.full((2,), 0.5)
    for path in PATHS.values():
        field = linear_field(path, lambda z, t: z.bfloat16(), "velocity")
        assert field(z, t).dtype == torch.float32
