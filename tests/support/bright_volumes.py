"""A cheap black box that answers in 3D, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from typing_extensions import override

from baps.blackbox.volumes.interface import Spacing, VolumeBlackBox, VolumeCapabilities
from baps.prompts.volume_prompts import Mask, VolumeBox, VolumePoint, VolumePrompt

THRESHOLD = 100


class BrightVolumesBlackBox(VolumeBlackBox):
    """Marks the bright pieces that prompts touch, and removes those that negative prompts touch.

    Args:
        **changes: other capabilities.
    """

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.asked: list[tuple[list[VolumePrompt], Mask | None]] = []
        every = VolumeCapabilities("bright volumes", "0" * 64, *[True] * 7, probabilities=False)
        self._capabilities = replace(every, **changes)

    @property
    @override
    def capabilities(self) -> VolumeCapabilities:
        return self._capabilities

    @override
    def _predict(
        self, voxels: NDArray[np.generic], spacing: Spacing, prompts: Sequence[VolumePrompt], mask: Mask | None
    ) -> NDArray[np.float32]:
        self.asked.append((list(prompts), mask))
        pieces, _ = ndimage.label(voxels > THRESHOLD)
        answer = np.zeros(voxels.shape, bool) if mask is None else mask.copy()
        for prompt in prompts:
            touched = np.unique(pieces[_where(prompt)])
            piece = np.isin(pieces, touched[touched > 0])
            answer = answer | piece if prompt.include else answer & ~piece
        return answer.astype(np.float32)


def _where(prompt: VolumePrompt) -> Any:
    if isinstance(prompt, VolumePoint):
        return prompt.voxel
    if isinstance(prompt, VolumeBox):
        return tuple(slice(*ends) for ends in zip(prompt.low, prompt.high, strict=True))
    return tuple(index + low for index, low in zip(np.nonzero(prompt.unpack()), prompt.low, strict=True))
