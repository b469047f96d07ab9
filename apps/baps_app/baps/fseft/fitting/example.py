"""Labelled volumes to learn from, prepared (support)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from baps.errors import InputError


@dataclass(frozen=True)
class Example:
    """A labelled volume, all on one grid.

    Attributes:
        inputs: what the adapter reads of it, without the batch: (1, H, W, D) image in [0, 1], (C, H, W, D) features or
            (K, H, W, D) probabilities.
        truth: (1, H, W, D) bool.
        labelled: (1, H, W, D) bool, where someone has labelled; None for everywhere.

    Raises:
        InputError: if the shapes differ, or nothing is labelled.
    """

    inputs: torch.Tensor
    truth: torch.Tensor
    labelled: torch.Tensor | None = None

    def __post_init__(self) -> None:
        expected = (1, *self.inputs.shape[1:])
        if self.inputs.ndim != 4 or any(
            tuple(mask.shape) != expected or mask.dtype != torch.bool
            for mask in (self.truth, self.labelled)
            if mask is not None
        ):
            raise InputError(
                f"A labelled volume needs inputs (C, H, W, D) and masks (1, H, W, D) of bool on the same grid; its "
                f"inputs are {tuple(self.inputs.shape)}, its label {tuple(self.truth.shape)}. Prepare both together."
            )
        if self.labelled is not None and not self.labelled.any():
            raise InputError("A labelled volume has no labelled voxel. Leave it out.")


def mean_size(examples: Sequence[Example]) -> float:
    """Mean size of the organ, voxels, over the volumes that are labelled all through.

    Raises:
        InputError: if there is none, or the organ is in none.
    """
    sizes = [int(e.truth.sum()) for e in examples if e.labelled is None or bool(e.labelled.all())]
    if not any(sizes):
        raise InputError(
            "How large the organ is can only be told from volumes that are labelled all through and hold it. Label all "
            "slices of one, or adapt without query volumes."
        )
    return sum(sizes) / len(sizes)
