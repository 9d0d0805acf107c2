"""Solvers: order, evaluations, exactness, distribution, independence of the batch."""

import math
from itertools import pairwise

import pytest
import torch
from mixtures import Mixture, eight_modes, gaussian

from medgen import registry
from medgen.objectives.diffusion import Diffusion
from medgen.objectives.flow_matching import FlowMatching
from medgen.rng import Rng
from medgen.samplers.flows import (
    AB2,
    Ancestral,
    DPMpp2M,
    Euler,
    Heun,
    Midpoint,
    ab2_step,
    dpmpp_2m_step,
    euler_step,
    grid,
    heun_step,
    midpoint_step,
    solve,
)

STEPS = {
    "euler": (euler_step, 1),
    "midpoint": (midpoint_step, 2),
    "heun": (heun_step, 2),
    "ab2": (ab2_step, 2),
    "dpmpp_2m": (dpmpp_2m_step, 2),
}
EVERY_STEP = pytest.mark.parametrize(("step", "order"), STEPS.values(), ids=STEPS.keys())
SAMPLERS = {
    "euler": Euler,
    "midpoint": Midpoint,
    "heun": Heun,
    "ab2": AB2,
    "dpmpp_2m": DPMpp2M,
    "ancestral": Ancestral,
}
EVERY_SAMPLER = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
LINE = torch.linspace(-2, 2, 21, dtype=torch.float64)[:, None]


class Counter:
    """Counts the evaluations of a field and remembers their times."""

    def __init__(self, field):
        self.field, self.times = field, []

    def __call__(self, z, t):
        self.times.append(t[0].item())
        return self.field(z, t)


def rms(difference):
    return difference.square().mean().sqrt().item()


def by_element(field):
    """A field on the line, for states (b n) whose every element is a point of its own."""

    def spread(z, t):
        times = t.repeat_interleave(z[0].numel())
        return field(z.reshape(-1, 1), times).reshape(z.shape)

    return spread


def ratio_of_errors(field, start, exact, step, *, low=0.0, high=1.0):
    errors = []
    for count in (128, 256):
        times = [low + (high - low) * i / count for i in range(count)] + [high]
        errors.append(rms(solve(field, start, times, step) - exact))
    return errors[0] / errors[1]


class TestOrder:
    @EVERY_STEP
    def test_on_the_exact_flow_of_a_gaussian(self, step, order):
        truth = gaussian(0.7, 0.3)
        ratio = ratio_of_errors(truth.velocity, LINE, 0.7 + 0.3 * LINE, step)
        if step is midpoint_step:
            # The variance of a Gaussian is quadratic in t: there the midpoint rule is of order 3.
            assert ratio == pytest.approx(8, rel=0.05)
        else:
            assert ratio == pytest.approx(2**order, rel=0.25)

    @EVERY_STEP
    def test_on_a_mixture(self, step, order):
        means = torch.tensor([[-0.8], [0.5]], dtype=torch.float64)
        truth = Mixture(means, 0.6)
        times = [0.1 + 0.8 * i / 4096 for i in range(4096)] + [0.9]
        exact = solve(truth.velocity, LINE, times, midpoint_step)
        ratio = ratio_of_errors(truth.velocity, LINE, exact, step, low=0.1, high=0.9)
        assert ratio == pytest.approx(2**order, rel=0.25)

    @pytest.mark.parametrize("shift", [0.5, 3.0])
    def test_ab2_keeps_its_order_on_uneven_grids(self, shift):
        truth, exact = gaussian(0.7, 0.3), 0.7 + 0.3 * LINE
        errors = [
            rms(solve(truth.velocity, LINE, grid(count, shift), ab2_step) - exact)
            for count in (128, 256)
        ]
        assert errors[0] / errors[1] == pytest.approx(4, rel=0.25)

    def test_ab2_is_exact_for_a_velocity_linear_in_t_on_any_grid(self):
        # after the first step, Euler's, which adds 0 where the exact integral is 0.3^2 / 2
        z = torch.zeros(2, 1, dtype=torch.float64)
        found = solve(lambda z, t: t[:, None], z, [0.0, 0.3, 0.4, 1.0], ab2_step)
        torch.testing.assert_close(found, z + (1 - 0.3**2) / 2, atol=1e-14, rtol=0)

    def test_ab2_halves_the_error_of_euler_at_16_evaluations(self):
        truth = eight_modes()
        generator = torch.Generator().manual_seed(1)
        start = torch.randn(500, 16, generator=generator, dtype=torch.float64)
        exact = solve(truth.velocity, start, grid(500), midpoint_step)
        error = {
            sampler: rms(sampler(16).sample(truth.velocity, start, Rng([0])) - exact)
            for sampler in (AB2, Euler)
        }
        assert error[AB2] < error[Euler] / 2


