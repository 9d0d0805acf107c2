"""Trained weights on disk: safetensors with a verified content digest, written atomically.

A checkpoint is a folder that holds `model.safetensors` (averaged weights of the whole model, with
recipe, schema, digest and version in its metadata), `recipe.yaml`, `card.md` and, for
autoguidance, `weak.safetensors` (a worse model: averaged weights of an early stage of the same run,
or those of the recipe's `guidance.weak`), and, where first frames are drawn before clips,
`first_frame.safetensors` (the generator of the recipe's `first_frame`).
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from medgen.disk import replacing
from medgen.errors import CheckpointError

WEIGHTS = "model.safetensors"
WEAK = "weak.safetensors"
FIRST_FRAME = "first_frame.safetensors"
RECIPE = "recipe.yaml"
CARD = "card.md"

SHIPPED = Path(__file__).parents[1] / "checkpoints"
"""Small trained models that come with a clone of the repository."""

HEADER_LIMIT = 32 * 2**20
"""Bytes; a larger header is an attack or damage, for a thousand tensors need some 0.1 MB."""
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def content_digest(state: Mapping[str, Tensor]) -> str:
    """`sha256:...` over names, dtypes, shapes and bytes of all tensors, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        line = json.dumps([name, _NAMES.get(tensor.dtype, str(tensor.dtype)), list(tensor.shape)])
        digest.update(line.encode())
        digest.update(_bytes(tensor))
    return f"sha256:{digest.hexdigest()}"


