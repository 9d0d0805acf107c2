"""The state of a run on disk: two verified generations, so a kill at any moment loses no run.

A generation is a safetensors file of tensors and a JSON file of numbers that is written last and
holds the digest of both. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medgen.checkpoint import read_weights, write_weights
from medgen.disk import replacing
from medgen.errors import CheckpointError, OutputError

log = logging.getLogger(__name__)
KEEP = 2


@dataclass(frozen=True)
class State:
    """What a run resumes from.

    Args:
        images: images seen.
        tensors: weights, averages and moments by name.
        scalars: JSON values by name.
    """

    images: int
    tensors: dict[str, Tensor]
    scalars: dict[str, Any]


class StateFolder:
    """Saves and loads the states of one run, newest first.

    Args:
        path: the folder, such as `run/state`.
        identity: what makes a run this run (settings, data, shapes), as one string.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self.identity = identity
        self.latest: int | None = None

    def save(
        self, images: int, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any] | None = None
    ) -> None:
        """Write a generation and drop all but the newest two.

        Raises:
            OutputError: the folder is unwritable or full; older generations stay whole.
        """
        weights = self.path / f"{images:012d}.safetensors"
        record = {
            "images": images,
            "identity": self.identity,
            "tensors": write_weights(weights, tensors, {}),
            "scalars": dict(scalars or {}),
        }
        record["digest"] = _digest(record)
        with replacing(weights.with_suffix(".json")) as handle:
            handle.write(json.dumps(record, indent=1).encode())
        self.latest = images
        self._prune(weights.stem)

    def load(self) -> State | None:
        """The newest generation that is whole; None if there is none at all.

        Raises:
            OutputError: the states belong to another run.
            CheckpointError: there are states, but all are damaged.
        """
        damaged: list[str] = []
        for record in sorted(self.path.glob("*.json"), reverse=True):
            try:
                state = self._read(record)
            except CheckpointError as error:
                log.warning("%s; trying the state before it", error)
                damaged.append(record.name)
                continue
            self.latest = state.images
            return state
        if damaged:
            raise CheckpointError(
                f"{self.path}: every saved state is damaged ({', '.join(damaged)}); "
                "delete the folder to train from the start"
            )
        return None

    def _read(self, file: Path) -> State:
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            stored = record.pop("digest")
            if stored != _digest(record):
                raise ValueError("its digest is wrong")
            images, identity = int(record["images"]), record["identity"]
            expected, scalars = record["tensors"], record["scalars"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{file}: damaged state ({error})") from error
        if identity != self.identity:
            raise OutputError(
                f"{self.path} holds the state of another run (other settings, data or model); "
                "choose another folder with --out, or delete this one"
            )
        tensors, metadata = read_weights(file.with_suffix(".safetensors"))
        if metadata.get("digest") != expected:
            raise CheckpointError(f"{file}: damaged state (its tensors are of another one)")
        return State(images, tensors, scalars)

    def _prune(self, newest: str) -> None:
        """Keep the newest generations; any after `newest` was damaged, for it was not resumed."""
        records = sorted(file.stem for file in self.path.glob("*.json") if file.stem <= newest)
        kept = set(records[-KEEP:])
        for file in sorted(self.path.iterdir()):  # a record goes before its tensors
            if file.suffix in (".json", ".safetensors", ".tmp") and file.stem not in kept:
                with suppress(OSError):
                    file.unlink()


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """The moments of an optimiser as named tensors."""
    return {
        f"{prefix}.{index}.{name}": value
        for index, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
        if isinstance(value, Tensor)
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str
) -> None:
    """Restore what `optimizer_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in part(tensors, prefix).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value.clone()
    current = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix.`, without it."""
    start = prefix + "."
    return {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The inverse of `part`."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def _digest(record: Mapping[str, Any]) -> str:
    text = json.dumps(
        {key: value for key, value in record.items() if key != "digest"}, sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()
