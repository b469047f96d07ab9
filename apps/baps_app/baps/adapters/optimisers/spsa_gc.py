"""Implement SPSA-GC: simultaneous perturbation with gradient correction (BAPS, Paranjape et al. 2024; after BlackVIP).

This is mathematics on a parameter vector and knows nothing about images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Losses = Callable[[torch.Tensor], torch.Tensor]
"""Function from parameter vectors (D, N) to losses (D,)."""


@dataclass(frozen=True)
class SpsaGcSettings:
    """Settings as published: ``c_i = c / i^gamma``, ``a_i = a * decay^floor(i / decay_every)``, i from 1.

    Attributes:
        c: size of the perturbation.
        gamma: exponent by which the perturbation shrinks.
        a: step size.
        decay: factor by which the step size shrinks.
        decay_every: number of steps after which the step size shrinks.
        beta: momentum.
        directions: number of two-sided differences that are averaged per step, q.
    """

    c: float = 0.01
    gamma: float = 0.1
    a: float = 1.0
    decay: float = 0.33
    decay_every: int = 300
    beta: float = 0.4
    directions: int = 5


def perturbation(size: int, generator: torch.Generator) -> torch.Tensor:
    """Draw a perturbation from the segmented uniform distribution.

    Each entry is +-U[0.5, 1], so that its inverse has finite moments.

    Args:
        size: N.
        generator: random generator.

    Returns:
        The perturbation, (N,).
    """
    magnitude = torch.rand(size, generator=generator) * 0.5 + 0.5
    sign = torch.randint(0, 2, (size,), generator=generator) * 2 - 1
    return magnitude * sign


def spsa_gradient(
    losses: Losses, theta: torch.Tensor, c: float, directions: int, generator: torch.Generator
) -> torch.Tensor:
    """Estimate the gradient: mean over directions of ``[L(theta + c d) - L(theta - c d)] / (2 c d_j)``.

    Args:
        losses: computes the losses; called once, for both signs of all directions, the positive signs first.
        theta: parameter vector, (N,).
        c: size of the perturbation.
        directions: number of directions.
        generator: random generator.

    Returns:
        The estimate, (N,).
    """
    deltas = torch.stack([perturbation(theta.numel(), generator) for _ in range(directions)])
    plus, minus = losses(torch.cat([theta + c * deltas, theta - c * deltas])).chunk(2)
    return ((plus - minus)[:, None] / (2 * c * deltas)).mean(0)


class SpsaGc:
    """The optimiser: each ``step`` updates a parameter vector.

    ``m_1 = g``; ``m_i = beta m_(i-1) + g``; ``theta <- theta - a_i (g + beta m_i)``. The look-ahead ``beta m_i`` is the
    gradient correction. If the estimate is zero, because the change of the image was lost in rounding, c is multiplied
    by ten, as published.

    Args:
        settings: the settings, or None for the published ones.
    """

    def __init__(self, settings: SpsaGcSettings | None = None) -> None:
        self.settings = settings or SpsaGcSettings()
        self._c = self.settings.c
        self._momentum: torch.Tensor | None = None
        self._steps = 0

    def perturbation_size(self) -> float:
        """Return c_i of the next step.

        Returns:
            The size of the perturbation.
        """
        return self._c / (self._steps + 1) ** self.settings.gamma

    def enlarge_perturbation(self, factor: float) -> None:
        """Multiply c from now on, so that a perturbation changes the image by more than one grey level.

        Args:
            factor: the factor.
        """
        self._c *= factor

    def step(self, theta: torch.Tensor, losses: Losses, generator: torch.Generator) -> torch.Tensor:
        """Do one step. The result depends only on the losses and the seed of the generator.

        Args:
            theta: parameter vector, (N,).
            losses: computes the losses.
            generator: random generator.

        Returns:
            The new parameter vector, (N,).
        """
        gradient = spsa_gradient(losses, theta, self.perturbation_size(), self.settings.directions, generator)
        if float(gradient.norm()) == 0.0:
            self._c *= 10
        return self.update(theta, gradient)

    def update(self, theta: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Step along an estimated gradient.

        Args:
            theta: parameter vector, (N,).
            gradient: the estimate, (N,).

        Returns:
            The new parameter vector, (N,).
        """
        settings = self.settings
        rate = settings.a * settings.decay ** ((self._steps + 1) // settings.decay_every)
        if self._momentum is None:
            self._momentum = gradient
        else:
            self._momentum = settings.beta * self._momentum + gradient
        self._steps += 1
        return theta - rate * (gradient + settings.beta * self._momentum)
