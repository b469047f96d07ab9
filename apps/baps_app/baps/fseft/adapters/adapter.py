"""What is learned from a few labelled volumes: one organ's logits from something that a foundation model gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from baps.errors import InputError

Answer = Literal["images", "features", "probabilities"]
"""What a frozen model is asked for: nothing but the images (B, 1, H, W, D) in [0, 1]; penultimate features
(B, C, H, W, D); or probabilities (B, K, H, W, D)."""

Reads = Literal[Answer, "landmarks"]
"""What an adapter is given: an answer, or what ``add_landmarks`` makes of the features."""


class FewShotAdapter(nn.Module):
    """Gives logits (B, 1, H, W, D) of one organ; called with what it ``reads``.

    Only what is to be trained requires a gradient.
    """

    reads: Reads = "features"
    reach: int = 0
    """Voxels around one that its logit depends on, but where images are read."""

    def varied(self, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """What it reads, of shape (B, C, H, W, D), changed at random for a step of training; here not at all."""
        del generator
        return inputs

    def state_dict(self) -> dict[str, torch.Tensor]:  # type: ignore[override]  # of the trained parameters only
        """What was trained, by name, on the CPU; all that has to be kept beside the foundation model."""
        return {name: value.detach().cpu().clone() for name, value in self.trained().items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:  # type: ignore[override]
        """Load what ``state_dict`` returned.

        Raises:
            InputError: if it is of another method or foundation model.
        """
        trained = self.trained()
        if {k: v.shape for k, v in trained.items()} != {k: v.shape for k, v in state.items()}:
            raise InputError("These weights are of another kind of adapter or foundation model. Build that one first.")
        with torch.no_grad():
            for name, value in trained.items():
                value.copy_(state[name])

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}
