"""What leaves for other tools: flagged synthetic, train-only, and without a trace of patients."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from conftest import TINY
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from toy_studies import discs

from medgen.cli.main import cli
from medgen.data.exchange import verify_nnunet, write_dicom, write_nnunet
from medgen.data.folder import Folder
from medgen.data.splits import Subset, by_split
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


def test_every_dicom_attribute_is_made_here(tmp_path):
    """The attributes are a fixed list: none can come from a source header."""
    file = pydicom.dcmread(next(write_dicom(DRAWN, tmp_path / "dicom").iterdir()))
    assert {element.keyword for element in file} == {
        *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"),
        *("SyntheticData", "ImageType", "DerivationDescription", "ContributingEquipmentSequence"),
        *("ConversionType", "Modality", "PatientName", "PatientID", "PatientBirthDate"),
        *("PatientSex", "StudyDate", "StudyTime", "StudyID", "ReferringPhysicianName"),
        *("AccessionNumber", "SeriesNumber", "InstanceNumber", "SamplesPerPixel"),
        *("PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored"),
        *("HighBit", "PixelRepresentation", "BurnedInAnnotation", "PixelData"),
    }
    blank = ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID")
    assert not any(file[name].value for name in (*blank, "AccessionNumber"))
    assert file.StudyInstanceUID.startswith("2.25.")


def marked_png(image, file):
    about = PngInfo()
    for key in ("Comment", CANARY):
        about.add_text(key, f"{CANARY} name", zip=key == CANARY)
    image.save(file, pnginfo=about)


def marked_jpeg(image, file):
    exif = Image.Exif()
    exif[0x010E] = exif[0x013B] = f"{CANARY} description and artist"
    image.save(file, exif=exif, comment=f"{CANARY} comment".encode())


def marked_dicom(image, file):
    source = write_dicom(discs(1, synthetic=True), file.with_suffix(""))
    header = pydicom.dcmread(next(source.iterdir()))
    shutil.rmtree(source)
    header.Rows, header.Columns, header.PixelData = *image.size[::-1], image.tobytes()
    for name in ("PatientName", "PatientID", "StudyID", "AccessionNumber", "StudyDescription"):
        setattr(header, name, CANARY)
    header.add_new((0x0011, 0x0010), "LO", f"{CANARY} creator")
    header.add_new((0x0011, 0x1001), "LT", f"{CANARY} private")
    header.save_as(file)


WRITERS = {".png": marked_png, ".jpg": marked_jpeg, ".dcm": marked_dicom}


@pytest.fixture
def marked_folder(simulated_folder, tmp_path):
    """Studies with canaries in names of files, columns and folder, in cells and in headers."""
    folder = tmp_path / f"{CANARY}-folder"
    shutil.copytree(simulated_folder, folder)
    header, *rows = (folder / "table.csv").read_text().splitlines()
    at = {name: place for place, name in enumerate(header.split(","))}
    marked = [f"{header},age,{CANARY} ward"]
    for number, row in enumerate(rows):
        cells = next(csv.reader([row]))
        for kind, suffix in (("image", list(WRITERS)[number % 3]), ("mask", ".png")):
            old = folder / cells[at[kind]]
            cells[at[kind]] = f"{kind}s/{CANARY}-{number}{suffix}"
            WRITERS[suffix](Image.open(old), folder / cells[at[kind]])
            old.unlink()
        cells[at["patient"]] = f"{CANARY}-{cells[at['patient']]}"
        cells[at["report"]] = f"{CANARY} report"
        marked.append(",".join([*cells, f"{40 + number}", f"{CANARY} ward"]))
    (folder / "table.csv").write_text("\n".join(marked) + "\n")
    for suffix in WRITERS:
        file = next((folder / "images").glob(f"*{suffix}"))
        assert CANARY.encode() in file.read_bytes()
    return folder


def check_for_canaries(root, files):
    """No canary in the name or the bytes of a file."""
    assert files
    for file in files:
        assert CANARY not in str(file.relative_to(root))
        if file.is_file():
            assert CANARY.encode() not in file.read_bytes(), file


def test_no_trace_of_a_patient_leaves(marked_folder, tmp_path):
    """Canaries in every field of the input stand in no byte of checkpoint, samples or exports."""
    asked = "findings: [cardiomegaly, effusion], scalars: [age], reading: {text: true}"
    data = f"data={{type: folder, size: [32, 32], {asked}}}"
    run = tmp_path / "run"
    recipe = load_recipe("cxr/quickstart", [*TINY[2:], data])
    job = Run(recipe, run, data_root=marked_folder, device="cpu")
    job.train()
    drawn = job.synthesize()
    done = CliRunner().invoke(
        cli, ["export", str(drawn), "--to", "dicom", "--out", str(run / "dicom")]
    )
    assert done.exit_code == 0, done.output
    files = [run / "model.safetensors", *drawn.rglob("*"), *(run / "dicom").rglob("*")]
    check_for_canaries(run, files)


def test_no_name_of_a_patient_reaches_nnunet(marked_folder, tmp_path):
    classes = ("background", "lung", "heart")
    real = Folder(marked_folder, (32, 32), mask_classes=classes)
    drawn = discs(3, synthetic=True)
    drawn.schema = replace(drawn.schema, mask_classes=classes)
    train = Subset(real, [i for i, study in enumerate(real.studies) if study.split != "test"])
    out = write_nnunet(train, by_split(real, "test"), drawn, tmp_path / "Dataset502_Lungs")
    check_for_canaries(out, list(out.rglob("*")))
