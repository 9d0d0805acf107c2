"""The pictures of a report: what a caller gives, laid out beside each other and inlined as PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medgen.errors import DataError
from medgen.report.loops import Loop, webp
from medgen.report.privacy import pair_words
from medgen.report.results import Pair, RunResults

LARGEST = 320
"""Longest side of a picture in the page, in pixels; larger ones are averaged down."""
NEIGHBOURS = 12
"""Synthetic studies shown beside their nearest real one."""
GROUPS = 6
"""Up to so many different captions, pictures are grouped by caption."""
SHOWN = 24
"""Pictures of one kind shown in a section; the page says how many there were."""
PLAYING = 2_500_000
"""Bytes of loops that the page holds; what goes beyond is left out, and the page says so."""


@dataclass(frozen=True)
class Gallery:
    """Pictures for the page, as 8-bit arrays (n h w) or (n h w 3).

    Args:
        real: real studies, if they may be shown.
        synthetic: synthetic studies.
        nearest: the real study nearest to each of the first synthetic ones, in their order.
        real_captions: one a real study, such as its finding; empty for none.
        synthetic_captions: one a synthetic study: what was asked for.
        nearest_captions: one a nearest study, such as its distance.
        studies: pictures (h w) or (h w 3) of studies by id, for the suspicious pairs; a synthetic
            one that is missing is read from the run's folder, if it is a picture.
        quiz_real: real studies of the quiz, best none of those above.
        quiz_synthetic: synthetic studies of the quiz.
        loops: clips that play.

    Raises:
        ValueError: an array is not 8-bit, not of such a shape, or has not as many captions.
    """

    real: np.ndarray | None = None
    synthetic: np.ndarray | None = None
    nearest: np.ndarray | None = None
    real_captions: Sequence[str] = ()
    synthetic_captions: Sequence[str] = ()
    nearest_captions: Sequence[str] = ()
    studies: Mapping[str, np.ndarray] = field(default_factory=dict)
    quiz_real: np.ndarray | None = None
    quiz_synthetic: np.ndarray | None = None
    loops: Sequence[Loop] = ()

    def __post_init__(self) -> None:
        for name in ("real", "synthetic", "nearest", "quiz_real", "quiz_synthetic"):
            images, captions = getattr(self, name), getattr(self, f"{name}_captions", ())
            if images is not None and not _drawable(images, axes=3):
                raise ValueError(
                    f"'{name}': expected uint8 (n h w) or (n h w 3), "
                    f"got {images.dtype} {tuple(images.shape)}"
                )
            if captions and len(captions) != (0 if images is None else len(images)):
                raise ValueError(f"'{name}_captions': {len(captions)} captions for other pictures")
        if self.nearest is not None and (
            self.synthetic is None or len(self.nearest) > len(self.synthetic)
        ):
            raise ValueError("'nearest': more pictures than synthetic studies")
        for name, image in self.studies.items():
            if not _drawable(image, axes=2):
                raise ValueError(f"'studies': '{name}' is not uint8 (h w) or (h w 3)")


def sides(gallery: Gallery | None) -> list[dict[str, Any]]:
    """Real beside synthetic, grouped by caption where the captions repeat."""
    if gallery is None or (gallery.real is None and gallery.synthetic is None):
        return []
    real = _captioned(gallery.real, gallery.real_captions)
    synthetic = _captioned(gallery.synthetic, gallery.synthetic_captions)
    captions = sorted({caption for caption, _ in real + synthetic})
    if len(captions) > GROUPS or not any(captions):
        return [_side("", real, synthetic, repeat=True)]
    return [
        _side(
            caption,
            [item for item in real if item[0] == caption],
            [item for item in synthetic if item[0] == caption],
            repeat=False,
        )
        for caption in captions
    ]


def playing(gallery: Gallery | None) -> dict[str, Any]:
    """Loops as addresses of their own bytes, and of their first frame for who wants no motion."""
    loops, tiles, size = gallery.loops if gallery else (), [], 0
    for each in loops:
        moving, still = webp(each), webp(replace(each, frames=each.frames[:1]))
        size += len(moving) + len(still)
        if size > PLAYING:
            break
        tiles.append({"uri": _address(moving), "still": _address(still), "caption": each.caption})
    return {"tiles": tiles, "total": len(loops)}


def _address(content: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(content).decode("ascii")


def neighbours(gallery: Gallery | None) -> dict[str, Any]:
    """Synthetic studies, each beside the real one nearest to it."""
    if gallery is None or gallery.nearest is None or gallery.synthetic is None:
        return {}
    count = len(gallery.nearest)
    asked = list(gallery.synthetic_captions) or [""] * count
    found = list(gallery.nearest_captions) or [""] * count
    pairs = [
        {
            "left": data_uri(gallery.synthetic[i]),
            "right": data_uri(gallery.nearest[i]),
            "left_caption": asked[i],
            "right_caption": found[i],
        }
        for i in range(min(count, NEIGHBOURS))
    ]
    return {"pairs": pairs, "total": count}


def suspicious(run: RunResults, gallery: Gallery | None) -> list[dict[str, Any]]:
    """The pairs of the privacy audit with their pictures, where there are any."""
    studies = gallery.studies if gallery else {}
    return [_suspicious(run, pair, studies) for pair in run.pairs[:SHOWN]]


def from_dataset(run: RunResults, captions: Mapping[str, str]) -> Gallery | None:
    """A gallery of synthetic studies on disk, evenly chosen, for a report that was given none."""
    keys = list(captions)
    count = min(len(keys), SHOWN)
    chosen = [keys[place * len(keys) // count] for place in range(count)]
    found = [(key, run.synthetic_image(key)) for key in chosen]
    images = [(captions[key], _read(path)) for key, path in found if path is not None]
    images = [item for item in images if item[1].shape == images[0][1].shape]
    if not images:
        return None
    return Gallery(
        synthetic=np.stack([image for _, image in images]),
        synthetic_captions=[caption for caption, _ in images],
    )


def previews(run: RunResults, *, most: int = 4) -> list[dict[str, str]]:
    """Pictures drawn while training, evenly chosen from first to last."""
    paths = list(run.previews)
    if len(paths) > most:
        paths = [paths[round(i * (len(paths) - 1) / (most - 1))] for i in range(most)]
    return [
        {"uri": data_uri(_read(path), largest=640), "caption": _preview_words(path.stem)}
        for path in paths
    ]


def data_uri(image: np.ndarray, *, largest: int = LARGEST) -> str:
    """An 8-bit picture (h w) or (h w 3) as the address of its own PNG bytes."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((largest, largest), Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _preview_words(stem: str) -> str:
    return f"after {int(stem):,} images" if stem.isdecimal() else stem


