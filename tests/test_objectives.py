"""Objectives: losses and their weights in closed form, times, coupling, refusals."""

import itertools
import math

import pytest
import torch
from mixtures import gaussian

from medgen import registry
from medgen.objectives.diffusion import Diffusion
from medgen.objectives.flow_matching import FlowMatching, nearest
from medgen.objectives.paths import COSINE
from medgen.protocols import Objective
from medgen.rng import Rng
from medgen.samplers.flows import AB2
from medgen.types import LatentSpec

COUNT = 4000


def zero(z, t):
    return torch.zeros_like(z)


def latents(count=COUNT, std=1.0, mean=0.0):
    z = torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    z = (z - z.mean()) / z.std(correction=0)
    return mean + std * z


def sample_mean(losses):
    """Mean of per-sample losses and 5 standard errors: a false alarm in 1e-6 of the seeds."""
    return losses.mean().item(), 5 * losses.std().item() / math.sqrt(len(losses))


class TestLossAtTheStart:
    """With a network that outputs zero, the loss is the target's second moment."""

    @pytest.mark.parametrize("coupling", ["independent", "optimal_transport"])
    def test_flow_matching(self, coupling):
        z = latents(400 if coupling == "optimal_transport" else COUNT, std=1.5, mean=0.2)
        objective = FlowMatching(coupling=coupling)
        losses = objective.loss(zero, z, Rng(range(len(z))))
        mean, error = sample_mean(losses)
        expected = 1 + 1.5**2 + 0.2**2  # Var(noise) + E[data^2]
        if coupling == "independent":
            assert mean == pytest.approx(expected, abs=error)
        else:  # the velocity is shorter: that is what the coupling is for
            assert mean < expected - error

    @pytest.mark.parametrize("schedule", ["cosine", "scaled_linear", "edm"])
    def test_diffusion(self, schedule):
        # sigma^2 E[data^2] + alpha^2 is 1 at unit variance, whatever the schedule and times
        objective = Diffusion(schedule, weighting="uniform")
        mean, error = sample_mean(objective.loss(zero, latents(), Rng(range(COUNT))))
        assert mean == pytest.approx(1, abs=error)

    @pytest.mark.parametrize("prediction", ["data", "noise"])
    def test_of_data_and_noise(self, prediction):
        for objective in (
            FlowMatching(prediction=prediction, loss_in="prediction"),
            Diffusion(prediction=prediction, weighting="uniform"),
        ):
            losses = objective.loss(zero, latents(std=2.0), Rng(range(COUNT)))
            mean, error = sample_mean(losses)
            assert mean == pytest.approx({"data": 4, "noise": 1}[prediction], abs=error)


