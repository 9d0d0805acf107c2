"""Simulated CT: volumes, HU, noise and sizes are those that were asked for."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

from medgen import registry
from medgen.data.simulated_ct import SIZES, SimulatedCt
from medgen.data.volumes import read_volume
from medgen.errors import RecipeError
from medgen.protocols import Dataset
from medgen.simulate.hounsfield import NATIVE, PHASES, draw_hu
from medgen.simulate.scan import FINDINGS, scan
from medgen.simulate.scanner import NOISE, Protocol, acquire, transfer
from medgen.simulate.structures import CODE, LOBES, STRUCTURES, grouped

REAL_DATA = Path(os.environ.get("MEDGEN_DATA", ""))
COARSE = (5.0, 5.0, 5.0)


def inner(made, *names):
    """HU of structures, a voxel inside their surface."""
    inside = np.isin(made.labels, [CODE[name] for name in names])
    return made.volume[binary_erosion(inside)]


@pytest.fixture(scope="module")
def normal():
    return scan(3, spacing=(3.0, 3.0, 3.0))


def test_a_scan_is_a_function_of_its_seed_and_take():
    one, again = scan(1, spacing=COARSE), scan(1, spacing=COARSE)
    other = scan(1, spacing=COARSE, take=1)
    assert np.array_equal(one.volume, again.volume)
    assert np.array_equal(one.labels, other.labels)
    assert not np.array_equal(one.volume, other.volume)


@pytest.mark.parametrize(("asked", "mm", "seed"), [(1.0, 2.5, 1), (2.0, 3.0, 0), (8.0, 4.0, 2)])
def test_nodules_have_the_volume_asked(asked, mm, seed):
    made = scan(seed, spacing=(mm, mm, mm), planted={"nodule": asked})
    assert made.measure("nodule") == pytest.approx(asked, rel=0.1)


@pytest.mark.parametrize("name", ["consolidation", "effusion", "pneumothorax"])
def test_other_findings_have_the_volume_asked(name):
    for asked in SIZES[name]:
        made = scan(5, spacing=(4.0, 4.0, 4.0), planted={name: asked})
        assert made.measure(name) == pytest.approx(asked, rel=0.1)


def test_findings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="unknown finding 'mass'"):
        scan(0, spacing=COARSE, planted={"mass": 1.0})
    with pytest.raises(ValueError, match="volume between 0 and"):
        scan(0, spacing=COARSE, planted={"effusion": 9000.0})


def test_tissues_have_their_hu(normal):
    """Within four standard deviations of the table's patients: a false alarm in 16,000 draws."""
    for name in ("liver", "spleen", "kidney"):
        mean, spread = NATIVE[name]
        assert np.median(inner(normal, name)) == pytest.approx(mean, abs=4 * spread + 3)
    assert -940 < np.median(inner(normal, *LOBES)) < -820
    assert 25 < np.median(inner(normal, "aorta")) < 60
    assert 120 < np.median(inner(normal, "bone")) < 600
    assert np.median(normal.volume[normal.labels == 0]) == pytest.approx(-1000, abs=3)


def test_contrast_lights_up_what_its_phase_says():
    hu = {phase: draw_hu(np.random.default_rng(0), phase) for phase in PHASES}
    assert hu["pulmonary"]["right_heart"] > hu["pulmonary"]["aorta"] > hu["native"]["aorta"] + 80
    assert hu["arterial"]["aorta"] > hu["portal"]["aorta"] > hu["native"]["aorta"]
    assert hu["portal"]["liver"] > hu["arterial"]["liver"]
    made = scan(3, spacing=COARSE, protocol=Protocol(phase="arterial"))
    assert np.median(inner(made, "aorta")) == pytest.approx(made.hu["aorta"], abs=15)
    assert np.median(inner(made, "aorta")) > 200


def test_organs_have_plausible_volumes_and_places(normal):
    assert 2500 < normal.measure(*LOBES) < 8000
    assert 600 < normal.measure("liver") < 2600
    for lobe in LOBES:
        assert normal.measure(lobe) > 150, lobe
    chambers = [name for name in STRUCTURES if name.startswith("heart_")]
    for name in chambers:
        assert normal.measure(name) > 25, name
    assert normal.measure("lung_vessel") > 20
    assert normal.measure("airway") > 15
    x = normal.grid.axis(2)
    place = {n: np.average(x, weights=(normal.labels == CODE[n]).sum((0, 1))) for n in STRUCTURES
             if (normal.labels == CODE[n]).any()}  # fmt: skip
    assert place["liver"] < 0 < place["spleen"], "x runs to the patient's left"
    assert place["heart_atrium_right"] < place["heart_ventricle_left"]


