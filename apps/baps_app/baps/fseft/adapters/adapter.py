"""The base class of few-shot adapters: it maps an output of a foundation model to the logits of one organ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from baps.errors import InputError

ModelOutput = Literal["images", "features", "probabilities"]
"""What the frozen model computes: nothing but the images (B, 1, H, W, D) in [0, 1]; penultimate features (B, C, H, W,
D); or probabilities (B, K, H, W, D)."""

InputKind = Literal[ModelOutput, "landmarks"]
"""What an adapter reads: an output of the model, or what ``add_landmarks`` makes of its features."""


class FewShotAdapter(nn.Module):
    """Map inputs of kind ``input_kind`` to the logits of one organ, (B, 1, H, W, D).

    Only the parameters to be trained require a gradient.

    Attributes:
        input_kind: what the adapter reads.
        receptive_radius: distance in voxels up to which a logit depends on the input; unused if images are read.
    """

    input_kind: InputKind = "features"
    receptive_radius: int = 0

    def augment(self, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Vary the inputs at random for a training step; this class does not.

        Args:
            inputs: (B, C, H, W, D).
            generator: the source of randomness.

        Returns:
            (B, C, H, W, D).
        """
        del generator
        return inputs

    def state_dict(self) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """Return the trained parameters by name, on the CPU: all that is kept besides the foundation model.

        Returns:
            Parameters by name.
        """
        return {name: value.detach().cpu().clone() for name, value in self.trainable_parameters().items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:  # type: ignore[override]
        """Load parameters that ``state_dict`` returned.

        Args:
            state: parameters by name.

        Raises:
            InputError: if they belong to another method or foundation model.
        """
        parameters = self.trainable_parameters()
        if {k: v.shape for k, v in parameters.items()} != {k: v.shape for k, v in state.items()}:
            raise InputError("These weights are of another kind of adapter or foundation model. Build that one first.")
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(state[name])

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are trained, by name.

        Returns:
            Parameters by name.
        """
        return {name: value for name, value in self.named_parameters() if value.requires_grad}
