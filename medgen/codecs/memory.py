"""How much memory a codec takes for a volume, told before it is taken; and how to take less."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

GIGABYTE = 2**30
MEMORY = 8 * GIGABYTE
"""Bytes that encoding or decoding may take unless something else is asked for."""
_SLABS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclass(frozen=True)
class Plan:
    """How a batch goes through a codec.

    Args:
        batch: images at once: all of them, or one.
        slabs: into how many each is cut; 1 is whole.
        peak: bytes that it takes beyond weights and inputs.
        whole: bytes that the batch would take uncut.
        budget: bytes that it may take.
    """

    batch: int
    slabs: int
    peak: int
    whole: int
    budget: int

    @property
    def cuts(self) -> bool:
        """Whether the batch is taken apart."""
        return self.peak != self.whole

    def __str__(self) -> str:
        """One sentence, such as "fits in 11.2 GB with 6 slabs"."""
        how = "whole" if self.slabs == 1 else f"with {self.slabs} slabs"
        if self.batch == 1:
            how = f"one at a time, {how}"
        size = f"{self.peak / GIGABYTE:.3g} GB"
        if self.peak > self.budget:
            return f"takes {size} {how}, more than the {self.budget / GIGABYTE:.3g} GB allowed"
        spared = f" instead of {self.whole / GIGABYTE:.3g} GB" if self.cuts else ""
        return f"fits in {size} {how}{spared}"


def make_plan(
    module: nn.Module,
    run: Callable[[Any, Tensor, int], Tensor],
    shape: tuple[int, ...],
    *,
    rows: int,
    budget: int,
) -> Plan:
    """The fastest way that fits: the batch at once, else one by one, in as few slabs as needed.

    Args:
        module: the codec.
        run: of the module, an input and a number of slabs; what is planned.
        shape: of the input, (b, c, *s).
        rows: of the smallest feature map, the most slabs that make sense.
        budget: bytes.
    """
    twin = _without_memory(module)

    def peak(batch: int, slabs: int) -> tuple[int, int]:
        return peak_memory(lambda x: run(twin, x, slabs), (batch, *shape[1:]))

    whole, _ = peak(shape[0], 1)
    if whole <= budget:
        return Plan(shape[0], 1, whole, whole, budget)
    best = Plan(shape[0], 1, whole, whole, budget)
    for slabs in (each for each in _SLABS if each <= rows):
        needed, made = peak(1, slabs)
        needed += (shape[0] - 1) * made
        if needed < best.peak:
            best = Plan(1, slabs, needed, whole, budget)
        if needed <= budget:
            break
    return best


def peak_memory(run: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> tuple[int, int]:
    """Bytes that a run takes at its peak, and those of its result; nothing is computed.

    Its operations are carried out on tensors without memory and their sizes are added up while
    they live. Convolutions are given room for the larger of their input and output once more,
    which oneDNN rearranges on a CPU.

    Args:
        run: all that it reads besides its argument is on the "meta" device.
        shape: of its argument.
    """
    with torch.no_grad():
        x = torch.empty(shape, device="meta")
        ledger = _Ledger()
        with ledger:
            result = run(x)
    return ledger.peak, result.untyped_storage().nbytes()


class _Ledger(TorchDispatchMode):
    """Adds up the memory of all tensors that are made under it, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in given:  # weights and inputs were there before
            self._known.setdefault(tensor.untyped_storage(), True)
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for tensor in made:
            self._enter(tensor.untyped_storage())
        rearranged = 0
        if func is torch.ops.aten.convolution.default:
            rearranged = max(_bytes(tensor) for tensor in (given[0], *made))
        self.peak = max(self.peak, self.live + rearranged)
        return result

    def _enter(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            self._known[storage] = True
            self.live += storage.nbytes()
            weakref.finalize(storage, self._leave, storage.nbytes())

    def _leave(self, size: int) -> None:
        self.live -= size


def _bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.element_size()


def _without_memory(module: nn.Module) -> nn.Module:
    """A copy of a module whose weights are on the "meta" device."""
    memo: dict[int, Any] = {}
    for value in module.parameters():
        memo[id(value)] = nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=False)
    for value in module.buffers():
        memo[id(value)] = torch.empty_like(value, device="meta")
    return copy.deepcopy(module, memo)
