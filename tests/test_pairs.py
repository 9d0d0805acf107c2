"""Diversity within a condition: a repeated sample is seen, a fresh one is at the floor."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.models import alexnet
from toy_studies import Studies, discs

from medgen.errors import DataError
from medgen.evaluation.comparison import Comparison
from medgen.evaluation.pairs import LpipsDiversity, MsSsimDiversity, _Pairs

REAL = discs(90, noise=0.3)


def measured(synthetic, metric=None, real=REAL):
    comparison = Comparison(real, synthetic, extractor="random")
    (found,) = (metric or MsSsimDiversity()).measure(comparison).values()
    return found


def test_fresh_samples_stand_at_the_floor():
    found = measured(discs(36, seed=1, synthetic=True, noise=0.3))
    assert found.low <= found.floor.value <= found.high
    assert found.extractor == "MS-SSIM of 2 scales"
    assert found.n == 36
    assert found.floor.n == 36
    assert "half-sampling" in found.method


def test_one_sample_a_class_is_no_diversity():
    synthetic = discs(36, seed=1, synthetic=True, noise=0.3)
    of_class = synthetic.batch.label[:, 1]
    first = [int((of_class == k).nonzero()[0]) for k in (0, 1)]
    image = synthetic.batch.image[[first[k] for k in of_class]]
    found = measured(
        Studies(synthetic.schema, synthetic.studies, replace(synthetic.batch, image=image))
    )
    assert found.value == pytest.approx(0, abs=1e-5)
    assert found.high < found.floor.low


def test_pairs_are_of_one_condition_and_two_patients():
    """Two classes, black and white, and two equal studies a patient: only unequal ones pair."""

    def flat(seed, *, synthetic):
        studies = discs(80, seed=seed, synthetic=synthetic, per_patient=2)
        patient = torch.arange(80) // 2
        level = studies.batch.label[:, 1] * 1.0 - 0.5 + 0.4 * (patient % 2)
        image = level.view(-1, 1, 1, 1).expand(-1, 1, 32, 32).float().clone()
        return Studies(studies.schema, studies.studies, replace(studies.batch, image=image))

    seen = []

    class Spy(MsSsimDiversity):
        def distance(self, images):
            def unlike(a, b):
                seen.append((a - b).abs().amax(dim=(1, 2, 3)))
                return seen[-1]

            return unlike, "difference"

    measured(flat(1, synthetic=True), Spy(), flat(0, synthetic=False))
    apart = torch.cat(seen)
    assert apart.max() < 0.5
    assert len(apart) < 2 * 4000


def test_the_mean_of_pairs_of_members():
    pairs = _Pairs(np.array([0, 0, 1]), np.array([1, 2, 2]), np.array([1.0, 2.0, 6.0]))
    inside = np.array([[True, True, True], [True, False, True], [False, True, False]])
    assert pairs.mean(inside)[:2] == pytest.approx([3, 2])
    assert np.isnan(pairs.mean(inside)[2])


@pytest.mark.parametrize(
    ("shape", "scales"), [((1, 16, 16), 1), ((2, 48, 64), 3), ((1, 24, 24, 24), 2)]
)
def test_sizes_channels_and_volumes(shape, scales):
    images = torch.rand(3, *shape) * 2 - 1
    unlike, name = MsSsimDiversity().distance(images)
    assert name == f"MS-SSIM of {scales} scales"
    assert unlike(images, images) == pytest.approx(0, abs=1e-5)
    assert unlike(images, images.roll(1, 0)).min() > 0.1


def test_images_too_small_for_the_window_are_refused():
    with pytest.raises(DataError, match="at least 11 pixels, got 10"):
        MsSsimDiversity().distance(torch.zeros(1, 1, 10, 32))


def test_lpips_takes_its_trunk_from_a_file_and_says_which(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    synthetic = discs(10, seed=1, synthetic=True, noise=0.3)
    with pytest.raises(DataError, match=r"alexnet-owt-7be5be79\.pth.*ms_ssim_diversity needs none"):
        measured(synthetic, LpipsDiversity())
    torch.manual_seed(0)
    file = tmp_path / "trunk.pth"
    torch.save(alexnet().state_dict(), file)
    found = measured(synthetic, LpipsDiversity(str(file)), discs(40, noise=0.3))
    assert found.extractor == "LPIPS of trunk.pth"
    assert found.low < found.value < found.high
