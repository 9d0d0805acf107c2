"""Radiomics against closed forms; a distance that sees texture inside the mask alone."""

import logging
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_studies import Studies, discs

from medgen.errors import DataError, MissingExtraError
from medgen.evaluation.comparison import Comparison, Side
from medgen.evaluation.radiomics import Radiomics, _quiet, radiomics
from medgen.types import Batch

REAL = discs(40, noise=0.3)


def side(image, mask=None):
    names = tuple(str(i) for i in range(len(image)))
    return Side(Batch(image=image, mask=mask), names, names)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mirp", None)
    with pytest.raises(MissingExtraError, match=r"medgen\[radiomics\]"):
        radiomics(side(torch.zeros(1, 1, 8, 8)), masked=False)


@pytest.mark.parametrize("shape", [(2, 16, 16), (1, 6, 8, 8)])
def test_first_features_are_the_moments_inside_the_mask(shape):
    pytest.importorskip("mirp")
    image = torch.rand((1, *shape), generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros((1, *shape[1:]), dtype=torch.long)
    mask[..., 2:6, 1:7] = 1
    rows = radiomics(side(image, mask), masked=True)
    assert rows.shape == (1, 43 * shape[0])
    for channel, found in zip(image[0], rows.reshape(shape[0], 43), strict=True):
        inside = channel[mask[0] == 1].double().numpy()
        assert found[:2] == pytest.approx([inside.mean(), inside.var()], rel=1e-4, abs=1e-6)


def test_a_rough_texture_inside_the_mask_is_seen():
    pytest.importorskip("mirp")
    fresh = discs(14, seed=1, synthetic=True, noise=0.3)
    right = Radiomics().measure(Comparison(REAL, fresh, extractor="random"))["radiomics"]
    assert right.extractor == "radiomics of the foreground"
    assert right.low <= right.floor.high
    assert "compare with the floor only" in right.warning
    grain = 0.6 * torch.randn(fresh.batch.image.shape, generator=torch.Generator().manual_seed(0))

    def changed(where):
        image = (fresh.batch.image + grain * where[:, None]).clamp(-1, 1)
        studies = Studies(fresh.schema, fresh.studies, replace(fresh.batch, image=image))
        return Radiomics().measure(Comparison(REAL, studies, extractor="random"))["radiomics"]

    assert changed(fresh.batch.mask).low > right.floor.high
    assert changed(1 - fresh.batch.mask).value == pytest.approx(right.value)


def test_studies_without_foreground_are_counted():
    pytest.importorskip("mirp")
    fresh = discs(16, seed=1, synthetic=True, noise=0.3)
    fresh.batch.mask[:5] = 0
    found = Radiomics().measure(Comparison(REAL, fresh, extractor="random"))["radiomics"]
    assert "studies without foreground left out" in found.warning
    assert found.n < 12
    fresh.batch.mask[:12] = 0
    with pytest.raises(DataError, match="10 studies a side with a foreground"):
        Radiomics().measure(Comparison(REAL, fresh, extractor="random"))


def test_nothing_is_left_on_the_root_logger():
    before = list(logging.getLogger().handlers)
    with _quiet():
        assert len(logging.getLogger().handlers) == len(before) + 1
    assert logging.getLogger().handlers == before


def test_one_odd_study_does_not_decide():
    from medgen.evaluation.radiomics import LARGEST, _standard

    reference = np.random.default_rng(0).normal(size=(50, 3))
    reference[:, 2] = 1
    rows = _standard(np.array([[1e9, np.nan, 3.0]]), reference)
    assert rows == pytest.approx(np.array([[LARGEST, 0.0]]))
