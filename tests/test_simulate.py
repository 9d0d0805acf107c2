"""Simulated thoraxes and radiographs: what is asked for is what is there."""

import numpy as np
import pytest
import torch
from scipy.ndimage import label as components

from medgen import registry
from medgen.data.simulated import Simulated
from medgen.errors import RecipeError
from medgen.protocols import Dataset
from medgen.simulate.anatomy import FINDINGS, SIZES, draw_findings
from medgen.simulate.ct import LABELS, LUNG, thorax
from medgen.simulate.findings import fill
from medgen.simulate.radiograph import (
    MASK_CLASSES,
    WATER,
    Exposure,
    View,
    density,
    detect,
    project,
    radiograph,
    show,
)
from medgen.simulate.vessels import MURRAY, grow

SIZE = 64
STRAIGHT = View(field=416.0, center=(136.0, 0.0))


def mask_of(thorax_, name):
    return thorax_.labels == LABELS.index(name)


def shot(thorax_, view=STRAIGHT, seed=0, **exposure):
    clean = Exposure(flatten=0, sharpen=0, photons=1e7, **exposure)
    rng = np.random.default_rng(seed)
    return radiograph(thorax_, (SIZE, SIZE), rng, view=view, exposure=clean)


@pytest.fixture(scope="module")
def normal():
    return thorax(3, size=SIZE)


def test_a_thorax_is_a_function_of_its_seed(normal):
    again, other = thorax(3, size=SIZE), thorax(4, size=SIZE)
    assert np.array_equal(normal.volume, again.volume)
    assert np.array_equal(normal.labels, again.labels)
    assert not np.array_equal(normal.volume, other.volume)


def test_tissues_have_their_hu(normal):
    hu = {name: normal.volume[mask_of(normal, name)] for name in ("air", "lung", "heart", "bone")}
    assert np.median(hu["air"]) == -1000
    assert -930 < np.median(hu["lung"]) < -750
    assert 30 < np.median(hu["heart"]) < 70
    assert np.median(hu["bone"]) > 150
    assert normal.volume.min() >= -1001
    assert np.isfinite(normal.volume).all()


def test_organs_lie_where_they_belong(normal):
    z, _, x = (
        normal.origin[a] + normal.spacing[a] * np.arange(n)
        for a, n in enumerate(normal.labels.shape)
    )
    heart = mask_of(normal, "heart")
    assert np.average(x, weights=heart.sum((0, 1))) > 5, "the heart lies to the left"
    lung = mask_of(normal, "lung")
    lowest = [z[lung[:, :, side].any((1, 2))].max() for side in (x < 0, x > 0)]
    assert 3000 < normal.measure("lung") < 8000
    assert lowest[1] > lowest[0] - 1, "the right dome stands higher"
    assert components(lung[:, :, x < -60])[1] == 1


def test_affine_takes_voxels_to_ras(normal):
    right_anterior_superior = normal.affine @ [0, 0, 0, 1]
    assert (right_anterior_superior[:3] > 0).all(), "voxel 0 is the patient's right, front and top"
    step = normal.affine @ [0, 0, 1, 1] - right_anterior_superior
    assert step[0] == pytest.approx(-normal.spacing[2])


@pytest.mark.parametrize("name", ["effusion", "pneumothorax", "consolidation"])
def test_volumes_are_as_asked(name):
    for asked in SIZES[name]:
        made = thorax(5, size=96, planted={name: asked})
        assert made.measure(name) == pytest.approx(asked, rel=0.08)
        assert made.findings == {name: asked}


def test_all_findings_fit_one_patient():
    largest = {name: high for name, (_, high) in SIZES.items()}
    for seed in range(8):
        made = thorax(seed, size=SIZE, planted=largest)
        for name in ("effusion", "pneumothorax"):
            assert made.measure(name) == pytest.approx(largest[name], rel=0.1)


