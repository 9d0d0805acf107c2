"""Synthetic studies in the formats of other tools: DICOM files, a dataset for nnU-Net."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from medgen.data.dicom import grey_levels, set_pixels, synthetic_elements, synthetic_origin
from medgen.data.dicom_series import write_series
from medgen.data.export import write_image, write_mask
from medgen.data.splits import SHOWN
from medgen.disk import building, write_bytes
from medgen.errors import DataError
from medgen.protocols import Dataset
from medgen.rng import derive
from medgen.types import Provenance, Schema

Case = TypeVar("Case", str, int)
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
FOLDS = 5
SYNTHETIC = "synthetic_"
"""How the name of a synthetic case begins."""
Progress = Callable[[int, int], None]


def write_dicom(dataset: Dataset, out: Path, *, progress: Progress | None = None) -> Path:
    """Write synthetic studies as DICOM files that say they are synthetic.

    Images become secondary captures, volumes in HU a CT series and a segmentation each
    (`dicom_series.write_series`).

    Every attribute is made here, none is copied: identifiers are those of the samples, unique
    identifiers follow from the checkpoint and the seed, so the same dataset gives the same bytes.

    Args:
        dataset: grayscale images or CT volumes with synthetic provenance.
        out: a new or empty folder; receives ID.dcm files, or a folder ID a volume.
        progress: called with (studies written, studies in all).

    Raises:
        DataError: a study is not synthetic, in colour, a clip, or a volume without HU.
        OutputError: the folder holds something, is unwritable or full.

    Source: DICOM PS3.3 C.12.1.1 (Synthetic Data, 0008,001C), A.8.1 (secondary capture).
    """
    with building(out) as folder:
        for index, study in enumerate(dataset.studies):
            item = dataset[index]
            origin = synthetic_origin(item.provenance, study.id)
            if item.image is None or item.image.shape[1] != 1 or dataset.schema.time:
                raise DataError(f"study '{study.id}': DICOM export takes grayscale images, volumes")
            if item.image.ndim == 5:
                write_series(folder / study.id, item, dataset.schema, origin)
            else:
                pixels = grey_levels(item.image[0])
                written = _secondary_capture(pixels[0], origin, index + 1)
                with (folder / f"{study.id}.dcm").open("wb") as file:
                    written.save_as(file, enforce_file_format=True)
            if progress is not None:
                progress(index + 1, len(dataset))
    return out


def write_nnunet(
    train: Dataset,
    test: Dataset,
    synthetic: Dataset,
    out: Path,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Write real and synthetic studies as one dataset for nnU-Net, the synthetic ones train-only.

    `splits_final.json` holds five folds by patient of the real studies; every synthetic case is in
    the training part of all of them and in no validation part. Copy it to the preprocessed
    dataset's folder before training. Identifiers are fresh.

    Args:
        train: real studies with masks, those that nnU-Net may use.
        test: real studies with masks, held out.
        synthetic: studies with masks and synthetic provenance.
        out: the dataset's folder, such as nnUNet_raw/Dataset501_Lungs; new or empty.
        seed: deals patients to folds.
        progress: called with (cases written, cases in all).

    Raises:
        DataError: studies lack masks, their classes differ, a study is in the wrong place, or there
            are too few patients.
        OutputError: the folder holds something, is unwritable or full.

    Source: Isensee et al. 2021, doi 10.1038/s41592-020-01008-z; its dataset format, version 2.
    """
    classes = train.schema.mask_classes
    if not classes or synthetic.schema.mask_classes != classes:
        raise DataError(
            f"nnU-Net needs masks of the same classes: real studies have {classes}, synthetic "
            f"ones {synthetic.schema.mask_classes}"
        )
    total = len(train) + len(test) + len(synthetic)
    done = 0
    with building(out) as folder:
        cases: dict[str, list[str]] = {}
        for kind, dataset, place in (
            ("real", train, "Tr"), ("synthetic", synthetic, "Tr"), ("test", test, "Ts")
        ):  # fmt: skip
            cases[kind] = [f"{kind}_{index:05d}" for index in range(len(dataset))]
            for index, case in enumerate(cases[kind]):
                write_case(folder, dataset, index, case=case, place=place)
                done += 1
                if progress is not None:
                    progress(done, total)
        folds = folds_of([study.patient for study in train.studies], cases["real"], seed)
        splits = [{"train": t + cases["synthetic"], "val": v} for t, v in folds]
        about = {
            "channel_names": _channel_names(train.schema),
            "labels": {name: value for value, name in enumerate(classes)},
            "numTraining": len(cases["real"]) + len(cases["synthetic"]),
            "file_ending": ".png" if len(train.schema.size) == 2 else ".nii.gz",
        }
        for name, value in (("dataset.json", about), ("splits_final.json", splits)):
            write_bytes(folder / name, (json.dumps(value, indent=1) + "\n").encode())
        verify_nnunet(folder)
    return out


