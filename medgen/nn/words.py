"""Words of a report as numbers, without a vocabulary to keep."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

_WORD = re.compile(r"\w+|[^\w\s]")


def word_tokens(
    reports: Sequence[str], buckets: int, length: int
) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """Each word and mark of every report, its case ignored, as a number from 1 to `buckets`.

    A word's number is a hash of it: unknown words have one too, and few share theirs. Words beyond
    `length` are cut off; 0 is padding, to `length`. An empty report has no words.

    Args:
        reports: of any language.
        buckets: numbers there are.
        length: words of a report, at most.

    Returns:
        Numbers, and where a word stands.

    Source: Weinberger et al. 2009, arXiv:0902.2206.
    """
    numbers = torch.zeros(len(reports), length, dtype=torch.int64)
    for row, report in zip(numbers, reports, strict=True):
        words = _WORD.findall(report.lower())[:length]
        found = [1 + zlib.crc32(word.encode()) % buckets for word in words]
        row[: len(words)] = torch.tensor(found, dtype=torch.int64)
    return numbers, numbers > 0
