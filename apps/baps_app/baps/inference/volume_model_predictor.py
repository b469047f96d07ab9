"""Answer prompts in a volume with a black box that answers in 3D."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from baps.blackbox.volumes.interface import VolumeBlackBox, VolumeCapabilities
from baps.errors import InputError
from baps.inference.volume_predictor import VolumeAnswer, VolumeImage, VolumePredictor
from baps.prompts.volume_prompts import Mask, VolumePoint, VolumePrompt

_LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the grey value of a colour image (ITU-R BT.601)."""


class ModelPredictor(VolumePredictor):
    """Segments an object with one prediction of a 3D black box per prompt.

    The model gets all prompts, and the mask so far if it can start from one. The voxel of each click on the object then
    belongs to the answer, and that of each click beside it does not, whatever the model makes of them. There are no
    adapters yet.

    Args:
        black_box: returns the 3D black box; the first call may load it.
    """

    def __init__(self, black_box: Callable[[], VolumeBlackBox]) -> None:
        self._black_box = black_box

    @property
    def capabilities(self) -> VolumeCapabilities:
        """What the model understands."""
        return self._black_box().capabilities

    def predict(
        self,
        image: VolumeImage,
        prompts: Sequence[VolumePrompt],
        new: int,
        mask: Mask,
        label: str = "",
        should_continue: Callable[[], bool] = lambda: True,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> VolumeAnswer:
        """Segment the object.

        Args:
            image: see ``VolumePredictor.predict``, for this and the other arguments.
            prompts: all prompts.
            new: number of new ones.
            mask: the answer so far.
            label: not used.
            should_continue: called before the prediction.
            progress: called with 0 of 1 and 1 of 1.

        Returns:
            The new mask.

        Raises:
            InputError: if the model understands none of the new prompts.
        """
        progress(0, 1)
        if not should_continue():
            return VolumeAnswer(mask.copy(), None, complete=False)
        start = mask if mask.any() else None
        if start is None and not any(prompt.include for prompt in prompts):
            return VolumeAnswer(np.zeros(image.shape, bool), None, complete=True)  # Nothing says where the object is.
        capabilities = self.capabilities
        if not any(capabilities.understands(prompt) for prompt in prompts[len(prompts) - new :]):
            raise InputError(f"{capabilities.name} does not understand this prompt. Draw {capabilities.kinds}.")
        answer = self._black_box().predict(_grey(image.voxels), image.spacing or (1.0, 1.0, 1.0), prompts, start) > 0.5
        for prompt in prompts:
            if isinstance(prompt, VolumePoint):
                answer[prompt.voxel] = prompt.include
        progress(1, 1)
        return VolumeAnswer(answer, None, complete=True)


def _grey(voxels: NDArray[np.generic]) -> NDArray[np.generic]:
    if voxels.ndim == 3:
        return voxels
    return np.round(voxels @ np.array(_LUMINANCE, np.float32)).astype(np.uint8)
