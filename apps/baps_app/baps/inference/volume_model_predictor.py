"""Answer prompts in a volume with a black box that answers in 3D, and with its adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from baps.adapters.volumes.adapter import ShownVolume
from baps.blackbox.volumes.interface import VolumeCapabilities
from baps.errors import InputError
from baps.inference.volume_predictor import VolumeAnswer, VolumeImage, VolumePredictor
from baps.inference.volume_segmenter import VolumeSegmenter
from baps.prompts.volume_prompts import Mask, VolumePrompt

_LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the grey value of a colour image (ITU-R BT.601)."""


class ModelPredictor(VolumePredictor):
    """Segments an object with one prediction of a 3D black box per prompt.

    The model gets all prompts, and the mask so far if it can start from one. The voxel of each click on the object then
    belongs to the answer, and that of each click beside it does not, whatever the model makes of them.

    Args:
        segmenter: segments volumes.
    """

    def __init__(self, segmenter: VolumeSegmenter) -> None:
        self._segmenter = segmenter

    @property
    def capabilities(self) -> VolumeCapabilities:
        """What the model understands."""
        return self._segmenter.black_box.capabilities

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
            label: the organ, whose adapter is used, or "".
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
        shown = ShownVolume(_grey(image.voxels), image.spacing or (1.0, 1.0, 1.0), image.window)
        loaded = self._segmenter.load_adapter(label)
        answer = self._segmenter.segment(shown, prompts, start, loaded)
        progress(1, 1)
        return VolumeAnswer(answer, loaded.name if loaded else None, complete=True)


def _grey(voxels: NDArray[np.generic]) -> NDArray[np.generic]:
    if voxels.ndim == 3:
        return voxels
    return np.round(voxels @ np.array(_LUMINANCE, np.float32)).astype(np.uint8)
