from __future__ import annotations

import torch

from baps.adapters.optimisers.prompt_space import code_gradient


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_gradient_is_exact_along_the_direction_on_a_quadratic() -> None:
    codes, directions, curvature = _randn(5, 3, 4), _randn(5, 3, 4, seed=1), _randn(5, 3, 4, seed=2).abs()
    queries: list[torch.Tensor] = []

    def losses(p: torch.Tensor) -> torch.Tensor:
        queries.append(p)
        return (curvature.repeat(2, 1, 1) * (p - 0.3).square()).flatten(1).sum(1)

    slope = (2 * curvature * (codes - 0.3) * directions).flatten(1).sum(1)
    for radius in (0.1, 2.0):
        queries.clear()
        estimate = code_gradient(losses, codes, directions, radius)
        assert estimate.shape == codes.shape
        torch.testing.assert_close(estimate, slope.view(5, 1, 1) * directions, rtol=1e-3, atol=1e-3)
        (trials,) = queries
        assert torch.equal(trials, torch.cat([codes + radius * directions, codes - radius * directions]))


def test_gradient_is_unbiased_on_a_linear_loss() -> None:
    """For normal directions the estimate w.u u has mean w and variance |w|^2 + w_j^2."""
    count = 40_000
    weights = torch.tensor([1.0, -2.0, 0.5, 0.0])

    def losses(p: torch.Tensor) -> torch.Tensor:
        return p @ weights

    estimate = code_gradient(losses, torch.zeros(count, 4), _randn(count, 4), 0.1)
    variance = weights.square().sum() + weights.square()
    assert bool(((estimate.mean(0) - weights).abs() < 4.5 * (variance / count).sqrt()).all())
    torch.testing.assert_close(estimate.var(0), variance, rtol=0.1, atol=0)


def test_images_are_independent() -> None:
    codes, directions = _randn(6, 3, 2), _randn(6, 3, 2, seed=1)

    def losses(p: torch.Tensor) -> torch.Tensor:
        return p.flatten(1).sin().sum(1)

    whole = code_gradient(losses, codes, directions, 0.2)
    other_codes, other_directions = codes.clone(), directions.clone()
    other_codes[3], other_directions[3] = 5.0, -2.0
    changed = code_gradient(losses, other_codes, other_directions, 0.2)
    rest = [0, 1, 2, 4, 5]
    assert torch.equal(changed[rest], whole[rest])
    assert not torch.equal(changed[3], whole[3])
    for row in range(6):
        alone = code_gradient(losses, codes[row : row + 1], directions[row : row + 1], 0.2)
        torch.testing.assert_close(alone[0], whole[row])


def test_both_trials_are_evaluated_at_once() -> None:
    queries = []

    def losses(p: torch.Tensor) -> torch.Tensor:
        queries.append(len(p))
        return p.sum(1)

    code_gradient(losses, torch.zeros(7, 2), torch.ones(7, 2), 0.1)
    assert queries == [14]
