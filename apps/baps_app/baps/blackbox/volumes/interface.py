"""Define the black box that answers in 3D: a volume and prompts in, a probability of the object out, nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baps.errors import BapsError, BudgetSpentError, InputError
from baps.prompts.volume_prompts import Mask, Triple, VolumeBox, VolumePoint, VolumePrompt, VolumeRegion
from baps.utils.priority_lock import PriorityLock

Spacing = tuple[float, float, float]
"""Distance of voxels along each axis, mm."""

_MAX_VALUE = 1e30
"""Grey values beyond this have no place in single precision once they are summed."""


@dataclass(frozen=True)
class VolumeCapabilities:
    """What a 3D black box understands. Callers ask instead of guessing.

    Attributes:
        name: name of the model, for people and records.
        weights_sha256: SHA-256 of the weights, or another identity that changes when they do, or "" if unknown.
        points: whether it understands clicks.
        boxes: whether it understands boxes with more than one slice along each axis.
        flat_boxes: whether it understands boxes in one slice.
        scribbles: whether it understands scribbles.
        lassos: whether it understands lassos.
        negative: whether it understands prompts beside the object.
        masks: whether it can start from a mask and correct it.
        probabilities: whether it answers with probabilities; otherwise with 0 and 1.
        grid: number of voxels along each side of the cube that it resolves, or None if it takes volumes as they are.
        licence: licence of the weights, or "" if unknown.
    """

    name: str
    weights_sha256: str
    points: bool
    boxes: bool
    flat_boxes: bool
    scribbles: bool
    lassos: bool
    negative: bool
    masks: bool
    probabilities: bool
    grid: int | None = None
    licence: str = ""

    @property
    def kinds(self) -> str:
        """The kinds of prompts that it understands, for people: ``a click or a box``."""
        kinds = {
            "a click": self.points,
            "a box": self.boxes,
            "a box in one slice": self.flat_boxes,
            "a scribble": self.scribbles,
            "a lasso": self.lassos,
        }
        return " or ".join(kind for kind, understood in kinds.items() if understood)

    @property
    def identity(self) -> tuple[str, str]:
        """What an adapter of this model depends on: the weights' SHA-256 and the kind of answers."""
        return self.weights_sha256, "volume"

    def understands(self, prompt: VolumePrompt) -> bool:
        """Return whether the model understands a prompt.

        Args:
            prompt: the prompt.

        Returns:
            Whether it does.
        """
        if not prompt.include and not self.negative:
            return False
        if isinstance(prompt, VolumePoint):
            return self.points
        if isinstance(prompt, VolumeRegion):
            return self.lassos if prompt.lasso else self.scribbles
        return self.boxes if prompt.flat_axis is None else self.flat_boxes


