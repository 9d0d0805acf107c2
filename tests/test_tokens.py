"""Objectives and samplers of tokens: exact counts, closed forms, grammar, determinism."""

import math

import pytest
import torch

from medgen.nn.masking import lowest, masked_share
from medgen.objectives.tokens import MaskedTokens, NextToken
from medgen.registry import build, find
from medgen.rng import Rng
from medgen.samplers.guidance import Autoguidance, ClassifierFree
from medgen.samplers.tokens import Autoregressive, MaskGIT, draw
from medgen.types import LatentSpec

GRID = LatentSpec("tokens", (5, 5), vocab=4)
CLIP = LatentSpec("tokens", (4, 3, 3), vocab=4)


def masks(latent: LatentSpec, count: int) -> torch.Tensor:
    return torch.full((count, *latent.size), latent.vocab)


def even(z, t):
    """All tokens equally likely."""
    return torch.zeros(*z.shape, GRID.vocab)


def constant_rows(z, t):
    """The exact conditional of grids whose rows are constant, each of a token drawn evenly."""
    seen = torch.stack([(z == token).any(-1) for token in range(GRID.vocab)], dim=-1).float()
    odds = torch.where(seen.any(-1, keepdim=True), seen, torch.ones(GRID.vocab))
    return odds.clamp_min(1e-12).log()[:, :, None].expand(*z.shape, GRID.vocab)


class TestMasking:
    def test_the_share_falls_as_a_cosine(self):
        share = masked_share(torch.tensor([0.0, 1 / 3, 0.5, 1.0], dtype=torch.float64))
        expected = [1, math.sqrt(3) / 2, math.sqrt(0.5), 0]
        assert share.tolist() == pytest.approx(expected, abs=1e-15)

    def test_lowest_counts_exactly_even_among_ties(self):
        values = torch.tensor([[2.0, 1, 1, 1], [0, 0, 0, 0]])
        assert lowest(values, torch.tensor([2, 3])).tolist() == [
            [False, True, True, False], [True, True, True, False],
        ]  # fmt: skip


class TestMaskedTokens:
    def test_prior_is_all_masked_and_losses_are_those_of_the_masked(self):
        objective = MaskedTokens(GRID)
        assert torch.equal(objective.prior(GRID, Rng([0, 1])), masks(GRID, 2))
        z = torch.randint(4, (64, 5, 5), generator=torch.Generator().manual_seed(0))
        asked = []

        def net(seen, t):
            asked.append((seen, t))
            return (
                torch.nn.functional.one_hot(z, 4).float()
                * torch.where(seen == 4, 2.0, -50.0)[..., None]
            )

        loss = objective.loss(net, z, Rng(range(64)))
        expected = math.log(math.exp(2) + 3) - 2  # of a masked token; others cost 50
        torch.testing.assert_close(loss, torch.full((64,), expected))
        seen, t = asked[0]
        hidden = seen == 4
        counts = (masked_share(t) * 25).ceil().clamp(min=1)
        assert torch.equal(hidden.flatten(1).sum(1).double(), counts)
        assert torch.equal(seen[~hidden], z[~hidden])

    def test_a_sample_depends_on_its_own_seed(self):
        objective, z = MaskedTokens(GRID), torch.randint(4, (6, 5, 5))
        together = objective.hide(z, torch.full((6,), 0.4), Rng(range(6)))
        alone = objective.hide(z[3:4], torch.full((1,), 0.4), Rng([3]))
        assert torch.equal(together[3:4], alone)

    def test_every_place_is_masked_equally_often(self):
        hidden = MaskedTokens(GRID).hide(
            torch.zeros(4000, 5, 5, dtype=torch.long), torch.full((4000,), 0.5), Rng(range(4000))
        )
        share = hidden.float().mean(0)
        assert (share - 18 / 25).abs().max() < 4 * math.sqrt(0.72 * 0.28 / 4000)  # 1 in 600 fails

    def test_dynamic_tokens_weigh_more(self):
        z = torch.zeros(1, 4, 3, 3, dtype=torch.long)
        z[0, 2, 1, 1] = 3
        weight = MaskedTokens(CLIP, dynamic_weight=5).weight(z)
        assert weight[0, 2, 1, 1] == 5
        assert weight.sum() == 5 + 35
        logits = torch.zeros(1, 4, 3, 3, 4)
        logits[0, 2, 1, 1, 0] = 10.0
        wrong, right = math.log(math.exp(10) + 3), math.log(4)
        objective = MaskedTokens(CLIP, dynamic_weight=5)
        objective.hide = lambda z, t, rng: torch.ones_like(z, dtype=torch.bool)
        loss = objective.loss(lambda seen, t: logits, z, Rng([0]))
        assert loss.item() == pytest.approx((5 * wrong + 35 * right) / 40, rel=1e-6)

    def test_refusals(self):
        with pytest.raises(ValueError, match="one of 'continuous'"):
            MaskedTokens(LatentSpec("continuous", (4, 4), 3))
        with pytest.raises(ValueError, match="have no time"):
            MaskedTokens(GRID, dynamic_weight=2)
        with pytest.raises(ValueError, match="more than 0"):
            MaskedTokens(CLIP, dynamic_weight=0)