def noise_of(dose, thick=2.5, kernel="standard", pixel=0.8):
    """HU of noise in the middle of a cylinder of water, 300 mm wide."""
    f = np.arange(-200, 200, pixel)
    water = np.where(np.hypot(f[:, None], f[None]) < 150, 0.0, -1000.0).astype(np.float32)
    volume = np.repeat(water[None], 4, axis=0)
    protocol = Protocol(kernel=kernel, dose=dose)
    noisy = acquire(volume, (thick, pixel, pixel), protocol, np.random.default_rng(0))
    middle = len(f) // 2
    return float(noisy[:, middle - 40 : middle + 40, middle - 40 : middle + 40].std())


def test_noise_falls_with_the_root_of_dose_and_thickness():
    low, high = noise_of(1.5), noise_of(6.0)
    assert low / high == pytest.approx(2.0, rel=0.05)
    assert noise_of(1.5, thick=5.0) / low == pytest.approx(0.5**0.5, rel=0.05)
    assert noise_of(7.0, pixel=0.7) == pytest.approx(NOISE, rel=0.1)
    assert noise_of(6.0, kernel="lung") > high > noise_of(6.0, kernel="soft")


def test_noise_has_the_spectrum_of_filtered_back_projection():
    """In water, power over transfer squared rises with frequency."""
    water = np.zeros((24, 96, 96), np.float32)
    grain = acquire(water, (2.5, 0.8, 0.8), Protocol(dose=1.0), np.random.default_rng(0))
    power = np.mean(np.abs(np.fft.fft2(grain.astype(float))) ** 2, axis=0)
    f = np.fft.fftfreq(96, 0.8)
    radius = np.hypot(f[:, None], f[None])
    bands = [power[(radius > low) & (radius < low + 0.04)].mean() for low in (0.02, 0.1, 0.2)]
    assert bands[0] < bands[1] < bands[2]
    assert power[0, 0] < 0.05 * bands[1]


def test_kernels_keep_the_mean_and_sharpen_or_blur():
    f = np.linspace(0, 0.3, 7)
    for kernel in ("soft", "standard", "lung"):
        assert transfer(kernel, f)[0] == 1
    assert (transfer("soft", f)[1:] < transfer("standard", f)[1:]).all()
    assert transfer("lung", f).max() > 1.1


def test_structures_nest():
    table = grouped(("lung", "nodule", "body"))
    assert table[CODE["lung_vessel"]] == table[CODE["lung_upper_lobe_left"]] == 1
    assert table[CODE["nodule"]] == 2
    assert table[CODE["liver"]] == table[CODE["body"]] == 3
    assert table[0] == 0
    assert grouped(("lung",))[CODE["heart_myocardium"]] == 0
    with pytest.raises(ValueError, match="Did you mean 'spleen'"):
        grouped(("splen",))


def test_dataset_keeps_the_contract():
    data = SimulatedCt(4, (20, 16, 24), spacing=(14.0, 14.0, 12.0))
    assert isinstance(data, Dataset)
    assert registry.find("data", "simulated_ct") is SimulatedCt
    item = data[1]
    assert item.image.shape == (1, 1, 20, 16, 24)
    assert item.image.dtype == torch.float32
    assert item.image.abs().max() <= 1
    assert item.mask.shape == (1, 20, 16, 24)
    assert set(item.mask.unique().tolist()) <= set(range(7))
    assert item.scalar.shape == (1, 3)
    assert data.schema.scalars == ("effusion_volume", "nodule_volume", "dose")
    assert ((item.scalar[0, :2] > 0).long() == item.label[0]).all()
    assert data.schema.window == (-1000.0, 400.0)
    torch.testing.assert_close(item.affine[0, :3, :3].norm(dim=0), item.spacing[0])
    assert not item.provenance[0].synthetic
    assert torch.equal(
        item.image, SimulatedCt(9, (20, 16, 24), spacing=(14.0, 14.0, 12.0))[1].image
    )
    with pytest.raises(IndexError):
        data[4]


