"""Error of every sampler by evaluations of the field, where the truth is known exactly.

    python benchmarks/samplers.py [--count 1000]

Two Gaussian mixtures, float64, no network: the numbers are the solvers' own errors. The first
table is the distance of end points from those of a fine solution (eight modes in 16 dimensions;
it is ruled by the few trajectories that end in another mode). The second is the largest error of
the cumulative distribution (three modes on a line), which renewed noise can be held to as well;
with `count` points, chance alone gives about 0.87 / sqrt(100 count).
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch
from torch import Tensor

from medgen.rng import Rng
from medgen.samplers.flows import (
    AB2,
    Ancestral,
    DPMpp2M,
    Euler,
    Heun,
    Midpoint,
    grid,
    midpoint_step,
    solve,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from mixtures import Mixture, eight_modes

BUDGETS = (4, 8, 16, 32, 64, 128)
# Steps of a sampler that spend at most so many evaluations.
SAMPLERS = {
    "euler": lambda budget: Euler(budget),
    "midpoint": lambda budget: Midpoint(budget // 2),
    "heun": lambda budget: Heun((budget + 1) // 2),
    "ab2": lambda budget: AB2(budget),
    "dpmpp_2m": lambda budget: DPMpp2M(budget),
    "ancestral": lambda budget: Ancestral(budget),
}


def end_point_errors(count: int) -> dict[str, list[float]]:
    """Root mean squared distance of a coordinate from a 1000-step midpoint solution."""
    truth = eight_modes()
    start = Rng(range(count)).normal((16,)).double()
    exact = solve(truth.velocity, start, grid(1000), midpoint_step)
    errors: dict[str, list[float]] = {}
    for name in SAMPLERS.keys() - {"ancestral"}:
        found = [SAMPLERS[name](b).sample(truth.velocity, start, Rng([0])) for b in BUDGETS]
        errors[name] = [(z - exact).square().mean().sqrt().item() for z in found]
    return errors


def distribution_errors(count: int) -> dict[str, list[float]]:
    """Largest error of the cumulative distribution of 100 `count` points."""
    truth = Mixture(torch.tensor([[-1.2], [0.3], [1.5]], dtype=torch.float64), 0.25)

    def field(z: Tensor, t: Tensor) -> Tensor:
        times = t.repeat_interleave(z[0].numel())
        return truth.velocity(z.reshape(-1, 1), times).reshape(z.shape)

    errors: dict[str, list[float]] = {}
    for name, build in SAMPLERS.items():
        errors[name] = []
        for budget in BUDGETS:
            rng = Rng(range(count // 10))
            z = build(budget).sample(field, rng.normal((1000,)).double(), rng)
            level = truth.cdf(z.flatten().sort().values)
            share = torch.arange(len(level) + 1, dtype=torch.float64) / len(level)
            above, below = (level - share[:-1]).max(), (share[1:] - level).max()
            errors[name].append(torch.maximum(above, below).item())
    return errors


def table(title: str, errors: dict[str, list[float]]) -> str:
    """A Markdown table, best at 16 evaluations first."""
    lines = [f"\n{title}\n", "| evaluations | " + " | ".join(map(str, BUDGETS)) + " |"]
    lines.append("|---|" + "---|" * len(BUDGETS))
    for name in sorted(errors, key=lambda name: errors[name][BUDGETS.index(16)]):
        lines.append(f"| {name} | " + " | ".join(f"{value:.4f}" for value in errors[name]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="trajectories (default 1000)")
    count = parser.parse_args().count
    if count < 10:
        parser.error(f"--count: expected 10 or more, got {count}")
    print(table("RMSE of end points, 8 modes in 16 dimensions", end_point_errors(count)))
    print(table("Error of the distribution, 3 modes on a line", distribution_errors(count)))
    print(f"\nchance alone: about {0.87 / math.sqrt(100 * count):.4f} in the second table")


if __name__ == "__main__":
    main()