class TestSteps:
    @EVERY_STEP
    def test_one_step_of_a_constant_field_is_exact(self, step, order):
        z = torch.randn(3, 2, 4, 4, dtype=torch.float64)
        v = torch.randn(3, 2, 4, 4, dtype=torch.float64)
        found = solve(lambda z, t: v, z, [0.0, 1.0], step)
        torch.testing.assert_close(found, z + v, atol=1e-14, rtol=0)

    def test_one_euler_step_is_the_sum(self):
        truth = eight_modes()
        z = torch.randn(5, 16)
        found = Euler(1).sample(truth.velocity, z, Rng(range(5)))
        assert torch.equal(found, z + truth.velocity(z, torch.zeros(5)))

    @EVERY_STEP
    @pytest.mark.parametrize("steps", [1, 2, 3, 7])
    def test_straight_flows_are_exact_in_any_number_of_steps(self, step, order, steps):
        # A single point as data: every trajectory is a straight line to it.
        z = torch.randn(4, 3, dtype=torch.float64)
        aim = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
        found = solve(lambda z, t: (aim - z) / (1 - t[:, None]), z, grid(steps, 2.0), step)
        torch.testing.assert_close(found, aim.expand(4, 3), atol=1e-12, rtol=0)

    @pytest.mark.parametrize(
        ("sampler", "evaluations"),
        [
            (AB2(16), 16),
            (Euler(16), 16),
            (DPMpp2M(16), 16),
            (Midpoint(8), 16),
            (Heun(8), 15),
            (Heun(1), 1),
            (Ancestral(5), 5),
            (AB2(), 16),
        ],
    )
    def test_evaluations_are_as_stated(self, sampler, evaluations):
        field = Counter(lambda z, t: -z)
        sampler.sample(field, torch.zeros(2, 1, 2, 2), Rng([0, 1]))
        assert len(field.times) == sampler.evaluations == evaluations
        assert max(field.times) < 1

    @EVERY_SAMPLER
    @pytest.mark.parametrize("shift", [0.3, 1.0, 4.0])
    def test_state_is_float32_or_wider(self, sampler, shift):
        for dtype, kept in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
            z = torch.randn(2, 3).to(dtype)
            found = sampler(6, shift).sample(lambda z, t: (-z).bfloat16(), z, Rng([0, 1]))
            assert found.dtype == kept

    @EVERY_SAMPLER
    def test_registered_with_plain_settings(self, sampler):
        name = next(name for name, known in SAMPLERS.items() if known is sampler)
        built = registry.build("sampler", name, {"steps": 3, "shift": 2})
        assert isinstance(built, sampler)
        assert built.domain == "continuous"
        assert built.times == grid(3, 2.0)


class TestGrid:
    def test_is_uniform_by_default(self):
        assert grid(4) == [0, 0.25, 0.5, 0.75, 1]

    @pytest.mark.parametrize("shift", [0.2, 1.0, 3.0])
    @pytest.mark.parametrize("steps", [1, 2, 50])
    def test_rises_from_0_to_1(self, steps, shift):
        times = grid(steps, shift)
        assert (times[0], times[-1], len(times)) == (0, 1, steps + 1)
        assert all(b > a for a, b in pairwise(times))

    def test_shift_multiplies_the_ratio_of_noise_to_data(self):
        for before, after in zip(grid(9)[1:-1], grid(9, 3.0)[1:-1], strict=True):
            assert (1 - after) / after == pytest.approx(3 * (1 - before) / before)

    @pytest.mark.parametrize("bad", [(0, 1.0), (-2, 1.0), (4, 0.0), (4, -1.0), (4, math.nan)])
    @EVERY_SAMPLER
    def test_refuses(self, sampler, bad):
        with pytest.raises(ValueError, match=r"steps|shift"):
            sampler(*bad)

    @pytest.mark.parametrize("times", [[0.5], [], [0, 0, 1], [1.0, 0.0], [-0.1, 1], [0, 1.1]])
    def test_solve_refuses_times_that_do_not_increase(self, times):
        with pytest.raises(ValueError, match="times"):
            solve(lambda z, t: z, torch.zeros(1, 1), times, euler_step)

    @pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
    def test_ancestral_refuses_eta(self, eta):
        with pytest.raises(ValueError, match="eta"):
            Ancestral(4, eta=eta)


def kolmogorov_smirnov(points, cdf):
    """Largest distance of the empirical distribution from the true one."""
    points = points.flatten().double().sort().values
    share = torch.arange(len(points) + 1, dtype=torch.float64) / len(points)
    level = cdf(points)
    return torch.maximum((level - share[:-1]).max(), (share[1:] - level).max()).item()


