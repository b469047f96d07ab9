"""Labelled volumes to train on, preprocessed (the support set)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from baps.errors import InputError


@dataclass(frozen=True)
class Example:
    """A labelled volume, all on one grid.

    Attributes:
        inputs: what the adapter reads, without the batch axis: image (1, H, W, D) in [0, 1], features (C, H, W, D) or
            probabilities (K, H, W, D).
        target: mask of the organ, (1, H, W, D) bool.
        labelled: voxels that were annotated, (1, H, W, D) bool, or None for all.

    Raises:
        InputError: if the shapes differ, or nothing was annotated.
    """

    inputs: torch.Tensor
    target: torch.Tensor
    labelled: torch.Tensor | None = None

    def __post_init__(self) -> None:
        expected = (1, *self.inputs.shape[1:])
        if self.inputs.ndim != 4 or any(
            tuple(mask.shape) != expected or mask.dtype != torch.bool
            for mask in (self.target, self.labelled)
            if mask is not None
        ):
            raise InputError(
                f"A labelled volume needs inputs (C, H, W, D) and masks (1, H, W, D) of bool on the same grid; its "
                f"inputs are {tuple(self.inputs.shape)}, its label {tuple(self.target.shape)}. Prepare both together."
            )
        if self.labelled is not None and not self.labelled.any():
            raise InputError("A labelled volume has no labelled voxel. Omit it.")


def mean_organ_size(examples: Sequence[Example]) -> float:
    """Compute the mean size of the organ over the volumes that were annotated completely.

    Args:
        examples: the labelled volumes.

    Returns:
        The size in voxels.

    Raises:
        InputError: if there is no such volume, or none contains the organ.
    """
    sizes = [int(e.target.sum()) for e in examples if e.labelled is None or bool(e.labelled.all())]
    if not any(sizes):
        raise InputError(
            "The size of the organ is only known from volumes that contain it and are labelled completely. Label all "
            "slices of one, or adapt without unlabelled volumes."
        )
    return sum(sizes) / len(sizes)
