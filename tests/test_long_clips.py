"""Factorised attention, windows over long clips, and the parts of an ECG-conditioned clip model."""

import copy
from dataclasses import replace

import pytest
import torch
from toy_hearts import beating

from medgen.backbones.dit import DiT
from medgen.backbones.unet import UNet
from medgen.codecs.pixels import Pixels
from medgen.conditioners.ecg import EcgConditioner
from medgen.conditioners.frame import FrameConditioner
from medgen.conditioners.joint import JointConditioner
from medgen.conditioners.memory import MemoryConditioner
from medgen.conditioners.scalar import ScalarConditioner
from medgen.errors import DataError
from medgen.evaluation.comparison import Comparison
from medgen.evaluation.video import Flicker, seam_ratio
from medgen.model import GenerativeModel
from medgen.nn.blocks import Attention
from medgen.nn.space_time import FactorisedAttention
from medgen.objectives.flow_matching import FlowMatching
from medgen.rng import Rng
from medgen.samplers.flows import Euler, euler_step, grid, solve
from medgen.samplers.guidance import ClassifierFree
from medgen.samplers.windows import window_starts, windowed
from medgen.synthesis.export import condition_of
from medgen.synthesis.long_clips import _remembering, sample_long
from medgen.synthesis.plan import plan_like
from medgen.types import Batch, Conditioning, CondSpec, LatentSpec

CLIP = LatentSpec("continuous", (4, 4, 6), 2)
SMALL = {"depth": 3, "width": 24, "heads": 2, "factorised": True}


