"""Simulated echo clips: volumes, timing, tissue and speckle are what they are said to be."""

from dataclasses import replace

import numpy as np
import pytest

from medgen.simulate.ecg import Noise, draw_patient, draw_rhythm, record
from medgen.simulate.echo import (
    MASK_CLASSES,
    Degradation,
    draw_degradation,
    draw_heart,
    simulate,
)
from medgen.simulate.heart import RIM, Heart, Ventricle, beats_of, cycle, inside
from medgen.simulate.tissue import VIEWS
from medgen.simulate.ultrasound import Probe, compress

CAVITY, MUSCLE, ATRIUM = (MASK_CLASSES.index(n) for n in ("cavity", "myocardium", "atrium"))
SMALL = Probe(64, 64)


def clip(seed, findings=(), *, probe=SMALL, prevalence=1.0, **settings):
    rng = np.random.default_rng(seed)
    patient, heart = draw_heart(rng, findings, prevalence=prevalence)
    return simulate(patient, heart, probe, rng, **settings)


def area_length(mask, spacing):
    """Volume (mL) of the cavity in a mask: 8 A^2 / (3 pi L), up to a constant of the shape."""
    rows, columns = np.nonzero(mask == CAVITY)
    below = np.zeros_like(mask, dtype=bool)
    below[:-1] = mask[1:] == ATRIUM
    base = np.argwhere(below & (mask == CAVITY)).mean(axis=0) + np.array([0.5, 0])
    length = np.hypot(rows - base[0], columns - base[1]).max() + 0.5
    return 8 * len(rows) ** 2 / (3 * np.pi * length) * spacing**3 / 1000


def fraction(made):
    volumes = [area_length(mask, made.spacing[1]) for mask in made.mask]
    diastole, systole = (volumes[i] for i in (made.end_diastolic_frame, made.end_systolic_frame))
    return 100 * (1 - systole / diastole)


def test_the_masks_hold_the_ejection_fraction():
    probe = Probe(112, 112)
    errors, truths, measured = [], [], []
    for seed in range(10):
        findings = ("ischaemia", "hypertrophy", "ectopic_beats", "atrial_fibrillation")
        view = VIEWS[seed % 2]
        made = clip(
            seed, findings, probe=probe, prevalence=0.3, view=view, frames=30, frames_per_second=20
        )
        shown = 100 * (1 - made.volumes.min() / made.volumes.max())
        assert shown == pytest.approx(made.ejection_fraction, abs=1.0)
        measured.append(fraction(made))
        truths.append(made.ejection_fraction)
        errors.append(measured[-1] - truths[-1])
    assert np.abs(errors).mean() < 1.5
    assert abs(np.mean(errors)) < 1.0
    assert np.corrcoef(truths, measured)[0, 1] > 0.99
    assert np.ptp(truths) > 20


