"""Run any ``segment_anything.modeling.Sam`` as a black box: SAM, and the bundled model.

SAM is by Kirillov et al., *Segment Anything*, ICCV 2023. The module ``medsam`` builds on this one.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from segment_anything.modeling import Sam

from baps.blackbox.decoding import decode_masks
from baps.blackbox.local import Clicks, Embeddings, LocalBlackBox


class SamBlackBox(LocalBlackBox):
    """A SAM-like model in this process. Images are prepared and masks enlarged as ``SamPredictor`` does.

    Args:
        model: the model, on its device already; it is put into eval mode.
        name: name of the model in records.
        weights_sha256: SHA-256 of its weights.
        clicks: False for a model that was trained with boxes only (MedSAM).
        batch_size: number of images that are encoded at once.
        best_of_several: whether to return the mask with the highest predicted IoU among the three that SAM offers for
            an ambiguous prompt; else its single mask.
        preprocessing: see ``Capabilities``.
    """

    def __init__(
        self,
        model: Sam,
        name: str,
        weights_sha256: str = "",
        *,
        clicks: bool = True,
        batch_size: int = 16,
        best_of_several: bool = False,
        preprocessing: str = "sam",
    ) -> None:
        super().__init__(
            model,
            model.image_encoder.img_size,
            name,
            weights_sha256,
            clicks=clicks,
            batch_size=batch_size,
            preprocessing=preprocessing,
        )
        self._model, self._best_of_several = model, best_of_several
        with torch.inference_mode():
            self._position = model.prompt_encoder.get_dense_pe()

    def _resized(self, original: tuple[int, int]) -> tuple[int, int]:
        height, width = original
        scale = self._input_size / max(original)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def _pixels(self, images: NDArray[np.uint8]) -> torch.Tensor:
        height, width = self._resized((images.shape[1], images.shape[2]))
        if (height, width) != images.shape[1:3]:  # Pillow rounds to whole levels, as the predictor's images are.
            size = (width, height)
            resized = [Image.fromarray(image).resize(size, Image.Resampling.BILINEAR) for image in images]
            images = np.stack([np.asarray(image) for image in resized])
        return super()._pixels(images)

    def _encoder(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self._model.image_encoder(self._model.preprocess(pixels)),)  # Normalises, and then pads.

    def _decoder(self, embedded: Embeddings, clicks: Clicks | None, boxes: torch.Tensor | None) -> torch.Tensor:
        sparse, dense = self._model.prompt_encoder(clicks, boxes, None)
        masks, iou = decode_masks(self._model.mask_decoder, embedded.tensors[0], self._position, sparse, dense)
        if self._best_of_several:
            return masks[torch.arange(len(masks), device=masks.device), 1 + iou[:, 1:].argmax(1)][:, None]
        return masks[:, :1]

    def _probabilities(self, low: torch.Tensor, embedded: Embeddings) -> torch.Tensor:
        enlarged: torch.Tensor = self._model.postprocess_masks(low, embedded.resized, embedded.original)
        return enlarged.sigmoid()
