import torch

from medgen.rng import Rng, derive


def test_a_sample_does_not_depend_on_its_neighbours():
    together = Rng([1, 2, 3])
    alone = Rng([2])
    assert torch.equal(together.normal((4, 4))[1], alone.normal((4, 4))[0])
    assert torch.equal(together.uniform()[1], alone.uniform()[0])
    assert torch.equal(together.integers(1000, (3,))[1], alone.integers(1000, (3,))[0])


def test_a_child_does_not_move_its_parent():
    first, second = Rng([7]), Rng([7])
    first.child("dropout").normal((8,))
    assert torch.equal(first.normal((8,)), second.normal((8,)))


def test_purposes_are_independent():
    a, b = Rng([7]).child("a").normal((1000,)), Rng([7]).child("b").normal((1000,))
    assert abs(torch.corrcoef(torch.cat([a, b]))[0, 1]) < 0.13  # 4 standard errors of 1/sqrt(1000)


def test_derive_separates_its_parts():
    assert derive("ab", "c") != derive("a", "bc")
    assert derive(1, 2) == derive(1, 2) < 2**63
