"""Clips and ECGs in other tools' formats: what is written is what a reader finds."""

from dataclasses import replace

import numpy as np
import pydicom
import pytest
import torch
from click.testing import CliRunner
from toy_hearts import beating
from toy_studies import Studies

from medgen.cli.data import data
from medgen.data.clips import read_clip
from medgen.data.ecg_records import EcgRecords
from medgen.data.echo_ecg import EchoEcg
from medgen.data.echonet import EchoNet
from medgen.data.signal_files import read_signal
from medgen.data.simulated_ecg import SimulatedEcg
from medgen.data.simulated_echo import SimulatedEcho
from medgen.data.splits import load
from medgen.data.table import read_table
from medgen.data.timed import read_timed_mask
from medgen.data.timed_exchange import (
    chords_of,
    write_echonet,
    write_mp4,
    write_pairs,
    write_records,
    write_timed_dicom,
)
from medgen.errors import DataError, OutputError
from medgen.types import Provenance


@pytest.fixture(scope="module")
def clips():
    return beating(3, synthetic=True)


@pytest.fixture(scope="module")
def ecgs():
    return SimulatedEcg(count=6, size=(500,), rate=250)


def drawn(dataset):
    """The same studies, as if a generator had drawn them."""
    batch = load(dataset)
    origin = tuple(
        Provenance(study.id, synthetic=True, source="sha256:ab", seed=7)
        for study in dataset.studies
    )
    studies = [replace(study, split="train") for study in dataset.studies]
    return Studies(dataset.schema, studies, replace(batch, provenance=origin))


def grey(image):
    return ((image + 1) * 127.5).round()


def test_echonet_reads_back_with_volumes_frames_and_masks(clips, tmp_path):
    write_echonet(clips, tmp_path / "echonet")
    back = EchoNet(tmp_path / "echonet", (24, 24, 24), rate=16, masks=True)
    assert [study.id for study in back.studies] == [study.id for study in clips.studies]
    assert {study.split for study in back.studies} == {"train"}
    for index in range(len(clips)):
        mine, other = clips[index], back[index]
        torch.testing.assert_close(grey(mine.image), grey(other.image), atol=1, rtol=0)
        assert other.scalar[0, 0] == pytest.approx(float(mine.scalar[0, 0]), rel=1e-4)
        assert torch.isnan(other.scalar[0, 1:3]).all()  # no volumes are known, none are made up
        full, empty = (int(value) for value in other.scalar[0, 3:])
        areas = mine.mask[0].flatten(1).sum(1)
        assert areas[full] == areas.max()
        assert areas[empty] == areas.min()
        for frame in (full, empty):
            a, b = mine.mask[0, frame] == 1, other.mask[0, frame] == 1
            assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.9


def test_chords_enclose_the_mask_that_they_were_made_of():
    rows, columns = np.mgrid[:60, :80]
    u, v = (columns - 40 + rows - 30) / 2**0.5, (columns - 40 - rows + 30) / 2**0.5
    chords = chords_of((u / 26) ** 2 + (v / 12) ** 2 < 1)
    lengths = np.hypot(chords[:, 2] - chords[:, 0], chords[:, 3] - chords[:, 1])
    assert lengths[0] == pytest.approx(52, abs=1.5)
    assert lengths[1:].max() == pytest.approx(24, abs=1.5)
    along = (chords[0, 2:] - chords[0, :2]) / lengths[0]
    assert np.abs(along) == pytest.approx(np.full(2, 2**-0.5), abs=0.03)


def test_a_mask_in_two_pieces_is_no_tracing(clips, tmp_path):
    mask = torch.zeros_like(clips.batch.mask)
    mask[..., 4:20, 2:7] = mask[..., 4:20, 15:22] = 1
    torn = Studies(clips.schema, clips.studies, replace(clips.batch, mask=mask))
    with pytest.raises(OutputError, match="several pieces: reject such samples"):
        write_echonet(torn, tmp_path / "echonet")
    assert not (tmp_path / "echonet").exists()


def test_mp4_comes_with_a_table(clips, tmp_path):
    write_mp4(clips, tmp_path / "mp4")
    table = read_table(tmp_path / "mp4" / "labels.csv")
    assert table.columns[:3] == ("clip", "patient", "split")
    for row, index in zip(table.rows, range(3), strict=True):
        back = read_clip(tmp_path / "mp4" / row["clip"])
        assert back.rate == 16
        wanted = grey(clips[index].image[0, 0]).numpy()
        assert np.abs(back.frames - wanted).mean() < 4
        assert float(row["ejection_fraction"]) == pytest.approx(
            float(clips[index].scalar[0, 0]), rel=1e-4
        )


def test_pairs_read_back_with_their_ecg(clips, tmp_path):
    write_pairs(clips, tmp_path / "pairs")
    back = EchoEcg(
        tmp_path / "pairs", (24, 24, 24), rate=16, scalars=("ejection_fraction", "heart_rate")
    )
    assert len(back) == 3
    for index in range(3):
        torch.testing.assert_close(back[index].ecg, clips[index].ecg, atol=6e-4, rtol=0)
        torch.testing.assert_close(
            grey(back[index].image), grey(clips[index].image), atol=1, rtol=0
        )


