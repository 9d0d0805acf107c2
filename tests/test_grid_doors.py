"""A grid enters by any door: nothing changes while it is new, then all of it learns."""

import pytest
import torch
from conftest import TINY

from medgen.backbones.dit import DiT
from medgen.backbones.grids import add_each
from medgen.backbones.unet import UNet
from medgen.checkpoint import read_weights
from medgen.errors import CheckpointError, RecipeError
from medgen.pipeline import Run
from medgen.recipe import load_recipe
from medgen.types import Conditioning, CondSpec, LatentSpec

PLANE, VOLUME = (8, 12), (4, 4, 8)
SMALL = {
    DiT: {"patch": 2, "depth": 3, "width": 48, "heads": 4},
    UNet: {"channels": (16, 32), "blocks": 1, "attention": (False, True), "head": 16},
}
CASES = [(kind, size) for kind in (DiT, UNet) for size in (PLANE, VOLUME)]
ADDED = ["spade", "controlnet"]
SEEN = CondSpec(vector=6, grid=2)


def _randomised(backbone):
    """Every weight random, so that no path is cut by a zero."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng) * 0.1)
    return backbone.eval()


def _built(kind, size, door, cond=SEEN):
    torch.manual_seed(0)
    return kind(LatentSpec("continuous", size, 3), cond, grid=door, **SMALL[kind])


def _begun(kind, size, door):
    """A base without a grid, and the same network with a door that is new."""
    base = _randomised(_built(kind, size, "concatenate", CondSpec(vector=6)))
    grown = _built(kind, size, door).eval()
    missing, unexpected = grown.load_state_dict(base.state_dict(), strict=False)
    assert unexpected == []
    assert all("spade" in name or "control" in name for name in missing)
    if grown.control is not None:
        grown.control.copy_from(grown)
    return base, grown


def _inputs(size, count=2):
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(count, 3, *size, generator=rng)
    t = torch.rand(count, generator=rng)
    grid = torch.randn(count, 2, *size, generator=rng)
    vector = torch.randn(count, 6, generator=rng)
    return z, t, vector, grid


@pytest.mark.parametrize("door", ADDED)
@pytest.mark.parametrize(("kind", "size"), CASES)
def test_a_new_door_leaves_the_base_as_it_is(kind, size, door):
    base, grown = _begun(kind, size, door)
    z, t, vector, grid = _inputs(size)
    before = base(z, t, Conditioning(vector=vector))
    assert before.abs().mean() > 0.01
    after = grown(z, t, Conditioning(vector=vector, grid=grid))
    if kind is DiT and door == "spade":  # one product a token sums in another order
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(after, before)


@pytest.mark.parametrize("door", ADDED)
@pytest.mark.parametrize("size", [PLANE, VOLUME])
def test_doors_open_in_networks_that_resample_in_residual_blocks(size, door):
    settings = SMALL[UNet] | {"resample": "residual", "groups": 4}
    latent = LatentSpec("continuous", size, 3)
    base = _randomised(UNet(latent, CondSpec(vector=6), **settings))
    grown = UNet(latent, SEEN, grid=door, **settings).eval()
    grown.load_state_dict(base.state_dict(), strict=False)
    if grown.control is not None:
        grown.control.copy_from(grown)
    z, t, vector, grid = _inputs(size)
    before = base(z, t, Conditioning(vector=vector))
    assert torch.equal(grown(z, t, Conditioning(vector=vector, grid=grid)), before)
    told = _randomised(grown)(z, t, Conditioning(vector=vector, grid=grid))
    other = grown(z, t, Conditioning(vector=vector, grid=-grid))
    assert (told - other).abs().mean() > 1e-3


@pytest.mark.parametrize("door", ADDED)
@pytest.mark.parametrize(("kind", "size"), CASES)
def test_steps_of_the_new_weights_alone_let_the_grid_speak(kind, size, door):
    base, grown = _begun(kind, size, door)
    z, t, vector, grid = _inputs(size)
    new = [p for name, p in grown.named_parameters() if "spade" in name or "control" in name]
    old = {name: p for name, p in grown.named_parameters() if name in base.state_dict()}
    for parameter in old.values():
        parameter.requires_grad_(False)
    optimiser = torch.optim.Adam(new, lr=0.01)
    for _ in range(2):  # a ControlNet's first zeros have no gradient until its last have moved
        optimiser.zero_grad()
        grown(z, t, Conditioning(vector=vector, grid=grid)).square().sum().backward()
        optimiser.step()
    outputs = [grown(z, t, Conditioning(vector=vector, grid=g)) for g in (grid, grid.flip(0))]
    assert not torch.allclose(*outputs, atol=1e-5)
    for name, parameter in old.items():
        assert torch.equal(parameter, base.state_dict()[name])


@pytest.mark.parametrize("door", ADDED)
@pytest.mark.parametrize(("kind", "size"), CASES)
def test_every_weight_of_a_door_learns_and_every_voxel_is_seen(kind, size, door):
    backbone = _randomised(_built(kind, size, door))
    z, t, vector, grid = _inputs(size)
    grid.requires_grad_()
    backbone(z, t, Conditioning(vector=vector, grid=grid)).square().sum().backward()
    still = [key for key, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []
    assert (grid.grad != 0).all()


@pytest.mark.parametrize("door", ["concatenate", *ADDED])
@pytest.mark.parametrize("kind", [DiT, UNet])
def test_a_grid_of_another_size_is_refused_never_resized(kind, door):
    backbone = _built(kind, PLANE, door)
    z, t, vector, _ = _inputs(PLANE)
    coarse = torch.zeros(2, 2, 4, 6)
    with pytest.raises(ValueError, match=r"latent's size \(8, 12\), got \(4, 6\)"):
        backbone(z, t, Conditioning(vector=vector, grid=coarse))


def test_levels_that_do_not_match_are_refused():
    backbone = _built(UNet, PLANE, "controlnet")
    z, t, vector, grid = _inputs(PLANE)
    del backbone.control.zeros[-1]
    with pytest.raises(ValueError, match="zip"):
        backbone(z, t, Conditioning(vector=vector, grid=grid))
    states = [torch.zeros(1, 4, 8), torch.zeros(1, 4, 4)]
    for wrong in (states[:1], states[::-1]):
        with pytest.raises(ValueError, match="levels of a control do not match"):
            add_each(states, wrong)


@pytest.mark.parametrize("door", ADDED)
@pytest.mark.parametrize("kind", [DiT, UNet])
def test_a_door_without_a_grid_is_refused(kind, door):
    with pytest.raises(ValueError, match=f"'{door}' needs a condition that is a grid"):
        _built(kind, PLANE, door, CondSpec(vector=6))


@pytest.mark.parametrize("door", ["concatenate", *ADDED])
@pytest.mark.parametrize("kind", [DiT, UNet])
def test_an_image_follows_its_grid_by_every_door(kind, door):
    """The target is the grid times (1 + t), none of it in the latent."""
    size, cond = (8, 8), CondSpec(grid=1)
    backbone = _built(kind, size, door, cond).train()
    optimiser = torch.optim.Adam(backbone.parameters(), lr=3e-3)
    losses = []
    for step in range(80):
        rng = torch.Generator().manual_seed(step)
        z, t = torch.randn(16, 3, *size, generator=rng), torch.rand(16, generator=rng)
        grid = torch.randn(16, 1, *size, generator=rng)
        target = ((1 + t)[:, None, None, None] * grid).expand_as(z)
        loss = (backbone(z, t, Conditioning(grid=grid)) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item() / target.square().mean().item())
    assert losses[0] > 0.99
    assert sum(losses[-10:]) / 10 < 0.6


def test_a_frozen_base_learns_a_controlnet_only(trained, tmp_path):
    changes = [
        f"train.init_from={trained}",
        "train.freeze=true",
        "conditioner.anatomy={type: mask}",
        "backbone.grid=controlnet",
    ]
    out = Run(load_recipe("cxr/quickstart", [*TINY, *changes]), tmp_path / "run", device="cpu")
    old, new = read_weights(trained)[0], read_weights(out.train())[0]
    for name, tensor in old.items():
        assert torch.equal(new[name], tensor), name
    begun = "down_blocks.0.resnets.0.conv1.conv.weight"
    mine, theirs = new[f"backbone.control.{begun}"], old[f"backbone.network.{begun}"]
    assert not torch.equal(mine, theirs)
    assert (mine - theirs).norm() < 0.3 * theirs.norm()
    assert new["backbone.control.zeros.0.weight"].abs().max() > 0


def test_freezing_nothing_or_everything_is_refused(trained, tmp_path):
    recipe = load_recipe("cxr/quickstart", [*TINY, "train.freeze=true"])
    with pytest.raises(RecipeError, match="nothing to freeze"):
        Run(recipe, tmp_path / "nothing", device="cpu").train()
    recipe = load_recipe(
        "cxr/quickstart", [*TINY, "train.freeze=true", f"train.init_from={trained}"]
    )
    with pytest.raises(CheckpointError, match="leaves nothing to learn"):
        Run(recipe, tmp_path / "everything", device="cpu").train()