def write_weights(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Write tensors as safetensors, atomically; the same content always gives the same bytes.

    The library's own writer orders metadata at random, so the format is written here.

    Args:
        path: file that ends in `.safetensors`.
        state: tensors by name.
        metadata: strings to store beside them; `digest` is added.

    Returns:
        The content digest.

    Raises:
        OutputError: the folder is unwritable or full.
        ValueError: a tensor has a type that safetensors cannot hold.
    """
    digest = content_digest(state)
    order = sorted(state, key=lambda name: (-state[name].element_size(), name))
    header: dict[str, object] = {
        "__metadata__": dict(sorted({**metadata, "digest": digest}.items()))
    }
    end = 0
    for name in order:
        tensor = state[name]
        if tensor.dtype not in _NAMES:
            raise ValueError(f"'{name}' is {tensor.dtype}, which a checkpoint cannot hold")
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(Path(path)) as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            handle.write(_bytes(state[name]))
    return digest


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a checkpoint; its content digest is verified.

    Args:
        path: a checkpoint folder, or a `.safetensors` file.

    Raises:
        CheckpointError: missing, a pickle, damaged, truncated, or of another content than its
            digest says.
    """
    file = _locate(Path(path))
    _header(file)
    try:
        with safe_open(file, framework="pt") as handle:
            metadata = dict(handle.metadata() or {})
            state = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(file, str(error)) from error
    expected = metadata.get("digest")
    if expected is not None and expected != (found := content_digest(state)):
        raise CheckpointError(
            f"{file}: the weights do not match their digest (stored {expected[:19]}..., "
            f"found {found[:19]}...); the file was damaged or altered, get it again"
        )
    return state, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of a checkpoint folder or file, without reading its tensors.

    Raises:
        CheckpointError: missing, a pickle, or damaged.
    """
    file = _locate(Path(path))
    metadata = _header(file).get("__metadata__", {})
    if not isinstance(metadata, dict):
        raise _damaged(file, "its metadata is not a table of strings")
    return {str(key): str(value) for key, value in metadata.items()}


def shipped_checkpoints() -> list[Path]:
    """Folders of the checkpoints that come with medgen."""
    return sorted(file.parent for file in SHIPPED.glob(f"*/{WEIGHTS}"))


def find_checkpoint(path: str | Path) -> Path:
    """The folder of a checkpoint, by path or by the name of a shipped one.

    Raises:
        CheckpointError: there is none.
    """
    for folder in (Path(path), SHIPPED / str(path)):
        if (folder / WEIGHTS).is_file():
            return folder
    if Path(path).is_file():
        raise CheckpointError(f"{path}: expected the folder of a checkpoint, got a file")
    read_metadata(Path(path))
    raise CheckpointError(f"{path}: there is no checkpoint here")


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The resolved sections of the recipe that trained a checkpoint."""
    return json.loads(read_metadata(find_checkpoint(path))["recipe"])


def load_into(module: nn.Module, state: Mapping[str, Tensor], source: str = "checkpoint") -> None:
    """Copy tensors into a module whose parameters and buffers must have exactly those names.

    Args:
        module: receives the tensors, on its own device and in its own dtypes.
        state: tensors by name.
        source: what to call the checkpoint in an error.

    Raises:
        CheckpointError: names are missing or unexpected, or shapes differ; all are reported.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} (expected {_shape(own[name])}, got {_shape(state[name])})"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    problems = [f"{kind}: {_listing(names)}" for kind, names in found.items() if names]
    if problems:
        raise CheckpointError(
            f"{source}: the weights do not fit the model of the recipe; {'; '.join(problems)}. "
            "The recipe differs from the one that trained them"
        )
    module.load_state_dict(state)


def load_grown(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Start a module from the weights of a similar one, which may lack conditions or classes.

    A tensor of the same shape is copied. One that is larger here along one axis takes the old part
    first and zeros behind, so that what is new has no say yet. Others keep their fresh weights.

    Args:
        module: receives the tensors, on its own device and in its own dtypes.
        state: tensors by name.

    Returns:
        The names of tensors that were "copied", "grown" and left "fresh".
    """
    found: dict[str, list[str]] = {"copied": [], "grown": [], "fresh": []}
    for name, tensor in module.state_dict().items():
        old = state.get(name)
        larger = [] if old is None else [n - o for n, o in zip(tensor.shape, old.shape)]  # noqa: B905
        grows = sum(extra > 0 for extra in larger)
        if old is None or old.ndim != tensor.ndim or min(larger, default=0) < 0 or grows > 1:
            found["fresh"].append(name)
            continue
        if grows:
            tensor.zero_()
        tensor[tuple(slice(extent) for extent in old.shape)].copy_(old)
        found["grown" if grows else "copied"].append(name)
    return found


def _locate(path: Path) -> Path:
    if path.is_dir():
        if not (path / WEIGHTS).is_file():
            pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
            if pickles:
                raise _pickle(path / pickles[0])
            raise CheckpointError(f"{path}: no {WEIGHTS} in this folder; is it a finished run?")
        path = path / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    if path.suffix in PICKLES:
        raise _pickle(path)
    return path


def _header(file: Path) -> dict[str, object]:
    """The checked header of a safetensors file; reads no more than the header."""
    try:
        with file.open("rb") as handle:
            start = handle.read(9)
            length = struct.unpack("<Q", start[:8])[0] if len(start) == 9 else 0
            room = file.stat().st_size - 8
            if not start.endswith(b"{") or len(start) < 9:
                if start.startswith(b"PK\x03\x04") or (
                    start[:1] == b"\x80" and start[1:2] < b"\x06"
                ):
                    raise _pickle(file)
                raise _damaged(file, "it is not a safetensors file")
            if length > min(room, HEADER_LIMIT):
                raise _damaged(file, f"its header claims {length} bytes, the file holds {room}")
            handle.seek(8)
            header = json.loads(handle.read(length))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise _damaged(file, str(error)) from error
    if not isinstance(header, dict):
        raise _damaged(file, "its header is not a table")
    return header


def _bytes(tensor: Tensor) -> memoryview:
    """The tensor's bytes, little-endian as on every machine that torch supports; no copy."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _pickle(file: Path) -> CheckpointError:
    return CheckpointError(
        f"{file}: this is a pickle, which can run any code when it is opened; medgen reads "
        "safetensors only; if you trust its source, convert it with safetensors.torch.save_file"
    )


def _damaged(file: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{file}: damaged or truncated checkpoint ({reason}); get it again")


def _shape(tensor: Tensor) -> str:
    return "x".join(str(extent) for extent in tensor.shape) or "scalar"


def _listing(names: Iterable[str], limit: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
