"""Simulated clips and electrocardiograms as datasets."""

import pytest
import torch

from medgen import registry
from medgen.data.simulated_ecg import SimulatedEcg
from medgen.data.simulated_echo import ALL_FINDINGS, SCALARS, SimulatedEcho
from medgen.data.splits import check_leakage, load
from medgen.errors import RecipeError
from medgen.protocols import Dataset
from medgen.simulate.ecg import LEADS
from medgen.simulate.echo import MASK_CLASSES

TINY = {"size": (12, 24, 24), "frames_per_second": 12.0}


def test_echo_keeps_the_contract():
    data = SimulatedEcho(6, **TINY)
    assert isinstance(data, Dataset)
    assert registry.find("data", "simulated_echo") is SimulatedEcho
    schema = data.schema
    assert (schema.time, schema.mask_classes, schema.leads) == (True, MASK_CLASSES, LEADS)
    assert schema.spacing[0] == pytest.approx(1 / 12)
    assert schema.scalars == SCALARS
    batch = load(data, [0, 1, 5])
    assert batch.image.shape == (3, 1, 12, 24, 24)
    assert batch.image.dtype == torch.float32
    assert batch.image.abs().max() <= 1
    assert batch.mask.shape == (3, 12, 24, 24)
    assert {0, 1, 2, 3} >= set(batch.mask.unique().tolist()) >= {0, 1, 2}
    assert batch.ecg.shape == (3, 12, round(12 * schema.spacing[0] * schema.ecg_rate))
    assert 0.3 < batch.ecg.abs().max() < 3
    assert batch.label.shape == (3, len(ALL_FINDINGS))
    assert (batch.label[:, :2].sum(1) == 1).all()
    told = dict(zip(SCALARS, batch.scalar.T, strict=True))
    ejected = 100 * (1 - told["end_systolic_volume"] / told["end_diastolic_volume"])
    assert torch.allclose(told["ejection_fraction"], ejected, atol=1e-3)
    assert (told["end_diastolic_frame"] < 12).all()
    assert batch.spacing.tolist()[0] == pytest.approx(schema.spacing)
    assert batch.provenance[0].source == "simulated_echo:0"
    assert not batch.provenance[0].synthetic
    with pytest.raises(IndexError):
        data[6]


def test_echo_frames_are_where_the_scalars_say():
    data = SimulatedEcho(5, (24, 32, 32), 16.0, degradation=0.0)
    for i in range(5):
        item = data[i]
        area = (item.mask[0] == 1).sum((1, 2))
        told = dict(zip(SCALARS, item.scalar[0].tolist(), strict=True))
        assert area[int(told["end_diastolic_frame"])] >= area.max() - 3
        assert area[int(told["end_systolic_frame"])] <= area.min() + 3


def test_echo_depends_on_seed_and_index_alone():
    few, many = SimulatedEcho(8, **TINY), SimulatedEcho(40, **TINY)
    for index in (7, 2):
        for name in ("image", "mask", "ecg", "label", "scalar"):
            assert torch.equal(getattr(few[index], name), getattr(many[index], name))
        assert few.studies[index].patient == many.studies[index].patient
    assert not torch.equal(few[2].image, SimulatedEcho(8, seed=1, **TINY)[2].image)
    first = few[0].image.clone()
    few[0].image.zero_()
    few[0].ecg.zero_()
    assert torch.equal(few[0].image, first)
    assert few[0].ecg.abs().max() > 0


@pytest.mark.parametrize("data", [SimulatedEcho(30, **TINY), SimulatedEcg(30, (200,))])
def test_patients_have_several_studies_in_one_split(data):
    check_leakage(data.studies)
    by_patient = {}
    for i, study in enumerate(data.studies):
        by_patient.setdefault(study.patient, []).append(i)
    assert {study.split for study in data.studies} == {"train", "validation", "test"}
    pair = next(members for members in by_patient.values() if len(members) > 1)
    one, two = data[pair[0]], data[pair[1]]
    named = data.schema.scalars
    ages = [item.scalar[0, named.index("age")] for item in (one, two)]
    assert ages[0] == ages[1]
    assert torch.equal(one.label[:, -5:], two.label[:, -5:])
    assert not torch.equal(one.image, two.image)
    other = next(m[0] for m in by_patient.values() if m[0] != pair[0])
    assert data[other].scalar[0, named.index("age")] != ages[0]


def test_views_and_scalars_are_those_asked_for():
    data = SimulatedEcho(
        4, findings=("apical_two_chamber", "hypertrophy"), scalars=("ejection_fraction",), **TINY
    )
    assert data.schema.scalars == ("ejection_fraction",)
    for i in range(4):
        assert data[i].label[0, 0] == 1
        assert data[i].scalar.shape == (1, 1)
    assert SimulatedEcho(2, findings=(), **TINY)[0].label.shape == (1, 0)


def test_rho_changes_the_ejection_fraction_not_the_ecg():
    free, tied = (SimulatedEcho(3, rho=rho, **TINY) for rho in (0.0, 1.0))
    for i in range(3):
        assert torch.equal(free[i].ecg, tied[i].ecg)
        assert free[i].scalar[0, 0] != tied[i].scalar[0, 0]


def test_wrong_settings_are_named_together():
    with pytest.raises(RecipeError, match="Did you mean 'hypertrophy'") as caught:
        SimulatedEcho(0, (12, 8, 24), findings=("hypertrofy",), scalars=("ef", "ef"))
    assert len(caught.value.problems) == 6
    with pytest.raises(RecipeError, match="do not hold a systole; set frames_per_second to 17"):
        SimulatedEcho(2, (12, 24, 24), 32.0)
    with pytest.raises(RecipeError, match="rho must lie between 0 and 1"):
        SimulatedEcho(2, rho=2.0, **TINY)
    with pytest.raises(RecipeError, match="must be one number of samples"):
        SimulatedEcg(2, (20,))
    with pytest.raises(RecipeError, match="unknown scalar 'pr'"):
        SimulatedEcg(2, scalars=("pr",))


def test_ecg_keeps_the_contract():
    data = SimulatedEcg(12, (512,), 100.0)
    assert isinstance(data, Dataset)
    assert registry.find("data", "simulated_ecg") is SimulatedEcg
    schema = data.schema
    assert (schema.size, schema.channels, schema.time) == ((512,), 12, True)
    assert schema.spacing == (0.01,)
    batch = load(data, list(range(12)))
    assert batch.image.shape == (12, 12, 512)
    assert batch.image.abs().max() < 1
    signal = batch.image * schema.window[1]
    assert 0.5 < signal[:, 1].amax(1).median() < 2
    assert (signal[:, 0] - signal[:, 1] + signal[:, 2]).abs().max() < 1e-5
    told = dict(zip(schema.scalars, batch.scalar.T, strict=True))
    assert ((told["heart_rate"] > 40) & (told["heart_rate"] < 125)).all()
    assert ((told["qrs_duration"] > 65) & (told["qrs_duration"] < 175)).all()
    assert (told["qt_interval"] > 250).all()
    assert set(told["sex"].tolist()) == {0.0, 1.0}
    assert batch.mask is None
    assert torch.equal(SimulatedEcg(40, (512,), 100.0)[3].image, data[3].image)
