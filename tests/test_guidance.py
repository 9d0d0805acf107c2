"""Guidance: closed forms, limits, evaluations, refusals."""

import math

import pytest
import torch
from mixtures import Mixture, gaussian

from medgen import registry
from medgen.protocols import Guidance
from medgen.rng import Rng
from medgen.samplers.flows import AB2, Euler, grid, midpoint_step, solve
from medgen.samplers.guidance import (
    Autoguidance,
    ClassifierFree,
    ClassifierFreeZero,
    NoGuidance,
    best_scale,
)


class Counter:
    """Counts the evaluations of a field."""

    def __init__(self, field):
        self.field, self.count = field, 0

    def __call__(self, z, t):
        self.count += 1
        return self.field(z, t)


def over(t, z):
    return t.view(-1, *[1] * (z.ndim - 1))


def conditional(z, t):
    return torch.sin(3 * z) + over(t, z)


def null(z, t):
    return torch.cos(2 * z) * (1 + over(t, z))


def weak(z, t):
    return -z * over(t, z)


FIELDS = {"conditional": conditional, "null": null, "weak": weak}


def states(count=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, 2, 3, 3, generator=generator, dtype=torch.float64)
    return z, torch.linspace(0.1, 0.9, count, dtype=torch.float64)


class TestFormulas:
    def test_none_is_the_conditional_field(self):
        assert NoGuidance().combine(FIELDS) is conditional

    @pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 7.0])
    def test_classifier_free(self, scale):
        z, t = states()
        expected = null(z, t) + scale * (conditional(z, t) - null(z, t))
        assert torch.equal(ClassifierFree(scale).combine(FIELDS)(z, t), expected)

    def test_autoguidance(self):
        z, t = states()
        expected = weak(z, t) + 2.5 * (conditional(z, t) - weak(z, t))
        assert torch.equal(Autoguidance(2.5).combine(FIELDS)(z, t), expected)
        unasked = {"conditional": conditional, "weak_null": weak}
        assert torch.equal(Autoguidance(2.5, "none").combine(unasked)(z, t), expected)

    def test_zero_star(self):
        z, t = states()
        found = ClassifierFreeZero(3.0, 0.0).combine(FIELDS)(z, t)
        for i in range(len(z)):
            a, b = conditional(z, t)[i], null(z, t)[i]
            best = (a * b).sum() / (b * b).sum()
            expected = best * b + 3 * (a - best * b)
            torch.testing.assert_close(found[i], expected, atol=1e-6, rtol=0)

    @pytest.mark.parametrize(
        "guidance", [ClassifierFree(1.0), ClassifierFreeZero(1.0, 0.0), Autoguidance(1.0)]
    )
    def test_scale_1_is_the_conditional_field_and_needs_nothing_else(self, guidance):
        z, t = states()
        assert guidance.needs == {"conditional"}
        found = guidance.combine({"conditional": conditional})(z, t)
        assert torch.equal(found, conditional(z, t))

    def test_a_weak_field_as_good_as_the_conditional_changes_nothing(self):
        z, t = states()
        guided = Autoguidance(3.0).combine({"conditional": conditional, "weak": conditional})
        assert torch.equal(guided(z, t), conditional(z, t))

    @pytest.mark.parametrize(
        "guidance", [ClassifierFree(2.0, (0.2, 0.6)), ClassifierFreeZero(2.0, 0.3), Autoguidance()]
    )
    def test_permuting_the_batch_permutes_the_field(self, guidance):
        z, t = states(6)
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        field = guidance.combine(FIELDS)
        torch.testing.assert_close(
            field(z[order], t[order]), field(z, t)[order], atol=0, rtol=1e-12
        )