def test_nodules_are_spheres_of_the_diameter_asked():
    for seed in range(4):
        made = thorax(seed, size=128, planted={"nodule": 34.0})
        parts, count = components(mask_of(made, "nodule"))
        assert 1 <= count <= 3
        voxel = np.prod(made.spacing)
        sphere = 4 / 3 * np.pi * 17.0**3
        for part in range(1, count + 1):
            assert (parts == part).sum() * voxel == pytest.approx(sphere, rel=0.06)
        assert np.median(made.volume[mask_of(made, "nodule")]) > 0


def test_a_volume_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="volume between 0 and"):
        thorax(0, size=SIZE, planted={"effusion": 9000.0})
    with pytest.raises(ValueError, match="Did you mean 'effusion'"):
        thorax(0, size=SIZE, planted={"effusions": 300.0})


def test_fill_finds_the_level_of_a_ramp():
    ramp = np.arange(1000, dtype=np.float32)
    level = fill(ramp, np.ones(1000, np.float32), 0.25, voxel=1.0)
    assert level == pytest.approx(250, abs=1)


def test_a_large_heart_is_wide_and_a_normal_one_is_not():
    for seed in range(4):
        ratios = [
            shot(thorax(seed, size=SIZE, planted=planted)).cardiothoracic_ratio
            for planted in ({}, {"cardiomegaly": 0.6})
        ]
        assert ratios[0] < 0.5 < ratios[1]
        assert ratios[1] == pytest.approx(0.6, abs=0.04)


def test_ratio_is_what_the_mask_shows(normal):
    made = shot(normal)
    heart = np.flatnonzero((made.mask == 2).any(0))
    both = np.flatnonzero((made.mask > 0).any(0))
    assert made.cardiothoracic_ratio == pytest.approx(
        (np.ptp(heart) + 1) / (np.ptp(both) + 1), abs=0.03
    )


def test_projection_conserves_attenuation(normal):
    whole = density(normal.volume)
    total = whole.sum(dtype=np.float64) * np.prod(normal.spacing)
    for angle in (0, 3, 30, 90, 180, 250):
        view = View(angle=angle, field=900.0, center=(136, 0), distance=np.inf)
        image = project(whole, normal, view, (SIZE, SIZE))
        assert image.sum() * (900.0 / SIZE) ** 2 == pytest.approx(total, rel=1e-4)


def test_projection_of_a_straight_beam_is_the_plain_sum(normal):
    straight = View(
        field=normal.spacing[0] * SIZE,
        center=(normal.origin[0] + normal.spacing[0] * (SIZE - 1) / 2, 0.0),
        distance=np.inf,
    )
    image = project(normal.volume, normal, straight, (SIZE, SIZE))
    expected = normal.volume.sum(axis=1) * normal.spacing[1]
    assert np.allclose(image, expected, atol=0.5)


def test_opposite_views_are_mirror_images(normal):
    whole = density(normal.volume)
    views = [
        View(angle=a, field=420.0, center=(136, 0), distance=np.inf) for a in (0, 180, 90, -90)
    ]
    front, back, left, right = (project(whole, normal, v, (SIZE, SIZE)) for v in views)
    assert np.allclose(front, back[:, ::-1], rtol=1e-3, atol=0.05)
    assert np.allclose(left, right[:, ::-1], rtol=1e-3, atol=0.05)
    assert not np.allclose(front, left, atol=5)


def test_a_divergent_beam_magnifies_what_is_near_the_source(normal):
    heart = mask_of(normal, "heart").astype(np.float32)
    widths = {}
    for front in (False, True):
        view = View(field=400.0, center=(136, 0), distance=1000.0, front=front)
        image = project(heart, normal, view, (256, 256))
        widths[front] = np.ptp(np.flatnonzero((image > 5).any(0)))
    assert widths[True] > widths[False], "the heart lies in front: larger when shot from there"


