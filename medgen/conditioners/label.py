"""Findings as a vector: present, absent or unknown, each with an embedding of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medgen.protocols import Conditioner
from medgen.registry import register
from medgen.types import Batch, Conditioning, CondSpec, Schema

STATES = 3
"""Unknown, absent, present: a label plus one."""


@register("conditioner", "label")
class LabelConditioner(Conditioner):
    """Embeds findings; all unknown is the null condition, which is learned.

    Exclusive findings are classes with one embedding each. Otherwise the embeddings of the state of
    every finding are summed, so some may be unknown while others are asked for.

    Args:
        schema: names the findings.
        width: channels of the vector.

    Raises:
        ValueError: the schema has no findings.
    """

    reads = frozenset({"label"})

    def __init__(self, schema: Schema, width: int = 256) -> None:
        super().__init__()
        self.findings = len(schema.findings)
        if not self.findings:
            raise ValueError(
                "a label conditioner needs findings, the studies have none; name them in `data`"
            )
        self.exclusive = schema.exclusive
        self.spec = CondSpec(vector=width)
        shape = (self.findings + 1, width) if self.exclusive else (self.findings, STATES, width)
        spread = 1.0 if self.exclusive else self.findings**-0.5
        self.embedding = nn.Parameter(torch.randn(shape) * spread)

    def encode(self, batch: Batch) -> Conditioning:
        """A vector (b d) of each study's findings; rows of unknown findings only give null.

        Raises:
            ValueError: the labels are not those of the schema.
        """
        if batch.label is None:
            return self.null(len(batch))
        if batch.label.shape[1] != self.findings:
            raise ValueError(
                f"expected labels of {self.findings} findings, got {batch.label.shape[1]}"
            )
        return Conditioning(vector=self._embed(batch.label))

    def null(self, count: int) -> Conditioning:
        """The condition in which nothing is known."""
        unknown = torch.full((count, self.findings), -1, device=self.embedding.device)
        return Conditioning(vector=self._embed(unknown))

    def _embed(self, label: Tensor) -> Tensor:
        if self.exclusive:
            present = label == 1  # b k
            index = torch.where(present.any(dim=1), present.int().argmax(dim=1) + 1, 0)
            return self.embedding[index]
        finding = torch.arange(self.findings, device=label.device)
        return self.embedding[finding, label.long() + 1].sum(dim=1)  # b k d -> b d