def woken(backbone):
    """The backbone with no weight at zero."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in backbone.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=rng))
    return backbone


class TestFactorised:
    @pytest.mark.parametrize("along", ["space", "time"])
    def test_who_attends_to_whom(self, along):
        torch.manual_seed(0)
        attention = FactorisedAttention(Attention(8, 2), (3, 2, 2), along, head=4)
        x = torch.randn(1, 12, 8, requires_grad=True)
        out = attention(x)
        (gradient,) = torch.autograd.grad(out[0, 5].sum(), x)
        reached = gradient[0].abs().sum(1).view(3, 4) > 0
        expected = torch.zeros(3, 4, dtype=torch.bool)
        if along == "space":
            expected[1] = True
        else:
            expected[:, 1] = True
        assert torch.equal(reached, expected)

    def test_blocks_come_in_turn(self):
        blocks = DiT(CLIP, CondSpec(), **SMALL).blocks
        assert [block.attention.along for block in blocks] == ["space", "time", "space"]
        with pytest.raises(ValueError, match="depth of 2"):
            DiT(CLIP, CondSpec(), depth=1, width=24, heads=2, factorised=True)

    @pytest.mark.parametrize("variant", ["paper", "modern"])
    def test_new_blocks_along_time_are_the_identity(self, variant):
        backbone = DiT(CLIP, CondSpec(), **SMALL, variant=variant)
        x, vector = torch.randn(2, 24, 24), torch.randn(2, 24)
        for block in backbone.blocks:
            assert torch.equal(block(x, vector), x)
        assert backbone(torch.randn(2, *CLIP.shape), torch.rand(2), Conditioning()).abs().max() == 0

    def test_every_voxel_reaches_every_other_and_every_weight_learns(self):
        cond = CondSpec(vector=5, tokens=4, grid=3)
        backbone = woken(DiT(CLIP, cond, **SMALL))
        given = Conditioning(
            vector=torch.randn(1, 5),
            tokens=torch.randn(1, 2, 4),
            mask=torch.ones(1, 2, dtype=torch.bool),
            grid=torch.randn(1, 3, *CLIP.size),
        )
        z = torch.randn(1, *CLIP.shape, requires_grad=True)
        out = backbone(z, torch.tensor([0.3]), given)
        (gradient,) = torch.autograd.grad(out[0, 0, 0, 0, 0], z, retain_graph=True)
        assert (gradient != 0).all()
        out.square().sum().backward()
        assert [n for n, p in backbone.named_parameters() if not p.grad.any()] == []

    def test_images_are_refused_and_a_patch_is_one_frame_deep(self):
        with pytest.raises(ValueError, match="needs latents of clips"):
            DiT(LatentSpec("continuous", (4, 4), 2), CondSpec(), **SMALL)
        odd = DiT(LatentSpec("continuous", (5, 4, 4), 2), CondSpec(), **SMALL)
        assert odd.size == (5, 2, 2)

    def test_a_unet_takes_clips_whose_frames_halve(self):
        settings = {"channels": (8, 8), "attention": (False, False), "head": 4, "blocks": 1}
        unet = UNet(CLIP, CondSpec(), **settings)
        out = unet(torch.randn(1, *CLIP.shape), torch.rand(1), Conditioning())
        assert out.shape == (1, *CLIP.shape)
        with pytest.raises(ValueError, match="cannot be halved"):
            UNet(LatentSpec("continuous", (5, 4, 4), 2), CondSpec(), **settings)


class Process:
    """A stationary Gaussian process of smooth, slowly swinging paths, and its exact velocity."""

    def __init__(self, frames):
        apart = torch.arange(frames, dtype=torch.float64)
        apart = (apart[:, None] - apart).abs()
        swing = torch.cos(2 * torch.pi * apart / 40)
        self.covariance = torch.exp(-(apart**2) / 32) * swing + 1e-3 * torch.eye(frames)

    def __call__(self, z, t):
        time = float(t[0])
        eye = torch.eye(len(self.covariance), dtype=torch.float64)
        mixed = time**2 * self.covariance + (1 - time) ** 2 * eye
        data = time * z @ torch.linalg.solve(mixed, self.covariance)
        return (data - z) / (1 - time)


def jump_ratio(clips):
    """Energy of the worst jump between frames over that of the median one."""
    energy = clips.diff(dim=2).square().mean(dim=(0, 1))
    return float(energy.max() / energy.median())


class TestWindows:
    FRAMES, WINDOW, OVERLAP, COUNT = 64, 16, 8, 400

    def drawn(self, blend):
        rng = Rng(range(self.COUNT))
        z = rng.normal((1, self.FRAMES)).double()
        exact = Process(self.WINDOW)
        if blend == "whole":
            field = Process(self.FRAMES)
        else:
            overlap = 0 if blend == "independent" else self.OVERLAP
            starts = window_starts(self.FRAMES, self.WINDOW, overlap)
            how = "first" if blend == "independent" else blend
            field = windowed([exact] * len(starts), starts, self.WINDOW, blend=how, rng=rng)
        return solve(field, z, [*grid(32)[:-1], 0.999], euler_step)

    def test_random_seams_jump_least(self):
        """Of 400 exact draws: a ratio's standard error is about 5 %, the gaps are several times."""
        found = {b: jump_ratio(self.drawn(b)) for b in ("whole", "random", "average", "first")}
        independent = jump_ratio(self.drawn("independent"))
        assert found["whole"] < 1.2
        assert found["random"] < 1.35
        assert found["random"] < found["average"] < independent
        assert found["random"] < found["first"] < independent
        borders = range(self.WINDOW, self.FRAMES, self.WINDOW)
        assert seam_ratio(self.drawn("independent")[..., None, None], borders) > 5
        assert seam_ratio(self.drawn("random")[..., None, None], borders) < 1.2
        assert independent > 5

    def test_a_sample_depends_on_its_own_seed(self):
        starts = window_starts(24, 16, 8)
        z = Rng([1, 2]).normal((1, 24)).double()

        def sample(seeds, state):
            field = windowed([Process(16)] * 2, starts, 16, rng=Rng(seeds))
            return solve(field, state, grid(4)[:-1], euler_step)

        both, alone = sample([1, 2], z), sample([2], z[1:])
        torch.testing.assert_close(both[1:], alone)

    def test_windows_of_agreeing_fields_agree_with_the_whole(self):
        """A field that looks at single frames is the same in windows, however they are joined."""
        z = torch.randn(3, 2, 24, 4)
        starts = window_starts(24, 8, 4)
        for blend in ("first", "average", "random"):
            fields = [lambda z, t: z.sin()] * len(starts)
            field = windowed(fields, starts, 8, blend=blend, rng=Rng(range(3)))
            torch.testing.assert_close(field(z, torch.zeros(3)), z.sin())

    def test_lengths_that_do_not_fit_are_told(self):
        assert window_starts(64, 16, 8) == [0, 8, 16, 24, 32, 40, 48]
        with pytest.raises(ValueError, match="take 56 or 64"):
            window_starts(60, 16, 8)
        with pytest.raises(ValueError, match="overlap: expected 0 to 15"):
            window_starts(64, 16, 16)


