"""All conditions of a model by name, each dropped on its own in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from medgen.protocols import Conditioner
from medgen.types import Batch, Conditioning, CondSpec


class JointConditioner(Conditioner):
    """Joins conditions door by door: vectors and tokens side by side, grids by channel.

    Tokens of several conditions are first projected to the widest of them. Without any part it is
    the unconditional conditioner.

    Args:
        parts: conditioners by the name that a recipe gives them.

    Raises:
        ValueError: a name cannot be used.
    """

    def __init__(self, parts: Mapping[str, Conditioner]) -> None:
        super().__init__()
        for name in parts:
            if not name.isidentifier() or hasattr(nn.ModuleDict, name):
                raise ValueError(f"a condition cannot be named '{name}'; choose a plain other word")
        self.names = tuple(parts)
        self.reads = frozenset(field for part in parts.values() for field in part.reads)
        self.parts = nn.ModuleDict(dict(parts))
        widths = {name: part.spec.tokens for name, part in parts.items() if part.spec.tokens}
        widest = max(widths.values(), default=0)
        self.spec = CondSpec(
            vector=sum(part.spec.vector for part in parts.values()),
            tokens=widest,
            grid=sum(part.spec.grid for part in parts.values()),
        )
        self.projections = nn.ModuleDict(
            {name: nn.Linear(width, widest) for name, width in widths.items()}
            if len(widths) > 1
            else {}
        )

    def encode(self, batch: Batch, drop: Bool[Tensor, "b parts"] | None = None) -> Conditioning:
        """The conditions of every study.

        Args:
            batch: studies, or their conditions only.
            drop: True where a condition, in the order of `names`, becomes its null.

        Raises:
            ValueError: `drop` is not of shape (b, parts).
        """
        expected = (len(batch), len(self.names))
        if drop is not None and self.names and tuple(drop.shape) != expected:
            raise ValueError(f"expected `drop` of shape {expected}, got {tuple(drop.shape)}")
        encoded: list[Conditioning] = []
        for place, part in enumerate(self._conditioners()):
            cond = part.encode(batch)
            if drop is not None:
                cond = cond.where(~drop[:, place], part.null(len(batch)))
            encoded.append(cond)
        return self._join(encoded)

    def null(self, count: int) -> Conditioning:
        """No condition at all, `count` times."""
        return self._join([part.null(count) for part in self._conditioners()])

    def fit(self, batch: Batch) -> None:
        """Let the parts that standardise their input (scalars) measure it on training studies."""
        for part in self._conditioners():
            measure: Callable[[Batch], None] | None = getattr(part, "fit", None)
            if measure is not None:
                measure(batch)

    def _conditioners(self) -> list[Conditioner]:
        return [part for part in self.parts.values() if isinstance(part, Conditioner)]

    def _join(self, encoded: Sequence[Conditioning]) -> Conditioning:
        tokens, masks = [], []
        for name, cond in zip(self.names, encoded, strict=True):
            if cond.tokens is not None and cond.mask is not None:
                project = self.projections[name] if name in self.projections else nn.Identity()
                tokens.append(project(cond.tokens))
                masks.append(cond.mask)
        return Conditioning(
            vector=_cat([c.vector for c in encoded if c.vector is not None], dim=-1),
            tokens=_cat(tokens, dim=1),
            mask=_cat(masks, dim=1),
            grid=_cat([c.grid for c in encoded if c.grid is not None], dim=1),
        )


def _cat(tensors: list[Tensor], *, dim: int) -> Tensor | None:
    return torch.cat(tensors, dim=dim) if tensors else None
