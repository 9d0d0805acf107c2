"""Checks of folders of clips and ECGs name every fault, and say what stands there."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from test_camus_reader import write_camus
from test_clips import encoded
from test_echonet_reader import write_echonet
from toy_clips import toy_frames
from toy_signals import toy_ecg

from medgen.cli.data import data
from medgen.data.check_timed import check_timed
from medgen.data.clip_export import write_clip
from medgen.data.clips import Clip, read_clip
from medgen.data.layouts import layout_of, open_layout
from medgen.data.signal_export import write_csv, write_wfdb
from medgen.errors import MedgenError

COLUMNS = ("clip", "ecg", "offset", "patient", "split", "ejection_fraction")


def invoke(*arguments):
    return CliRunner().invoke(data, [str(each) for each in arguments])


def write_pairs(folder, count=4, *, seconds=3.0, **changes):
    """Pairs of a clip of 1.5 s and an ECG, one a patient; one in each split, and one more."""
    splits = ["train", "validation", "test", "train"]
    rows = []
    for k in range(count):
        frames = np.roll(toy_frames(12, 20, 34), k, axis=2)
        write_clip(folder / f"{k}.avi", Clip(frames, 8))
        write_csv(folder / f"{k}.csv", toy_ecg(seconds, beats=70 + 20 * k))
        row = (f"{k}.avi", f"{k}.csv", 0.5, f"p{k}", splits[k % 4], 30 + 10 * k)
        rows.append(dict(zip(COLUMNS, row, strict=True)) | changes)
    write_table(folder, rows)
    return folder


def write_table(folder, rows):
    with (folder / "table.csv").open("w") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def problems(folder):
    return "\n".join(check_timed(folder, layout_of(folder)).problems)


def test_pairs_are_told_whole(tmp_path):
    report = check_timed(write_pairs(tmp_path), "echo_ecg")
    assert report.problems == report.notes == []
    assert (report.studies, report.clips, report.ecgs, report.patients) == (4, 4, 4, 4)
    assert report.splits == {"train": 2, "validation": 1, "test": 1}
    assert report.counts["frames a second"] == {"8": 4}
    assert report.counts["frame size"] == {"20 x 34": 4}
    assert report.counts["leads"] == {"12 standard": 4}
    assert report.counts["samples a second"] == {"250": 4}
    assert report.counts["rhythm"] == {"60 to 100 bpm": 2, "above 100 bpm": 2}
    assert report.counts["ejection fraction"] == {
        "below 40 %": 1,
        "40 to 50 %": 1,
        "50 % and above": 2,
    }
    assert report.ranges["frames"] == (12, 12, 12)
    assert report.ranges["seconds of both"] == (1.5, 1.5, 1.5)
    assert "quality" not in report.counts


def test_echonet_camus_and_records_are_known_by_their_files(tmp_path):
    assert layout_of(write_echonet(tmp_path / "echonet")) == "echonet"
    report = check_timed(tmp_path / "echonet", "echonet")
    assert report.splits == {"train": 2, "validation": 1, "test": 1}
    assert report.counts["frames a second"] == {"25": 4}
    # The made-up videos are all the same, under four names.
    assert [p[:31] for p in report.problems] == ["equal files in two splits: 0X00"]
    write_camus(tmp_path / "camus")
    assert layout_of(tmp_path / "camus") == "camus"
    report = check_timed(tmp_path / "camus", "camus")
    assert report.clips == report.studies > 0
    assert set(report.counts["findings"]) <= {"apical_two_chamber", "apical_four_chamber"}
    assert report.counts["mm between pixels"] == {"known": report.clips}
    (tmp_path / "wfdb").mkdir()
    signal = replace(toy_ecg(), about={"Dx": "426783006, 999", "Age": "60"})
    write_wfdb(tmp_path / "wfdb" / "a.hea", signal)
    assert layout_of(tmp_path / "wfdb") == "wfdb"
    report = check_timed(tmp_path / "wfdb", "wfdb")
    assert report.counts["findings"] == {"sinus_rhythm": 1, "999": 1}
    assert any("no study is in" in note for note in report.notes)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "table.csv").write_text("image,patient\n1.png,a\n")
    assert layout_of(tmp_path / "images") is None


def test_files_that_a_reader_refuses_are_named(tmp_path):
    write_pairs(tmp_path)
    (tmp_path / "0.avi").write_bytes((tmp_path / "0.avi").read_bytes()[:900])
    (tmp_path / "1.csv").unlink()
    write_csv(tmp_path / "2.csv", toy_ecg(3.0, leads=("I", "II", "V1")))
    raw = toy_ecg(3.0)
    write_csv(tmp_path / "3.csv", replace(raw, values=raw.values * 1000))  # uV, said to be mV
    report = check_timed(tmp_path, "echo_ecg")
    assert sorted(report.unreadable) == ["0", "1", "2", "3"]
    assert "0.avi" in report.unreadable["0"]
    assert "1.csv" in report.unreadable["1"]
    assert "lead(s) V2, V3, V4, V5, V6 are missing" in report.unreadable["2"]
    assert "look like another unit" in report.unreadable["3"]
    assert len(report.problems) == 4


def test_pairs_that_do_not_overlap_and_long_gaps_are_problems(tmp_path):
    (tmp_path / "a").mkdir()
    write_pairs(tmp_path / "a", offset=9)
    assert problems(tmp_path / "a").count("clip and ECG do not overlap") == 4
    (tmp_path / "b").mkdir()
    write_pairs(tmp_path / "b", count=1)
    gone = toy_ecg(3.0)
    gone.values[1, 100:200] = np.nan
    write_csv(tmp_path / "b" / "0.csv", gone)
    assert "lead II lacks 0.40 s in a row" in problems(tmp_path / "b")


def test_flat_clipped_and_gappy_leads_and_clips_without_motion_are_counted(tmp_path):
    write_pairs(tmp_path)
    flat, cut, gap = (toy_ecg(3.0, beats=72 + k) for k in range(3))
    flat.values[7] = 0.1
    cut.values[8] = np.clip(cut.values[8], None, 0.6 * cut.values[8].max())
    gap.values[6, 50:55] = np.nan
    for k, signal in enumerate((flat, cut, gap)):
        write_csv(tmp_path / f"{k}.csv", signal)
    write_clip(tmp_path / "3.avi", Clip(np.repeat(toy_frames(1, 20, 34), 12, axis=0), 8))
    found = check_timed(tmp_path, "echo_ecg").counts["quality"]
    assert found["flat lead"] == found["clipped lead"] == found["short gap interpolated"] == 1
    assert found["clip without motion"] == 1


def test_colour_and_uneven_times_are_refused_by_name(tmp_path):
    write_pairs(tmp_path, count=2)
    colour = np.repeat(toy_frames()[..., None], 3, axis=-1)
    colour[4:9, 5:10, 5:10] = (255, 0, 0)
    encoded(tmp_path / "0.mkv", colour)
    times = [0, 1, 2, 3, 4, 9, 10, 11, 12, 13, 14, 15]
    encoded(tmp_path / "1.mkv", toy_frames(), form="gray", times=times, rate=8)
    table = tmp_path / "table.csv"
    table.write_text(table.read_text().replace(".avi", ".mkv"))
    said = problems(tmp_path)
    assert "in colour, as of colour Doppler" in said
    assert "expected one frame rate" in said


def test_patients_in_two_splits_and_copies_are_problems(tmp_path):
    write_pairs(tmp_path, patient="one")
    assert "patient 'one' stands in test and train and validation" in problems(tmp_path)
    shutil.copy(tmp_path / "0.avi", tmp_path / "1.avi")
    assert "equal files in two splits: 0, 1" in problems(tmp_path)


def test_an_unreadable_list_is_one_problem(tmp_path):
    write_echonet(tmp_path)
    text = (tmp_path / "FileList.csv").read_text()
    (tmp_path / "FileList.csv").write_text(text.replace("Split", "Part"))
    assert "no column 'Split'" in problems(tmp_path)
    (tmp_path / "FileList.csv").write_text(text.replace("34", "36"))
    assert problems(tmp_path).count("its columns may be swapped") == 4


def test_check_says_it_in_words_and_json(tmp_path):
    write_pairs(tmp_path)
    done = invoke("check", tmp_path)
    assert done.exit_code == 0, done.output
    assert "0 problem(s)" in done.output
    assert json.loads(invoke("check", tmp_path, "--json").stdout)["layout"] == "echo_ecg"
    (tmp_path / "2.avi").unlink()
    done = invoke("check", tmp_path)
    assert done.exit_code == 1
    assert "PROBLEM: 2: " in done.output
    done = invoke("check", tmp_path, "--findings", "x")
    assert done.exit_code == 2
    assert "go with images" in done.output


def test_show_draws_strips_and_loops(tmp_path):
    write_pairs(tmp_path)
    sheet, loops = tmp_path / "sheet.png", tmp_path / "loops.gif"
    done = invoke("show", tmp_path, "--out", sheet, "--gif", loops, "--size", "32")
    assert done.exit_code == 0, done.output
    assert f"{loops}: 4 clips" in done.output
    assert Image.open(sheet).size[0] > 6 * 32
    clip = read_clip(loops, colour="grey")
    assert (len(clip.frames), round(clip.rate)) == (12, 8)
    assert invoke("show", tmp_path, "--out", sheet, "--gif", "x.png").exit_code == 2


def test_show_opens_every_layout(tmp_path):
    write_echonet(tmp_path / "echonet")
    assert open_layout(tmp_path / "echonet", "echonet", 24).schema.size == (24, 24, 24)
    write_camus(tmp_path / "camus")
    assert open_layout(tmp_path / "camus", "camus", 24)[0].image.shape[-2:] == (24, 24)
    (tmp_path / "wfdb").mkdir()
    write_wfdb(tmp_path / "wfdb" / "a.hea", toy_ecg())
    records = open_layout(tmp_path / "wfdb", "wfdb", 24)
    assert records[0].image.shape == (1, 12, 1000)
    done = invoke("show", tmp_path / "wfdb", "--out", tmp_path / "ecg.png", "--gif", "x.gif")
    assert isinstance(done.exception, MedgenError)
    assert "--gif plays clips" in str(done.exception)
    assert (tmp_path / "ecg.png").is_file()
    (tmp_path / "echonet" / "FileList.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MedgenError, match="Save the table as UTF-8"):
        open_layout(tmp_path / "echonet", "echonet", 24)
