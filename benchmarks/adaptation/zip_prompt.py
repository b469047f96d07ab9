"""Tune a visual prompt of low rank by clipped zeroth-order steps, in the manner of ZIP.

ZIP (Park et al., *ZIP: An Efficient Zeroth-order Prompt Tuning for Black-box Vision-Language Models*, ICLR 2025) tunes
the text prompt of a black-box classifier. The prompt of m tokens is written as ``U diag(s) V^T + v``: a matrix of low
rank, plus one vector that all tokens share. All of it is estimated by SPSA, and the estimate is clipped to the norm
``sqrt(delta)``, where delta is the number of weights.

From the paper and its code: this form, the rank 5, the initial values (U and v zero, s one, V random), the two-sided
differences with five directions, the sizes of perturbations and steps, and the clipping. What differs: the tokens are
our 12 coefficient fields (three colours, four functions of the image), and each has an 8 x 8 grid of values that is
upsampled to the image, instead of 62 values that a random projection turns into the embedding of a token; delta is 449
instead of 417. A step sees 8 slices instead of 128 images, so that 48 steps fit into 4,000 images; ZIP makes 500.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from typing_extensions import override

from baps.adapters.adapter import Adapter
from baps.adapters.optimisers.spsa_gc import SpsaGc, SpsaGcSettings
from baps.adapters.visual_prompt import ImageStatistics
from baps.adapters.visual_prompt.basis import FUNCTIONS, BasisChange
from baps.prompts import Prompt
from baps.training.batches import Batches
from baps.training.settings import AdaptationSettings
from baps.training.steps import SpsaGcStepper
from baps.training.training import train_visual_prompt

if TYPE_CHECKING:
    from benchmarks.adaptation.arms import Arena, Outcome

_RANK = 5
_GRID = 8
"""Number of values of a coefficient field along each side."""
_FIELDS = 3 * FUNCTIONS


def zip_like(arena: Arena) -> Outcome:
    """A visual prompt of low rank by clipped SPSA, as in ZIP."""
    settings = AdaptationSettings(max_images=arena.max_images, seed=arena.seed, correction_ratio=0)
    visual_prompt = LowRankVisualPrompt(arena.seed)
    train_visual_prompt(
        arena.black_box, visual_prompt, Batches(arena.labelled, visual_prompt.encoder), settings, arena.max_images,
        callback=arena.watch, stepper=ZipStepper(),
    )  # fmt: skip
    return arena.examiner, Adapter(visual_prompt)


class LowRankVisualPrompt(BasisChange):
    """Coefficient fields of low rank, the same for all images. Untrained, they are zero.

    Args:
        seed: seed of the initial weights.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(ImageStatistics(), "label")
        generator = torch.Generator().manual_seed(seed)
        self.left = nn.Parameter(torch.zeros(_FIELDS, _RANK))
        self.scale = nn.Parameter(torch.ones(_RANK))
        self.right = nn.Parameter(torch.randn(_GRID**2, _RANK, generator=generator))
        self.shared = nn.Parameter(torch.zeros(_GRID**2))

    @override
    def code(self, features: torch.Tensor, prompts: Sequence[Prompt], images: torch.Tensor) -> torch.Tensor:
        fields = (self.left * self.scale) @ self.right.T + self.shared
        return fields.view(1, 3, FUNCTIONS, _GRID, _GRID).expand(len(features), -1, -1, -1, -1)


class ClippedSpsa(SpsaGc):
    """SPSA without momentum, whose estimates are clipped: ``a_i = a / (i + 1)^0.4``, ``c_i = c / i^0.1``, i from 1."""

    _DECAY = 0.4

    def __init__(self) -> None:
        super().__init__(SpsaGcSettings(a=0.01, beta=0))

    @override
    def update(self, theta: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        self._steps += 1
        limit = theta.numel() ** 0.5
        clipped = gradient * min(1.0, limit / max(float(gradient.norm()), 1e-12))
        return theta - self.settings.a / (self._steps + 1) ** self._DECAY * clipped


class ZipStepper(SpsaGcStepper):
    """Clipped SPSA on all weights of a visual prompt."""

    batch_size = 8

    def __init__(self) -> None:
        super().__init__(visible=False)
        self.optimiser = ClippedSpsa()