class TestBestScale:
    def test_of_parallel_fields_is_their_ratio(self):
        base = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
        factor = torch.tensor([0.5, -2.0, 1.0, 30.0])
        torch.testing.assert_close(best_scale(over(factor, base) * base, base), factor)
        # then null, scaled, is the conditional field, so that no scale of guidance moves it
        fields = {"conditional": lambda z, t: over(factor, z) * base, "null": lambda z, t: base}
        found = ClassifierFreeZero(5.0, 0.0).combine(fields)(base, torch.full((4,), 0.5))
        torch.testing.assert_close(found, over(factor, base) * base, atol=1e-4, rtol=1e-5)

    def test_leaves_a_residue_orthogonal_to_the_null_field(self):
        a, b = torch.randn(2, 6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        residue = a - over(best_scale(a, b), b) * b
        assert (residue * b).sum(dim=(1, 2, 3)).abs().max() < 1e-4

    def test_is_computed_in_float32_and_finite_at_zero(self):
        a = torch.full((2, 1, 64, 64), 200.0).half()
        # in half precision the sum of squares, 1.6e8, is infinite
        torch.testing.assert_close(best_scale(a, a), torch.ones(2))
        assert torch.equal(best_scale(a, torch.zeros_like(a)), torch.zeros(2))
        found = ClassifierFreeZero(2.0, 0.0).combine(
            {"conditional": lambda z, t: a, "null": lambda z, t: a}
        )(a, torch.full((2,), 0.5))
        assert found.dtype == torch.float16
        assert torch.equal(found, a)


class TestInterval:
    def test_everywhere_is_plain_guidance(self):
        z, _ = states()
        for t in (0.0, 0.3, 0.999):
            times = torch.full((5,), t, dtype=torch.float64)
            found = ClassifierFree(2.0, (0.0, 1.0)).combine(FIELDS)(z, times)
            assert torch.equal(found, ClassifierFree(2.0).combine(FIELDS)(z, times))
            assert not torch.equal(found, conditional(z, times))

    @pytest.mark.parametrize("at", [0.0, 0.4, 1.0])
    def test_empty_is_the_conditional_field(self, at):
        guidance = ClassifierFree(4.0, (at, at))
        assert guidance.needs == {"conditional"}
        assert guidance.combine({"conditional": conditional}) is conditional

    def test_guides_inside_and_not_outside(self):
        z, t = states()  # t = .1 .3 .5 .7 .9
        found = ClassifierFree(2.0, (0.3, 0.7)).combine(FIELDS)(z, t)
        inside = torch.tensor([False, True, True, False, False])
        guided = ClassifierFree(2.0).combine(FIELDS)(z, t)
        assert torch.equal(found, torch.where(over(inside, z), guided, conditional(z, t)))

    def test_limit_does_not_depend_on_the_grid(self):
        # The interval is one of noise, not of steps: finer grids converge to one result.
        fields = {"conditional": gaussian(1.0, 0.4).velocity, "null": gaussian(0.0, 1.0).velocity}
        field = ClassifierFree(2.0, (0.2, 0.7)).combine(fields)
        start = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
        exact = solve(field, start, grid(4000), midpoint_step)
        errors = [
            (AB2(count).sample(field, start, Rng([0])) - exact).abs().max().item()
            for count in (10, 40, 160, 640)
        ]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < errors[0] / 20


class TestEvaluations:
    @pytest.mark.parametrize(
        ("guidance", "counts"),
        [
            (NoGuidance(), {"conditional": 20, "null": 0, "weak": 0}),
            (ClassifierFree(2.0), {"conditional": 20, "null": 20, "weak": 0}),
            (ClassifierFree(1.0), {"conditional": 20, "null": 0, "weak": 0}),
            # t = .25 .30 ... .50
            (ClassifierFree(2.0, (0.24, 0.54)), {"conditional": 20, "null": 6, "weak": 0}),
            (ClassifierFreeZero(2.0), {"conditional": 19, "null": 19, "weak": 0}),
            (ClassifierFreeZero(2.0, 0.24), {"conditional": 15, "null": 15, "weak": 0}),
            (ClassifierFreeZero(1.0, 0.24), {"conditional": 15, "null": 0, "weak": 0}),
            (ClassifierFreeZero(2.0, 0.0), {"conditional": 20, "null": 20, "weak": 0}),
            (Autoguidance(), {"conditional": 20, "null": 0, "weak": 20}),
        ],
    )
    def test_only_what_is_needed(self, guidance, counts):
        fields = {name: Counter(field) for name, field in FIELDS.items()}
        assert guidance.needs == {name for name, count in counts.items() if count}
        Euler(20).sample(guidance.combine(fields), torch.zeros(2, 1, 2, 2), Rng([0, 1]))
        assert {name: field.count for name, field in fields.items()} == counts

    def test_still_start_leaves_the_state_and_moves_the_time(self):
        fields = {name: Counter(field) for name, field in FIELDS.items()}
        field = ClassifierFreeZero(2.0, 0.5).combine(fields)
        z, _ = states()
        times = [i / 20 for i in range(11)]
        assert torch.equal(solve(field, z, times, midpoint_step), z)
        assert sum(counter.count for counter in fields.values()) == 0
        assert not torch.equal(solve(field, z, [*times, 0.55], midpoint_step), z)

    def test_still_start_is_decided_for_every_sample(self):
        z, t = states()
        found = ClassifierFreeZero(2.0, 0.5).combine(FIELDS)(z, t)
        assert found[:2].abs().max() == 0
        assert found[2:].flatten(1).abs().amax(1).min() > 0


class TestEffect:
    """On a line with classes around +1 and -1, the null field is that of their mixture."""

    MIXTURE = Mixture(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), 0.6)
    CLASS = gaussian(1.0, 0.6)

    def sample(self, guidance, fields):
        start = torch.special.ndtri((torch.arange(400, dtype=torch.float64) + 0.5) / 400)[:, None]
        return AB2(64).sample(guidance.combine(fields), start, Rng([0]))

    def test_classifier_free_moves_away_from_the_other_class_and_narrows(self):
        fields = {"conditional": self.CLASS.velocity, "null": self.MIXTURE.velocity}
        plain = self.sample(NoGuidance(), fields)
        assert plain.mean().item() == pytest.approx(1.0, abs=5e-3)
        assert plain.std().item() == pytest.approx(0.6, abs=5e-3)
        guided = self.sample(ClassifierFree(3.0), fields)
        assert guided.mean() > plain.mean() + 0.1
        assert (guided < 0).double().mean() < (plain < 0).double().mean() / 4
        held = self.sample(ClassifierFree(3.0, (0.6, 1.0)), fields)
        assert plain.mean() < held.mean() < guided.mean()

    def test_autoguidance_sharpens_a_blurred_model_without_moving_it(self):
        # The weak model blurs more: away from it lies the truth, not another class.
        fields = {
            "conditional": gaussian(1.0, 0.7).velocity,
            "weak": gaussian(1.0, 0.9).velocity,
        }
        blurred, sharp = self.sample(NoGuidance(), fields), self.sample(Autoguidance(1.5), fields)
        assert sharp.mean().item() == pytest.approx(1.0, abs=5e-3)
        assert 0.4 < sharp.std().item() < blurred.std().item() - 0.05