def _drawable(images: np.ndarray, *, axes: int) -> bool:
    plain = images.ndim == axes or (images.ndim == axes + 1 and images.shape[-1] == 3)
    return images.dtype == np.uint8 and plain


def _captioned(images: np.ndarray | None, captions: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    if images is None:
        return []
    words = list(captions) or [""] * len(images)
    return list(zip(words, images, strict=True))


def _side(
    caption: str,
    real: Sequence[tuple[str, np.ndarray]],
    synthetic: Sequence[tuple[str, np.ndarray]],
    *,
    repeat: bool,
) -> dict[str, Any]:
    def tiles(items: Sequence[tuple[str, np.ndarray]]) -> list[dict[str, str]]:
        return [
            {"uri": data_uri(image), "caption": words if repeat else "", "alt": words}
            for words, image in items[:SHOWN]
        ]

    columns = [("Real", real), ("Synthetic", synthetic)]
    return {
        "caption": caption,
        "columns": [
            {"title": title, "tiles": tiles(items), "total": len(items)}
            for title, items in columns
            if items
        ],
    }


def _suspicious(run: RunResults, pair: Pair, studies: Mapping[str, np.ndarray]) -> dict[str, Any]:
    left, right = (studies.get(name) for name in (pair.synthetic, pair.real))
    path = run.synthetic_image(pair.synthetic)
    if left is None and path:
        left = _read(path)
    return {
        "left": data_uri(left) if left is not None else "",
        "right": data_uri(right) if right is not None else "",
        "left_caption": pair.synthetic,
        "right_caption": pair.real,
        "words": pair_words(pair),
    }


def _read(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            picture.load()
            if picture.mode.startswith("I"):
                wide = np.asarray(picture).astype(np.uint32)
                return (wide >> 8).astype(np.uint8)
            wanted = "L" if picture.mode in ("1", "L", "LA") else "RGB"
            return np.asarray(picture.convert(wanted))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a picture ({error}).") from error