@pytest.mark.parametrize("seed", range(3))
def test_the_cavity_beats_at_the_rate_of_the_ecg(seed):
    made = clip(seed, frames=240, frames_per_second=24, probe=Probe(32, 32))
    area = (made.mask == CAVITY).sum(axis=(1, 2)).astype(float)
    area -= area.mean()
    alike = np.correlate(area, area, "full")[len(area) - 1 :] / np.arange(len(area), 0, -1)
    lags = np.arange(11, 32)
    beat = lags[np.argmax(alike[lags])]
    many = int(6.0 * 24 / beat)
    near = np.arange(many * beat - beat // 2, many * beat + beat // 2)
    lag = near[np.argmax(alike[near])]
    left, middle, right = alike[lag - 1 : lag + 2]
    lag += 0.5 * (left - right) / (left - 2 * middle + right)
    assert 60 * 24 * many / lag == pytest.approx(made.ecg.heart_rate, abs=1.0)


def test_diastole_ends_within_a_frame_of_the_r_peak_and_systole_once_a_beat():
    for seed, findings in enumerate([(), ("atrial_fibrillation",), ("ectopic_beats",)]):
        rng = np.random.default_rng(seed)
        patient, heart = draw_heart(rng, findings, prevalence=1.0)
        rhythm = draw_rhythm(patient, 12, rng)
        at = np.arange(0, 12, 0.002)
        volume = cycle(heart, rhythm, at).volume
        beats = beats_of(rhythm, atrial=heart.atrial > 0)
        whole = (beats.eject > 0.1) & (beats.close < 11.8)
        for eject, close, r in zip(
            beats.eject[whole], beats.close[whole], rhythm.times[:-1][whole], strict=True
        ):
            around = np.abs(at - r) < 0.2
            last = at[around][volume[around] > heart.volume * 0.999][-1]
            assert abs(last - eject) <= 0.02
            assert 0.03 < eject - r < 0.1
            systole = (at > eject) & (at < close + 0.09)
            low = at[systole][np.argmin(volume[systole])]
            assert close - 0.02 <= low <= close + 0.07
            expected = heart.volume * (1 - heart.ejection_fraction / 100)
            assert volume[systole].min() == pytest.approx(expected, rel=0.01)


def test_volume_and_valve_follow_the_cycle():
    rng = np.random.default_rng(4)
    patient = replace(draw_patient(rng, ()), rate=60.0)
    heart = Heart(volume=120.0, ejection_fraction=60.0, length=85.0, wall=9.0)
    rhythm = draw_rhythm(patient, 6, rng)
    at = np.arange(0, 6, 0.005)
    beating = cycle(heart, rhythm, at)
    assert np.abs(np.diff(beating.volume)).max() < 3.0
    flow = np.gradient(beating.volume, at)
    assert (beating.mitral[flow > 100] > 0.1).all()
    assert (beating.mitral[flow < -20] < 1e-9).all()
    still = replace(heart, atrial=0.0)
    assert not np.allclose(cycle(still, rhythm, at).volume, beating.volume)
    with pytest.raises(ValueError, match="expected beats"):
        cycle(heart, rhythm, at + 60)


def test_the_wall_keeps_its_volume_and_thickens():
    ventricle = Ventricle(Heart(volume=120.0, ejection_fraction=60.0, length=85.0, wall=10.0))

    def swept(size, depth):
        x, z = ventricle.outline(size, depth)
        half = x >= 0
        return abs(np.trapezoid(np.pi * x[half] ** 2, z[half]))

    walls = []
    for size in np.linspace(0.35, 1.0, 8):
        walls.append(swept(size, 1.0) - swept(size, 0.0))
        assert swept(size, 0.0) / 1000 == pytest.approx(120 * size, rel=0.002)
        assert ventricle.size(120 * size) == pytest.approx(size, abs=0.002)
    assert np.ptp(walls) / np.mean(walls) < 0.005
    radius, length, wall = ventricle.dimensions(0.4)
    assert (radius, length) < (ventricle.dimensions(1.0)[0], 85.0)
    assert 13.0 < wall < 16.0


def test_a_defect_stills_its_place_and_keeps_the_volume():
    sound = Heart(volume=120.0, ejection_fraction=45.0, length=85.0, wall=9.0)
    sick = replace(sound, defect=0.8, place=1.0)
    travelled = {}
    for name, heart in (("sound", sound), ("sick", sick)):
        ventricle = Ventricle(heart)
        small = ventricle.size(120 * 0.55)
        angles = np.array([1.0, -1.0])
        before, after = (ventricle.points(s, np.zeros(2), angles) for s in (1.0, small))
        travelled[name] = np.hypot(after[0] - before[0], after[1] - before[1])
        x, z = ventricle.outline(small, 0.0)
        discs = np.pi * (x[1:] ** 2 + x[:-1] ** 2) / 2 * np.abs(np.diff(z))
        assert discs.sum() / 2000 == pytest.approx(66.0, rel=0.01)
    assert travelled["sick"][0] < 0.4 * travelled["sound"][0]
    assert travelled["sick"][1] > travelled["sound"][1]
    with pytest.raises(ValueError, match="would leave"):
        Ventricle(replace(sick, ejection_fraction=99.0, defect=1.0))


def test_speckle_is_fully_developed():
    """Mean over deviation is 1.913 for a Rayleigh envelope, a little less for 12 a cell."""
    probe, rng = Probe(112, 112), np.random.default_rng(0)
    count = round(probe.density * 260 * 180)
    places = rng.uniform(-130, 130, count), rng.uniform(0, 180, count)
    for echoes in (probe.deposit(*places, rng.standard_normal(count)), probe.white(rng)):
        heard = np.abs(probe.blur(echoes))[(probe.ranges > 40) & (probe.ranges < 150), 4:-4]
        assert 1.6 < heard.mean() / heard.std() < 1.95
        assert np.square(heard).mean() == pytest.approx(1.0, abs=0.2)


def test_a_point_is_seen_where_it_lies_as_wide_as_the_beam():
    probe = Probe(201, 201)
    image = probe.show(np.abs(probe.blur(probe.deposit(*map(np.array, ([20.0], [90.0], [1.0]))))))
    row, column = np.unravel_index(image.argmax(), image.shape)
    x, z = probe.picture
    assert x[row, column] == pytest.approx(20.0, abs=probe.pixel)
    assert z[row, column] == pytest.approx(90.0, abs=probe.pixel)
    across = image[row] > image.max() / 2
    expected = probe.lateral * np.hypot(20, 90)
    assert across.sum() * probe.pixel == pytest.approx(expected, rel=0.35)


def test_compression_has_a_fixed_reference():
    grey = compress(np.array([1.0, 0.1, 1e-3, 10.0], dtype=np.float32), 1.0, 40.0)
    assert grey == pytest.approx([1.0, 0.5, 0.0, 1.0], abs=1e-6)


def test_speckle_moves_with_the_wall():
    """A patch of the wall matches itself better where the tissue went than where it was."""
    rng = np.random.default_rng(1)
    probe = Probe(112, 112)
    heart = Heart(volume=120.0, ejection_fraction=55.0, length=85.0, wall=10.0)
    ventricle = Ventricle(heart)
    count = 12000
    depth, angle = rng.uniform(0, 1, count), rng.uniform(-RIM, RIM, count)
    amplitude = rng.standard_normal(count)
    heard, base = [], []
    for size in (1.0, 0.92):
        x, z = ventricle.points(size, depth, angle)
        heard.append(np.abs(probe.blur(probe.deposit(x, z + 25, amplitude))))
        base.append(ventricle.points(size, np.array([0.5]), np.array([-1.5]))[1][0] + 25)
    step = probe.ranges[1] - probe.ranges[0]
    moved = round((base[1] - base[0]) / step)
    assert abs(moved) >= 1
    rows = np.abs(probe.ranges - base[0]) < 12
    columns = np.abs(probe.beams - np.arctan2(-25, base[0])) < 0.08
    patch = heard[0][np.ix_(rows, columns)].ravel()
    stays = heard[1][np.ix_(rows, columns)].ravel()
    follows = np.roll(heard[1], -moved, axis=0)[np.ix_(rows, columns)].ravel()
    assert np.corrcoef(patch, follows)[0, 1] > np.corrcoef(patch, stays)[0, 1]
    assert np.corrcoef(patch, follows)[0, 1] > 0.7


@pytest.mark.parametrize("view", VIEWS)
def test_a_clip_looks_like_its_mask(view):
    made = clip(2, view=view)
    assert made.image.shape == made.mask.shape == (32, 64, 64)
    assert made.image.dtype == np.float32
    assert np.abs(made.image).max() <= 1
    assert np.allclose((made.image + 1) * 127.5, np.rint((made.image + 1) * 127.5), atol=1e-3)
    outside = ~SMALL.sector
    assert (made.image[:, outside] == -1).all()
    assert (made.mask[:, outside] == 0).all()
    assert made.ecg.signal.shape == (12, 500)
    grey = {k: made.image[made.mask == k].mean() for k in (CAVITY, MUSCLE, ATRIUM)}
    assert grey[MUSCLE] > grey[CAVITY] + 0.4
    assert grey[MUSCLE] > grey[ATRIUM] + 0.4
    assert (made.mask == CAVITY).sum((1, 2)).argmax() == pytest.approx(
        made.end_diastolic_frame, abs=1
    )


def test_brightness_does_not_tell_the_volume():
    """The reference is the first frame's: the mean grey of the far wall stays."""
    made = clip(3, frames=48, frames_per_second=24)
    deep = SMALL.sector & (SMALL.picture[1] > 150)
    means = made.image[:, deep].mean(axis=1)
    assert means.std() < 0.05


def test_degradations_do_what_they_are_named_for():
    plain = clip(5)

    def with_(**kind):
        return clip(5, degradation=Degradation(**kind))

    def grey(made, value):
        return made.image[made.mask == value].mean()

    near = SMALL.sector & (np.hypot(*SMALL.picture) < 60)
    cluttered = with_(clutter=1.0).image[:, near].mean()
    assert cluttered > plain.image[:, near].mean() + 0.06
    for kind, value in (("haze", CAVITY), ("noise", ATRIUM)):
        assert grey(with_(**{kind: 1.0}), value) > grey(plain, value) + 0.1, kind
    for kind in ("shadow", "dropout"):
        assert grey(with_(**{kind: 1.0}), MUSCLE) < grey(plain, MUSCLE) - 0.02, kind
    assert np.array_equal(with_(haze=1.0).mask, plain.mask)
    drawn = [draw_degradation(0.5, np.random.default_rng(i)) for i in range(200)]
    levels = np.array([list(vars(each).values()) for each in drawn])
    assert levels.max() <= 1
    assert (levels == 0).mean() == pytest.approx(0.5, abs=0.08)
    assert draw_degradation(0.0, np.random.default_rng(0)) == Degradation()


def test_a_clip_is_a_function_of_its_seed():
    first, again, other = clip(6), clip(6), clip(7)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.ecg.signal.tobytes() == again.ecg.signal.tobytes()
    assert not np.array_equal(first.mask, other.mask)


def test_a_clip_holds_a_whole_systole():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        patient, heart = draw_heart(rng, ("atrial_fibrillation",), prevalence=0.5)
        made = simulate(patient, heart, Probe(16, 16), rng, frames=14, frames_per_second=17.0)
        shown = 100 * (1 - made.volumes.min() / made.volumes.max())
        assert shown == pytest.approx(heart.ejection_fraction, abs=2.5)
    with pytest.raises(ValueError, match=r"expected a clip of 0\.7 s"):
        clip(0, frames=8, frames_per_second=32)


@pytest.mark.parametrize(("rho", "least", "most"), [(0.0, 0.0, 0.16), (0.9, 0.5, 1.0)])
def test_the_ecg_tells_the_ejection_fraction_as_much_as_is_declared(rho, least, most):
    """Width of lead II's recorded R wave; at n = 600, |r| > 0.16 by chance once in 10,000 runs."""
    widths, ejected = [], []
    for seed in range(600):
        rng = np.random.default_rng(seed)
        patient, heart = draw_heart(rng, (), rho=rho)
        made = record(patient, draw_rhythm(patient, 1.5, rng), 375, 250.0, rng, noise=Noise())
        lead = made.signal[1]
        top = int(lead[30:-30].argmax()) + 30
        wave = lead[top - 25 : top + 26]
        widths.append(wave[wave > 0.25 * lead[top]].sum() / lead[top])
        ejected.append(heart.ejection_fraction)
    assert least <= abs(np.corrcoef(widths, ejected)[0, 1]) <= most
    assert min(ejected) > 20
    assert max(ejected) < 72


def test_inside_a_square():
    corners = np.array([-1.0, 1, 1, -1]), np.array([-1.0, -1, 1, 1])
    x, z = np.meshgrid([-2.0, 0.0, 2.0], [-2.0, 0.0, 2.0])
    assert inside(x, z, corners).sum() == 1