class TestArguments:
    def test_registered(self):
        for name, settings in (
            ("none", {}),
            ("classifier_free", {"scale": 2, "interval": [0.1, 0.8]}),
            ("classifier_free_zero", {"scale": 2, "zero_share": 0.1}),
            ("autoguidance", {"scale": 2}),
        ):
            built = registry.build("guidance", name, settings)
            assert isinstance(built, Guidance)
            assert "conditional" in built.needs

    @pytest.mark.parametrize("component", [ClassifierFree, ClassifierFreeZero, Autoguidance])
    @pytest.mark.parametrize("scale", [-0.5, math.nan, math.inf])
    def test_refuses_a_scale(self, component, scale):
        with pytest.raises(ValueError, match="scale"):
            component(scale)

    @pytest.mark.parametrize("interval", [(0.6, 0.2), (-0.1, 0.5), (0.5, 1.1), (0.0, math.nan)])
    def test_refuses_an_interval(self, interval):
        with pytest.raises(ValueError, match="interval"):
            ClassifierFree(2.0, interval)

    @pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
    def test_refuses_a_share(self, share):
        with pytest.raises(ValueError, match="zero_share"):
            ClassifierFreeZero(2.0, share)

    @pytest.mark.parametrize(
        ("guidance", "missing"),
        [
            (NoGuidance(), "conditional"),
            (ClassifierFree(), "null"),
            (ClassifierFreeZero(), "null"),
            (Autoguidance(), "weak"),
            (Autoguidance(weak_conditions="none"), "weak_null"),
        ],
    )
    def test_names_a_missing_field(self, guidance, missing):
        fields = {name: field for name, field in FIELDS.items() if name != missing}
        with pytest.raises(ValueError, match=missing):
            guidance.combine(fields)
