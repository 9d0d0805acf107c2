"""Estimates of one number a study: mean or median, with intervals by bootstrap over patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from medgen.augmentation.intervals import patient_weights, percentile_interval
from medgen.errors import DataError
from medgen.types import Estimate

Array = NDArray[np.float64]
Statistic = Callable[[Array, Array], Array]
"""Values (n,) or (n, k) and weights (draws, n) to (draws,)."""
DRAWS = 1000


def mean(values: Array, weights: Array) -> Array:
    """The weighted mean of values (n,) under every row of weights (draws, n), (draws,)."""
    return weights @ values / weights.sum(axis=1)


def median(values: Array, weights: Array) -> Array:
    """The weighted median of values (n,) under every row of weights (draws, n), (draws,)."""
    order = np.argsort(values, kind="stable")
    passed = weights[:, order].cumsum(axis=1)
    place = (passed >= passed[:, -1:] / 2).argmax(axis=1)
    return values[order][place]


def bootstrapped(
    values: Array,
    patients: Sequence[str],
    statistic: Statistic = mean,
    *,
    seed: int,
    higher: bool | None,
    unit: str,
    extractor: str = "",
) -> Estimate:
    """A statistic of the studies whose value is known; the warning counts the others.

    Args:
        values: one a study (n,), or columns of a study (n, k); NaN is unknown.
        patients: whom each study is of.
        statistic: such as `mean` or `median`.
        seed: of the bootstrap.
        higher: whether higher is better; None where neither end is good.
        unit: of the value.
        extractor: what the values were measured with.

    Raises:
        DataError: fewer than two studies have a known value.
    """
    known = np.flatnonzero(np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    count = len(known)
    if count < 2:
        raise DataError(f"known of {count} of {len(values)} studies, at least 2 are needed")
    owners = [patients[k] for k in known.tolist()]
    weights = patient_weights(owners, DRAWS, seed=seed)
    low, high = percentile_interval(statistic(values[known], weights))
    unknown = len(values) - count
    return Estimate(
        float(statistic(values[known], np.ones((1, count)))[0]),
        low,
        high,
        count,
        higher_is_better=higher,
        unit=unit,
        method=f"bootstrap over patients, {DRAWS} draws",
        extractor=extractor,
        warning=f"{unknown} of {len(values)} studies left out: unknown" if unknown else "",
    )
