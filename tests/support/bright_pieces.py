"""A black box that finds the bright piece under a click, for tests of prompts in volumes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from baps.blackbox import BlackBox, Capabilities
from baps.prompts import Prompt


class BrightPiecesBlackBox(BlackBox):
    """Segment the connected bright pieces under the positive clicks, or in the box, without those under negative ones.

    Args:
        clicks: whether it understands clicks; otherwise it understands boxes only.
        boxes: whether it understands boxes.
    """

    def __init__(self, clicks: bool = True, boxes: bool = True) -> None:
        super().__init__()
        self._capabilities = Capabilities(
            name="bright pieces",
            weights_sha256="c" * 64,
            clicks=clicks,
            negative_clicks=clicks,
            boxes=boxes,
            encodings=False,
            batch_size=4,
            input_size=64,
        )

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def _segment(self, images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        return np.stack([_bright(image, prompt) for image, prompt in zip(images, prompts, strict=True)])


def _bright(image: NDArray[np.uint8], prompt: Prompt) -> NDArray[np.float32]:
    pieces, _ = ndimage.label(image.mean(-1) > 128)
    height, width = pieces.shape

    def under(points: Sequence[tuple[float, float]]) -> set[int]:
        return {int(pieces[min(max(round(y), 0), height - 1), min(max(round(x), 0), width - 1)]) for x, y in points}

    wanted = under(prompt.positive) - under(prompt.negative) - {0}
    if prompt.box is not None:
        x0, y0, x1, y1 = map(round, prompt.box)
        inside = pieces[y0 : y1 + 1, x0 : x1 + 1]
        if inside.any():
            wanted.add(int(np.bincount(inside[inside > 0]).argmax()))
    return np.isin(pieces, list(wanted)).astype(np.float32)