def test_mask_and_image_share_geometry(normal):
    made = shot(normal)
    moved = shot(normal, View(field=416.0, center=(136.0, 39.0)))
    shift = 39 * SIZE / 416
    for before, after in ((made.mask == 1, moved.mask == 1), (made.image, moved.image)):
        columns = [np.average(np.arange(SIZE), weights=m.sum(0) + 1e3) for m in (before, after)]
        assert columns[1] < columns[0]
    lung = [np.flatnonzero((m.mask == 1).any(0)) for m in (made, moved)]
    assert lung[0].min() - lung[1].min() == pytest.approx(shift, abs=1.5)
    assert np.median(made.image[made.mask == 1]) < np.median(made.image[made.mask == 2]) - 0.3


def test_projected_mask_covers_the_labels(normal):
    """Every column of voxels with much lung falls on a pixel of the mask: geometry is shared."""
    path = np.isin(normal.labels, LUNG).sum(axis=1) * normal.spacing[1]
    view = View(
        field=normal.spacing[0] * SIZE,
        center=(normal.origin[0] + normal.spacing[0] * (SIZE - 1) / 2, 0.0),
        distance=np.inf,
    )
    made = shot(normal, view)
    assert (made.mask[path > 60] > 0).all()
    assert (made.mask[path < 20] != 1).all()


@pytest.mark.parametrize("name", ["effusion", "pneumothorax", "consolidation", "nodule"])
def test_a_finding_changes_the_image_where_it_lies(name):
    low, high = SIZES[name]
    brighter = []
    for seed in range(5):
        before = thorax(seed, size=SIZE)
        after = thorax(seed, size=SIZE, planted={name: (low + high) / 2})
        water = [project(density(t.volume), t, STRAIGHT, (SIZE, SIZE)) for t in (before, after)]
        place = mask_of(after, name).astype(np.float32)
        where = project(place, after, STRAIGHT, (SIZE, SIZE)) > 12
        plain = Exposure(photons=1e7, flatten=0, sharpen=0)
        images = [
            show(detect(w, 6.5, plain, np.random.default_rng(0)), w > 25, 6.5, plain) for w in water
        ]
        assert where.sum() > 8
        brighter.append(float((images[1] - images[0])[where].mean()))
    if name == "pneumothorax":
        assert np.mean(brighter) < -0.01
    else:
        assert min(brighter) > 0.03


def test_pneumothorax_holds_no_vessels():
    made = thorax(2, size=96, planted={"pneumothorax": 700.0})
    hu = made.volume[mask_of(made, "pneumothorax")]
    assert np.median(hu) < -980
    assert np.median(made.volume[mask_of(made, "lung")]) > np.median(hu) + 50


def test_effusion_grows_from_the_base():
    levels = []
    for volume in (300.0, 900.0):
        rows = np.flatnonzero(
            mask_of(thorax(1, size=SIZE, planted={"effusion": volume}), "effusion").any((1, 2))
        )
        levels.append(rows.min())
    assert levels[1] < levels[0]


def test_detector_follows_beer_and_lambert():
    water = np.array([[0.0, 50.0], [150.0, 300.0]])
    exposure = Exposure(scatter=0, photons=1e12, blur=0)
    signal = detect(water, 3.0, exposure, np.random.default_rng(0))
    expected = -np.log(sum(share * np.exp(-mu * water) for mu, share in WATER))
    assert np.allclose(signal, expected, atol=1e-4)
    assert (np.diff(signal.ravel()) > 0).all()


def test_noise_is_that_of_counted_quanta():
    water, mu = np.full((128, 128), 120.0), WATER
    exposure = Exposure(scatter=0, photons=1000.0, blur=0)
    signal = detect(water, 3.0, exposure, np.random.default_rng(0))
    quanta = 9 * 1000 * sum(share * np.exp(-m * 120.0) for m, share in mu)
    # the standard error of a standard deviation over 16,384 pixels is 0.6 %
    assert signal.std() == pytest.approx(1 / np.sqrt(quanta), rel=0.04)


def test_scatter_lowers_contrast():
    water = np.full((96, 96), 250.0)
    water[40:56, 40:56] = 100.0
    ranges = [
        np.ptp(
            detect(water, 3.0, Exposure(scatter=s, photons=1e9, blur=0), np.random.default_rng(0))
        )
        for s in (0.0, 0.5, 1.0)
    ]
    assert ranges[0] > ranges[1] > ranges[2]


