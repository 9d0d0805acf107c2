"""Folders of ECG records, and tables of clips with their ECGs."""

import csv
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_clips import toy_frames
from toy_signals import toy_ecg

from medgen import registry
from medgen.data.clip_export import write_clip
from medgen.data.clips import Clip
from medgen.data.ecg_records import EcgRecords
from medgen.data.echo_ecg import EchoEcg
from medgen.data.geometry import from_unit
from medgen.data.signal_export import write_csv, write_wfdb
from medgen.data.signals import LEADS, resampled
from medgen.errors import DataError, LeakageError


def write_records(folder, count=6, seconds=4.0):
    for k in range(count):
        about = {"Age": str(40 + k), "Sex": ["Male", "Female"][k % 2]}
        about["Dx"] = ["426783006", "427084000,284470004", ""][k % 3]
        signal = replace(toy_ecg(seconds, 500, 60 + 10 * k), about=about)
        write_wfdb(folder / "g1" / f"R{k:03d}.hea", signal)
    return folder


def test_records_are_images_with_findings_age_and_sex(tmp_path):
    write_records(tmp_path / "ecg")
    settings = {
        "size": [500],
        "path": "ecg",
        "rate": 250.0,
        "findings": ["sinus_rhythm", "284470004"],
    }
    data = registry.build(
        "data", "wfdb", settings | {"scalars": ["age", "sex", "heart_rate"]}, root=tmp_path
    )
    assert len(data) == 12
    assert data.studies[0].id == "g1/R000-000"
    assert len({study.patient for study in data.studies}) == 6
    assert data.labels[[0, 2, 4]].tolist() == [[1, 0], [0, 1], [-1, -1]]
    np.testing.assert_allclose(data.scalars[[0, 2]], [[40, 1, 60], [41, 0, 70]], atol=1)
    item = data[1]
    assert item.image.shape == (1, 12, 500)
    assert data.schema.window == (-4, 4)
    assert data.schema.spacing == (0.004,)
    truth = resampled(toy_ecg(4.0, 500, 60), 250).values[:, 500:]
    np.testing.assert_allclose(from_unit(item.image[0].numpy(), (-4, 4)), truth, atol=2e-3)


def test_flags_are_counted_once_a_record_and_short_ones_left_out(tmp_path):
    write_records(tmp_path, 3)
    signal = toy_ecg(4.0, 500)
    values = signal.values.copy()
    values[6] = 0
    values[7, 100:110] = np.nan
    values[8, 200:206] = 6
    write_wfdb(tmp_path / "bad.hea", replace(signal, values=values))
    write_wfdb(tmp_path / "short.hea", toy_ecg(1.0, 500))
    write_wfdb(tmp_path / "limbs.hea", replace(signal, values=signal.values[2:], leads=LEADS[2:]))
    data = EcgRecords(tmp_path, (500,))
    assert data.left_out == {"shorter than 500 samples at 250 Hz": 1}
    for index in range(len(data)):
        data[index]
    assert data.flags["flat lead"] == 1
    assert data.flags["sample interpolated"] == 10
    assert data.flags["missing samples"] == 1
    assert data.flags["sample beyond 4 mV"] > 0
    assert data.flags["lead derived"] == 2
    with pytest.raises(DataError, match="every record is shorter than 5000 samples"):
        EcgRecords(tmp_path, (5000,))


