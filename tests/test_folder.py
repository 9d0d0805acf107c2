import csv
import importlib.util
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from medgen.data.files import write_png
from medgen.data.folder import Folder, Reading
from medgen.data.medmnist import MedMNIST
from medgen.data.splits import by_split, load
from medgen.errors import DataError, LeakageError
from medgen.registry import arguments, build

MASKS = ("background", "lung")


def write(folder, rows, *, name="table.csv", size=(16, 16), classes=2):
    """A folder of images whose pixels all hold 10 x row, and masks of stripes."""
    (folder / "images").mkdir(exist_ok=True)
    for i, row in enumerate(rows):
        path = folder / row["image"]
        if path.parent.name == "images" and not path.exists():
            write_png(path, np.full(size, 10 * i % 256, np.uint8))
        if row.get("mask"):
            write_png(folder / row["mask"], np.indices(size)[0] % classes)
    with open(folder / name, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def people(count, **columns):
    return [
        {
            "image": f"images/{i}.png",
            "patient": f"p{i // 2}",
            **{k: v[i] for k, v in columns.items()},
        }
        for i in range(count)
    ]


def test_images_are_scaled_and_remembered(tmp_path):
    folder = Folder(write(tmp_path, people(4)), (8, 8))
    batch = load(folder)
    assert batch.image.shape == (4, 1, 8, 8)
    assert batch.image.dtype == torch.float32
    assert torch.allclose(batch.image[:, 0, 3, 3], torch.arange(4) * 10 / 127.5 - 1)
    assert [p.id for p in batch.provenance] == ["0", "1", "2", "3"]
    assert not any(p.synthetic for p in batch.provenance)
    for file in (tmp_path / "images").iterdir():
        file.unlink()
    assert torch.equal(load(folder).image, batch.image)


def test_sixteen_bits_are_kept(tmp_path):
    rows = people(1)
    (tmp_path / "images").mkdir()
    write_png(tmp_path / "images/0.png", np.full((8, 8), 257 * 100 + 1, np.uint16), bits=16)
    image = Folder(write(tmp_path, rows), (8, 8))[0].image
    assert torch.allclose(image, torch.tensor((257 * 100 + 1) / 32767.5 - 1), atol=1e-6)


def test_one_column_of_classes_is_exclusive(tmp_path):
    folder = Folder(write(tmp_path, people(4, kind=["b", "a", "", "b"])), (8, 8), findings="kind")
    assert folder.schema.findings == ("a", "b")
    assert folder.schema.exclusive
    assert load(folder).label.tolist() == [[0, 1], [1, 0], [-1, -1], [0, 1]]
    assert torch.equal(folder.labels, load(folder).label)


def test_several_columns_are_multi_label_with_unknown(tmp_path):
    rows = people(4, a=["1", "0", "", "-1"], b=["1.0", "0.0", "-1.0", "True"])
    folder = Folder(write(tmp_path, rows), (8, 8), findings=("b", "a"))
    assert folder.schema.findings == ("b", "a")
    assert not folder.schema.exclusive
    assert load(folder).label.tolist() == [[1, 1], [0, 0], [-1, -1], [1, -1]]


def test_scalars_and_reports(tmp_path):
    rows = people(3, age=["3.5", "", "40"], report=["clear", "", "a, b"])
    reading = Reading(text=True)
    folder = Folder(write(tmp_path, rows), (8, 8), scalars=("age",), reading=reading)
    batch = load(folder)
    assert batch.scalar[[0, 2], 0].tolist() == [3.5, 40.0]
    assert bool(batch.scalar[1].isnan())
    assert batch.text == ("clear", "", "a, b")
    assert folder.schema.text


def test_masks_follow_and_studies_without_are_counted(tmp_path, caplog):
    rows = people(4, mask=["images/m0.png", "", "images/m2.png", "images/m3.png"])
    folder = Folder(write(tmp_path, rows), (16, 16), mask_classes=MASKS)
    assert folder.left_out == {"without a mask": 1}
    assert "1 of 4 rows left out: without a mask" in caplog.text
    assert [study.id for study in folder.studies] == ["0", "2", "3"]
    assert torch.equal(load(folder).mask[1], torch.from_numpy(np.indices((16, 16))[0] % 2))


def test_binary_masks_of_255(tmp_path):
    rows = people(1, mask=["images/m.png"])
    write(tmp_path, rows)
    stripes = np.indices((16, 16))[1] % 2
    write_png(tmp_path / "images/m.png", stripes * 255)
    assert torch.equal(
        Folder(tmp_path, (16, 16), mask_classes=MASKS)[0].mask[0], torch.from_numpy(stripes)
    )


def test_masks_with_unlisted_classes_name_file_and_values(tmp_path):
    write(tmp_path, people(1, mask=["images/m.png"]), classes=4)
    with pytest.raises(DataError, match=r"m\.png.*\[2, 3\].*0 background, 1 lung"):
        Folder(tmp_path, (8, 8), mask_classes=MASKS)[0]


def test_a_mask_of_another_size_is_refused(tmp_path):
    write(tmp_path, people(1, mask=["images/m.png"]))
    write_png(tmp_path / "images/m.png", np.zeros((8, 16)))
    with pytest.raises(DataError, match=r"m\.png.*\(8, 16\).*\(16, 16\)"):
        Folder(tmp_path, (8, 8), mask_classes=MASKS)[0]


def test_only_chooses_rows(tmp_path):
    rows = people(4, view=["PA", "AP", "PA", "AP"])
    folder = Folder(write(tmp_path, rows), (8, 8), only={"view": "PA"})
    assert [study.id for study in folder.studies] == ["0", "2"]
    assert folder.left_out == {"not chosen by `only`": 2}
    with pytest.raises(DataError, match=r"view = 'LL'.*AP, PA"):
        Folder(tmp_path, (8, 8), only={"view": "LL"})


def test_splits_by_patient_or_by_column(tmp_path):
    folder = Folder(write(tmp_path, people(20)), (8, 8))
    assert {s.split for s in folder.studies} == {"train", "validation", "test"}
    by_patient = {}
    for study in folder.studies:
        assert by_patient.setdefault(study.patient, study.split) == study.split
    other = Folder(tmp_path, (8, 8), reading=Reading(seed=1))
    assert [s.split for s in other.studies] != [s.split for s in folder.studies]
    rows = people(6, split=["train", "Training", "val", "valid", "test", "TEST"])
    folder = Folder(write(tmp_path, rows), (8, 8))
    assert len(by_split(folder, "validation")) == 2


def test_leakage_and_bad_splits_are_refused(tmp_path):
    write(tmp_path, people(4, split=["train", "test", "train", "train"]))
    with pytest.raises(LeakageError, match=r"p0 \(test, train\)"):
        Folder(tmp_path, (8, 8))
    write(tmp_path, people(2, split=["train", "holdout"]))
    with pytest.raises(DataError, match="row 2: split 'holdout'"):
        Folder(tmp_path, (8, 8))


def test_no_patient_column_is_said(tmp_path, caplog):
    rows = [{"image": f"images/{i}.png"} for i in range(3)]
    folder = Folder(write(tmp_path, rows), (8, 8))
    assert len({study.patient for study in folder.studies}) == 3
    assert "every image is its own patient" in caplog.text


def test_columns_may_have_other_names(tmp_path):
    rows = [{"file": f"images/{i}.png", "who": "ann", "image": "no"} for i in range(2)]
    write(tmp_path, [{"image": row["file"]} for row in rows])
    with open(tmp_path / "table.csv", "w") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    reading = Reading(columns={"image": "file", "patient": "who"})
    assert {s.patient for s in Folder(tmp_path, (8, 8), reading=reading).studies} == {"ann"}
    with pytest.raises(DataError, match="renames"):
        Reading(columns={"picture": "file"})


def test_json_semicolons_and_a_byte_order_mark(tmp_path):
    write(tmp_path, people(2, a=["1", "0"]))
    rows = [{"image": "images/0.png", "a": True}, {"image": "images/1.png", "a": None}]
    (tmp_path / "labels.json").write_text(json.dumps(rows))
    folder = Folder(tmp_path, (8, 8), table="labels.json", findings=("a",))
    assert load(folder).label.tolist() == [[1], [-1]]
    text = "\ufeffimage;patient;a\nimages/0.png;x;1\nimages/1.png;y;0\n"
    (tmp_path / "table.csv").write_text(text, encoding="utf-8")
    folder = Folder(tmp_path, (8, 8), table="table.csv", findings=("a",))
    assert load(folder).label.tolist() == [[1], [0]]


def test_same_names_in_two_folders_get_distinct_ids(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_png(tmp_path / name / "0.png", np.zeros((8, 8)))
    rows = [{"image": "a/0.png", "patient": "p"}, {"image": "b/0.png", "patient": "q"}]
    folder = Folder(write(tmp_path, rows), (8, 8))
    assert [study.id for study in folder.studies] == ["a/0.png", "b/0.png"]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([{"picture": "x"}], {}, r"no column 'image'.*columns are: picture"),
        (people(2, subtype=["a", "b"]), {"findings": "subtyp"}, r"Did you mean 'subtype'\?"),
        (people(2), {"findings": ("edema",)}, r"no column 'edema' \(a finding\)"),
        (people(2), {"scalars": ("age",)}, r"no column 'age'"),
        (people(2), {"mask_classes": MASKS}, r"no column 'mask'"),
        (people(2, mask=["", ""]), {"mask_classes": MASKS}, r"blank in every row"),
        (people(2, a=["yes", "0"]), {"findings": ("a",)}, r"row 1, column 'a'.*got 'yes'"),
        (people(2, age=["old", "inf"]), {"scalars": ("age",)}, r"row 1.*'old'.*row 2.*'inf'"),
        (people(1) * 2, {}, r"image 'images/0.png' stands in two rows"),
        (people(2, id=["x", "x"]), {}, r"id 'x' stands in two rows"),
        ([{"image": "images/0.png", "patient": ""}], {}, r"row 1: blank patient"),
        ([{"image": "../x.png"}], {}, r"'\.\./x\.png' is not inside the folder"),
        ([{"image": "images/../../x.png"}], {}, r"not inside the folder"),
        ([{"image": "/etc/passwd"}], {}, r"'/etc/passwd' is not inside"),
        ([{"image": "C:\\x.png"}], {}, r"not inside the folder"),
        ([{"image": "..\\x.png"}], {}, r"not inside the folder"),
        ([{"image": ""}], {}, r"not inside the folder"),
        (people(2), {"path": "../.."}, r"not inside the folder"),
        (people(2), {"path": "absent"}, r"no such folder"),
        (people(2), {"table": "absent.csv"}, r"expected a table absent.csv.*table.csv"),
        (people(2), {"channels": 0}, r"at least 1 channel"),
        (people(2), {"mask_classes": ("lung",)}, r"at least 2 classes"),
    ],
)
def test_bad_tables_give_one_message(tmp_path, rows, settings, message):
    (tmp_path / "images").mkdir()
    for name in ("0", "1"):
        write_png(tmp_path / f"images/{name}.png", np.zeros((8, 8)))
    with open(tmp_path / "table.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(DataError, match=message):
        Folder(tmp_path, (8, 8), **settings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"image,patient\n", "no rows"),
        ("image,patient\nimages/0.png,j\xfcrgen\n".encode("latin-1"), "not UTF-8"),
        (b"image,patient\nimages/0.png\n", "row 1 has 1 values for 2 columns"),
        (b"image,patient\nimages/0.png,a,b\n", "row 1 has 3 values"),
        (b"image,image\na,b\n", "distinct columns"),
        (b'image,patient\n"images/0.png,a\n', "not a readable CSV"),
        (b"image,patient\nimages/0.png," + b"x" * 200_000 + b"\n", "not a readable CSV"),
    ],
)
def test_damaged_tables(tmp_path, content, message):
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        Folder(tmp_path, (8, 8))


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": 1}', '[{"image": ["a"]}]', "[" * 100_000])
def test_damaged_json(tmp_path, content):
    (tmp_path / "table.json").write_text(content)
    with pytest.raises(DataError, match=r"table\.json"):
        Folder(tmp_path, (8, 8))


def test_no_table_or_several(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"table\.csv or labels\.csv.*notes\.txt"):
        Folder(tmp_path, (8, 8))
    for name in ("table.csv", "labels.csv"):
        (tmp_path / name).write_text("image\nx.png\n")
    with pytest.raises(DataError, match=r"several tables \(table\.csv, labels\.csv\)"):
        Folder(tmp_path, (8, 8))


def test_missing_files_are_listed_and_counted(tmp_path):
    rows = people(15)
    write(tmp_path, rows)
    for i in range(12):
        (tmp_path / f"images/{i}.png").unlink()
    with pytest.raises(DataError, match=r"12 image file\(s\) of 15.*images/9\.png, and 2 more"):
        Folder(tmp_path, (8, 8))


def test_a_damaged_image_is_named_when_it_is_read(tmp_path):
    folder = Folder(write(tmp_path, people(2)), (8, 8))
    (tmp_path / "images/1.png").write_bytes(b"text")
    assert folder[0].image is not None
    with pytest.raises(DataError, match=r"1\.png"):
        folder[1]


def test_too_many_classes_are_no_findings(tmp_path):
    rows = people(120, kind=[str(i) for i in range(120)])
    with pytest.raises(DataError, match="120 different values"):
        Folder(write(tmp_path, rows), (8, 8), findings="kind")


def test_the_registry_builds_it(tmp_path):
    settings = {"size": (8, 8), "findings": "kind", "reading": Reading(fit="pad")}
    write(tmp_path, people(4, kind=list("abab")))
    assert len(build("data", "folder", settings, root=tmp_path)) == 4
    assert arguments(Folder)["root"].wired


def medmnist_file(path, classes=1, shape=(28, 28), count=6, kind=np.uint8):
    rng = np.random.default_rng(0)
    held = {}
    for part in ("train", "val", "test"):
        held[f"{part}_images"] = rng.integers(0, 256, (count, *shape)).astype(kind)
        held[f"{part}_labels"] = rng.integers(0, 2, (count, classes))
        held[f"{part}_labels"][0] = 1
    np.savez(path, **held)
    return held


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3), (9, 9, 9)])
@pytest.mark.parametrize("classes", [1, 4])
def test_medmnist_files(tmp_path, caplog, shape, classes):
    held = medmnist_file(tmp_path / "x.npz", classes, shape)
    channels = 3 if shape[-1] == 3 else 1
    data = MedMNIST(tmp_path, "x", channels=channels)
    assert data.schema.exclusive == (classes == 1)
    assert [s.split for s in data.studies].count("validation") == 6
    assert "names no patients" in caplog.text
    image = data[7].image
    stored = held["val_images"][1]
    stored = np.moveaxis(stored, -1, 0) if channels == 3 else stored[None]
    assert torch.allclose(image[0], torch.from_numpy(stored / 127.5 - 1).float(), atol=1e-5)
    expected = held["val_labels"][1]
    row = data[7].label[0]
    assert int(row.argmax()) == expected[0] if classes == 1 else row.tolist() == expected.tolist()


