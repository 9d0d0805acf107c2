"""An ECG by an encoder that somebody else trained: a TorchScript file, frozen."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medgen.errors import CheckpointError
from medgen.nn.nd import latent_times
from medgen.protocols import Conditioner
from medgen.registry import register
from medgen.types import Batch, Conditioning, CondSpec, LatentSpec, Schema


@register("conditioner", "ecg_program")
class EcgProgram(Conditioner):
    """Tokens of an ECG by a frozen program, attended to; and a grid that keeps their time.

    The program takes ECGs (b leads samples) in mV of the schema's leads, at `rate`, over the time
    of the clip, and gives tokens (b n width) in order of time, or one vector (b width). It stays in
    its file: a checkpoint holds its digest, and drawing needs the file too. Loading a TorchScript
    runs no Python, but what it computes is its author's, so its digest is part of the recipe.

    Args:
        schema: of clips with an ECG.
        latent: the grid is of its size.
        file: the TorchScript.
        digest: SHA-256 of the file, as `sha256sum` prints it.
        width: channels of a token.
        rate: samples a second that the program takes, Hz; None is the schema's.
        channels: of the grid.

    Raises:
        ValueError: the studies are not clips with an ECG.
        CheckpointError: the file is absent, another one, no TorchScript, or gives other shapes.

    Source: a frozen ECG encoder that conditions an echo as in Li et al. 2024, ECHOPulse,
        arXiv 2410.03143.
    """

    reads = frozenset({"ecg"})

    def __init__(
        self,
        schema: Schema,
        latent: LatentSpec,
        file: str,
        digest: str,
        width: int,
        *,
        rate: float | None = None,
        channels: int = 16,
    ) -> None:
        super().__init__()
        if not (schema.time and len(latent.size) == 3 and schema.leads and schema.ecg_rate):
            raise ValueError("ecg_program needs clips with an ECG: time, leads and ecg_rate")
        seconds = schema.size[0] * schema.spacing[0]
        self.held = (len(schema.leads), round(seconds * schema.ecg_rate))
        self.taken = round(seconds * (rate or schema.ecg_rate))
        self.latent_size, self.width, self.file = latent.size, width, file
        self.spec = CondSpec(tokens=width, grid=channels)
        self._program = _Frozen(_load(file, digest))  # no module of this one: never saved or tuned
        self.count = self._tokens(torch.zeros(1, *self.held)).shape[1]
        self.out = nn.Linear(width, channels)
        self.unknown = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        middles = torch.tensor(latent_times(schema.size[0], latent.size[0])) / schema.size[0]
        places = (torch.arange(self.count) + 0.5) / self.count
        reach = max(1 / latent.size[0], 1 / self.count)
        near = (1 - (middles[:, None] - places).abs() / reach).clamp(min=0)
        self.register_buffer("near", near / near.sum(dim=1, keepdim=True), persistent=False)

    def encode(self, batch: Batch) -> Conditioning:
        """The ECG of every study; one without any known sample as null.

        Raises:
            ValueError: the ECGs are not of the schema's leads and duration.
        """
        if batch.ecg is None:
            return self.null(len(batch))
        if tuple(batch.ecg.shape[1:]) != self.held:
            raise ValueError(
                f"expected ECGs of (leads, samples) {self.held}, got {tuple(batch.ecg.shape[1:])}"
            )
        known = batch.ecg.isfinite().flatten(1).any(dim=1)
        return self._by_doors(self._tokens(batch.ecg)).where(known, self.null(len(batch)))

    def null(self, count: int) -> Conditioning:
        """The learned ECG of which nothing is known."""
        return self._by_doors(self.unknown.expand(count, self.count, -1))

    @torch.no_grad()
    def _tokens(self, ecg: Tensor) -> Tensor:
        volts = ecg.float().nan_to_num(0.0, 0.0, 0.0)
        if self.taken != self.held[1]:
            volts = functional.interpolate(volts, size=self.taken, mode="linear")
        wanted = f"tokens (b n {self.width}) or a vector (b {self.width})"
        try:
            found = self._program.on(ecg.device)(volts)
        except RuntimeError as error:
            what = f"ECGs of {self.held[0]} leads and {self.taken} samples"
            raise CheckpointError(f"{self.file}: does not take {what}: {error}") from error
        if isinstance(found, Tensor) and found.ndim == 2:
            found = found[:, None]
        if not isinstance(found, Tensor) or found.ndim != 3 or found.shape[2] != self.width:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise CheckpointError(f"{self.file}: expected {wanted} of ECGs, got {got}")
        return found

    def _by_doors(self, tokens: Tensor) -> Conditioning:
        tokens = tokens.to(self.unknown.dtype)
        near: Any = self.near
        each = self.out(near.to(tokens.dtype) @ tokens).transpose(1, 2)  # b k t
        each = each.unflatten(2, (-1, *[1] * (len(self.latent_size) - 1)))
        return Conditioning(
            tokens=tokens,
            mask=torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device),
            grid=each.expand(-1, -1, *self.latent_size),
        )


class _Frozen:
    """A program out of a module's sight, on the device that is asked of it."""

    def __init__(self, program: Any) -> None:
        self.program, self.device = program, torch.device("cpu")

    def on(self, device: torch.device) -> Any:
        if device != self.device:
            self.program, self.device = self.program.to(device), device
        return self.program


def _load(file: str, digest: str) -> Any:
    path = Path(file)
    if not path.is_file():
        raise CheckpointError(f"{file}: there is no such file of a frozen ECG encoder")
    found, wanted = hashlib.sha256(path.read_bytes()).hexdigest(), digest.removeprefix("sha256:")
    if found != wanted:
        raise CheckpointError(
            f"{file}: is another ECG encoder than the recipe's: expected SHA-256 {wanted}, "
            f"found {found}"
        )
    try:
        program = torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{file}: is no TorchScript; save the encoder by torch.jit.trace(...).save(FILE)"
        ) from error
    return program