def _channel_names(schema: Schema) -> dict[str, str]:
    """By number; "CT", which nnU-Net normalises by foreground HU of all cases, for CT volumes."""
    if len(schema.size) == 3 and schema.channels == 1 and schema.window and schema.window[0] < -200:
        return {"0": "CT"}
    return {str(k): f"channel {k}" for k in range(schema.channels)}


def verify_nnunet(folder: Path) -> None:
    """Read the splits of an nnU-Net dataset back and hold them against its files.

    Every fold trains on all synthetic cases and validates on none; no case stands on both sides;
    every real case is validated once; every case named has its label, and every label is named.

    Args:
        folder: what `write_nnunet` wrote, or the preprocessed dataset with its copy of
            `splits_final.json` and the labels beside it.

    Raises:
        DataError: names the fold and the cases.
    """
    path = folder / "splits_final.json"
    try:
        splits = [(fold["train"], fold["val"]) for fold in json.loads(path.read_text())]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as nnU-Net's splits ({error})") from error
    present = {file.name.partition(".")[0] for file in (folder / "labelsTr").glob("*")}
    synthetic = {case for case in present if case.startswith(SYNTHETIC)}
    validated = Counter(case for _, held in splits for case in held)
    unsound = {case for case in present - synthetic if validated[case] != 1}
    problems = [_faults(place, fold, present, synthetic) for place, fold in enumerate(splits)]
    problems.append(_named("real cases not validated exactly once", unsound))
    found = "; ".join(problem for problem in problems if problem)
    if found:
        raise DataError(f"{path}: {found}. Export again, and do not edit the splits.")


def _faults(
    place: int, fold: tuple[list[str], list[str]], present: set[str], synthetic: set[str]
) -> str:
    """What is wrong with a fold, in words."""
    train, held = map(set, fold)
    faults = [
        _named("synthetic cases in validation", {c for c in held if c.startswith(SYNTHETIC)}),
        _named("cases in training and validation", train & held),
        _named("synthetic cases left out of training", synthetic - train),
        _named("cases without a label", (train | held) - present),
        _named("labels in neither part", present - train - held),
    ]
    found = ", ".join(fault for fault in faults if fault)
    return f"fold {place} has {found}" if found else ""


def _named(fault: str, cases: set[str]) -> str:
    shown = ", ".join(sorted(cases)[:SHOWN]) + ", ..." * (len(cases) > SHOWN)
    return f"{len(cases)} {fault} ({shown})" if cases else ""


def write_case(
    folder: Path, dataset: Dataset, index: int, *, case: str, place: str
) -> dict[str, Any]:
    """Write image and mask of a study under a fresh name, channel by channel.

    Args:
        folder: of the dataset.
        dataset: of studies with masks.
        index: of the study.
        case: its new name; one that begins with `SYNTHETIC` must be synthetic, others must not.
        place: follows "images" and "labels" in the names of folders.

    Returns:
        Paths within the folder: "image" (a list where there are several channels) and "label".

    Raises:
        DataError: the study is in the wrong place, or lacks an image or a mask.
    """
    item, name = dataset[index], dataset.studies[index].id
    if case.startswith(SYNTHETIC):
        synthetic_origin(item.provenance, name)
    elif item.provenance and item.provenance[0].synthetic:
        raise DataError(f"study '{name}' is synthetic and stands among the real ones")
    if item.image is None or item.mask is None:
        raise DataError(f"study '{name}': this layout needs an image and a mask")
    where = None if item.affine is None else item.affine[0]
    images = [
        write_image(
            folder / f"images{place}" / f"{case}_{channel:04d}", pixels[None], dataset.schema, where
        )
        for channel, pixels in enumerate(item.image[0])
    ]
    mask = item.mask[0].clamp(min=0)
    label = write_mask(folder / f"labels{place}" / case, mask, dataset.schema, where)
    names = [str(path.relative_to(folder)) for path in images]
    return {
        "image": names[0] if len(names) == 1 else names,
        "label": str(label.relative_to(folder)),
    }


def folds_of(
    patients: Sequence[str], cases: Sequence[Case], seed: int
) -> list[tuple[list[Case], list[Case]]]:
    """Training and validation cases of every fold; the cases of a patient stay together.

    Raises:
        DataError: there are fewer patients than folds.
    """
    names = sorted(set(patients))
    if len(names) < FOLDS:
        raise DataError(f"{FOLDS} folds need as many patients, got {len(names)}")
    order = np.random.default_rng(derive(seed, "folds")).permutation(len(names))
    fold = {names[i]: place % FOLDS for place, i in enumerate(order)}
    pairs = list(zip(cases, patients, strict=True))
    return [
        ([c for c, p in pairs if fold[p] != k], [c for c, p in pairs if fold[p] == k])
        for k in range(FOLDS)
    ]


def _secondary_capture(pixels: NDArray[np.uint8], origin: Provenance, number: int) -> Any:
    made = synthetic_elements(origin, SECONDARY_CAPTURE, number)
    made.ImageType = ["DERIVED", "SECONDARY"]
    made.ConversionType = "SYN"
    made.Modality = "OT"
    set_pixels(made, pixels)
    return made
