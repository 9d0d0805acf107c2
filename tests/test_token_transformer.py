"""The token transformer: doors, masks, causality, a cache equal to the full pass."""

import pytest
import torch

from medgen.backbones.token_transformer import TokenTransformer
from medgen.rng import Rng
from medgen.samplers.tokens import Autoregressive
from medgen.types import Conditioning, CondSpec, LatentSpec

SIZES = [(6,), (4, 3), (3, 2, 4)]
ALL = CondSpec(vector=5, tokens=7, grid=2)
SMALL = {"depth": 2, "width": 32, "heads": 2}


def build(size, cond=ALL, *, causal=False, seed=0, **more):
    """With all weights away from zero, so that every part shows."""
    torch.manual_seed(seed)
    latent = LatentSpec("tokens", size, vocab=11)
    net = TokenTransformer(latent, cond, causal, **(SMALL | more)).eval()
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return net


def conditions(size, count=2, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return Conditioning(
        vector=torch.randn(count, 5, generator=rng),
        tokens=torch.randn(count, 4, 7, generator=rng),
        mask=torch.tensor([[True, True, True, False]]).expand(count, -1),
        grid=torch.randn(count, 2, *size, generator=rng),
    )


def tokens(size, count=2, seed=2):
    return torch.randint(11, (count, *size), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_logits_of_every_place(size, causal):
    net = build(size, causal=causal)
    z, cond = tokens(size), conditions(size)
    z[0].flatten()[0] = 11  # the mask
    assert net(z, torch.tensor([0.1, 0.9]), cond).shape == (2, *size, 11)


def test_a_new_one_finds_all_tokens_equally_likely():
    net = TokenTransformer(LatentSpec("tokens", (4, 3), vocab=11), CondSpec(), **SMALL)
    assert not net(tokens((4, 3)), torch.zeros(2), Conditioning()).any()


@pytest.mark.parametrize("factorised", [False, True])
def test_every_door_matters_and_padding_does_not(factorised):
    size = (3, 2, 4)
    net, z, t = build(size, factorised=factorised), tokens(size), torch.full((2,), 0.5)
    cond = conditions(size)
    before = net(z, t, cond)
    for door in ("vector", "tokens", "grid"):
        given = {name: getattr(cond, name) for name in ("vector", "tokens", "mask", "grid")}
        given[door] = given[door] + 1
        assert (net(z, t, Conditioning(**given)) - before).abs().max() > 1e-3
    assert (net(z, t + 0.4, cond) - before).abs().max() > 1e-3
    padded = cond.tokens.clone()
    padded[:, 3] = 100
    other = Conditioning(vector=cond.vector, tokens=padded, mask=cond.mask, grid=cond.grid)
    torch.testing.assert_close(net(z, t, other), before)
    longer = Conditioning(
        vector=cond.vector, tokens=cond.tokens[:, :3], mask=cond.mask[:, :3], grid=cond.grid
    )
    torch.testing.assert_close(net(z, t, longer), before, atol=1e-5, rtol=1e-4)


def test_a_grid_enters_at_its_own_place():
    """In a causal network it moves the logits of its place and of later ones only."""
    net, z, cond = build((6,), causal=True), tokens((6,)), conditions((6,))
    grid = cond.grid.clone()
    grid[:, :, 3] += 1
    other = Conditioning(vector=cond.vector, tokens=cond.tokens, mask=cond.mask, grid=grid)
    moved = (net(z, torch.zeros(2), other) - net(z, torch.zeros(2), cond)).abs().amax((0, 2))
    assert moved[:3].max() == 0
    assert moved[3:].min() > 1e-4


@pytest.mark.parametrize("size", SIZES)
def test_a_causal_token_sees_those_before_it(size):
    net, z, cond = build(size, causal=True), tokens(size), conditions(size)
    before = net(z, torch.zeros(2), cond).flatten(1, -2)
    changed = z.flatten(1).clone()
    changed[:, 2] = (changed[:, 2] + 1) % 11
    after = net(changed.view(z.shape), torch.ones(2), cond).flatten(1, -2)
    moved = (after - before).abs().amax((0, 2))
    assert moved[:3].max() < 1e-6
    assert moved[3:].min() > 1e-4


def test_masked_tokens_see_all():
    net, z, cond = build((4, 3)), tokens((4, 3)), conditions((4, 3))
    changed = z.clone()
    changed[:, 1, 1] = (changed[:, 1, 1] + 1) % 11
    moved = (net(changed, torch.ones(2), cond) - net(z, torch.ones(2), cond)).abs().amax((0, 3))
    assert moved.min() > 1e-4


@pytest.mark.parametrize("size", SIZES)
def test_the_cache_equals_the_full_pass(size):
    net, z, cond = build(size, causal=True), tokens(size), conditions(size)
    full = net(z, torch.zeros(2), cond).flatten(1, -2)
    bound, length = net.bind(cond), z[0].numel()
    for place in range(length):
        step = bound(z, torch.full((2,), place / length))
        torch.testing.assert_close(step[:, 0], full[:, place], atol=1e-5, rtol=1e-5)
    again = bound(z, torch.zeros(2))  # a new run begins
    torch.testing.assert_close(again[:, 0], full[:, 0], atol=1e-5, rtol=1e-5)
    late = bound(z, torch.full((2,), (length - 1) / length))  # and catches up on places left out
    torch.testing.assert_close(late[:, 0], full[:, -1], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="expected a place from"):
        bound(z, torch.full((2,), 1 / length))


def test_sampling_with_the_cache_equals_sampling_without():
    net, cond = build((4, 3), causal=True), conditions((4, 3), count=5)
    start, sampler = torch.full((5, 4, 3), 11), Autoregressive()
    with torch.no_grad():
        cached = sampler.sample(net.bind(cond), start, Rng(range(5)))
        plain = sampler.sample(lambda z, t: net(z, t, cond), start, Rng(range(5)))
    assert torch.equal(cached, plain)


def test_factorised_blocks_attend_in_turn():
    size = (3, 2, 4)
    net = build(size, CondSpec(), factorised=True, depth=2)
    del net.blocks[1]
    z = tokens(size)
    changed = z.clone()
    changed[:, 1, 0, 0] = (changed[:, 1, 0, 0] + 1) % 11
    moved = net(changed, torch.ones(2), Conditioning()) - net(z, torch.ones(2), Conditioning())
    moved = moved.abs().amax((0, 4))
    assert moved[1].min() > 1e-4  # its own frame
    assert moved[[0, 2]].max() == 0
    both = build(size, CondSpec(), factorised=True, depth=2)
    moved = both(changed, torch.ones(2), Conditioning()) - both(z, torch.ones(2), Conditioning())
    assert moved.abs().amax((0, 4)).min() > 1e-4


@pytest.mark.parametrize(
    ("latent", "settings", "message"),
    [
        (LatentSpec("continuous", (4, 4), 3), {}, "makes continuous latents"),
        (LatentSpec("tokens", (4, 4), vocab=3), {"heads": 3}, "cannot be split into 3 heads"),
        (LatentSpec("tokens", (4, 4), vocab=3), {"factorised": True}, "three axes"),
        (LatentSpec("tokens", (2, 4, 4), vocab=3), {"factorised": True, "causal": True}, "causal"),
    ],
)
def test_refusals(latent, settings, message):
    with pytest.raises(ValueError, match=message):
        TokenTransformer(latent, CondSpec(), **(SMALL | settings))
