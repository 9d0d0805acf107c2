"""ECG files in and out, leads, rates, what is wrong with a signal, R peaks."""

import io
import os
import resource
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_signals import peak_times, toy_ecg

from medgen.data.signal_export import write_csv, write_waveform, write_wfdb
from medgen.data.signal_files import read_signal
from medgen.data.signals import (
    LEADS,
    filled,
    heart_rate,
    lead_name,
    limb_residual,
    quality,
    r_peaks,
    resampled,
    with_leads,
)
from medgen.errors import DataError
from medgen.types import Provenance

ORIGIN = Provenance("synthetic-000001", synthetic=True, source="sha256:ab", seed=7)


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def with_values(signal, change):
    values = signal.values.copy()
    change(values)
    return replace(signal, values=values)


@pytest.mark.parametrize("form", ["hea", "csv", "dcm"])
def test_what_is_written_reads_back_equal(tmp_path, form):
    signal = with_values(toy_ecg(), lambda values: values.__setitem__((3, slice(40, 44)), np.nan))
    path = tmp_path / f"one.{form}"
    if form == "hea":
        write_wfdb(path, replace(signal, about={"Age": "52", "Dx": "426783006"}))
        assert read_signal(path).about == {"Age": "52", "Dx": "426783006"}
        assert read_signal(tmp_path / "one").leads == read_signal(tmp_path / "one.dat").leads
    elif form == "csv":
        write_csv(path, signal)
    else:
        write_waveform(path, signal, ORIGIN)
    back = read_signal(path)
    assert back.leads == signal.leads
    assert back.rate == signal.rate
    np.testing.assert_array_equal(np.isnan(back.values), np.isnan(signal.values))
    np.testing.assert_allclose(back.values, signal.values, atol=1e-6)


def test_the_same_signal_gives_the_same_bytes(tmp_path, digests):
    for name in ("a", "b"):
        write_wfdb(tmp_path / name / "one.hea", toy_ecg())
        write_csv(tmp_path / name / "one.csv", toy_ecg())
        write_waveform(tmp_path / name / "one.dcm", toy_ecg(), ORIGIN)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_dicom_waveform_says_that_it_is_synthetic(tmp_path):
    import pydicom

    header = pydicom.dcmread(write_waveform(tmp_path / "one.dcm", toy_ecg(), ORIGIN))
    assert header.SyntheticData == "YES"
    assert header.PatientID == ORIGIN.id
    assert header.SOPClassUID.name == "12-lead ECG Waveform Storage"
    assert header.WaveformSequence[0].ChannelDefinitionSequence[3].ChannelSourceSequence[
        0
    ].CodeValue == ("2:62")


def test_npz_holds_names_rate_and_unit(tmp_path):
    signal = toy_ecg()
    path = write_npz(
        tmp_path / "one.npz",
        signal=signal.values * 1000,
        leads=np.array(["lead I", *[name.upper() for name in LEADS[1:]]]),
        rate=250,
        unit="uV",
    )
    back = read_signal(path)
    assert back.leads == LEADS
    np.testing.assert_allclose(back.values, signal.values, atol=1e-5)
    with pytest.raises(DataError, match="states the unit uV, but mV was asked for"):
        read_signal(path, unit="mV")
    with pytest.raises(DataError, match="states the rate 250"):
        read_signal(path, rate=500)


def test_unnamed_rows_must_obey_the_laws_of_limb_leads(tmp_path):
    values = toy_ecg().values
    assert read_signal(write_npz(tmp_path / "a.npz", signal=values, rate=250)).leads == LEADS
    swapped = values[[0, 1, 2, 3, 5, 4, *range(6, 12)]]  # aVF before aVL
    with pytest.raises(DataError, match=r"miss Einthoven's law by 0\.\d+ mV"):
        read_signal(write_npz(tmp_path / "b.npz", signal=swapped, rate=250))


@pytest.mark.parametrize(
    ("scale", "unit", "message"),
    [
        (1000, None, r"read in mV, its deflections reach .* Name the `unit`"),
        (1e-3, None, "look like another unit"),
        (200, "adu", "expected a signal in V, mV, uV, nV, got the unit 'adu'"),
    ],
)
def test_wrong_units_are_refused_by_name(tmp_path, scale, unit, message):
    path = write_npz(tmp_path / "one.npz", signal=toy_ecg().values * scale, rate=250)
    with pytest.raises(DataError, match=message):
        read_signal(path, unit=unit)


def test_units_are_converted(tmp_path):
    signal = toy_ecg()
    path = tmp_path / "one.csv"
    write_csv(path, replace(signal, values=signal.values * 1000))
    path.write_text(path.read_text().replace("(mV)", "[µV]"))
    np.testing.assert_allclose(read_signal(path).values, signal.values, atol=1e-5)


@pytest.mark.parametrize(
    ("written", "name"),
    [("AVR", "aVR"), ("Lead I (Einthoven)", "I"), ("MDC_ECG_LEAD_V3", "V3"), (" vx ", "vx")],
)
def test_names_of_leads_are_brought_to_the_standard(written, name):
    assert lead_name(written) == name


