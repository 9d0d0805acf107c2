"""Backbones equal their references, use every door that they built, and refuse what cannot fit."""

import itertools
import math

import pytest
import torch
from torch.nn import functional

from medgen.backbones.dit import DiT
from medgen.backbones.unet import UNet
from medgen.nn.attention import attention_backend
from medgen.nn.blocks import AdaLNZeroBlock, rotary_angles, rotate, sincos_positions
from medgen.nn.nd import area_resize, depth_to_space, space_to_depth
from medgen.registry import arguments, build, names
from medgen.types import Conditioning, CondSpec, LatentSpec

PLANE, VOLUME = (8, 12), (4, 4, 8)
KINDS_SIZES = [(DiT, (16,)), (DiT, PLANE), (DiT, VOLUME), (UNet, PLANE), (UNet, VOLUME)]
LATENT = LatentSpec("continuous", (8, 8), 3)
FREE = CondSpec()
SMALL_DIT = {"patch": 2, "depth": 2, "width": 48, "heads": 4}
SMALL_UNET = {"channels": (16, 32), "blocks": 1, "attention": (False, True), "head": 16}


def _backbone(name, latent=LATENT, cond=FREE, **settings):
    """A small backbone whose every weight is random, so that no path is cut by a zero."""
    torch.manual_seed(0)
    kind, small = {"dit": (DiT, SMALL_DIT), "unet": (UNet, SMALL_UNET)}[name]
    backbone = kind(latent, cond, **(small | settings)).eval()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng) * 0.1)
    return backbone


def _inputs(count=3, latent=LATENT, cond=FREE, seed=0):
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(count, *latent.shape, generator=rng)
    t = torch.rand(count, generator=rng)
    given = {}
    if cond.vector:
        given["vector"] = torch.randn(count, cond.vector, generator=rng)
    if cond.tokens:
        given["tokens"] = torch.randn(count, 5, cond.tokens, generator=rng)
        given["mask"] = torch.arange(5) < torch.tensor([[5], [3], [1]])[:count]
    if cond.grid:
        given["grid"] = torch.randn(count, cond.grid, *latent.size, generator=rng)
    return z, t, Conditioning(**given)


def test_both_are_registered_and_wired():
    assert {"dit", "unet"} <= set(names("backbone"))
    for name, small in {"dit": SMALL_DIT, "unet": SMALL_UNET}.items():
        backbone = build("backbone", name, small, latent=LATENT, cond=FREE)
        assert backbone.domain == "continuous"
        wired = {a.name for a in arguments(type(backbone)).values() if a.wired}
        assert wired == {"latent", "cond"}


@pytest.mark.parametrize(("kind", "size"), KINDS_SIZES)
def test_a_new_backbone_gives_zero_on_any_axes(kind, size):
    latent, cond = LatentSpec("continuous", size, 3), CondSpec(vector=5, grid=2)
    backbone = kind(latent, cond, **(SMALL_DIT if kind is DiT else SMALL_UNET))
    z, t, given = _inputs(latent=latent, cond=cond)
    out = backbone(z, t, given)
    assert out.shape == z.shape
    assert out.abs().max() == 0


@pytest.mark.parametrize(("kind", "size"), KINDS_SIZES)
def test_any_axes_reach_every_voxel_from_every_voxel(kind, size):
    latent = LatentSpec("continuous", size, 2)
    backbone = _backbone("dit" if kind is DiT else "unet", latent)
    z, t, given = _inputs(1, latent)
    z.requires_grad_()
    out = backbone(z, t, given)
    (gradient,) = torch.autograd.grad(out[(0, 0, *(0,) * len(size))], z)
    assert (gradient != 0).all()


