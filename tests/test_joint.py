"""Images drawn with their masks: any part may be known, and the rest follows it."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import TINY
from toy_studies import discs
from toy_training import built, train

from medgen.assembly import from_pretrained
from medgen.data.joint import Joint
from medgen.data.synthetic import SyntheticDataset
from medgen.errors import DataError, RecipeError
from medgen.nn.masks import classes_of_channels, mask_channels
from medgen.pipeline import Run
from medgen.recipe import load_recipe
from medgen.rng import Rng
from medgen.samplers.replacement import Given, replacing
from medgen.synthesis.draw import synthesize
from medgen.synthesis.plan import plan
from medgen.synthesis.verify import verify
from medgen.types import Batch, Schema

COUNT = 24


def _studies(count=160, seed=0):
    """Discs of 16 x 16 pixels, somewhere, in a little noise."""
    made = discs(count, seed=seed, noise=0.0, findings=False)
    image = torch.nn.functional.avg_pool2d(made.batch.image, 2)
    mask = (image[:, 0] > 0).long()
    rng = torch.Generator().manual_seed(seed)
    image = torch.where(mask > 0, 0.6, -0.6)[:, None]
    image = (image + 0.15 * torch.randn(image.shape, generator=rng)).clamp(-1, 1)
    return replace(
        made,
        schema=replace(made.schema, size=(16, 16)),
        batch=replace(made.batch, image=image, mask=mask),
    )


@pytest.fixture(scope="module")
def joint():
    studies = Joint(_studies())
    batch = Batch.concat([studies[i] for i in range(len(studies))])
    return train(built(studies.schema, batch, lambda *_: {}), batch, steps=300)


@pytest.fixture(scope="module")
def wanted():
    return _studies(COUNT, seed=7).batch


def _dice(image, mask):
    bright = image[:, 0] > 0
    both = (bright & (mask > 0)).flatten(1).sum(1)
    return float((2 * both / (bright.flatten(1).sum(1) + (mask > 0).flatten(1).sum(1))).mean())


def _noisy_overwriting(model, mask, seeds):
    """Euler's steps before each of which what is known is drawn anew, with fresh noise."""
    rng, given = Rng(seeds), Given.of(model.schema, Batch(mask=mask))
    data, known = model.codec.encode(given.image), given.covered(model.codec)
    z, fresh, steps = model.objective.prior(model.codec.latent, rng), rng.child("fresh"), 12
    field = model._field(Batch(provenance=(None,) * len(seeds)))
    for step in range(steps):
        t = step / steps
        z = (t * data + (1 - t) * fresh.normal(z.shape[1:])).where(known, z)
        z = z + field(z, torch.full((len(z),), t)) / steps
    return model.codec.decode(z)[:, :1]


@torch.no_grad()
def test_a_known_mask_is_followed(joint, wanted):
    """Nearly as well as in real studies; fresh noise at every step does no better."""
    seeds = list(range(COUNT))
    drawn = joint.sample(Batch(mask=wanted.mask), seeds)
    assert torch.equal(drawn.mask, wanted.mask)
    ceiling = _dice(wanted.image, wanted.mask)
    overwritten = _dice(drawn.image, wanted.mask)
    noisy = _dice(_noisy_overwriting(joint, wanted.mask, seeds), wanted.mask)
    shuffled = _dice(drawn.image, wanted.mask.roll(1, 0))
    free = joint.sample(Batch(), seeds)
    found = f"{ceiling=:.3f} {overwritten=:.3f} {noisy=:.3f} {shuffled=:.3f}"
    assert overwritten > noisy - 0.02, found
    assert overwritten >= 0.9 * ceiling, found
    assert overwritten >= shuffled + 0.5, found
    assert _dice(free.image, free.mask) > _dice(free.image, wanted.mask) + 0.3


def test_masks_follow_a_known_image(joint, wanted):
    drawn = joint.sample(Batch(), list(range(COUNT)), known=Batch(image=wanted.image))
    assert torch.equal(drawn.image, wanted.image)
    # Only near the true conditional: where the mask lies is chosen while the image is still noisy.
    found = _dice(wanted.image, drawn.mask)
    assert found > _dice(wanted.image, drawn.mask.roll(1, 0)) + 0.2