def test_axes_run_to_the_right_front_and_head():
    data = SimulatedCt(1, (40, 40, 40), spacing=(10.0, 10.0, 10.0), classes=("heart", "liver"))
    item = data[0]
    place = [
        (item.affine[0] @ torch.cat([(item.mask[0] == c).nonzero().float().mean(0), torch.ones(1)]))
        for c in (1, 2)
    ]
    assert place[1][0] > place[0][0] + 20, "the liver lies to the right"
    assert place[0][2] > place[1][2] + 50, "the heart lies higher"


def test_size_in_voxels_goes_with_the_inverse_of_spacing():
    """Extents along every axis at two spacings; a voxel at either end is the tolerance's reason."""
    wide = {}
    for mm in (6.0, 9.0):
        size = (round(420 / mm),) * 3
        data = SimulatedCt(1, size, spacing=(mm, mm, mm), vary=0, classes=("body", "lung"))
        where = (data[0].mask[0] == 2).nonzero()
        wide[mm] = (where.max(0).values - where.min(0).values + 1).float()
    ratio = wide[6.0] / wide[9.0]
    assert ((ratio / 1.5 - 1).abs() < 0.2).all()


def test_spacing_varies_and_findings_are_as_often_as_said():
    data = SimulatedCt(60, (8, 8, 8), spacing=(18.0, 18.0, 18.0), vary=0.1)
    spacings = torch.cat([data[i].spacing for i in range(8)])
    assert len(spacings[:, 0].unique()) > 4
    assert ((spacings / 18 - 1).abs() <= 0.1001).all()
    assert data.schema.spacing == ()
    planted = [data._planted(owner) for owner in range(300)]
    # four standard errors of a share of 0.4 over 300 patients: one false alarm in 16,000
    assert np.mean(["nodule" in p for p in planted]) == pytest.approx(0.4, abs=0.115)
    assert all(set(p) <= {"nodule", "effusion"} for p in planted)
    same = {}
    for index, study in enumerate(data.studies[:12]):
        same.setdefault(study.patient, []).append(index)
    pair = next(members for members in same.values() if len(members) > 1)
    first, second = (data[i] for i in pair[:2])
    assert not torch.equal(first.image, second.image)


def test_a_finding_outside_the_field_of_view_is_absent():
    made = {
        size: SimulatedCt(
            12, (size,) * 3, spacing=(8.0, 8.0, 8.0), vary=0, findings=("effusion",),
            classes=("effusion",),
        )
        for size in (8, 48)
    }  # fmt: skip
    for index in range(12):
        small, whole = made[8][index], made[48][index]
        assert small.scalar[0, 0] <= whole.scalar[0, 0] + 1e-3
        assert bool(small.label[0, 0]) == bool((small.mask == 1).any())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"findings": ("noduls",)}, "Did you mean 'nodule'"),
        ({"classes": ("lung", "lung")}, "named twice"),
        ({"classes": ("livr",)}, "Did you mean 'liver'"),
        ({"phases": ("venous",)}, "unknown phase"),
        ({"phases": ()}, "at least one phase"),
        ({"spacing": (2.0, 3.0, 3.0)}, "must be alike"),
        ({"spacing": (0.5, 0.5, 0.5)}, "between 1 and 20 mm"),
        ({"vary": 1.0}, "below 1"),
        ({"size": (4, 48, 48)}, "from 8 to 512"),
        ({"window": (400.0, -1000.0)}, "lower and a higher"),
        ({"count": 0}, "at least 1"),
    ],
)
def test_wrong_settings_are_named(change, text):
    with pytest.raises(RecipeError, match=text):
        SimulatedCt(**change)


def test_every_finding_is_in_the_structures():
    assert set(FINDINGS) <= set(CODE)


@pytest.mark.real
@pytest.mark.skipif(not (REAL_DATA / "ct-chest").is_dir(), reason="MEDGEN_DATA names no ct-chest")
def test_hu_are_near_a_real_scans():
    """Medians of lobes, liver and air in a real contrast scan, with room for patients' spread."""
    real = read_volume(REAL_DATA / "ct-chest/ct_2mm.nii.gz").voxels
    labels = read_volume(REAL_DATA / "ct-chest/labels_2mm.nii.gz").voxels
    made = scan(0, spacing=(3.0, 3.0, 3.0), protocol=Protocol(phase="arterial"))
    for code, name, allowed in ((10, LOBES[0], 50), (14, LOBES[-1], 50), (5, "liver", 25)):
        held = np.median(real[binary_erosion(labels == code)])
        assert np.median(inner(made, name)) == pytest.approx(held, abs=allowed)
