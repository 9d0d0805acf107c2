"""Frechet video distance, motion, flicker, and image metrics applied to clips."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_hearts import beating
from toy_studies import Studies, discs

from medgen.errors import CheckpointError, RecipeError
from medgen.evaluation.clip_features import I3dFeatures, SelfSupervisedClips, played
from medgen.evaluation.comparison import Comparison
from medgen.evaluation.distribution import frechet_distance
from medgen.evaluation.features import build_extractor, principal_axes
from medgen.evaluation.frames import FrameFeatures, framed, of_frames, places
from medgen.evaluation.suite import evaluate
from medgen.evaluation.video import FrechetVideo, TemporalConsistency, flicker, motion, seam_ratio
from medgen.nn.nd import area_resize


def changed(data, image):
    return Studies(data.schema, data.studies, replace(data.batch, image=image))


def tiny(seed):
    """64 clips of 12 frames of 16 pixels a side."""
    return area_resize(beating(64, seed=seed, frames=12, noise=0.1).batch.image, (12, 16, 16))


@pytest.fixture(scope="module")
def pair():
    return beating(60, seed=0), beating(24, seed=1, synthetic=True)


@pytest.fixture(scope="module")
def small():
    return beating(20, seed=0, frames=8), beating(8, seed=1, synthetic=True, frames=8)


class TestFrechetVideo:
    @pytest.fixture(scope="class")
    def learned(self):
        clips = tiny(2)
        return SelfSupervisedClips(clips, steps=100), clips

    def test_features_that_learned_how_clips_are_played_see_motion(self, learned):
        """The distance of clips in random order is several times that of other real clips."""
        extractor, clips = learned
        mean, axes = principal_axes(extractor.features(clips), 8)
        real, other = tiny(3), tiny(4)
        order = torch.randperm(12, generator=torch.Generator().manual_seed(0))

        def between(x):
            a, b = ((extractor.features(side) - mean) @ axes for side in (real, x))
            return frechet_distance(a, b)

        assert between(other[:, :, order]) > 3 * between(other)
        assert between(other[:, :, :1].expand_as(other)) > 3 * between(other)
        assert between(real) < 1e-6

    def test_the_same_seed_gives_the_same_network(self):
        clips = tiny(2)[:16]
        first, second = (SelfSupervisedClips(clips, steps=2, seed=5) for _ in range(2))
        assert first.digest == second.digest

    def test_the_metric(self, small):
        comparison = Comparison(*small)
        taught = comparison.taught.batch, comparison.validation.batch, comparison.schema
        supervised = build_extractor("clip-supervised", *taught, seed=0, steps=2)
        comparison._extractors["clip-supervised"] = supervised
        found = FrechetVideo(extractor="clip-supervised").measure(comparison)["frechet_video"]
        assert found.value >= 0
        assert found.floor is not None
        assert "clip-supervised by ejection_fraction" in found.extractor

    def test_ways_to_play_a_clip(self):
        clips = torch.arange(6.0).view(1, 1, 6, 1, 1).expand(4, -1, -1, -1, -1)
        found = played(clips, torch.arange(4), torch.Generator().manual_seed(0)).flatten(1)
        assert found[0].tolist() == [0, 1, 2, 3, 4, 5]
        assert found[1].tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
        assert found[2].tolist() == [5, 4, 3, 2, 1, 0]
        assert sorted(found[3].tolist()) == [0, 1, 2, 3, 4, 5]
        assert found[3].tolist() != found[0].tolist()


class Scripted(torch.nn.Module):
    """Of the signature of the published I3D."""

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool):
        """Mean of each channel, and the largest value, in the range that it was given."""
        return torch.cat([x.mean(dim=(2, 3, 4)), x.amax(dim=(1, 2, 3, 4))[:, None]], dim=1)


class TestI3d:
    def test_it_takes_clips_of_three_channels_from_0_to_255(self, tmp_path):
        file = tmp_path / "i3d.pt"
        torch.jit.script(Scripted()).save(str(file))
        data = beating(8)
        extractor = build_extractor(f"i3d@{file}", data.batch, data.batch, data.schema, seed=0)
        clips = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1, 1).expand(2, 1, 12, 8, 8)
        np.testing.assert_allclose(extractor.features(clips), [[0] * 4, [255] * 4])
        assert extractor.name == "i3d of i3d.pt"
        assert extractor.digest.startswith("sha256:")

    def test_what_is_no_torchscript_is_refused(self, tmp_path):
        with pytest.raises(CheckpointError, match="no such file"):
            I3dFeatures(tmp_path / "absent.pt")
        (tmp_path / "other.pt").write_bytes(b"no program")
        with pytest.raises(CheckpointError, match="is no TorchScript"):
            I3dFeatures(tmp_path / "other.pt")
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "linear.pt"))
        with pytest.raises(CheckpointError, match="does not take clips"):
            I3dFeatures(tmp_path / "linear.pt").features(torch.zeros(1, 1, 4, 4, 4))

    def test_extractors_of_clips_refuse_images(self):
        data = discs(10)
        with pytest.raises(RecipeError, match="needs clips"):
            build_extractor("clip-ssl", data.batch, data.batch, data.schema, seed=0)
        clips = beating(8)
        with pytest.raises(RecipeError, match="write i3d@FILE"):
            build_extractor("i3d", clips.batch, clips.batch, clips.schema, seed=0)


class TestMotion:
    def test_of_a_wave(self):
        """Brightness cos(2 pi t / 8) over whole periods: known correlations at every lag."""
        t = torch.arange(64.0)
        clips = torch.cos(2 * torch.pi * t / 8).view(1, 1, 64, 1, 1).expand(1, 1, 64, 4, 4)
        found = motion(clips)[0]
        steps = (clips[0, 0, 1:, 0, 0] - clips[0, 0, :-1, 0, 0]).abs()
        assert found[0] == pytest.approx(float(steps.mean()) / 2)
        np.testing.assert_allclose(
            found[2:], [np.cos(np.pi / 4), 0, -1, 1], atol=0.05
        )  # ends of the clip move the mean over lags by lag / 64

    def test_of_a_still_clip(self):
        found = motion(torch.zeros(1, 1, 12, 4, 4))[0]
        assert found[:2].tolist() == [0, 0]
        assert found[2:].tolist() == [1, 1, 1, 1]

    def test_real_clips_move_like_others(self, pair):
        found = TemporalConsistency().measure(Comparison(*pair))
        for name in ("motion_ratio", "roughness_ratio"):
            assert found[name].value == pytest.approx(1, abs=0.1)
            assert found[name].higher_is_better is None
        assert found["still_share"].value == 0
        assert found["lag_distance"].low <= found["lag_distance"].floor.high

    def test_faults_are_told_apart(self, pair):
        real, synthetic = pair
        clips = synthetic.batch.image

        def measured(image):
            comparison = Comparison(real, changed(synthetic, image))
            return {k: v.value for k, v in TemporalConsistency().measure(comparison).items()}

        still = measured(clips[:, :, :1].expand_as(clips))
        assert still["motion_ratio"] == 0
        assert still["still_share"] == 1
        assert still["roughness_ratio"] == 0
        order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
        shuffled = measured(clips[:, :, order])
        assert shuffled["motion_ratio"] > 1.03
        assert shuffled["lag_distance"] > 0.05
        stagnant = measured(clips[:, :, torch.arange(24) // 2])
        assert stagnant["motion_ratio"] < 0.7


class TestFlicker:
    def test_closed_forms(self):
        clips = beating(4).batch.image
        assert flicker(clips, clips).tolist() == [0] * 4
        np.testing.assert_allclose(flicker(clips, clips + 0.3), 0, atol=1e-5)
        np.testing.assert_allclose(flicker(clips, clips[:, :, :1].expand_as(clips)), 1, rtol=1e-5)

    def test_it_needs_the_codec(self, pair):
        result = evaluate(*pair, ["flicker"], extractor="random")
        assert "give the checkpoint" in result["skipped"]["flicker"]


def test_a_seam_is_seen_where_it_is():
    clips = torch.arange(12.0).view(1, 1, 12, 1, 1).repeat(2, 1, 1, 3, 3)
    assert seam_ratio(clips, [6]) == pytest.approx(1)
    clips[:, :, 6:] += 1  # the jump into frame 6 is of 2 instead of 1, its square of 4
    assert seam_ratio(clips, [6]) == pytest.approx(4)
    assert seam_ratio(clips, [5]) == pytest.approx(10 / 13)
    with pytest.raises(ValueError, match="frames from 1 to 11"):
        seam_ratio(clips, [0])


class TestFrames:
    def test_eight_frames_stand_for_a_clip(self):
        assert places(24).tolist() == [1, 4, 7, 10, 13, 16, 19, 22]
        assert places(3).tolist() == [0, 1, 2]

    def test_frames_keep_mask_spacing_and_provenance(self):
        data = beating(2)
        found = framed(data.batch)
        assert found.image.shape == (16, 1, 24, 24)
        assert torch.equal(found.image[9], data.batch.image[1, :, 4])
        assert torch.equal(found.mask[9], data.batch.mask[1, 4])
        assert found.provenance[9].id == "r0-1#frame4"
        assert found.spacing.shape == (16, 2)
        schema = of_frames(data.schema)
        assert (schema.size, schema.spacing, schema.scalars) == ((24, 24), (1.0, 1.0), ())

    def test_image_metrics_say_what_they_see_of_clips(self, small):
        names = ["frechet", "kid", "prdc", "intensity", "spectrum", "memorization"]
        names += [{"type": "mask_agreement", "steps": 30}, "ms_ssim_diversity", "vendi"]
        names += [{"type": "scalar_agreement", "steps": 2}, "membership"]
        result = evaluate(*small, names, extractor="random")
        assert result["skipped"] == {}
        metrics = result["metrics"]
        assert "8 frames, blind to their order" in metrics["frechet"]["extractor"]
        assert metrics["mask_agreement"]["value"] > 0.6
        assert metrics["mask_agreement"]["n"] == 8 * 8

    def test_radiomics_refuses_clips(self, small):
        result = evaluate(*small, ["radiomics"], extractor="random")
        assert "makes no sense along time" in result["skipped"]["radiomics"]

    def test_a_copied_clip_is_found(self, pair):
        real, synthetic = pair
        copies = torch.cat([real.batch.image[:6], synthetic.batch.image[6:]])
        found = evaluate(real, changed(synthetic, copies), ["memorization"], extractor="random")
        scores = [s["score"] for s in found["reidentification"]["samples"]]
        assert min(scores[:6]) > 0.9 > max(scores[6:])

    def test_frame_features_are_blind_to_order(self, pair):
        data = pair[0]
        extractor = build_extractor("random", data.batch, data.batch, data.schema, seed=0)
        assert isinstance(extractor, FrameFeatures)
        clips = data.batch.image[:3, :, :8]
        np.testing.assert_allclose(extractor.features(clips), extractor.features(clips.flip(2)))
