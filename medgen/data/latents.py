"""Latents of a dataset, encoded once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from medgen.disk import write_bytes
from medgen.errors import DataError
from medgen.protocols import Codec, Dataset
from medgen.types import Latents

logger = logging.getLogger(__name__)

PROBES = 64
"""Images whose pixels go into the key, evenly spread over the dataset."""


@torch.no_grad()
def cached_latents(
    dataset: Dataset,
    codec: Codec,
    *,
    digest: str,
    cache_dir: Path,
    device: torch.device | str = "cpu",
    batch: int = 64,
    flip: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Latents:
    """The latents of all studies, in order, on the CPU; read from the cache where it holds them.

    An entry belongs to the codec's weights, the studies' names and source, the schema, the pixels
    of some of the images (so another preprocessing is noticed), the mirroring and the dtype. A
    damaged entry is made anew.

    Args:
        dataset: whose images to encode.
        codec: trained and fitted; moved to the device, in evaluation mode while it encodes.
        digest: of the codec's settings and weights.
        cache_dir: folder of the entries; made if missing.
        device: where to encode.
        batch: images encoded at once.
        flip: mirror the images left to right first; mirrored latents are entries of their own.
        dtype: of continuous latents; tokens stay int64.

    Raises:
        DataError: the dataset is empty, or its studies carry no images.
        OutputError: the cache cannot be written.
    """
    if len(dataset) == 0:
        raise DataError("there are no studies to encode; check the split and the filters of `data`")
    path = Path(cache_dir) / f"{_key(dataset, digest, flip=flip, dtype=dtype)}.safetensors"
    shape = (len(dataset), *codec.latent.shape)
    found = _read(path, shape)
    if found is not None:
        return found
    was_training = codec.training
    codec.to(device).eval()
    parts = []
    for start in range(0, len(dataset), batch):
        images = [_image(dataset, i) for i in range(start, min(start + batch, len(dataset)))]
        stacked = torch.cat(images).to(device)
        z = codec.encode(stacked.flip(-1) if flip else stacked).cpu()
        parts.append(z.to(dtype) if z.is_floating_point() else z)
    codec.train(was_training)
    latents = torch.cat(parts).contiguous()
    _write(path, latents)
    return latents


def _image(dataset: Dataset, index: int) -> Tensor:
    image = dataset[index].image
    if image is None:
        raise DataError(f"study '{dataset.studies[index].id}' carries no image to encode")
    return image


def _key(dataset: Dataset, digest: str, *, flip: bool, dtype: torch.dtype) -> str:
    first = dataset[0].provenance
    facts = {
        "codec": digest,
        "schema": asdict(dataset.schema),
        "source": first[0].source if first else "",
        "flip": flip,
        "dtype": str(dtype),
        "studies": [study.id for study in dataset.studies],
    }
    key = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16)
    count = min(PROBES, len(dataset))
    for probe in range(count):
        key.update(_content(_image(dataset, probe * len(dataset) // count)))
    return key.hexdigest()


def _content(values: Tensor) -> bytes:
    return values.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _checksum(latents: Tensor) -> str:
    return hashlib.blake2b(_content(latents), digest_size=16).hexdigest()


def _read(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """The entry, or None if it is absent or damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as entry:
            checksum = (entry.metadata() or {}).get("checksum")
            latents = entry.get_tensor("latents")
    except (SafetensorError, OSError) as error:
        logger.warning("%s: damaged latents, encoding again (%s)", path, error)
        return None
    if tuple(latents.shape) != shape or _checksum(latents) != checksum:
        logger.warning("%s: damaged latents, encoding again (contents do not match)", path)
        return None
    return latents


def _write(path: Path, latents: Tensor) -> None:
    """Whole or not at all, also beside other processes that write the same entry."""
    write_bytes(path, save({"latents": latents}, metadata={"checksum": _checksum(latents)}))