def test_limb_leads_are_derived_and_chest_leads_refused():
    whole = toy_ecg()
    part, none = with_leads(whole, ["aVF", "III", "V1", "V2", "V3", "V4", "V5", "V6"])
    assert none == ()
    again, derived = with_leads(part)
    assert derived == ("I", "II", "aVR", "aVL")
    np.testing.assert_allclose(again.values, whole.values, atol=4e-3)  # rounded to 1 uV, derived
    with pytest.raises(DataError, match=r"lead\(s\) V2 are missing; it has II, I, V1"):
        with_leads(with_leads(whole, ["II", "I", "V1"])[0], ["I", "II", "V2"], where="x")
    with pytest.raises(DataError, match="III are missing"):
        with_leads(with_leads(whole, ["II"])[0], ["III"])
    with pytest.raises(DataError, match="I stand twice"):
        with_leads(replace(whole, leads=("I", "I", *LEADS[2:])))


@pytest.mark.parametrize(("old", "new"), [(500, 250), (250, 400), (360, 250)])
def test_resampling_keeps_what_both_rates_hold(old, new):
    def wave(rate):
        times = np.arange(4 * rate) / rate
        return np.sin(2 * np.pi * 7 * times)[None].astype(np.float32)

    signal = replace(toy_ecg(rate=old, leads=("I",)), values=wave(old))
    moved = resampled(signal, new)
    assert moved.values.shape == (1, 4 * new)
    middle = slice(new // 2, -new // 2)
    np.testing.assert_allclose(moved.values[:, middle], wave(new)[:, middle], atol=0.01)


def test_resampling_lets_nothing_fold_over():
    times = np.arange(2000) / 500
    signal = replace(
        toy_ecg(rate=500, leads=("I",)), values=np.sin(2 * np.pi * 180 * times)[None].astype("f4")
    )
    assert np.abs(resampled(signal, 250).values[:, 100:-100]).max() < 0.02


def test_resampling_refuses_missing_samples():
    with pytest.raises(ValueError, match="missing samples"):
        resampled(with_values(toy_ecg(), lambda v: v.__setitem__((0, 0), np.nan)), 500)


def test_quality_counts_what_is_wrong_by_lead():
    good = toy_ecg()
    noise = np.random.default_rng(0).normal(0, 0.002, good.values.shape).astype(np.float32)
    good = replace(good, values=good.values + noise)
    assert quality(good).flags == {}

    def spoil(values):
        values[1, 100:130] = np.nan
        values[6] = 0.0
        values[7, :200] = 0.5
        values[10] = np.clip(values[10], None, 0.6 * values[10].max())

    found = quality(with_values(good, spoil))
    assert found.missing == {"II": 30}
    assert found.flat == {"V1": 1000, "V2": 200}
    assert set(found.clipped) == {"V5"}
    assert found.clipped["V5"] >= 3 * len(peak_times())
    assert found.flags == {"missing samples": 1, "flat lead": 2, "clipped lead": 1}


def test_swapped_leads_are_flagged():
    good = toy_ecg()
    swapped = with_values(good, lambda v: v.__setitem__([4, 5], v[[5, 4]]))
    assert limb_residual(good) < 0.002
    assert quality(swapped).flags == {"limb leads disagree": 1}
    assert np.isnan(limb_residual(with_leads(good, ["I", "II"])[0]))


def test_short_gaps_are_filled_and_counted_and_long_ones_refused():
    good = toy_ecg()
    gap = with_values(good, lambda v: v.__setitem__((0, slice(30, 50)), np.nan))
    mended, count = filled(gap)
    assert count == 20
    np.testing.assert_allclose(mended.values, good.values, atol=0.02)
    assert filled(good) == (good, 0)
    with pytest.raises(DataError, match=r"lead V1 lacks 0\.12 s in a row"):
        filled(with_values(good, lambda v: v.__setitem__((6, slice(0, 30)), np.nan)))


@pytest.mark.parametrize("beats", [45, 75, 140])
@pytest.mark.parametrize("rate", [250, 500])
def test_r_peaks_stand_where_they_were_put(beats, rate):
    signal = toy_ecg(6.0, rate, beats, first=0.2)
    np.testing.assert_allclose(r_peaks(signal), peak_times(6.0, beats, 0.2), atol=1.01 / rate)
    assert heart_rate(signal) == pytest.approx(beats, rel=0.01)


def test_r_peaks_of_nothing_are_none():
    flat = with_values(toy_ecg(), lambda v: v.__setitem__(slice(None), 0.0))
    assert len(r_peaks(flat)) == 0
    assert np.isnan(heart_rate(flat))


def test_r_peaks_of_two_seconds_and_of_small_signals():
    signal = toy_ecg(2.0, beats=70, first=0.3)
    small = replace(signal, values=signal.values / 10)
    for each in (signal, small):
        np.testing.assert_allclose(r_peaks(each), peak_times(2.0, 70, 0.3), atol=0.005)


def hostile_npz(path, shape):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": shape}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("signal.npy", header.getvalue() + b"\0" * 64)
        archive.writestr("rate.npy", b"")


def spoil(folder, how):
    path = write_wfdb(folder / "one.hea", toy_ecg())
    text = path.read_text()
    if how == "long":
        path.write_text(text.replace("one 12 250 1000", "one 12 250 900000000000"))
    if how == "short":
        path.write_text(text.replace("one 12 250 1000", "one 12 250 100000"))
    if how == "outside":
        path.write_text(text.replace("one.dat", "../../one.dat"))
    if how == "no gain":
        path.write_text(text.replace("1000.0(0)/mV", "0"))
    if how == "unit":
        path.write_text(text.replace("/mV", "/adu"))
    if how == "segments":
        path.write_text("one/2 12 250 1000\na 500\nb 500\n")
    if how == "rates":
        path.write_text(text.replace("one.dat 16", "one.dat 16x2", 1))
    if how == "text":
        path.write_text("not a header\n")
    if how == "empty":
        path.write_text("")
    if how == "no data":
        path.with_suffix(".dat").unlink()
    if how == "npz bomb":
        hostile_npz(path := folder / "one.npz", (12, 10**12))
    if how == "npz pickle":
        np.savez(path := folder / "one.npz", signal=np.array([{}], dtype=object))
    if how == "npz text":
        (path := folder / "one.npz").write_bytes(b"PK\x03\x04 and no more")
    if how == "dicom cut":
        path = write_waveform(folder / "one.dcm", toy_ecg(), ORIGIN)
        path.write_bytes(path.read_bytes()[:3000])
    if how == "csv ragged":
        (path := folder / "one.csv").write_text("time,I,II\n0,1,2\n0.1,1\n")
    if how == "csv unnamed":
        (path := folder / "one.csv").write_text("0,1,2\n0.1,1,3\n")
    if how == "csv times":
        (path := folder / "one.csv").write_text("time,I\n0,1\n0.1,1\n0.9,1\n")
    if how == "csv rate":
        (path := folder / "one.csv").write_text("I,II\n0.1,0\n0.2,1\n")
    if how == "folder":
        path = folder
    if how == "device":
        path = Path(os.devnull)
    if how == "format":
        (path := folder / "one.mat").write_text("x")
    return path


HOSTILE = {
    "long": "promises 10,800,000,000,000 samples",
    "short": "promises 2,400,000 bytes of samples, one.dat holds 24,000",
    "outside": "damaged or truncated",
    "no gain": "raw numbers of a converter",
    "unit": "got the unit 'adu'",
    "segments": "one segment",
    "rates": "different rates",
    "text": "damaged or truncated|one segment",
    "empty": "empty",
    "no data": "cannot be read",
    "npz bomb": "promises",
    "npz pickle": "damaged or truncated",
    "npz text": "damaged or truncated",
    "dicom cut": "damaged or truncated",
    "csv ragged": "not a table of numbers",
    "csv unnamed": "names of the leads",
    "csv times": "equal steps",
    "csv rate": "states no rate",
    "folder": "folder or a device",
    "device": "folder or a device",
    "format": "expected an ECG as WFDB",
}


@pytest.mark.parametrize("how", HOSTILE)
def test_hostile_files_give_one_named_error_and_take_no_memory(tmp_path, how):
    path = spoil(tmp_path, how)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=HOSTILE[how]) as error:
        read_signal(path)
    assert path.stem in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def real(name):
    root = os.environ.get("MEDGEN_DATA")
    if not root or not (Path(root) / name).is_dir():
        pytest.skip(f"MEDGEN_DATA names no folder with {name}")
    return Path(root) / name


