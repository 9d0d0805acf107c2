"""Randomness as an argument: one generator per sample, so that no sample depends on its batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def derive(*parts: object) -> int:
    """A 63-bit seed from any printable parts: the same parts always give the same seed."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Rng:
    """One random generator per sample of a batch.

    Numbers are drawn in float32 on the CPU, sample by sample, so that sample i is the same
    whatever stands beside it, on any device and in any number of processes.

    Args:
        seeds: one seed a sample.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = tuple(int(seed) for seed in seeds)
        self._generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]

    def __len__(self) -> int:
        return len(self.seeds)

    def normal(self, shape: Sequence[int] = ()) -> Tensor:
        """Standard normal numbers, (B, *shape) float32 on the CPU."""
        return torch.stack([torch.randn(tuple(shape), generator=g) for g in self._generators])

    def uniform(self, shape: Sequence[int] = ()) -> Tensor:
        """Uniform numbers in [0, 1), (B, *shape) float32 on the CPU."""
        return torch.stack([torch.rand(tuple(shape), generator=g) for g in self._generators])

    def integers(self, high: int, shape: Sequence[int] = ()) -> Tensor:
        """Integers in [0, high), (B, *shape) int64 on the CPU."""
        draws = [torch.randint(high, tuple(shape), generator=g) for g in self._generators]
        return torch.stack(draws)

    def child(self, purpose: str) -> Rng:
        """Fresh generators for another purpose; drawing from them does not move this one."""
        return Rng([derive(seed, purpose) for seed in self.seeds])