@pytest.mark.parametrize(
    ("name", "cond"),
    [("dit", CondSpec(vector=6, tokens=4, grid=2)), ("unet", CondSpec(vector=6, grid=2))],
)
def test_time_and_every_door_change_the_output(name, cond):
    backbone = _backbone(name, cond=cond)
    z, t, given = _inputs(cond=cond)
    base = backbone(z, t, given)
    assert not torch.allclose(backbone(z, (t + 0.3) % 1, given), base, atol=1e-3)
    for door in ("vector", "tokens", "grid"):
        value = getattr(given, door)
        if value is None:
            continue
        values = {"vector": given.vector, "tokens": given.tokens, "grid": given.grid}
        changed = Conditioning(**(values | {door: value + 1.0}), mask=given.mask)
        assert not torch.allclose(backbone(z, t, changed), base, atol=1e-3), door


@pytest.mark.parametrize("variant", ["paper", "modern"])
@pytest.mark.parametrize("name", ["dit", "unet"])
def test_every_weight_learns(name, variant):
    cond = CondSpec(vector=6, grid=2) if name == "unet" else CondSpec(vector=6, tokens=4, grid=2)
    settings = {"variant": variant} if name == "dit" else {}
    backbone = _backbone(name, cond=cond, **settings)
    backbone(*_inputs(cond=cond)).square().sum().backward()
    still = [key for key, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@pytest.mark.parametrize("name", ["dit", "unet"])
def test_a_sample_does_not_depend_on_its_batch(name):
    cond = CondSpec(vector=6, grid=2) if name == "unet" else CondSpec(vector=6, tokens=4, grid=2)
    backbone = _backbone(name, cond=cond)
    z, t, given = _inputs(cond=cond)
    out = backbone(z, t, given)
    for i in range(len(z)):
        doors = ("vector", "tokens", "mask", "grid")
        one = {d: v[i : i + 1] for d in doors if (v := getattr(given, d)) is not None}
        torch.testing.assert_close(
            backbone(z[i : i + 1], t[i : i + 1], Conditioning(**one)),
            out[i : i + 1],
            atol=2e-5,
            rtol=1e-4,
        )


@pytest.mark.parametrize("name", ["dit", "unet"])
def test_kernels_agree_inside_a_backbone(name):
    cond = CondSpec(tokens=4) if name == "dit" else FREE
    backbone, inputs = _backbone(name, cond=cond), _inputs(cond=cond)
    with attention_backend("sdpa"):
        fused = backbone(*inputs)
    with attention_backend("math"):
        torch.testing.assert_close(backbone(*inputs), fused, atol=2e-5, rtol=1e-4)


def test_padding_does_not_change_a_dit():
    cond = CondSpec(tokens=4)
    backbone = _backbone("dit", cond=cond)
    z, t, given = _inputs(cond=cond)
    out = backbone(z, t, given)
    noisy = torch.where(given.mask[..., None], given.tokens, 1e3)
    same = backbone(z, t, Conditioning(tokens=noisy, mask=given.mask))
    torch.testing.assert_close(same, out)
    longer = Conditioning(
        tokens=functional.pad(given.tokens, (0, 0, 0, 4), value=7.0),
        mask=functional.pad(given.mask, (0, 4)),
    )
    torch.testing.assert_close(backbone(z, t, longer), out, atol=1e-5, rtol=1e-5)


def test_padding_only_is_finite_and_equals_no_tokens():
    cond = CondSpec(tokens=4)
    backbone = _backbone("dit", cond=cond)
    z, t, given = _inputs(cond=cond)
    padded = Conditioning(tokens=given.tokens, mask=torch.zeros_like(given.mask))
    none = Conditioning(tokens=given.tokens[:, :0], mask=given.mask[:, :0])
    out = backbone(z, t, padded)
    assert out.isfinite().all()
    torch.testing.assert_close(backbone(z, t, none), out)


@pytest.mark.parametrize("name", ["dit", "unet"])
def test_conditions_that_do_not_fit_the_doors_are_refused(name):
    z, t, _ = _inputs()
    cond = CondSpec(vector=6)
    conditional, free = _backbone(name, cond=cond), _backbone(name)
    with pytest.raises(ValueError, match="a vector condition of width 6, got 0"):
        conditional(z, t, Conditioning())
    with pytest.raises(ValueError, match="a vector condition of width 0, got 6"):
        free(z, t, Conditioning(vector=torch.zeros(3, 6)))
    with pytest.raises(ValueError, match="a grid condition of width 0, got 1"):
        free(z, t, Conditioning(grid=torch.zeros(3, 1, 8, 8)))


@pytest.mark.parametrize(
    ("kind", "latent", "cond", "settings", "text"),
    [
        (DiT, LatentSpec("continuous", (9, 8), 3), FREE, {}, "cannot be cut into patches of 2"),
        (DiT, LatentSpec("tokens", (8, 8), 1, 64), FREE, {}, "takes continuous latents"),
        (DiT, LATENT, FREE, {"width": 50}, "cannot be split into 4 heads"),
        (DiT, LATENT, FREE, {"width": 12}, "heads of an even width"),
        (UNet, LatentSpec("tokens", (8, 8), 1, 64), FREE, {}, "takes continuous latents"),
        (UNet, LatentSpec("continuous", (8,), 3), FREE, {}, "2 or 3 spatial axes, got 1"),
        (UNet, LATENT, CondSpec(tokens=4), {}, "takes no condition tokens"),
        (UNet, LatentSpec("continuous", (8, 7), 3), FREE, {}, "cannot be halved 1 times"),
        (UNet, LATENT, FREE, {"attention": (True,)}, "got 1 for 2"),
        (UNet, LATENT, FREE, {"head": 12}, r"channels \[32\].*not divisible by heads of 12"),
    ],
)
def test_what_cannot_fit_is_refused_when_built(kind, latent, cond, settings, text):
    small = SMALL_DIT if kind is DiT else SMALL_UNET
    with pytest.raises(ValueError, match=text):
        kind(latent, cond, **(small | settings))


@pytest.mark.parametrize("name", ["dit", "unet"])
def test_dropout_acts_in_training_only(name):
    plain, dropping = _backbone(name), _backbone(name, dropout=0.5)
    dropping.load_state_dict(plain.state_dict())
    inputs = _inputs()
    assert torch.equal(dropping(*inputs), plain(*inputs))
    dropping.train()
    torch.manual_seed(0)
    first, second = dropping(*inputs), dropping(*inputs)
    assert not torch.allclose(first, second, atol=1e-3)
    plain.train()
    assert torch.equal(plain(*inputs), plain(*inputs))


@pytest.mark.parametrize("size", [(8, 8), (4, 8, 8)])
def test_unet_equals_monai(size):
    from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

    latent = LatentSpec("continuous", size, 3)
    ours = _backbone("unet", latent, channels=(16, 32), blocks=2)
    theirs = DiffusionModelUNet(
        spatial_dims=len(size),
        in_channels=3,
        out_channels=3,
        num_res_blocks=2,
        channels=(16, 32),
        attention_levels=(False, True),
        norm_num_groups=16,
        num_head_channels=16,
    ).eval()
    theirs.load_state_dict(ours.network.state_dict())
    z, t, given = _inputs(latent=latent)
    with torch.no_grad():
        expected = theirs(z, t * 1000)
    assert expected.abs().mean() > 0.01
    torch.testing.assert_close(ours(z, t, given).detach(), expected, atol=1e-5, rtol=1e-4)


def _diffusers_twin(ours, vectors):
    """Diffusers' DiT with our weights; class i of it has the i-th condition vector."""
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    width, patch, channels = SMALL_DIT["width"], SMALL_DIT["patch"], LATENT.channels
    theirs = DiTTransformer2DModel(
        num_attention_heads=SMALL_DIT["heads"],
        attention_head_dim=width // SMALL_DIT["heads"],
        in_channels=channels,
        out_channels=channels,
        num_layers=SMALL_DIT["depth"],
        sample_size=LATENT.size[0],
        patch_size=patch,
        num_embeds_ada_norm=len(vectors),
        norm_eps=1e-6,
    ).eval()
    theirs.pos_embed.proj.weight.copy_(ours.embed.weight.view(width, channels, patch, patch))
    theirs.pos_embed.proj.bias.copy_(ours.embed.bias)
    for mine, other in zip(ours.blocks, theirs.transformer_blocks, strict=True):
        key, value = mine.attention.key_value.weight.chunk(2)
        key_bias, value_bias = mine.attention.key_value.bias.chunk(2)
        other.attn1.to_k.weight.copy_(key)
        other.attn1.to_k.bias.copy_(key_bias)
        other.attn1.to_v.weight.copy_(value)
        other.attn1.to_v.bias.copy_(value_bias)
        embedder = other.norm1.emb
        embedder.time_proj.downscale_freq_shift = 0
        embedder.class_embedder.embedding_table.weight[: len(vectors)] = ours.vector(vectors)
        pairs = [
            (mine.attention.query, other.attn1.to_q),
            (mine.attention.out, other.attn1.to_out[0]),
            (mine.feed_forward[0], other.ff.net[0].proj),
            (mine.feed_forward[2], other.ff.net[2]),
            (mine.modulation, other.norm1.linear),
            (ours.time[0], embedder.timestep_embedder.linear_1),
            (ours.time[2], embedder.timestep_embedder.linear_2),
        ]
        for one, another in pairs:
            another.load_state_dict(one.state_dict())
    theirs.proj_out_1.load_state_dict(ours.modulation.state_dict())
    place = torch.arange(channels * patch**2).view(channels, -1).T.flatten()  # (c p) -> (p c)
    theirs.proj_out_2.weight.copy_(ours.out.weight[place])
    theirs.proj_out_2.bias.copy_(ours.out.bias[place])
    return theirs


@torch.no_grad()
def test_paper_dit_equals_diffusers():
    ours = _backbone("dit", cond=CondSpec(vector=6), variant="paper")
    vectors = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    theirs = _diffusers_twin(ours, vectors)
    columns, rows = theirs.pos_embed.pos_embed[0].float().chunk(2, dim=-1)
    torch.testing.assert_close(ours.places, torch.cat([rows, columns], dim=-1))
    theirs.pos_embed.pos_embed.copy_(ours.places[None])
    z, t, _ = _inputs()
    expected = theirs(z, timestep=t * 1000, class_labels=torch.arange(3)).sample
    assert expected.abs().mean() > 0.01
    out = ours(z, t, Conditioning(vector=vectors))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_modern_block_computes_its_equations():
    """The block written out with plain tensor algebra, token by token and head by head."""
    torch.manual_seed(0)
    width, heads, count = 8, 2, 5
    block = AdaLNZeroBlock(width, heads).double()
    for parameter in block.parameters():
        parameter.normal_(std=0.5)
    x, vector = torch.randn(1, count, width).double(), torch.randn(1, width).double()
    a, f, head = block.attention, block.feed_forward, width // heads

    def norm(y):
        centred = y - y.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def unit(y, weight):
        return y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    shift, scale, gate, shift2, scale2, gate2 = block.modulation(vector)[0].view(6, width)
    y = norm(x[0]) * (1 + scale) + shift
    keys, values = a.key_value(y).view(count, 2, heads, head).unbind(1)
    queries, mixed = a.query(y).view(count, heads, head), torch.zeros(count, heads, head).double()
    for h, i in itertools.product(range(heads), range(count)):
        q = unit(queries[i, h], a.query_norm.weight)
        scores = (unit(keys[:, h], a.key_norm.weight) @ q / math.sqrt(head)).exp()
        mixed[i, h] = scores @ values[:, h] / scores.sum()
    middle = x[0] + gate * a.out(mixed.flatten(1))
    y = norm(middle) * (1 + scale2) + shift2
    opened, value = f.gate_value(y).chunk(2, dim=-1)
    expected = middle + gate2 * f.out(opened * torch.sigmoid(opened) * value)
    torch.testing.assert_close(block(x, vector)[0], expected)


@pytest.mark.parametrize("size", [(16,), (5, 7), (3, 4, 5)])
def test_rotary_scores_depend_on_the_displacement_only(size):
    head = 24
    angles = rotary_angles(size, head)
    rng = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, head, generator=rng).expand(-1, -1, len(angles), -1) for _ in "qk")
    cos, sin = angles.cos(), angles.sin()
    scores = (rotate(q, cos, sin) @ rotate(k, cos, sin).transpose(-1, -2))[0, 0]
    places = list(itertools.product(*map(range, size)))
    by_displacement = {}
    for (i, a), (j, b) in itertools.product(enumerate(places), repeat=2):
        moved = tuple(x - y for x, y in zip(a, b, strict=True))
        by_displacement.setdefault(moved, []).append(scores[i, j].item())
    for values in by_displacement.values():
        assert max(values) - min(values) < 1e-3
    means = [sum(v) / len(v) for v in by_displacement.values()]
    assert torch.tensor(means).std() > 0.1