def test_records_read_back_with_diagnoses_people_and_splits(ecgs, tmp_path):
    write_records(ecgs, tmp_path / "wfdb")
    back = EcgRecords(tmp_path / "wfdb", (500,), rate=250, limit=3.0, findings=ecgs.schema.findings)
    assert [(s.id, s.patient, s.split) for s in back.studies] == [
        (s.id, s.patient, s.split) for s in ecgs.studies
    ]
    for index in range(len(ecgs)):
        mine, other = ecgs[index], back[index]
        torch.testing.assert_close(other.image, mine.image, atol=4e-4, rtol=0)
        assert other.label.tolist() == mine.label.tolist()
        names = ecgs.schema.scalars
        wanted = [mine.scalar[0, names.index(name)] for name in ("age", "sex")]
        torch.testing.assert_close(other.scalar[0], torch.stack(wanted), rtol=1e-4, atol=0)
    assert "Synthetic" not in (tmp_path / "wfdb" / f"{ecgs.studies[0].id}.hea").read_text()
    write_records(drawn(ecgs), tmp_path / "drawn")
    text = (tmp_path / "drawn" / f"{ecgs.studies[0].id}.hea").read_text()
    assert "Synthetic: drawn by sha256:ab, seed 7" in text


def test_dicom_says_that_it_is_synthetic_and_holds_no_one_elses_ecg(clips, ecgs, tmp_path):
    write_timed_dicom(clips, tmp_path / "echo")
    files = sorted((tmp_path / "echo").iterdir())
    assert [file.stem for file in files] == [study.id for study in clips.studies]
    header = pydicom.dcmread(files[0])
    assert header.SyntheticData == "YES"
    assert header.Modality == "US"
    assert "WaveformSequence" not in header
    back = read_clip(files[0])
    np.testing.assert_allclose(back.frames, grey(clips[0].image[0, 0]).numpy(), atol=1)
    assert (back.rate, back.spacing) == (16, (1.0, 1.0))

    write_timed_dicom(drawn(ecgs), tmp_path / "ecg")
    file = tmp_path / "ecg" / f"{ecgs.studies[2].id}.dcm"
    assert pydicom.dcmread(file).SyntheticData == "YES"
    signal = read_signal(file)
    np.testing.assert_allclose(signal.values, ecgs[2].image[0].numpy() * 3, atol=6e-4)


def test_what_a_format_cannot_hold_is_refused(clips, ecgs, tmp_path):
    for write in (write_echonet, write_mp4, write_pairs):
        with pytest.raises(DataError, match="takes clips of one channel and a known rate"):
            write(ecgs, tmp_path / "out")
    with pytest.raises(DataError, match="WFDB takes ECGs whose leads are named"):
        write_records(clips, tmp_path / "out")
    with pytest.raises(DataError, match="has no synthetic provenance"):
        write_timed_dicom(ecgs, tmp_path / "out")
    odd = Studies(replace(clips.schema, size=(24, 23, 24)), clips.studies, clips.batch)
    with pytest.raises(DataError, match="even heights and widths, got 23 x 24"):
        write_mp4(odd, tmp_path / "out")
    named = Studies(replace(ecgs.schema, findings=("sad",)), ecgs.studies, load(ecgs))
    with pytest.raises(DataError, match="no SNOMED CT code is known for sad"):
        write_records(named, tmp_path / "out")
    silent = Studies(clips.schema, clips.studies, replace(clips.batch, ecg=None))
    with pytest.raises(DataError, match="takes clips with an ECG"):
        write_pairs(silent, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_simulated_studies_are_what_the_readers_read(tmp_path):
    def simulate(*arguments):
        return CliRunner().invoke(data, ["simulate", *arguments])

    out = str(tmp_path / "echo")
    done = simulate("--kind", "echo", "--out", out, "--count", "3", "--size", "32")
    assert done.exit_code == 0, done.output
    back = EchoEcg(tmp_path / "echo", (32, 32, 32), rate=16, scalars=("ejection_fraction",))
    truth = SimulatedEcho(count=3, size=(32, 32, 32))
    for index in range(3):
        torch.testing.assert_close(grey(back[index].image), grey(truth[index].image))
        torch.testing.assert_close(back[index].ecg, truth[index].ecg, atol=6e-4, rtol=0)
        mask = read_timed_mask(tmp_path / "echo" / "masks" / f"{truth.studies[index].id}.avi")
        torch.testing.assert_close(mask, truth[index].mask[0])
    done = simulate("--kind", "ecg", "--out", str(tmp_path / "e"), "--count", "3", "--seconds", "4")
    assert done.exit_code == 0, done.output
    assert len(EcgRecords(tmp_path / "e", (1000,), rate=250)) == 3
    for wrong in (("--kind", "ecg", "--size", "64"), ("--seconds", "3")):
        done = simulate("--out", str(tmp_path / "x"), *wrong)
        assert done.exit_code == 2
        assert "--seconds goes with echo and ecg" in done.output