def test_next_token_is_the_mean_over_all_tokens():
    objective, z = NextToken(GRID), torch.randint(4, (3, 5, 5))
    logits = torch.randn(3, 5, 5, 4, generator=torch.Generator().manual_seed(0))
    loss = objective.loss(lambda seen, t: logits, z, Rng(range(3)))
    log_p = logits.log_softmax(-1).gather(-1, z[..., None])
    torch.testing.assert_close(loss, -log_p.flatten(1).mean(1))
    assert torch.equal(objective.prior(GRID, Rng([0])), masks(GRID, 1))


class TestMaskGIT:
    @pytest.mark.parametrize("steps", [1, 3, 8, 18, 40])
    def test_counts_follow_the_cosine_exactly(self, steps):
        found = []

        def field(z, t):
            found.append((z == 4).flatten(1).sum(1))
            assert t[0] == pytest.approx((len(found) - 1) / steps)
            return even(z, t)

        z = MaskGIT(steps).sample(field, masks(GRID, 3), Rng(range(3)))
        expected = [math.floor(25 * math.cos(math.pi * k / (2 * steps))) for k in range(steps)]
        assert [counts.tolist() for counts in found] == [[count] * 3 for count in expected]
        assert z.max() < 4

    def test_more_steps_recover_the_joint_distribution(self):
        shares = []
        for steps in (1, 2, 4, 8, 18):
            z = MaskGIT(steps).sample(constant_rows, masks(GRID, 300), Rng(range(300)))
            shares.append(float((z == z[:, :, :1]).flatten(1).all(1).float().mean()))
        assert shares == sorted(shares)
        assert shares[0] < 0.02
        assert shares[-1] > 0.85
        first = torch.bincount(z[:, :, 0].flatten(), minlength=4) / 1500  # the rows stay even
        assert (first - 0.25).abs().max() < 4 * math.sqrt(0.25 * 0.75 / 1500)

    def test_a_sample_depends_on_its_own_seed(self):
        sampler = MaskGIT(6)
        together = sampler.sample(constant_rows, masks(GRID, 5), Rng(range(5)))
        alone = sampler.sample(constant_rows, masks(GRID, 1), Rng([3]))
        assert torch.equal(together[3:4], alone)

    def test_known_tokens_stay(self):
        start = masks(GRID, 2)
        start[0, 0] = torch.tensor([3, 2, 1, 0, 3])
        counts = []

        def field(z, t):
            counts.append((z == 4).flatten(1).sum(1).tolist())
            return even(z, t)

        z = MaskGIT(4).sample(field, start, Rng([0, 1]))
        assert z[0, 0].tolist() == [3, 2, 1, 0, 3]
        assert z.max() < 4
        half = math.cos(math.pi / 4)
        assert counts[2] == [math.floor(20 * half), math.floor(25 * half)]

    def test_temperature_zero_takes_the_likeliest(self):
        logits = torch.randn(2, 5, 5, 4, generator=torch.Generator().manual_seed(0))
        z = MaskGIT(3, temperature=0).sample(lambda z, t: logits, masks(GRID, 2), Rng([0, 1]))
        assert torch.equal(z, logits.argmax(-1))


def chain(z, t):
    """A Markov chain in raster order: a token is followed by itself with probability 0.7."""
    before = torch.nn.functional.pad(z.flatten(1)[:, :-1], (1, 0), value=4)
    same = torch.nn.functional.one_hot(before, 5)[..., :4] == 1
    first = (before == 4)[..., None]
    odds = torch.where(
        first, torch.tensor(0.25), torch.where(same, torch.tensor(0.7), torch.tensor(0.1))
    )
    return odds.log().view(*z.shape, 4)


