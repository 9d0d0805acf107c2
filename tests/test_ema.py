"""Averaged weights against closed forms and direct tracking."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from medgen.checkpoint import write_weights
from medgen.errors import CheckpointError
from medgen.training.ema import (
    WIDTHS,
    Average,
    Profiles,
    gamma_of,
    halflife_decay,
    mixing,
    power_decay,
    rebuild,
    width_of,
)


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.10, 6.94), (0.15, 3.56)])
def test_gamma_of_published_widths(width, gamma):
    assert gamma_of(width) == pytest.approx(gamma, abs=0.005)
    assert width_of(gamma_of(width)) == pytest.approx(width, rel=1e-9)


def test_width_is_the_spread_of_the_profile():
    gamma = gamma_of(0.1)

    def moment(power: int) -> float:
        return quad(lambda t: (gamma + 1) * t**gamma * t**power, 0, 1)[0]

    assert np.sqrt(moment(2) - moment(1) ** 2) == pytest.approx(0.1, rel=1e-6)


@pytest.mark.parametrize("width", [0.0, -0.1, 0.29])
def test_widths_that_do_not_exist(width):
    with pytest.raises(ValueError, match=r"between 0 and 0\.28"):
        gamma_of(width)


def test_power_average_forgets_the_start_and_has_its_profile():
    steps, gamma = 400, 3.0
    assert power_decay(8, 8, gamma) == 0
    weights = np.zeros(steps)
    for step in range(steps):
        decay = power_decay(step + 1, 1, gamma)
        weights *= decay
        weights[step] += 1 - decay
    edges = np.arange(steps + 1) / steps
    np.testing.assert_allclose(weights, np.diff(edges ** (gamma + 1)), atol=1e-12)


def test_halflife():
    late = 10**9
    assert halflife_decay(late, 50, 100) ** 2 == pytest.approx(0.5)
    assert halflife_decay(8, 8, 10**6) < 1e-5  # the first step replaces the start
    assert halflife_decay(late, 8, 0) == 0
    decays = [halflife_decay(images, 10, 1000) for images in range(10, 40_000, 10)]
    assert decays == sorted(decays)


def walk(steps: int, size: int) -> np.ndarray:
    return np.cumsum(np.random.default_rng(0).standard_normal((steps, size)), axis=0)


def track(path: np.ndarray, gamma: float) -> np.ndarray:
    """The running power average after every step, in float64."""
    averages = np.zeros_like(path)
    for step, point in enumerate(path):
        decay = power_decay(step + 1, 1, gamma)
        averages[step] = decay * averages[step - 1] + (1 - decay) * point
    return averages


def test_rebuilt_profiles_equal_tracked_ones():
    steps = 4096
    path = walk(steps, 8)
    times = np.arange(64, steps + 1, 64)
    kept = {width: track(path, gamma_of(width))[times - 1] for width in WIDTHS}
    stacked = np.stack([kept[width] for width in WIDTHS], axis=1).reshape(-1, 8)
    at = np.repeat(times, len(WIDTHS)).astype(float)
    widths = list(WIDTHS) * len(times)
    for wanted in (0.075, 0.15):
        weights = mixing(list(at), widths, float(steps), wanted)
        direct = track(path, gamma_of(wanted))[-1]
        assert weights.sum() == pytest.approx(1, abs=1e-12)
        error = np.linalg.norm(weights @ stacked - direct) / np.linalg.norm(direct)
        assert error < 1e-3
    for wanted in WIDTHS:
        weights = mixing(list(at), widths, float(steps), wanted)
        np.testing.assert_allclose(weights @ stacked, kept[wanted][-1], rtol=1e-8)


def parameters() -> dict[str, torch.nn.Parameter]:
    return {"a": torch.nn.Parameter(torch.ones(3)), "b": torch.nn.Parameter(torch.zeros(2, 2))}


def test_average_follows_and_can_be_applied():
    own = parameters()
    average = Average(own)
    with torch.no_grad():
        own["a"].add_(1)
    average.update(0.25)
    torch.testing.assert_close(average.tensors["a"], torch.full((3,), 1.75))
    before = own["a"].detach().clone()
    with average.applied():
        torch.testing.assert_close(own["a"].detach(), torch.full((3,), 1.75))
    assert torch.equal(own["a"], before)
    with pytest.raises(RuntimeError, match="inside"), average.applied():
        raise RuntimeError("inside")
    assert torch.equal(own["a"], before)


def test_rebuild_from_the_snapshots_of_a_run(tmp_path):
    own, steps = parameters(), 512
    path = torch.from_numpy(walk(steps, 3)).float() / 10
    profiles = Profiles(own, tmp_path / "averages")
    for step in range(steps):
        with torch.no_grad():
            own["a"].copy_(path[step])
        profiles.update((step + 1) * 8, 8)
        if (step + 1) % 16 == 0:
            profiles.snapshot((step + 1) * 8)
    state = {"a": torch.zeros(3), "b": torch.zeros(2, 2), "codec.scale": torch.tensor(3.0)}
    write_weights(tmp_path / "model.safetensors", state, {})
    for end in (steps, steps // 2):
        rebuilt = rebuild(tmp_path, 0.15, images=end * 8)
        direct = track(path[:end].double().numpy(), gamma_of(0.15))[-1]
        assert np.linalg.norm(rebuilt["a"].numpy() - direct) < 0.01 * np.linalg.norm(direct)
        assert rebuilt["codec.scale"] == 3
        assert rebuilt["a"].dtype == torch.float32
    with pytest.raises(CheckpointError, match="no snapshot of the averages at 9"):
        rebuild(tmp_path, 0.15, images=9)


def test_run_without_snapshots(tmp_path):
    write_weights(tmp_path / "model.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match=r"train\.snapshots above 0"):
        rebuild(tmp_path, 0.1)