class TestLoss:
    def test_of_the_best_network_is_the_variance_left(self):
        # Gaussian data of variance v on the linear path at t: Var(data - noise | z) is
        # v / (t^2 v + (1 - t)^2), and the times are uniform.
        v = 0.49
        truth, objective = gaussian(0.0, 0.7), FlowMatching(time="uniform")

        def net(z, t):
            best = truth.net(objective.path, "velocity")
            return best(z.reshape(-1, 1), t.repeat_interleave(16)).reshape(z.shape)

        mean, error = sample_mean(objective.loss(net, latents(std=0.7), Rng(range(COUNT))))
        t = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
        expected = (v / (t**2 * v + (1 - t) ** 2)).mean().item()
        assert mean == pytest.approx(expected, abs=error)

    @pytest.mark.parametrize("schedule", ["cosine", "scaled_linear"])
    @pytest.mark.parametrize("prediction", ["data", "noise"])
    def test_min_snr_weighs_equal_networks_equally(self, schedule, prediction):
        # One network read as velocity, data or noise makes the same mistakes: the weights of the
        # three differ just so that the weighted losses agree.
        velocity = Diffusion(schedule, "velocity", weighting="min_snr")
        other = Diffusion(schedule, prediction, weighting="min_snr")

        def net(z, t):
            return torch.tanh(z) * (1 + t.view(-1, 1, 1, 1))

        def converted(z, t):
            parts = velocity.path.split(net(z, t), z, t, "velocity")
            return parts[0] if prediction == "data" else parts[1]

        z = latents(64).double()
        expected = velocity.loss(net, z, Rng(range(64)))
        found = other.loss(converted, z, Rng(range(64)))
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-6)

    @pytest.mark.parametrize("prediction", ["data", "noise"])
    def test_velocity_loss_of_other_predictions(self, prediction):
        velocity, other = FlowMatching(), FlowMatching(prediction=prediction)
        rng = Rng(range(64))
        t = velocity.times(Rng(range(64)))
        away = (t > 0.05) & (t < 0.95)
        assert away.sum() > 40

        def converted(z, t):
            return velocity.path.split(torch.tanh(z), z, t, "velocity")[prediction == "noise"]

        z = latents(64).double()
        expected = velocity.loss(lambda z, t: torch.tanh(z), z, rng)
        found = other.loss(converted, z, Rng(range(64)))
        torch.testing.assert_close(found[away], expected[away], atol=1e-9, rtol=1e-6)
        assert (found[~away] <= expected[~away] + 1e-9).all()

    def test_min_snr_closed_form(self):
        t = torch.linspace(0, 1, 11, dtype=torch.float64)
        snr = (COSINE.alpha(t) / COSINE.sigma(t)).square()
        held = snr.clamp_max(3.0)
        inner = slice(1, -1)
        for prediction, expected in (
            ("data", held),
            ("noise", held / snr),
            ("velocity", held / (snr + 1)),
        ):
            weight = Diffusion("cosine", prediction, gamma=3.0).weight(t)
            assert weight.isfinite().all()
            torch.testing.assert_close(weight[inner], expected[inner], atol=1e-12, rtol=1e-9)

    @pytest.mark.parametrize(
        "objective", [FlowMatching(), Diffusion(), Diffusion("scaled_linear"), Diffusion("edm")]
    )
    def test_of_a_sample_does_not_depend_on_its_batch(self, objective):
        z = latents(5)
        together = objective.loss(lambda z, t: z, z, Rng([7, 8, 9, 7, 5]))
        assert together.shape == (5,)
        for place, seed in enumerate([7, 8, 9, 7, 5]):
            alone = objective.loss(lambda z, t: z, z[place : place + 1], Rng([seed]))
            torch.testing.assert_close(alone[0], together[place], atol=0, rtol=1e-6)

    @pytest.mark.parametrize("objective", [FlowMatching(), Diffusion(), Diffusion("edm")])
    def test_network_sees_its_own_time_and_a_state_of_that_noise(self, objective):
        seen = []

        def net(z, t):
            seen.append((z, t))
            return z

        objective.loss(net, torch.zeros(2000, 1, 4, 4), Rng(range(2000)))
        z, t = seen[0]
        assert t.min() >= 0
        assert t.max() <= 1
        # Data is 0, so that z is noise times sigma(t); the 16 values of a sample tell it to 18 %.
        level = z.square().mean(dim=(1, 2, 3)).sqrt()
        ratio = level / objective.path.sigma(t).clamp_min(1e-6)
        assert ratio.square().mean().sqrt().item() == pytest.approx(1, abs=0.03)

    def test_half_precision_networks_and_latents_give_a_float32_loss(self):
        for objective in (FlowMatching(), Diffusion()):
            z = latents(4).bfloat16()
            losses = objective.loss(lambda z, t: z.bfloat16(), z, Rng(range(4)))
            assert losses.dtype == torch.float32

    def test_gradient_reaches_the_network(self):
        for objective in (FlowMatching(), FlowMatching(prediction="data"), Diffusion("edm")):
            scale = torch.zeros(1, requires_grad=True)
            objective.loss(lambda z, t, s=scale: s * z, latents(8), Rng(range(8))).sum().backward()
            assert scale.grad is not None
            assert scale.grad.abs().item() > 0


class TestTimes:
    def test_logit_normal_mixture(self):
        # Kolmogorov's bound for 4000 draws at a false-alarm rate of 1e-4.
        objective = FlowMatching(mean=-0.5, std=0.8, uniform_share=0.1)
        t = objective.times(Rng(range(COUNT))).double().sort().values
        logit = torch.log(t / (1 - t))
        level = 0.9 * torch.special.ndtr((logit + 0.5) / 0.8) + 0.1 * t
        share = torch.arange(COUNT, dtype=torch.float64) / COUNT
        bound = math.sqrt(-math.log(0.5e-4) / 2 / COUNT) + 1 / COUNT
        assert (level - share).abs().max() < bound
        alone = torch.special.ndtr((logit + 0.5) / 0.8)
        assert (alone - share).abs().max() > 0.01  # the share of uniform times is there
        assert t[0] < 0.01
        assert t[-1] > 0.99

    def test_uniform(self):
        for objective in (FlowMatching(time="uniform"), Diffusion("cosine")):
            t = objective.times(Rng(range(COUNT))).double().sort().values
            share = torch.arange(COUNT, dtype=torch.float64) / COUNT
            assert (t - share).abs().max() < math.sqrt(-math.log(0.5e-4) / 2 / COUNT) + 1 / COUNT

    def test_edm_is_log_normal(self):
        objective = Diffusion("edm", log_sigma=(-0.4, 1.0))
        t = objective.times(Rng(range(COUNT))).double()
        level = torch.log(objective.path.sigma(t) / objective.path.alpha(t)).sort().values
        share = torch.arange(COUNT, dtype=torch.float64) / COUNT
        bound = math.sqrt(-math.log(0.5e-4) / 2 / COUNT) + 1 / COUNT
        assert (torch.special.ndtr(level + 0.4) - share).abs().max() < bound