class TestAncestral:
    MODES = Mixture(torch.tensor([[-1.2], [0.3], [1.5]], dtype=torch.float64), 0.25)

    def distance(self, sampler, seed=0):
        rng = Rng(range(seed, seed + 8))
        z = sampler.sample(by_element(self.MODES.velocity), rng.normal((250,)), rng)
        return kolmogorov_smirnov(z, self.MODES.cdf)

    def test_matches_the_mixture(self):
        # Kolmogorov's bound for 2000 points at a false-alarm rate of 1e-4 is 0.0498; the bias of
        # 128 steps, 0.010 on 20000 points, raises the rate to 3e-3 for a new choice of seeds.
        bound = math.sqrt(-math.log(0.5e-4) / 2 / 2000)
        assert self.distance(Ancestral(128)) < bound
        # and the same test sees the bias of too few steps
        assert self.distance(Ancestral(4)) > bound

    def test_without_renewal_is_euler(self):
        rng = Rng([4, 5])
        z = rng.normal((3,)).double()
        field = by_element(self.MODES.velocity)
        found = Ancestral(20, 2.0, eta=0.0).sample(field, z, rng)
        expected = Euler(20, 2.0).sample(field, z, rng)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)

    def test_fresh_noise_has_the_posterior_variance(self):
        # One DDPM step from t to t_next with a known data point: mean and variance are closed form.
        t, t_next, aim = 0.4, 0.6, 0.7
        from medgen.samplers.flows import ancestral_step

        z = torch.full((1, 4000), 0.5, dtype=torch.float64)
        rng = Rng([0])
        found, _ = ancestral_step(
            lambda z, t: (aim - z) / (1 - t[:, None]),
            z, t, t_next, None, eta=1.0, draw=lambda: rng.normal((4000,)),
        )  # fmt: skip
        before, after = (1 - t) / t, (1 - t_next) / t_next
        mean = t_next * (aim + (after / before) ** 2 * (0.5 / t - aim))
        std = t_next * after * math.sqrt(1 - (after / before) ** 2)
        # 5 standard errors: a false alarm in 1e-6 choices of the seed
        assert found.mean().item() == pytest.approx(mean, abs=5 * std / math.sqrt(4000))
        assert found.std().item() == pytest.approx(std, rel=5 / math.sqrt(8000))

    def test_draws_anew_for_every_seed_and_the_same_for_the_same(self):
        field = by_element(self.MODES.velocity)
        z = torch.zeros(3, 5)
        first = Ancestral(8).sample(field, z, Rng([1, 2, 1]))
        assert torch.equal(first[0], first[2])
        assert not torch.equal(first[0], first[1])
        assert torch.equal(first, Ancestral(8).sample(field, z, Rng([1, 2, 1])))


@EVERY_SAMPLER
def test_a_sample_does_not_depend_on_its_batch(sampler):
    seeds = [3, 1, 4, 1, 5]
    together = Rng(seeds)
    field = gaussian(0.4, 0.7).velocity
    all_at_once = sampler(6).sample(by_element(field), together.normal((4,)), together)
    for place, seed in enumerate(seeds):
        alone = Rng([seed])
        one = sampler(6).sample(by_element(field), alone.normal((4,)), alone)
        assert torch.equal(one[0], all_at_once[place])


OBJECTIVES = {
    **{
        f"{schedule}-{prediction}": Diffusion(schedule, prediction)
        for schedule in ("cosine", "scaled_linear")
        for prediction in ("velocity", "data", "noise")
    },
    "edm": Diffusion("edm"),
    "clipped": Diffusion("cosine", "noise", clip=5.0),
    **{f"flow-{p}": FlowMatching(prediction=p) for p in ("velocity", "data", "noise")},
    "flow-cosine": FlowMatching("cosine"),
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
@pytest.mark.parametrize(
    "sampler",
    [AB2(32), Euler(256), Midpoint(16), Heun(16), DPMpp2M(32), Ancestral(256, eta=0.0)],
    ids=SAMPLERS.keys(),
)
def test_any_objective_with_any_sampler_gives_the_gaussian(objective, sampler):
    # The flow is affine, z -> mean + std z, so that two points tell both. 0.005 holds the
    # discretisation of these grids (0.004) and the start of scaled_linear, which is no pure noise.
    truth = gaussian(0.4, 0.7)
    field = objective.field(truth.net(objective.path, objective.prediction))
    low, high = sampler.sample(field, torch.tensor([[-1.0], [1.0]]), Rng([0, 1])).flatten()
    assert ((low + high) / 2).item() == pytest.approx(0.4, abs=1e-3)
    assert ((high - low) / 2).item() == pytest.approx(0.7, abs=5e-3)


@pytest.mark.parametrize("schedule", ["cosine", "scaled_linear", "edm"])
def test_ancestral_sampling_of_a_diffusion_gives_the_gaussian(schedule):
    # 2000 points: 5 standard errors (a false alarm in 1e-6) of the mean and of the standard
    # deviation, which 128 steps also make 0.016 too small.
    truth, objective = gaussian(0.4, 0.7), Diffusion(schedule)
    field = by_element(objective.field(truth.net(objective.path, "velocity")))
    rng = Rng(range(8))
    z = Ancestral(128).sample(field, rng.normal((250,)), rng)
    assert z.mean().item() == pytest.approx(0.4, abs=5 * 0.7 / math.sqrt(2000))
    assert z.std().item() == pytest.approx(0.7 - 0.016, abs=5 * 0.7 / math.sqrt(4000))
