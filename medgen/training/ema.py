"""Averaged weights: a half-life in images, and power-function profiles rebuilt after training."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from medgen.checkpoint import read_weights, write_weights
from medgen.errors import CheckpointError

RAMP = 0.05
"""The half-life is at most this share of the images seen, so the first weights are forgotten."""
WIDTHS = (0.05, 0.10)
"""Widths of the two power-function averages from which any other is rebuilt."""


def halflife_decay(images: int, batch: int, halflife: float) -> float:
    """Share of an average that a step keeps.

    Args:
        images: images seen, with this step's.
        batch: images of this step.
        halflife: images after which a weight counts half.
    """
    window = min(halflife, RAMP * images)
    return 0.5 ** (batch / window) if window > 0 else 0.0


def power_decay(images: int, batch: int, gamma: float) -> float:
    """Share of a power-function average that a step keeps; 0 at the first step.

    Source: Karras et al. 2023, arXiv 2312.02696, equation 127.
    """
    return (1 - batch / images) ** (gamma + 1)


def gamma_of(width: float) -> float:
    """Exponent of the power-function profile of a relative width (standard deviation over time).

    Raises:
        ValueError: the width is not between 0 and 0.28, where such profiles exist.

    Source: Karras et al. 2023, arXiv 2312.02696, equation 126.
    """
    if not 0 < width < 12**-0.5:
        raise ValueError(f"width of an average: expected between 0 and 0.28, got {width}")
    inverse = width**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9 * abs(root)))


def width_of(gamma: float) -> float:
    """Relative width of the power-function profile of an exponent."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


class Average:
    """A running average of parameters, or of other tensors that change in place.

    Args:
        parameters: by name; the average starts at their values.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = dict(parameters)
        self.tensors = {name: p.detach().clone() for name, p in parameters.items()}

    def update(self, decay: float) -> None:
        """Keep `decay` of the average and take the rest from the parameters."""
        current = [parameter.detach() for parameter in self._parameters.values()]
        get_ema_multi_avg_fn(decay)(list(self.tensors.values()), current, 0)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from stored averages."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters hold the average inside, and their own values again after."""
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        self.copy_to_parameters()
        try:
            yield
        finally:
            _copy(own, self._parameters)

    def copy_to_parameters(self) -> None:
        """Give the parameters the averaged values."""
        _copy(self.tensors, self._parameters)


class Profiles:
    """The two power-function averages of a run, and their snapshots on disk.

    Args:
        parameters: by name.
        folder: where snapshots go.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], folder: Path) -> None:
        self.folder = folder
        self.averages = {width: Average(parameters) for width in WIDTHS}

    def update(self, images: int, batch: int) -> None:
        """Take a step's weights into both averages."""
        for width, average in self.averages.items():
            average.update(power_decay(images, batch, gamma_of(width)))

    def tensors(self) -> dict[str, Tensor]:
        """Both averages, named `width:parameter`."""
        return {
            f"{width}:{name}": tensor
            for width, average in self.averages.items()
            for name, tensor in average.tensors.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors` gave."""
        for width, average in self.averages.items():
            average.load({name: tensors[f"{width}:{name}"] for name in average.tensors})

    def snapshot(self, images: int) -> None:
        """Write both averages, in float16, which the rebuild does not notice.

        Raises:
            OutputError: the folder is unwritable or full.
        """
        halved = {name: tensor.half() for name, tensor in self.tensors().items()}
        metadata = {"images": str(images), "widths": json.dumps(WIDTHS)}
        write_weights(self.folder / f"{images:012d}.safetensors", halved, metadata)


def mixing(
    times: Sequence[float], widths: Sequence[float], time: float, width: float
) -> np.ndarray:
    """How much of every snapshot a profile consists of, by least squares; sums to one.

    Args:
        times: when each snapshot was taken, in images.
        widths: relative width of each snapshot's profile.
        time: end of the wanted profile, in images; needs snapshots up to there.
        width: relative width of the wanted profile.

    Source: Karras et al. 2023, arXiv 2312.02696, appendix C.
    """
    at = np.asarray(times, dtype=np.float64) / time
    gammas = np.array([gamma_of(value) for value in widths], dtype=np.float64)
    gram = _inner(at[:, None], gammas[:, None], at[None, :], gammas[None, :])
    target = _inner(at, gammas, np.ones(1), np.array([gamma_of(width)]))
    weights = np.linalg.lstsq(gram, target, rcond=1e-15)[0]
    return weights / weights.sum()


def rebuild(run: Path, width: float, *, images: int | None = None) -> dict[str, Tensor]:
    """The weights of a finished run under another averaging width, ready to be written or loaded.

    Args:
        run: folder of a run that kept snapshots (`train.snapshots`).
        width: relative width of the wanted profile; snapshots are of 0.05 and 0.10.
        images: end of the profile; None means the end of the run.

    Raises:
        CheckpointError: there are no snapshots up to there.
    """
    state, _ = read_weights(run)
    stored = [read_weights(file) for file in sorted((run / "averages").glob("*.safetensors"))]
    ends = [int(metadata["images"]) for _, metadata in stored]
    end = images or max(ends, default=0)
    if end not in ends:
        raise CheckpointError(
            f"{run}: no snapshot of the averages at {images or 'all'}; kept at: {ends or 'none'}. "
            "Train with train.snapshots above 0"
        )
    stored = [entry for entry, seen in zip(stored, ends, strict=True) if seen <= end]
    times = [float(metadata["images"]) for _, metadata in stored for _ in WIDTHS]
    weights = mixing(times, [width for _ in stored for width in WIDTHS], float(end), width)
    sums: dict[str, Tensor] = {}
    for share, (place, used) in zip(weights, _places(len(stored)), strict=True):
        for name, tensor in stored[place][0].items():
            prefix, parameter = name.split(":", 1)
            if prefix == str(used):
                term = tensor.double() * float(share)
                sums[parameter] = sums[parameter] + term if parameter in sums else term
    return {**state, **{name: total.to(state[name].dtype) for name, total in sums.items()}}


def _places(snapshots: int) -> list[tuple[int, float]]:
    return [(place, width) for place in range(snapshots) for width in WIDTHS]


def _inner(
    time_a: np.ndarray, gamma_a: np.ndarray, time_b: np.ndarray, gamma_b: np.ndarray
) -> np.ndarray:
    """Inner products of two profiles, each ending at its own time."""
    ratio = time_a / time_b
    power = np.where(time_a < time_b, gamma_b, -gamma_a)
    ends = np.maximum(time_a, time_b) * (gamma_a + gamma_b + 1)
    return (gamma_a + 1) * (gamma_b + 1) * ratio**power / ends


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, tensor in source.items():
        target[name].copy_(tensor)