@pytest.mark.real
def test_real_records_are_read_and_their_beats_found():
    folder = real("ecg-12lead")
    headers = sorted(folder.glob("*.hea"))
    assert len(headers) == 52
    rates, flat = [], []
    for header in headers:
        signal, derived = with_leads(read_signal(header), where=str(header))
        assert derived == ()
        assert limb_residual(signal) < 0.001
        flat += [header.stem] * ("flat lead" in quality(signal).flags)
        rates.append(heart_rate(resampled(filled(signal)[0], 250)))
    assert flat == ["A1988", "JS20004"]
    assert all(30 < rate < 200 for rate in rates)


@pytest.mark.real
def test_a_dicom_waveform_equals_the_same_record_in_wfdb():
    from pydicom.data import get_testdata_file

    path = get_testdata_file("waveform_ecg.dcm", download=False)
    if path is None:
        pytest.skip("this pydicom comes without waveform_ecg.dcm, and nothing is downloaded")
    signal = read_signal(str(path))
    other = read_signal(real("ecg-12lead") / "pydicom_waveform_ecg.hea")
    assert signal.leads == LEADS
    np.testing.assert_allclose(
        with_leads(signal)[0].values, with_leads(other)[0].values, atol=0.002
    )
    assert heart_rate(signal) == pytest.approx(60 / 0.982, rel=0.02)  # RR as the device measured