class VolumeBlackBox(ABC):
    """A promptable model that segments volumes. It is thread-safe: one call at a time reaches the model."""

    def __init__(self) -> None:
        self._lock = PriorityLock()
        self._images_queried = 0
        self.budget: int | None = None
        """Number of predictions that may be made in all, or None for any number."""
        self.wait: Callable[[], None] | None = None
        """Function that is called before each prediction: long work waits here until no user waits."""

    @property
    @abstractmethod
    def capabilities(self) -> VolumeCapabilities:
        """What the model understands."""

    @property
    def images_queried(self) -> int:
        """Number of predictions so far: one prediction counts as one image."""
        return self._images_queried

    def predict(
        self, voxels: NDArray[np.generic], spacing: Spacing, prompts: Sequence[VolumePrompt], mask: Mask | None = None
    ) -> NDArray[np.float32]:
        """Segment the object that prompts mark. The answer depends on nothing but the arguments.

        Prompts that the model does not understand are left out.

        Args:
            voxels: grey values, (I, J, K), of any real type.
            spacing: distance of voxels along each axis, mm.
            prompts: prompts in voxels of this volume, in the order in which they were made.
            mask: a mask to be corrected, (I, J, K), or None. A model that cannot start from one ignores it.

        Returns:
            Probability of the object, (I, J, K).

        Raises:
            InputError: if the volume is not one, a prompt lies outside it, or nothing that the model understands marks
                the object.
            BudgetSpentError: if the budget is spent.
            BapsError: if the model cannot be reached, or does not answer with probabilities.
        """
        understood, start = self.check(voxels, spacing, prompts, mask)
        if self.wait:
            self.wait()
        with self._lock:
            self._count()
            probability = self._predict(voxels, spacing, understood, start)
        if probability.shape != voxels.shape or not np.isfinite(probability).all():
            raise BapsError(
                f"The model {self.capabilities.name} returned numbers that are not probabilities. Restart its server; "
                "if that does not help, restore its weights from where they came."
            )
        return probability

    def check(
        self, voxels: NDArray[np.generic], spacing: Spacing, prompts: Sequence[VolumePrompt], mask: Mask | None = None
    ) -> tuple[list[VolumePrompt], Mask | None]:
        """Check that a request can be answered. Nothing is predicted.

        Args:
            voxels: see ``predict``, for this and the other arguments.
            spacing: distance of voxels along each axis, mm.
            prompts: the prompts.
            mask: a mask to be corrected, or None.

        Returns:
            The prompts that the model understands, and the mask that it starts from, or None.

        Raises:
            InputError: as ``predict``.
        """
        _check_volume(voxels, spacing, mask)
        shape = voxels.shape
        for prompt in prompts:
            _check_inside(prompt, (shape[0], shape[1], shape[2]))
        understood = [prompt for prompt in prompts if self.capabilities.understands(prompt)]
        start = mask if mask is not None and self.capabilities.masks and mask.any() else None
        if start is None and not any(prompt.include for prompt in understood):
            raise InputError(
                f"{self.capabilities.name} understands none of the prompts that mark the object. Draw "
                f"{self.capabilities.kinds}."
            )
        return understood, start

    def close(self) -> None:  # noqa: B027 (most models have nothing to give back)
        """Give back what the model holds elsewhere, such as a session on a server."""

    def _count(self) -> None:
        """Count a prediction. A backend that sends it again counts it again.

        Raises:
            BudgetSpentError: if the budget is spent.
        """
        if self.budget is not None and self._images_queried >= self.budget:
            raise BudgetSpentError(
                f"All {self.budget} predictions of the budget have been made. Raise it (max_predictions) to go on."
            )
        self._images_queried += 1

    @abstractmethod
    def _predict(
        self, voxels: NDArray[np.generic], spacing: Spacing, prompts: Sequence[VolumePrompt], mask: Mask | None
    ) -> NDArray[np.float32]: ...


def _check_volume(voxels: NDArray[np.generic], spacing: Spacing, mask: Mask | None) -> None:
    if voxels.ndim != 3 or 0 in voxels.shape or voxels.dtype.kind not in "biuf":
        raise InputError(f"A 3D black box takes volumes of real numbers, (I, J, K), not {voxels.shape} {voxels.dtype}.")
    if voxels.dtype.kind == "f" and not -_MAX_VALUE < voxels.min() <= voxels.max() < _MAX_VALUE:  # NaN is not, either.
        raise InputError(f"The volume holds numbers that are not finite, or beyond {_MAX_VALUE:g}. Replace them.")
    if len(spacing) != 3 or not all(np.isfinite(one) and one > 0 for one in spacing):
        raise InputError(f"The spacing must be three positive numbers in mm, not {spacing}.")
    if mask is not None and mask.shape != voxels.shape:
        raise InputError(f"The mask has the shape {mask.shape} and the volume {voxels.shape}. They must be equal.")


def _check_inside(prompt: VolumePrompt, shape: Triple) -> None:
    if isinstance(prompt, VolumePoint):
        low, high = prompt.voxel, tuple(one + 1 for one in prompt.voxel)
    elif isinstance(prompt, VolumeBox):
        low, high = prompt.low, prompt.high
    else:
        low, high = prompt.low, tuple(np.add(prompt.low, prompt.shape).tolist())
    if not all(0 <= first < end <= size for first, end, size in zip(low, high, shape, strict=True)):
        raise InputError(f"A prompt from {low} to {high} lies outside the volume, which has {shape} voxels.")
