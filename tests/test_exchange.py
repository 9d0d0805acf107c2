"""What leaves for other tools: flagged synthetic, train-only, and without a trace of patients."""

import json
import shutil

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from conftest import TINY
from PIL import Image
from toy_studies import discs

from medgen.cli.main import cli
from medgen.data.exchange import verify_nnunet, write_dicom, write_nnunet
from medgen.data.splits import by_split
from medgen.errors import DataError, OutputError
from medgen.pipeline import Run
from medgen.recipe import load_recipe

REAL = discs(60, per_patient=2)
DRAWN = discs(7, seed=1, synthetic=True)
CANARY = "CANARY"


def test_dicom_files_say_that_they_are_synthetic(tmp_path, digests):
    out = write_dicom(DRAWN, tmp_path / "dicom")
    files = sorted(out.iterdir())
    assert len(files) == 7
    read = [pydicom.dcmread(file) for file in files]
    for index, (file, study) in enumerate(zip(read, DRAWN.studies, strict=True)):
        assert file.SyntheticData == "YES"
        assert list(file.ImageType) == ["DERIVED", "SECONDARY"]
        assert file.PatientID == study.id
        assert str(file.PatientName).startswith("SYNTHETIC")
        assert file.Modality == "OT"
        pixels = (DRAWN.batch.image[index, 0].numpy() + 1) * 127.5
        assert np.array_equal(file.pixel_array, np.rint(pixels))
    assert len({file.SOPInstanceUID for file in read}) == 7
    assert len({file.StudyInstanceUID for file in read}) == 7
    assert digests(write_dicom(DRAWN, tmp_path / "again")) == digests(out)


def test_only_synthetic_studies_leave_as_dicom(tmp_path):
    with pytest.raises(DataError, match="no synthetic provenance"):
        write_dicom(REAL, tmp_path / "dicom")
    assert not list(tmp_path.iterdir())
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "file").touch()
    with pytest.raises(OutputError, match="is not an empty folder"):
        write_dicom(DRAWN, tmp_path / "held")


def test_nnunet_validates_on_real_studies_alone(tmp_path):
    train, test = by_split(REAL, "train"), by_split(REAL, "test")
    out = write_nnunet(train, test, DRAWN, tmp_path / "Dataset501_Discs")
    about = json.loads((out / "dataset.json").read_text())
    assert about["labels"] == {"background": 0, "disc": 1}
    assert about["numTraining"] == len(train) + 7 == len(list((out / "labelsTr").iterdir()))
    assert len(list((out / "imagesTs").iterdir())) == len(test)
    mask = np.array(Image.open(out / "labelsTr" / "real_00000.png"))
    assert np.array_equal(mask, train[0].mask[0].numpy())
    assert (out / "imagesTr" / "synthetic_00006_0000.png").is_file()
    splits = json.loads((out / "splits_final.json").read_text())
    patient = {f"real_{i:05d}": study.patient for i, study in enumerate(train.studies)}
    seen: list[str] = []
    for split in splits:
        assert sum(name.startswith("synthetic") for name in split["train"]) == 7
        assert {name.partition("_")[0] for name in split["val"]} == {"real"}
        assert not {patient[n] for n in split["val"]} & {patient.get(n) for n in split["train"]}
        seen += split["val"]
    assert sorted(seen) == sorted(patient)


def synthetic_validates(folds):
    folds[1]["val"].append("synthetic_00003")
    folds[1]["train"].remove("synthetic_00003")


def synthetic_is_missing(folds):
    folds[4]["train"].remove("synthetic_00000")


def both_sides(folds):
    folds[0]["train"].append(folds[0]["val"][0])


def never_validated(folds):
    folds[2]["train"].append(folds[2]["val"].pop())


def unknown_case(folds):
    folds[3]["val"].append("real_99999")


@pytest.mark.parametrize(
    ("plant", "says"),
    [
        (synthetic_validates, r"fold 1 has 1 synthetic cases in validation \(synthetic_00003\)"),
        (synthetic_is_missing, "fold 4 has 1 synthetic cases left out of training"),
        (both_sides, "fold 0 has 1 cases in training and validation"),
        (never_validated, "1 real cases not validated exactly once"),
        (unknown_case, r"fold 3 has 1 cases without a label \(real_99999\)"),
        (lambda folds: folds.clear(), "not validated exactly once"),
        (lambda folds: folds[0].pop("val"), "cannot be read as nnU-Net's splits"),
    ],
)
def test_faults_planted_in_nnunet_splits_are_found(plant, says, tmp_path):
    out = write_nnunet(by_split(REAL, "train"), by_split(REAL, "test"), DRAWN, tmp_path / "a")
    verify_nnunet(out)
    path = out / "splits_final.json"
    folds = json.loads(path.read_text())
    plant(folds)
    path.write_text(json.dumps(folds))
    with pytest.raises(DataError, match=says):
        verify_nnunet(out)


def test_nnunet_refuses_what_does_not_fit(tmp_path):
    train, test = by_split(REAL, "train"), by_split(REAL, "test")
    with pytest.raises(DataError, match="masks of the same classes"):
        write_nnunet(train, test, discs(3, synthetic=True, masks=False), tmp_path / "a")
    with pytest.raises(DataError, match="stands among the real ones"):
        write_nnunet(DRAWN, test, DRAWN, tmp_path / "b")
    with pytest.raises(DataError, match="5 folds need as many patients"):
        write_nnunet(by_split(discs(4), "train"), test, DRAWN, tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_no_trace_of_a_patient_leaves(simulated_folder, tmp_path):
    """Canaries in every field of the input stand in no byte of checkpoint, samples or exports."""
    folder = tmp_path / f"{CANARY}-folder"
    shutil.copytree(simulated_folder, folder)
    header, *rows = (folder / "table.csv").read_text().splitlines()
    at = {name: place for place, name in enumerate(header.split(","))}
    marked = [f"{header},report"]
    for number, row in enumerate(rows):
        cells = row.split(",")
        for kind in ("image", "mask"):
            old = folder / cells[at[kind]]
            cells[at[kind]] = f"{kind}s/{CANARY}-{number}.png"
            old.rename(folder / cells[at[kind]])
        cells[at["patient"]] = f"{CANARY}-{cells[at['patient']]}"
        marked.append(",".join([*cells, f"{CANARY} report"]))
    (folder / "table.csv").write_text("\n".join(marked) + "\n")
    asked = "findings: [cardiomegaly, effusion], reading: {text: true}"
    data = f"data={{type: folder, size: [32, 32], {asked}}}"
    run = tmp_path / "run"
    job = Run(load_recipe("cxr/quickstart", [*TINY[2:], data]), run, data_root=folder, device="cpu")
    job.train()
    drawn = job.synthesize()
    done = CliRunner().invoke(
        cli, ["export", str(drawn), "--to", "dicom", "--out", str(run / "dicom")]
    )
    assert done.exit_code == 0, done.output
    for file in [run / "model.safetensors", *drawn.rglob("*"), *(run / "dicom").rglob("*")]:
        assert CANARY not in str(file.relative_to(run))
        if file.is_file():
            assert CANARY.encode() not in file.read_bytes(), file
