"""A cheap black box for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from baps.blackbox import BlackBox, Capabilities
from baps.prompts import Prompt


class BrightnessBlackBox(BlackBox):
    """Segment whatever is brighter than 60 % of white, softly, so that a brighter image helps with dim organs.

    ``queries`` holds the images and prompts of every call.
    """

    def __init__(self, batch_size: int = 16, side: int = 32, preprocessing: str = "canvas") -> None:
        super().__init__()
        self._capabilities = Capabilities(
            name="brightness",
            weights_sha256="b" * 64,
            clicks=True,
            negative_clicks=True,
            boxes=True,
            encodings=False,
            batch_size=batch_size,
            input_size=side,
            preprocessing=preprocessing,
        )
        self.queries: list[tuple[NDArray[np.uint8], list[Prompt]]] = []

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def _segment(self, images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        self.queries.append((images.copy(), list(prompts)))
        grey = images.astype(np.float32).mean(-1) / 255
        answer: NDArray[np.float32] = (1 / (1 + np.exp(-12 * (grey - 0.6)))).astype(np.float32)
        return answer
