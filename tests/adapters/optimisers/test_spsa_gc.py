"""SPSA-GC agrees with closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from baps.adapters.optimisers.spsa_gc import SpsaGc, SpsaGcSettings, perturbation, spsa_gradient

MATRIX = torch.diag(torch.tensor([1.0, 2.0, 3.0, 0.5])) + 0.2
OPTIMUM = torch.tensor([0.5, -1.0, 2.0, 0.0])
START = torch.tensor([1.0, 1.0, 1.0, 1.0])
TRUE_GRADIENT = MATRIX @ (START - OPTIMUM)


def _quadratic(theta: torch.Tensor) -> float:
    offset = (theta - OPTIMUM).double()
    return float(0.5 * offset @ MATRIX.double() @ offset)


def _quadratics(thetas: torch.Tensor) -> torch.Tensor:
    offsets = (thetas - OPTIMUM).double()
    return 0.5 * ((offsets @ MATRIX.double()) * offsets).sum(1)


def _constant(thetas: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(thetas))


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_perturbations_are_segmented_uniform() -> None:
    drawn = perturbation(20_000, _generator())
    assert float(drawn.abs().min()) >= 0.5
    assert float(drawn.abs().max()) <= 1.0
    assert float(drawn.abs().mean()) == pytest.approx(0.75, abs=0.01)
    assert float((drawn > 0).float().mean()) == pytest.approx(0.5, abs=0.02)


def test_one_direction_by_hand() -> None:
    gradient = spsa_gradient(_quadratics, START, 0.1, 1, _generator(3)).float()
    delta = perturbation(4, _generator(3))
    plus, minus = _quadratic(START + 0.1 * delta), _quadratic(START - 0.1 * delta)
    torch.testing.assert_close(gradient, (plus - minus) / (2 * 0.1 * delta))
    # On a quadratic the two-sided difference is the exact slope along the direction, whatever the size of c.
    torch.testing.assert_close(gradient, (TRUE_GRADIENT @ delta) / delta, rtol=1e-4, atol=1e-5)


def test_all_directions_are_evaluated_at_once_positive_signs_first() -> None:
    queries = []

    def losses(thetas: torch.Tensor) -> torch.Tensor:
        queries.append(thetas)
        return _quadratics(thetas)

    gradient = spsa_gradient(losses, START, 0.1, 3, _generator(3)).float()
    generator, estimates, plus, minus = _generator(3), [], [], []
    for _ in range(3):
        delta = perturbation(4, generator)
        plus.append(START + 0.1 * delta)
        minus.append(START - 0.1 * delta)
        estimates.append((_quadratic(plus[-1]) - _quadratic(minus[-1])) / (2 * 0.1 * delta))
    (thetas,) = queries
    assert torch.equal(thetas, torch.stack(plus + minus))
    torch.testing.assert_close(gradient, torch.stack(estimates).mean(0))


def test_mean_of_many_estimates_is_the_true_gradient() -> None:
    directions = 20_000
    queries = []

    def losses(thetas: torch.Tensor) -> torch.Tensor:
        queries.append(len(thetas))
        return _quadratics(thetas)

    gradient = spsa_gradient(losses, START, 0.5, directions, _generator())
    assert queries == [2 * directions]
    spread = math.sqrt(7 / 6 * float(TRUE_GRADIENT.square().sum()) / directions)
    assert float((gradient - TRUE_GRADIENT).abs().max()) < 4.5 * spread


def test_variance_falls_like_one_over_the_directions() -> None:
    """Var g_j = E[d^2] E[1/d^2] sum over k != j of g_k^2, and E[d^2] E[1/d^2] = 7/12 * 2 for +-U[0.5, 1]."""
    single = 7 / 6 * (TRUE_GRADIENT.square().sum() - TRUE_GRADIENT.square())
    generator = _generator(1)
    for directions in (1, 4):
        estimates = torch.stack([spsa_gradient(_quadratics, START, 0.5, directions, generator) for _ in range(2_000)])
        torch.testing.assert_close(estimates.var(0), single / directions, rtol=0.15, atol=0, check_dtype=False)


def test_three_updates_by_hand() -> None:
    optimiser = SpsaGc(SpsaGcSettings(a=0.5, beta=0.4))
    theta = torch.tensor([1.0])
    gradients = (torch.tensor([2.0]), torch.tensor([-1.0]), torch.tensor([3.0]))
    # m: 2; 0.4 * 2 - 1 = -0.2; 0.4 * -0.2 + 3 = 2.92.
    # g + 0.4 m: 2.8; -1.08; 4.168. theta: 1 - 1.4 = -0.4; -0.4 + 0.54 = 0.14; 0.14 - 2.084 = -1.944.
    for gradient, expected in zip(gradients, (-0.4, 0.14, -1.944), strict=True):
        theta = optimiser.update(theta, gradient)
        assert float(theta) == pytest.approx(expected, abs=1e-6)


def test_step_size_decays_every_300_steps() -> None:
    optimiser = SpsaGc(SpsaGcSettings(a=1.0, decay=0.33, decay_every=300, beta=0.0))
    theta, moved = torch.zeros(1), []
    for _ in range(610):
        after = optimiser.update(theta, torch.ones(1))
        moved.append(float(theta - after))
        theta = after
    assert moved[0] == pytest.approx(1.0)
    assert moved[298] == pytest.approx(1.0)
    assert moved[300] == pytest.approx(0.33, rel=1e-3)
    assert moved[598] == pytest.approx(0.33, rel=1e-3)
    assert moved[600] == pytest.approx(0.33**2, rel=1e-3)


def test_perturbation_shrinks_with_steps() -> None:
    optimiser = SpsaGc(SpsaGcSettings(c=0.02, gamma=0.1))
    for step in range(1, 5):
        assert optimiser.perturbation_size() == pytest.approx(0.02 / step**0.1)
        optimiser.update(torch.zeros(1), torch.zeros(1))


def test_published_settings() -> None:
    published = SpsaGcSettings()
    assert (published.c, published.gamma, published.a, published.decay) == (0.01, 0.1, 1.0, 0.33)
    assert (published.decay_every, published.beta, published.directions) == (300, 0.4, 5)


def test_c_is_multiplied_by_ten_if_the_estimate_is_zero() -> None:
    optimiser = SpsaGc(SpsaGcSettings(c=0.01, gamma=0.0))
    theta = optimiser.step(START, _constant, _generator())
    assert optimiser.perturbation_size() == pytest.approx(0.1)
    assert torch.equal(theta, START)
    optimiser.step(START, _constant, _generator())
    assert optimiser.perturbation_size() == pytest.approx(1.0)
    optimiser.step(START, _quadratics, _generator())
    assert optimiser.perturbation_size() == pytest.approx(1.0)


def test_zero_gradient_from_rounding_is_overcome() -> None:
    """A loss that rounds theta to integers has a zero gradient only at first."""

    def rounded(thetas: torch.Tensor) -> torch.Tensor:
        return thetas.round().sum(1)

    optimiser = SpsaGc(SpsaGcSettings(c=0.001, gamma=0.0, directions=1))
    theta, generator = torch.zeros(4), _generator(2)
    for _ in range(8):
        theta = optimiser.step(theta, rounded, generator)
    assert optimiser.perturbation_size() >= 1
    assert not torch.equal(theta, torch.zeros(4))


def test_perturbation_can_be_enlarged() -> None:
    optimiser = SpsaGc()
    optimiser.enlarge_perturbation(3.0)
    assert optimiser.perturbation_size() == pytest.approx(0.03)


def test_optimiser_minimises_a_quadratic() -> None:
    optimiser = SpsaGc(SpsaGcSettings(a=0.03))
    theta, generator = START, _generator()
    queries = []

    def losses(thetas: torch.Tensor) -> torch.Tensor:
        queries.append(len(thetas))
        return _quadratics(thetas)

    for _ in range(250):
        theta = optimiser.step(theta, losses, generator)
    assert queries == [10] * 250
    assert _quadratic(theta) < 0.01 * _quadratic(START)


def test_same_seed_gives_same_path() -> None:
    paths = []
    for seed in (1, 1, 2):
        optimiser, theta, generator = SpsaGc(SpsaGcSettings(a=0.05)), START, _generator(seed)
        for _ in range(5):
            theta = optimiser.step(theta, _quadratics, generator)
        paths.append(theta)
    assert torch.equal(paths[0], paths[1])
    assert not torch.equal(paths[0], paths[2])


def test_parameters_are_not_changed_in_place() -> None:
    theta = START.clone()
    SpsaGc().step(theta, _quadratics, _generator())
    assert torch.equal(theta, START)