def test_medmnist_names_sizes_and_mistakes(tmp_path):
    medmnist_file(tmp_path / "pneumoniamnist.npz")
    data = MedMNIST(tmp_path, "pneumoniamnist", (14, 14))
    known = importlib.util.find_spec("medmnist") is not None  # the package knows the names
    assert data.schema.findings == (("normal", "pneumonia") if known else ("0", "1"))
    assert load(data).image.shape == (18, 1, 14, 14)
    with pytest.raises(DataError, match=r"no file pneumoniamnst\.npz.*'pneumoniamnist'"):
        MedMNIST(tmp_path, "pneumoniamnst")
    with pytest.raises(DataError, match="2 findings, got 1"):
        MedMNIST(tmp_path, "pneumoniamnist", findings=("a",))
    medmnist_file(tmp_path / "float.npz", kind=np.float32)
    with pytest.raises(DataError, match="expected uint8"):
        MedMNIST(tmp_path, "float")
    np.savez(tmp_path / "half.npz", train_images=np.zeros((2, 28, 28)))
    with pytest.raises(DataError, match="lacks val_images"):
        MedMNIST(tmp_path, "half")
    (tmp_path / "bad.npz").write_bytes((tmp_path / "half.npz").read_bytes()[:300])
    with pytest.raises(DataError, match="not a readable npz"):
        MedMNIST(tmp_path, "bad")
    np.savez(tmp_path / "pickle.npz", train_images=np.array([{}], object))
    with pytest.raises(DataError, match="pickle"):
        MedMNIST(tmp_path, "pickle")


