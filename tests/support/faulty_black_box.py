"""Define a black box that makes known mistakes, for tests of answers and heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from baps.blackbox import BlackBox, Capabilities
from baps.prompts import Prompt

Mistake = Callable[[NDArray[np.bool_], Prompt], NDArray[np.bool_]]
SIDE = 64


class FaultyBlackBox(BlackBox):
    """Finds the object, which is brighter than the background, and adds an error; ``queries`` records the queries."""

    def __init__(self, mistake: Mistake, clicks: bool = True, boxes: bool = True) -> None:
        super().__init__()
        self._mistake, self._clicks, self._boxes = mistake, clicks, boxes
        self.queries: list[tuple[NDArray[np.uint8], list[Prompt], NDArray[np.float32]]] = []

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            name="mistaken",
            weights_sha256="e" * 64,
            clicks=self._clicks,
            negative_clicks=self._clicks,
            boxes=self._boxes,
            encodings=False,
            batch_size=64,
            input_size=SIDE,
        )

    def _segment(self, images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        targets = ndimage.gaussian_filter(images[..., 0].astype(float), (0, 2, 2)) > 72
        masks = [self._mistake(target, prompt) for target, prompt in zip(targets, prompts, strict=True)]
        answers = (0.02 + 0.96 * np.stack(masks)).astype(np.float32)
        self.queries.append((images.copy(), list(prompts), answers))
        return answers


def dilate(target: NDArray[np.bool_], _: Prompt) -> NDArray[np.bool_]:
    return ndimage.binary_dilation(target, iterations=4)


def erode(target: NDArray[np.bool_], _: Prompt) -> NDArray[np.bool_]:
    return ndimage.binary_erosion(target, iterations=3)


def ignores_left_half(target: NDArray[np.bool_], _: Prompt) -> NDArray[np.bool_]:
    """Add the left half of the image, whatever the prompt."""
    return target | (np.arange(SIDE) < SIDE // 2)


def correct(target: NDArray[np.bool_], _: Prompt) -> NDArray[np.bool_]:
    return target