def test_a_table_gives_patients_and_splits(tmp_path):
    write_records(tmp_path, 4)
    rows = [(f"g1/R{k:03d}", f"p{k // 2}", ["train", "test"][k // 2]) for k in range(4)]
    write_table(tmp_path / "table.csv", ("record", "patient", "split"), rows)
    data = EcgRecords(tmp_path, (1000,))
    assert [(s.patient, s.split) for s in data.studies] == [row[1:] for row in rows]
    write_table(
        tmp_path / "table.csv", ("record", "patient", "split"), [(*rows[0][:2], "test"), *rows[1:]]
    )
    with pytest.raises(LeakageError, match="p0"):
        EcgRecords(tmp_path, (1000,))
    write_table(tmp_path / "table.csv", ("record", "patient", "split"), rows[:3])
    with pytest.raises(DataError, match="has no row of 1 record"):
        EcgRecords(tmp_path, (1000,))


def test_records_refuse_what_they_do_not_know(tmp_path):
    with pytest.raises(DataError, match="holds no WFDB record"):
        EcgRecords(tmp_path, (500,))
    write_records(tmp_path, 3)
    with pytest.raises(DataError, match="expected names of sinus_rhythm"):
        EcgRecords(tmp_path, (500,), findings=("sinus",))
    with pytest.raises(DataError, match="scalars of age, sex, heart_rate"):
        EcgRecords(tmp_path, (500,), scalars=("weight",))


def write_table(path, columns, rows):
    with path.open("w") as file:
        writer = csv.writer(file)
        writer.writerows([columns, *rows])


def write_pairs(folder, offsets, *, seconds=2.0, frames=40, fps=20):
    folder.mkdir(exist_ok=True)
    rows = []
    for k, offset in enumerate(offsets):
        write_clip(folder / f"clip{k}.avi", Clip(toy_frames(frames, 20, 34), fps))
        write_csv(folder / f"ecg{k}.csv", toy_ecg(seconds, 500, first=0.3))
        rows.append((f"clip{k}.avi", f"ecg{k}.csv", offset, f"p{k}", "train", 50 + k))
    columns = ("clip", "ecg", "offset", "patient", "split", "ejection_fraction")
    write_table(folder / "table.csv", columns, rows)
    return folder


@pytest.mark.parametrize("offset", [0.0, 0.5, -0.45])
def test_clip_and_ecg_are_of_the_same_seconds(tmp_path, offset):
    write_pairs(tmp_path / "pairs", [offset])
    settings = {"size": [20, 20, 34], "path": "pairs", "rate": 20.0, "leads": ["II", "V1"]}
    data = registry.build(
        "data", "echo_ecg", settings | {"scalars": ["ejection_fraction"]}, root=tmp_path
    )
    item = data[0]
    assert item.image.shape == (1, 1, 20, 20, 34)
    assert item.ecg.shape == (1, 2, 250)
    assert item.scalar.tolist() == [[50]]
    start = max(0, round(-offset * 20))  # the first frame of the clip that the ECG covers
    shown = ((item.image[0, 0] + 1) * 127.5).round().numpy()
    np.testing.assert_array_equal(shown, toy_frames(40, 20, 34)[start : start + 20])
    first = offset + start / 20
    beat = int(item.ecg[0, 0].argmax()) / 250
    assert min(abs(beat + first - known) for known in (0.3, 1.1, 1.9)) < 0.005


def test_pairs_that_do_not_overlap_are_refused_together(tmp_path):
    folder = write_pairs(tmp_path / "pairs", [0.0, 1.5, 9.0, -3.0])
    with pytest.raises(DataError) as error:
        EchoEcg(folder, (20, 20, 34), rate=20.0, leads=("II",))
    text = str(error.value)
    assert "row 1" not in text
    assert "row 2: the clip lasts 2.00 s from 1.5 s of the ECG, the ECG 2.00 s" in text
    assert "row 3" in text
    assert "row 4" in text
    assert "takes 1.00 s of both" in text


def test_flags_of_pairs_are_counted(tmp_path):
    folder = write_pairs(tmp_path / "pairs", [0.0, 0.0])
    data = EchoEcg(folder, (20, 20, 34), rate=20.0, leads=("II", "aVR"))
    assert data.flags == {}
    signal = toy_ecg(2.0, 500)
    write_csv(folder / "ecg0.csv", replace(signal, values=signal.values[:2], leads=("I", "II")))
    data = EchoEcg(folder, (20, 20, 34), rate=20.0, leads=("II", "aVR"))
    assert data.flags == {"lead derived": 1}


@pytest.mark.real
def test_the_real_records_are_a_dataset():
    root = os.environ.get("MEDGEN_DATA")
    if not root or not (Path(root) / "ecg-12lead").is_dir():
        pytest.skip("MEDGEN_DATA names no folder with ecg-12lead")
    data = EcgRecords(
        Path(root), (2500,), path="ecg-12lead", findings=("sinus_rhythm", "sinus_tachycardia")
    )
    assert len({study.patient for study in data.studies}) == 52
    held = [data[index] for index in range(len(data))]
    assert all(item.image.abs().max() <= 1 for item in held)
    assert (data.labels == 1).any(dim=0).all()
    assert (data.labels == -1).any()
    assert data.flags["flat lead"] == 4
    ages = data.scalars[:, 0].nan_to_num(50)
    assert 18 < ages.min() < ages.max() < 100
