"""SPSA-GC: simultaneous perturbation with gradient correction (BAPS, Paranjape et al. 2024; after BlackVIP).

Pure mathematics on a parameter vector; nothing here knows of images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Losses = Callable[[torch.Tensor], torch.Tensor]
"""The losses (D,) at parameter vectors (D, N)."""


@dataclass(frozen=True)
class SpsaGcSettings:
    """As published: ``c_i = c / i^gamma``, ``a_i = a * decay^floor(i / decay_every)``, i from 1.

    Attributes:
        c, gamma: size of the perturbation and how it shrinks.
        a, decay, decay_every: step size and how it shrinks.
        beta: momentum.
        directions: two-sided differences averaged a step, q.
    """

    c: float = 0.01
    gamma: float = 0.1
    a: float = 1.0
    decay: float = 0.33
    decay_every: int = 300
    beta: float = 0.4
    directions: int = 5


def perturbation(size: int, generator: torch.Generator) -> torch.Tensor:
    """Segmented uniform: each entry is +-U[0.5, 1], so that its inverse has finite moments."""
    magnitude = torch.rand(size, generator=generator) * 0.5 + 0.5
    sign = torch.randint(0, 2, (size,), generator=generator) * 2 - 1
    return magnitude * sign


def spsa_gradient(
    losses: Losses, theta: torch.Tensor, c: float, directions: int, generator: torch.Generator
) -> torch.Tensor:
    """Estimate the gradient: mean over directions of ``[L(theta + c d) - L(theta - c d)] / (2 c d_j)``.

    Args:
        losses: asked once, for both signs of all directions, the positive ones first.
        theta: (N,).

    Returns:
        The estimate, (N,).
    """
    deltas = torch.stack([perturbation(theta.numel(), generator) for _ in range(directions)])
    plus, minus = losses(torch.cat([theta + c * deltas, theta - c * deltas])).chunk(2)
    return ((plus - minus)[:, None] / (2 * c * deltas)).mean(0)


class SpsaGc:
    """The optimiser: one ``step`` after the other on a parameter vector.

    ``m_1 = g``; ``m_i = beta m_(i-1) + g``; ``theta <- theta - a_i (g + beta m_i)``. The look-ahead ``beta m_i`` is the
    gradient correction. If the estimate is zero, because the change of the image was lost in rounding, the base of c
    is multiplied by ten, as published.
    """

    def __init__(self, settings: SpsaGcSettings | None = None) -> None:
        self.settings = settings or SpsaGcSettings()
        self._c = self.settings.c
        self._momentum: torch.Tensor | None = None
        self._steps = 0

    def perturbation_size(self) -> float:
        """c_i of the next step."""
        return self._c / (self._steps + 1) ** self.settings.gamma

    def enlarge_perturbation(self, factor: float) -> None:
        """Multiply c from now on, so that a perturbation moves the image by more than one grey level."""
        self._c *= factor

    def step(self, theta: torch.Tensor, losses: Losses, generator: torch.Generator) -> torch.Tensor:
        """One step: the new parameter vector. It depends on the losses and the generator's seed alone."""
        gradient = spsa_gradient(losses, theta, self.perturbation_size(), self.settings.directions, generator)
        if float(gradient.norm()) == 0.0:
            self._c *= 10
        return self.update(theta, gradient)

    def update(self, theta: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """The parameter vector after a step along an estimated gradient."""
        settings = self.settings
        rate = settings.a * settings.decay ** ((self._steps + 1) // settings.decay_every)
        if self._momentum is None:
            self._momentum = gradient
        else:
            self._momentum = settings.beta * self._momentum + gradient
        self._steps += 1
        return theta - rate * (gradient + settings.beta * self._momentum)