@pytest.fixture(scope="module")
def flow():
    """A clip generator with EF, ECG and first frame, its weights awake but untrained."""
    torch.manual_seed(0)
    data = beating(10, frames=8)
    codec = Pixels(data.schema, patch=4)
    codec.fit(data.batch.image)
    latent = codec.latent
    conditioner = JointConditioner(
        {
            "function": ScalarConditioner(data.schema, 16),
            "ecg": EcgConditioner(data.schema, latent, width=16, heads=2, channels=4),
            "frame": FrameConditioner(data.schema, latent, channels=4),
        }
    )
    conditioner.fit(data.batch)
    backbone = woken(DiT(latent, conditioner.spec, **SMALL))
    model = GenerativeModel(
        data.schema,
        codec,
        conditioner,
        backbone,
        objective=FlowMatching(),
        sampler=Euler(2),
        guidance=ClassifierFree(scale=2.0),
        micro_batch=2,
    )
    return model, data


@pytest.fixture(scope="module")
def remembering():
    """A clip generator with a memory of two frames and an anchor; two frames are a latent one."""
    torch.manual_seed(0)
    data = beating(10, frames=8)
    codec = Pixels(data.schema, patch=2)
    codec.fit(data.batch.image)
    conditioner = JointConditioner(
        {"past": MemoryConditioner(data.schema, codec.latent, frames=2, channels=4)}
    )
    woken(conditioner)
    model = GenerativeModel(
        data.schema,
        codec,
        conditioner,
        woken(DiT(codec.latent, conditioner.spec, **SMALL)),
        objective=FlowMatching(),
        sampler=Euler(2),
        guidance=ClassifierFree(scale=2.0),
        micro_batch=2,
    )
    return model.eval(), data