def test_radius_of_vessels_follows_murray():
    rng = np.random.default_rng(0)
    tree = grow(rng, np.zeros((1, 3)), np.array([[0.0, 0.0, 1.0]]), radius=5.0, generations=5)
    assert len(tree.radius) == 2 * (2**5 - 1)
    assert pytest.approx(0.5) == MURRAY**3
    assert (np.diff(np.sort(tree.radius)[::-1]) <= 0).all()
    assert tree.radius[-16:].max() < tree.radius[0] / 2


def test_findings_are_independent_of_what_is_asked():
    every = draw_findings(np.random.default_rng(1), prevalence=0.9)
    some = draw_findings(np.random.default_rng(1), ("nodule", "effusion"), prevalence=0.9)
    assert some == {name: every[name] for name in ("effusion", "nodule") if name in every}


def test_prevalence_is_met():
    drawn = [draw_findings(np.random.default_rng(i)) for i in range(2000)]
    for name in FINDINGS:
        # five standard errors of a share of 0.25 over 2000: one false alarm in 350,000 runs
        assert sum(name in d for d in drawn) / 2000 == pytest.approx(0.25, abs=0.05)


def test_dataset_keeps_the_contract():
    data = Simulated(5, (32, 32))
    assert isinstance(data, Dataset)
    assert registry.find("data", "simulated") is Simulated
    batch = data[1]
    assert batch.image is not None
    assert batch.mask is not None
    assert batch.label is not None
    assert batch.image.shape == (1, 1, 32, 32)
    assert batch.image.dtype == torch.float32
    assert batch.image.abs().max() <= 1
    assert batch.image.std() > 0.2
    assert batch.mask.shape == (1, 32, 32)
    assert set(batch.mask.unique().tolist()) <= {0, 1, 2}
    assert batch.label.shape == (1, len(FINDINGS))
    assert batch.scalar is not None
    assert batch.scalar.shape == (1, 1)
    assert data.schema.mask_classes == MASK_CLASSES
    assert batch.provenance is not None
    assert not batch.provenance[0].synthetic
    assert batch.provenance[0].source == "simulated:0"
    assert batch.provenance[0].id == data.studies[1].id
    with pytest.raises(IndexError):
        data[5]


def test_a_study_depends_on_seed_and_index_alone():
    few, many = Simulated(8, (32, 32)), Simulated(40, (32, 32))
    for index in (7, 2):
        assert torch.equal(few[index].image, many[index].image)
        assert torch.equal(few[index].label, many[index].label)
        assert few.studies[index].patient == many.studies[index].patient
    assert not torch.equal(few[2].image, Simulated(8, (32, 32), seed=1)[2].image)


def test_a_study_that_is_changed_is_not_changed_for_the_next_reader():
    data = Simulated(2, (32, 32))
    first = data[0].image.clone()
    data[0].image.zero_()
    assert torch.equal(data[0].image, first)


def test_studies_of_a_patient_share_findings_not_pixels():
    data = Simulated(24, (32, 32), seed=3)
    by_patient = {}
    for i, study in enumerate(data.studies):
        by_patient.setdefault(study.patient, []).append(i)
    assert {1, 2, 3} >= {len(members) for members in by_patient.values()}
    pair = next(members for members in by_patient.values() if len(members) > 1)
    assert torch.equal(data[pair[0]].label, data[pair[1]].label)
    assert not torch.equal(data[pair[0]].image, data[pair[1]].image)
    for members in by_patient.values():
        assert len({data.studies[i].split for i in members}) == 1


def test_findings_that_are_not_asked_for_are_absent():
    data = Simulated(6, (32, 32), findings=("effusion",))
    assert data.schema.findings == ("effusion",)
    assert all(data[i].label.shape == (1, 1) for i in range(6))


def test_wrong_settings_are_named():
    with pytest.raises(RecipeError, match="Did you mean 'nodule'") as caught:
        Simulated(0, (8, 8), findings=("noduls", "effusion"))
    assert len(caught.value.problems) == 3