def test_a_known_region_is_kept_to_the_last_bit(joint, wanted):
    region = torch.ones_like(wanted.mask, dtype=torch.bool)
    region[:, 4:12, 4:12] = False
    known = Batch(image=wanted.image, mask=wanted.mask)
    first, second = (
        joint.sample(Batch(), seeds, known=known, region=region)
        for seeds in (list(range(COUNT)), list(range(COUNT, 2 * COUNT)))
    )
    outside = region[:, None]
    assert torch.equal(first.image[outside], wanted.image[outside])
    assert torch.equal(first.mask[region], wanted.mask[region])
    assert not torch.equal(first.image, second.image)


def test_what_is_known_does_not_depend_on_the_batch(joint, wanted):
    whole = joint.sample(Batch(mask=wanted.mask), list(range(COUNT)))
    one = joint.sample(Batch(mask=wanted.mask[:1]), [0])
    assert torch.equal(one.image[0], whole.image[0])


def test_what_is_known_ends_as_it_is_under_every_step(joint):
    data = torch.randn(2, 3, 4, 4)
    known = torch.zeros_like(data, dtype=torch.bool)
    known[:, 0] = True
    field = replacing(lambda z, t: -z, data, known)
    z = joint.sampler.sample(field, torch.randn_like(data), Rng([0, 1]))
    torch.testing.assert_close(z[:, 0], data[:, 0], atol=1e-5, rtol=0)


def test_channels_say_classes_and_back():
    mask = torch.randint(0, 4, (3, 5, 6))
    channels = mask_channels(mask, 4)
    assert channels.shape == (3, 3, 5, 6)
    assert set(channels.unique().tolist()) == {-1, 1}
    assert torch.equal(classes_of_channels(channels), mask)
    assert torch.equal(classes_of_channels(channels * 0.3 - 0.05), mask)


def test_what_cannot_be_known_is_refused(joint, wanted):
    seeds = list(range(COUNT))
    with pytest.raises(ValueError, match="a region says where"):
        joint.sample(Batch(), seeds, region=wanted.mask > 0)
    with pytest.raises(
        ValueError, match=r"known of shape \(24, 1, 16, 16\), got \(24, 2, 16, 16\)"
    ):
        joint.sample(Batch(), seeds, known=Batch(image=wanted.image.expand(-1, 2, -1, -1)))
    plain = Schema(size=(16, 16), mask_classes=("background", "disc"))
    with pytest.raises(ValueError, match="draws no masks"):
        Given.of(plain, Batch(), Batch(mask=wanted.mask))
    with pytest.raises(DataError, match="needs studies with masks"):
        Joint(discs(4, masks=False))


def test_a_recipe_draws_images_with_masks(tmp_path):
    changes = ["data.joint=true", "codec={type: pixels}", "sample.count=6"]
    run = Run(load_recipe("cxr/quickstart", [*TINY, *changes]), tmp_path / "run", device="cpu")
    run.train()
    drawn = SyntheticDataset(run.synthesize())
    assert drawn.schema.mask_classes == run.studies.schema.mask_classes
    assert drawn.schema.channels == 1
    assert drawn[0].image.shape == (1, 1, 32, 32)
    assert drawn[0].mask.shape == (1, 32, 32)
    model = from_pretrained(run.out)
    assert verify(run.out / "synthetic", model, count=2).problems == ()
    masks = run.split("train")[0].mask
    out = tmp_path / "given"
    synthesize(model, plan(model, count=3, masks=masks), out, workers=1)
    assert torch.equal(SyntheticDataset(out)[0].mask, masks)
    assert verify(out, model, count=2).problems == ()
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert {line["condition"]["mask"] for line in lines} == {"given"}


def test_masks_are_drawn_or_asked_for_never_both():
    changes = ["data.joint=true", "conditioner.anatomy={type: mask}"]
    with pytest.raises(RecipeError, match="remove one of the two"):
        load_recipe("cxr/quickstart", [*TINY, *changes])
    with pytest.raises(RecipeError, match="expected true or false"):
        load_recipe("cxr/quickstart", [*TINY, "data.joint=2"])