@pytest.mark.parametrize(("size", "width"), [((16,), 8), ((5, 7), 18), ((3, 4, 5), 32)])
def test_fixed_positions_differ_everywhere(size, width):
    places = sincos_positions(size, width)
    assert places.shape == (math.prod(size), width)
    distances = torch.cdist(places, places) + torch.eye(len(places)) * 9
    assert distances.min() > 0.1


@pytest.mark.parametrize(
    ("size", "factor"), [((6,), (3,)), ((4, 6), (2, 3)), ((4, 2, 6), (2, 1, 3))]
)
def test_space_to_depth_places_every_voxel_and_inverts(size, factor):
    x = torch.arange(2 * 3 * math.prod(size)).view(2, 3, *size).float()
    deep = space_to_depth(x, factor)
    for place in itertools.product(*map(range, size)):
        inside = [p % f for p, f in zip(place, factor, strict=True)]
        coarse = tuple(p // f for p, f in zip(place, factor, strict=True))
        offset = 0
        for f, i in zip(factor, inside, strict=True):
            offset = offset * f + i
        channels = [c * math.prod(factor) + offset for c in range(3)]
        assert torch.equal(deep[(0, channels, *coarse)], x[(0, slice(None), *place)])
    assert torch.equal(depth_to_space(deep, factor), x)


def test_space_to_depth_refuses_a_remainder():
    with pytest.raises(ValueError, match="not divisible by blocks"):
        space_to_depth(torch.zeros(1, 1, 5, 4), (2, 2))
    with pytest.raises(ValueError, match="cannot be spread"):
        depth_to_space(torch.zeros(1, 3, 5, 4), (2, 2))


@pytest.mark.parametrize("size", [(12,), (6, 12), (4, 6, 6)])
def test_area_resize_takes_means(size):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    half = [side // 2 for side in size]
    blocks = space_to_depth(x, (2,) * len(size)).view(2, 3, -1, *half)
    torch.testing.assert_close(area_resize(x, half), blocks.mean(dim=2))
    assert area_resize(x, size) is x


@pytest.mark.parametrize("name", ["dit", "unet"])
def test_a_backbone_learns_what_its_conditions_say(name):
    """The target is (vector + t) x grid (+ the mean of the tokens), none of it in the latent."""
    torch.manual_seed(0)
    cond = CondSpec(vector=1, grid=1, tokens=1 if name == "dit" else 0)
    backbone = DiT(LATENT, cond, **SMALL_DIT) if name == "dit" else UNet(LATENT, cond, **SMALL_UNET)
    optimiser = torch.optim.Adam(backbone.parameters(), lr=3e-3)
    losses = []
    for step in range(120):
        z, t, _ = _inputs(16, seed=step)
        vector, grid = torch.randn(16, 1), torch.randn(16, 1, *LATENT.size)
        doors = {"vector": vector, "grid": grid}
        target = (vector + t[:, None])[..., None, None] * grid
        if name == "dit":
            tokens = torch.randn(16, 1, 1)
            doors |= {"tokens": tokens, "mask": torch.ones(16, 1, dtype=torch.bool)}
            target = target + tokens[..., None]
        out = backbone(z, t, Conditioning(**doors))
        loss = (out - target).square().mean() / target.square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 0.99
    assert sum(losses[-20:]) / 20 < 0.45