class TestCoupling:
    def test_is_the_best_of_all_assignments(self):
        generator = torch.Generator().manual_seed(0)
        data, noise = torch.randn(2, 5, 1, 2, 2, generator=generator)
        cost = {
            order: (data - noise[list(order)]).square().sum().item()
            for order in itertools.permutations(range(5))
        }
        assert tuple(nearest(noise, data).tolist()) == min(cost, key=lambda order: cost[order])

    def test_finds_planted_pairs_every_time(self):
        data = 10 * torch.randn(16, 2, 3, 3, generator=torch.Generator().manual_seed(0))
        order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
        noise = (data + 0.1)[order]
        assert torch.equal(order[nearest(noise, data)], torch.arange(16))
        assert torch.equal(nearest(noise, data), nearest(noise, data))

    def test_keeps_the_noises_and_shortens_the_way(self):
        data = latents(32)
        seen = []

        def net(z, t):
            seen.append((z, t))
            return torch.zeros_like(z)

        for coupling in ("independent", "optimal_transport"):
            FlowMatching(coupling=coupling).loss(net, data, Rng(range(32)))
        noises = []
        for z, t in seen:
            t = t.view(-1, 1, 1, 1)
            noises.append((z - t * data) / (1 - t))
        apart, near = ((data - noise).square().sum() for noise in noises)
        assert near < 0.9 * apart
        sums = [noise.sum(dim=(1, 2, 3)).sort().values for noise in noises]
        torch.testing.assert_close(sums[0], sums[1], atol=1e-3, rtol=0)


class TestPrior:
    def test_is_normal_noise_from_the_samples_own_seed(self):
        latent = LatentSpec("continuous", (4, 6), channels=2)
        for objective in (FlowMatching(), Diffusion("edm")):
            z = objective.prior(latent, Rng([5, 6, 5]))
            assert z.shape == (3, 2, 4, 6)
            assert torch.equal(z[0], z[2])
            assert torch.equal(z[1:2], objective.prior(latent, Rng([6])))

    def test_refuses_tokens(self):
        with pytest.raises(ValueError, match="continuous"):
            FlowMatching().prior(LatentSpec("tokens", (4, 4), vocab=8), Rng([0]))


class TestArguments:
    def test_registered(self):
        flow = registry.build("objective", "flow_matching", {"mean": 1, "coupling": "independent"})
        edm = registry.build("objective", "diffusion", {"schedule": "edm", "log_sigma": [0, 1]})
        for built in (flow, edm):
            assert isinstance(built, Objective)
            assert built.domain == "continuous"
        assert edm.log_sigma == (0.0, 1.0)

    def test_defaults_of_the_schedules(self):
        assert Diffusion().gamma == 5
        assert Diffusion("edm").gamma is None
        t = torch.linspace(0, 1, 5)
        assert torch.equal(Diffusion("edm").weight(t), torch.ones(5))
        assert torch.equal(Diffusion(weighting="uniform").weight(t), torch.ones(5))

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ({"path": "edm"}, "path: expected one of linear, cosine"),
            ({"prediction": "epsilon"}, "prediction: expected one of"),
            ({"loss_in": "image"}, "loss_in"),
            ({"time": "beta"}, "time"),
            ({"coupling": "ot"}, "coupling"),
            ({"std": 0.0}, "std"),
            ({"std": math.nan}, "std"),
            ({"mean": math.inf}, "mean"),
            ({"uniform_share": 1.5}, "uniform_share"),
            ({"time": "uniform", "mean": 0.5}, "has no mean"),
        ],
    )
    def test_flow_matching_refuses(self, arguments, text):
        with pytest.raises(ValueError, match=text):
            FlowMatching(**arguments)

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ({"schedule": "linear"}, "schedule: expected one of"),
            ({"prediction": "epsilon"}, "prediction"),
            ({"weighting": "snr"}, "weighting"),
            ({"schedule": "edm", "prediction": "noise"}, "fixes it to 'velocity'"),
            ({"weighting": "uniform", "gamma": 5.0}, "gamma: belongs"),
            ({"log_sigma": (0.0, 1.0)}, "log_sigma: belongs"),
            ({"schedule": "edm", "log_sigma": (0.0, 0.0)}, "log_sigma"),
            ({"gamma": -1.0}, "gamma"),
            ({"gamma": 0.0}, "gamma"),
            ({"clip": 0.0}, "clip"),
            ({"clip": math.inf}, "clip"),
        ],
    )
    def test_diffusion_refuses(self, arguments, text):
        with pytest.raises(ValueError, match=text):
            Diffusion(**arguments)


def test_clip_mends_noise_prediction_on_the_cosine_schedule():
    # A noise prediction that is 10 % too small near pure noise; data of standard deviation 0.22.
    best = gaussian(0.0, 0.22).net(COSINE, "noise")
    rng = Rng(range(100))
    z = rng.normal((1,))

    def contrast(clip):
        field = Diffusion("cosine", "noise", clip=clip).field(
            lambda z, t: best(z, t) * (1 - 0.1 * (1 - t[:, None]))
        )
        return (AB2(16).sample(field, z, rng).std() / z.std()).item()

    assert contrast(None) > 1.5 * 0.22
    assert abs(contrast(0.7) - 0.22) < abs(contrast(None) - 0.22) / 2
