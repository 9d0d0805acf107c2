"""What a sample was asked for and a manifest cannot hold: an ECG, a first frame, kept beside it.

They are kept to the last bit, so a sample can be drawn again. A first frame is kept only if it was
drawn; a real one is a patient's image. An ECG belongs to the sample as a mask does: of a real study
it is a person's, and whoever may not have the study may not have the dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from medgen.disk import write_bytes
from medgen.errors import DataError
from medgen.types import Batch

KEPT = ("ecg", "frame")
"""Fields of a `Batch` that are kept so."""


def keep(stem: Path, conditions: Batch) -> Path | None:
    """Write what one sample was asked for; returns the file, None if there is nothing to keep.

    Args:
        stem: the file without its ending.
        conditions: of one sample.
    """
    held = {name: getattr(conditions, name) for name in KEPT}
    known = {name: value[0].contiguous() for name, value in held.items() if value is not None}
    if not known:
        return None
    path = stem.with_name(f"{stem.name}.safetensors")
    write_bytes(path, save(known))
    return path


def read_kept(files: Sequence[Path]) -> dict[str, Tensor]:
    """What samples were asked for, by field, one row a file.

    Raises:
        DataError: a file is missing, damaged, or holds something else than the first one.
    """
    rows = []
    for file in files:
        try:
            rows.append(load_file(file))
        except (OSError, SafetensorError) as error:
            raise DataError(f"{file}: cannot be read as safetensors: {error}") from error
        shapes = [{name: value.shape for name, value in row.items()} for row in (rows[0], rows[-1])]
        if shapes[0] != shapes[1] or not set(rows[-1]) <= set(KEPT):
            raise DataError(f"{file}: holds other conditions than {files[0]}")
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}
