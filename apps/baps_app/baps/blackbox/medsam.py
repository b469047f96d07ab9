"""Run MedSAM as a black box (Ma et al., *Segment Anything in Medical Images*, Nature Communications 2024).

Its network is SAM's, but it was trained on other images: stretched to a square, and scaled to [0, 1] by their least and
greatest level, without SAM's mean and standard deviation. The authors' inference script (MedSAM_Inference.py) prepares
images in this way, and enlarges probabilities, not logits.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from skimage.transform import resize
from torch.nn import functional as F

from baps.blackbox.local import Embeddings
from baps.blackbox.sam import SamBlackBox

_SPLINE_NOISE = 1e-6
"""Grey levels. A spline misses whole levels by about 1e-13, which truncation must not make a whole level."""


class MedSamBlackBox(SamBlackBox):
    """MedSAM in this process. It understands boxes only.

    Args:
        model: the model, on its device already; it is put into eval mode.
        name: name of the model in records.
        weights_sha256: SHA-256 of its weights.
        batch_size: number of images that are encoded at once.
    """

    def __init__(self, model: Sam, name: str, weights_sha256: str = "", *, batch_size: int = 1) -> None:
        super().__init__(model, name, weights_sha256, clicks=False, batch_size=batch_size, preprocessing="medsam")

    def _resized(self, original: tuple[int, int]) -> tuple[int, int]:
        return self._input_size, self._input_size  # An image is stretched, not padded.

    def _pixels(self, images: NDArray[np.uint8]) -> torch.Tensor:
        levels = torch.from_numpy(np.ascontiguousarray(images)).to(self._device).permute(0, 3, 1, 2)
        return _scaled_to_range(_stretched(levels, self._input_size))

    def _encoder(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self._model.image_encoder(pixels),)

    def _probabilities(self, low: torch.Tensor, embedded: Embeddings) -> torch.Tensor:
        return F.interpolate(low.sigmoid(), embedded.original, mode="bilinear", align_corners=False)


def _stretched(levels: torch.Tensor, side: int) -> torch.Tensor:
    """Resize images (B, 3, H, W) to a square by cubic splines, truncated to whole grey levels, (B, 3, side, side).

    It equals scikit-image's ``resize`` of order 3 with anti-aliasing. A resize is linear along each axis, so two matrix
    products replace it, which a GPU does in milliseconds.
    """
    if levels.shape[2:] == (side, side):
        return levels.float()
    down, across = (torch.from_numpy(_resize_matrix(length, side)).to(levels.device) for length in levels.shape[2:])
    exact = down @ levels.double() @ across.T
    least, greatest = (levels.double().amin((1, 2, 3), keepdim=True), levels.double().amax((1, 2, 3), keepdim=True))
    return (exact.clamp(least, greatest) + _SPLINE_NOISE).floor().float()


@lru_cache(maxsize=32)
def _resize_matrix(length: int, side: int) -> NDArray[np.float64]:
    """Return the matrix (side, length) that resizes an axis: its columns are resized unit impulses."""
    # clip would cut the negative lobes of the spline; it is done on the whole image instead.
    matrix: NDArray[np.float64] = resize(np.eye(length), (side, length), order=3, anti_aliasing=True, clip=False)
    return matrix


def _scaled_to_range(levels: torch.Tensor) -> torch.Tensor:
    """Scale each image (B, 3, h, w) to [0, 1] by the least and the greatest level of its three channels."""
    least = levels.amin((1, 2, 3), keepdim=True)
    return (levels - least) / (levels.amax((1, 2, 3), keepdim=True) - least).clamp_min(1e-8)