@pytest.fixture
def real():
    root = os.environ.get("MEDGEN_DATA")
    if not root or not (Path(root) / "cxr-paediatric").is_dir():
        pytest.skip("MEDGEN_DATA names no folder with cxr-paediatric")
    logging.getLogger("medgen").setLevel(logging.ERROR)
    return Path(root)


@pytest.mark.real
def test_paediatric_radiographs(real):
    settings = {"findings": "subtype", "mask_classes": MASKS}
    folder = Folder(real, (64, 64), path="cxr-paediatric", **settings)
    assert len(folder) == 4670
    assert folder.left_out == {"without a mask": 170}
    assert folder.schema.findings == ("bacteria", "normal", "virus")
    batch = load(folder, range(0, 4670, 40))
    assert 0.2 < batch.mask.float().mean() < 0.5
    assert 0.3 < batch.image.std() < 0.6


@pytest.mark.real
def test_nih_radiographs(real):
    with open(real / "cxr-nih" / "table.csv") as file:
        findings = tuple(next(csv.reader(file))[6:])
    folder = Folder(real, (64, 64), path="cxr-nih", findings=findings, scalars=("age",))
    assert len(findings) == 14
    assert folder.labels.sum(0)[findings.index("Pneumonia")] == 500
    assert load(folder, range(0, 1000, 20)).image.shape == (50, 1, 64, 64)