class TestAutoregressive:
    def test_recovers_a_markov_chain(self):
        z = Autoregressive().sample(chain, masks(GRID, 400), Rng(range(400))).flatten(1)
        pairs = torch.zeros(4, 4)
        pairs.index_put_(
            (z[:, :-1].flatten(), z[:, 1:].flatten()), torch.ones(400 * 24), accumulate=True
        )
        moves = pairs / pairs.sum(1, keepdim=True)
        expected = torch.full((4, 4), 0.1).fill_diagonal_(0.7)
        assert (moves - expected).abs().max() < 4 * math.sqrt(0.7 * 0.3 / 2000)  # 1 in 1000 fails
        start = torch.bincount(z[:, 0], minlength=4) / 400
        assert (start - 0.25).abs().max() < 4 * math.sqrt(0.25 * 0.75 / 400)

    def test_asks_in_order_and_takes_the_next_token_alone_too(self):
        asked = []

        def newest(z, t):
            asked.append(float(t[0]))
            return chain(z, t).flatten(1, -2)[:, round(float(t[0]) * 25)][:, None]

        z = Autoregressive().sample(newest, masks(GRID, 3), Rng(range(3)))
        assert asked == pytest.approx([place / 25 for place in range(25)])
        assert torch.equal(z, Autoregressive().sample(chain, masks(GRID, 3), Rng(range(3))))

    def test_a_sample_depends_on_its_own_seed(self):
        together = Autoregressive().sample(chain, masks(GRID, 5), Rng(range(5)))
        alone = Autoregressive().sample(chain, masks(GRID, 1), Rng([3]))
        assert torch.equal(together[3:4], alone)

    def test_top_k_and_temperature(self):
        logits = torch.tensor([0.0, 3, 2, 1]).expand(200, 5, 5, 4)
        two = Autoregressive(top_k=2).sample(lambda z, t: logits, masks(GRID, 200), Rng(range(200)))
        assert two.unique().tolist() == [1, 2]
        share = float((two == 1).float().mean())
        assert share == pytest.approx(1 / (1 + math.exp(-1)), abs=4 * 0.45 / math.sqrt(5000))
        cold = Autoregressive(temperature=0)
        z = cold.sample(lambda z, t: logits, masks(GRID, 200), Rng(range(200)))
        assert z.unique().tolist() == [1]

    def test_known_tokens_stay(self):
        start = masks(GRID, 2)
        start[:, 0] = 2
        z = Autoregressive().sample(chain, start, Rng([0, 1]))
        assert (z[:, 0] == 2).all()


@pytest.mark.parametrize("sampler", [MaskGIT(6), Autoregressive(), MaskGIT(6, temperature=3)])
def test_an_impossible_token_never_appears(sampler):
    grammar = torch.ones(5, 5, 4, dtype=torch.bool)
    grammar[0, :, 1:] = False  # the first row holds token 0 only
    grammar[3, :, 2] = False
    sampler.grammar = grammar

    def against(z, t):
        logits = torch.zeros(*z.shape, 4)
        logits[..., 2] = 30.0
        return logits

    z = sampler.sample(against, masks(GRID, 40), Rng(range(40)))
    assert (z[:, 0] == 0).all()
    assert not (z[:, 3] == 2).any()
    assert (z[:, 1] == 2).any()
    sampler.grammar = torch.zeros(5, 5, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="at least one of 4 tokens"):
        sampler.sample(against, masks(GRID, 1), Rng([0]))
    sampler.grammar = None


def test_the_last_and_first_possible_token_bound_every_draw():
    log_p = torch.tensor([[[0.0, 0.3, 0.7, 0.0]]]).log().expand(3, 1, 4)
    almost_one = 1 - 2**-24
    assert draw(log_p, torch.tensor([[0.0], [0.5], [almost_one]]), 1.0).flatten().tolist() == [
        1,
        2,
        2,
    ]


class TestGuidance:
    def fields(self):
        a, b = torch.randn(2, 5, 5, 4), torch.randn(2, 5, 5, 4)
        return a, b, {"conditional": lambda z, t: a, "null": lambda z, t: b, "weak": lambda z, t: b}

    @pytest.mark.parametrize("guidance", [ClassifierFree(3.0), Autoguidance(3.0)])
    def test_logits_are_extrapolated(self, guidance):
        a, b, fields = self.fields()
        guided = guidance.combine(fields)(masks(GRID, 2), torch.zeros(2))
        torch.testing.assert_close(guided, b + 3 * (a - b))

    def test_an_interval_chooses_by_sample(self):
        a, b, fields = self.fields()
        guided = ClassifierFree(3.0, (0.0, 0.5)).combine(fields)
        out = guided(masks(GRID, 2), torch.tensor([0.2, 0.7]))
        torch.testing.assert_close(out[0], (b + 3 * (a - b))[0])
        torch.testing.assert_close(out[1], a[1])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("maskgit", {"steps": 0}, "1 or more"),
        ("maskgit", {"temperature": -1.0}, "0 or more"),
        ("maskgit", {"noise": -1.0}, "0 or more"),
        ("autoregressive", {"top_k": 0}, "1 or more"),
    ],
)
def test_refusals(name, settings, message):
    with pytest.raises(ValueError, match=message):
        build("sampler", name, settings)


def test_all_are_of_tokens():
    for kind, name in (
        ("objective", "masked_tokens"), ("objective", "next_token"), ("sampler", "maskgit"),
        ("sampler", "autoregressive"), ("backbone", "token_transformer"), ("codec", "tokenizer"),
    ):  # fmt: skip
        assert find(kind, name).domain == "tokens"
