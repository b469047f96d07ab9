"""Black boxes around a black box: cheap baselines that query the same model differently, and degraded answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from baps.blackbox import BlackBox, Capabilities
from baps.prompts import Prompt


class Wrapped(BlackBox):
    """Query another black box, whose images are counted too."""

    def __init__(self, inner: BlackBox) -> None:
        super().__init__()
        self.inner = inner

    @property
    def capabilities(self) -> Capabilities:
        return replace(self.inner.capabilities, encodings=False)


class CropAroundClick(Wrapped):
    """Show the model an enlarged crop around the click; outside the crop the probability is 0.

    Args:
        inner: the model.
        share: side of the crop, as a share of the image's side.
    """

    def __init__(self, inner: BlackBox, share: float) -> None:
        super().__init__(inner)
        self.share = share

    def _segment(self, images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        size = images.shape[1]
        crop_size = round(self.share * size)
        cropped, moved_prompts, corners = [], [], []
        for image, prompt in zip(images, prompts, strict=True):
            x, y = prompt.positive[0]
            left, top = (int(np.clip(round(c) - crop_size // 2, 0, size - crop_size)) for c in (x, y))
            tensor = (
                torch.from_numpy(image[top : top + crop_size, left : left + crop_size].copy())
                .permute(2, 0, 1)[None]
                .float()
            )
            enlarged = F.interpolate(tensor, (size, size), mode="bilinear", align_corners=False)[0]
            cropped.append(enlarged.round().to(torch.uint8).permute(1, 2, 0).numpy())
            moved_prompts.append(Prompt(((x - left, y - top),)).scaled(size / crop_size, size / crop_size))
            corners.append((left, top))
        probabilities = np.zeros(images.shape[:3], np.float32)
        answers = self.inner.segment(np.stack(cropped), moved_prompts)
        for row, (answer, (left, top)) in enumerate(zip(answers, corners, strict=True)):
            small = F.interpolate(torch.from_numpy(answer)[None, None], (crop_size, crop_size), mode="area")[0, 0]
            probabilities[row, top : top + crop_size, left : left + crop_size] = small.numpy()
        return probabilities


class HardMasks(Wrapped):
    """Return masks without probabilities, as many services do."""

    def _segment(self, images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        return (self.inner.segment(images, prompts) > 0.5).astype(np.float32)