class TestParts:
    def test_a_loss_and_a_sample(self, flow):
        model, data = flow
        z = model.codec.encode(data.batch.image[:2])
        asked = data.batch.select([0, 1]).conditions(data.schema)
        assert model.loss(z, asked, Rng([0, 1])).shape == (2,)
        first = model.sample(asked, [0, 1]).image
        assert first.shape == (2, 1, 8, 24, 24)
        for name in ("ecg", "frame", "scalar"):
            other = replace(asked, **{name: getattr(asked, name).flip(0)})
            assert not torch.allclose(model.sample(other, [0, 1]).image, first, atol=1e-4), name
        assert model.drawn.leads == data.schema.leads

    def test_the_flicker_of_its_codec_is_measured(self, flow):
        model, _ = flow
        pair = beating(20, frames=8), beating(4, seed=1, synthetic=True, frames=8)
        found = Flicker().measure(Comparison(*pair, model=model))["flicker"]
        assert found.n == 8
        assert found.value < 1e-4  # blocks of pixels lose nothing
        assert found.higher_is_better is False

    def test_a_plan_like_real_clips_tells_whose_ecg_and_not_what(self, flow):
        model, data = flow
        made = plan_like(model, data, count=4)
        assert made.conditions.frame.shape == (4, 1, 24, 24)
        assert made.conditions.mask is None
        source = made.conditions.provenance[2].id
        told = condition_of(made.conditions, 2, model.drawn)
        place = [study.id for study in data.studies].index(source)
        assert torch.equal(made.conditions.ecg[2], data.batch.ecg[place])
        assert told["ecg"]["of"] == source
        assert set(told["ecg"]) == set(told["frame"]) == {"of", "sha256"}
        assert len(told["ecg"]["sha256"]) == 64
        assert plan_like(model, data, count=4).digest == made.digest

    def test_a_long_clip_gives_each_window_its_own_ecg(self, flow):
        model, _ = flow
        long = beating(1, seed=3, frames=16)
        asked = replace(long.batch.conditions(long.schema), mask=None)
        drawn = sample_long(model, asked, [5], frames=16)
        assert drawn.image.shape == (1, 1, 16, 24, 24)
        later = asked.ecg.clone()
        later[..., -20:] += 3
        moved = sample_long(model, replace(asked, ecg=later), [5], frames=16, blend="first").image
        same = sample_long(model, asked, [5], frames=16, blend="first").image
        apart = (moved - same).abs().amax(dim=(0, 1, 3, 4))
        # The last window alone holds the end; the first frames belong to the first window.
        assert apart[-4:].min() > 0
        assert apart[:8].max() == 0

    def test_windows_remember_what_was_drawn_before_them(self, remembering):
        model, data = remembering
        asked = Batch(scalar=data.batch.scalar[:1])
        noise = Rng([3]).normal((model.codec.latent.channels, 8, 12, 12))
        known = _remembering(model, [asked] * 3, noise, [0, 2, 4], 3)
        assert known[0].memory is None

        def drawn(k):
            z = model.sampler.sample(
                model.guided(known[k]), noise[:, :, 2 * k : 2 * k + 4], Rng([3])
            )
            return model.codec.decode(z).clamp(-1, 1)

        for k in (1, 2):
            assert torch.equal(known[k].memory[:, :, :2], drawn(k - 1)[:, :, 4:6])
            assert torch.equal(known[k].memory[:, :, 2], drawn(0)[:, :, 4])

    def test_memory_tells_on_a_long_clip_of_its_own_seed(self, remembering):
        model, data = remembering
        asked = Batch(scalar=data.batch.scalar[:2])
        both = sample_long(model, asked, [5, 6], frames=16).image
        alone = sample_long(model, asked.select([1]), [6], frames=16).image
        assert torch.equal(both[1:], alone)
        forgotten = copy.deepcopy(model)
        for part in (
            forgotten.conditioner.parts.past.last,
            forgotten.conditioner.parts.past.anchor,
        ):
            torch.nn.init.zeros_(part[2].weight)
        other = sample_long(forgotten, asked.select([1]), [6], frames=16).image
        apart = (other - alone).abs().amax(dim=(0, 1, 3, 4))
        assert apart[-4:].min() > 0

    def test_training_clips_give_their_own_memory(self, remembering):
        model, data = remembering
        held = data.batch.conditions(data.schema, memory=2).memory
        assert torch.equal(held[:, :, :2], data.batch.image[:, :, :2])
        same = (held[:, :, 2:] == data.batch.image).flatten(3).all(dim=3)[:, 0]  # b t
        assert (same.sum(dim=1) == 1).all()
        assert len(set(same.int().argmax(dim=1).tolist())) > 2  # anchors of any time
        part = model.conditioner.parts.past
        first = part.encode(Batch(memory=held)).grid
        changed = held.clone()
        changed[:, :, 0] += 1
        moved = (part.encode(Batch(memory=changed)).grid - first).abs().amax(dim=(0, 3, 4))
        assert (moved[:4, 0] > 0).all()  # where the clip repeats its memory, and nowhere else
        assert moved[:, 1:].max() == moved[4:].max() == 0
        assert torch.equal(part.null(3).grid, part.encode(Batch(scalar=torch.zeros(3, 1))).grid)

    def test_a_wrong_memory_is_told(self, remembering):
        model, data = remembering
        with pytest.raises(ValueError, match="less than the clip's 8"):
            MemoryConditioner(data.schema, model.codec.latent, frames=8)
        with pytest.raises(ValueError, match="expected a memory of"):
            model.conditioner.parts.past.encode(Batch(memory=torch.zeros(1, 1, 2, 24, 24)))
        asked = Batch(scalar=data.batch.scalar[:1])
        with pytest.raises(DataError, match="cannot remember 2"):
            sample_long(model, asked, [5], frames=16, overlap=0)

    def test_what_does_not_fit_is_told(self, flow):
        model, data = flow
        asked = data.batch.select([0]).conditions(data.schema)
        with pytest.raises(DataError, match="needs ECGs of 250 samples, got 125"):
            sample_long(model, replace(asked, mask=None), [0], frames=16)
        with pytest.raises(DataError, match="made of whole ones"):
            sample_long(model, asked, [0], frames=14)
