"""Any ``segment_anything.modeling.Sam`` as a black box: SAM, MedSAM and the bundled model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from torch.nn import functional as F

from ..errors import BapsError
from .decoding import decode_masks
from .interface import BlackBox, Capabilities, Encoding
from .prompt import Prompt

Given = ParamSpec("Given")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class _Encoded:
    """Embedding (1, C, h, w), the image's own size, and its size inside the model's square input; pixels, (H, W)."""

    embedding: torch.Tensor
    original: tuple[int, int]
    resized: tuple[int, int]


def _enough_memory(call: Callable[Given, Answer]) -> Callable[Given, Answer]:
    """Where the GPU has not enough memory, a sentence; what was taken is given back, so that the next call may do."""

    @wraps(call)
    def guarded(*args: Given.args, **kwargs: Given.kwargs) -> Answer:
        try:
            return call(*args, **kwargs)
        except torch.OutOfMemoryError:
            pass
        torch.cuda.empty_cache()  # Here, where the error no longer holds on to tensors.
        raise BapsError(
            "The GPU has not enough memory for the model. Stop other programs on it, choose a smaller model, or "
            "serve from the CPU (device=cpu)."
        )

    return guarded


class SamBlackBox(BlackBox):
    """A SAM-like model in this process.

    Args:
        model: the model, on its device already; it is put into evaluation mode.
        name: what records call it.
        weights_sha256: of its weights.
        clicks: False for a model that was trained with boxes alone (MedSAM).
        batch_size: images encoded at once.
        best_of_several: of the three masks that SAM offers for an ambiguous prompt, answer the one whose predicted IoU
            is highest; else its single mask.
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
    ) -> None:
        super().__init__()
        self._best_of_several = best_of_several
        self._model = model.eval().requires_grad_(False)
        self._capabilities = Capabilities(
            name=name,
            weights_sha256=weights_sha256,
            clicks=clicks,
            negative_clicks=clicks,
            boxes=True,
            encodings=True,
            batch_size=batch_size,
            input_side=model.image_encoder.img_size,
        )
        with torch.inference_mode():
            self._position = model.prompt_encoder.get_dense_pe()

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @_enough_memory
    @torch.inference_mode()
    def _segment(self, images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        return self._answer(self._embed(images), prompts)

    @_enough_memory
    @torch.inference_mode()
    def _encode(self, image: NDArray[np.uint8]) -> Encoding:
        encoded = self._embed(image[None])
        # Kept in main memory: that of a GPU is small, and bringing it back takes less than a millisecond.
        return Encoding(replace(encoded, embedding=encoded.embedding.cpu()), encoded.embedding.nbytes)

    @_enough_memory
    @torch.inference_mode()
    def _decode(self, encoding: Encoding, prompt: Prompt) -> NDArray[np.float32]:
        encoded = encoding._content
        assert isinstance(encoded, _Encoded)
        there = replace(encoded, embedding=encoded.embedding.to(self._model.device))
        return self._answer(there, [prompt])[0]

    def _embed(self, images: NDArray[np.uint8]) -> _Encoded:
        original = (images.shape[1], images.shape[2])
        side = self._model.image_encoder.img_size
        scale = side / max(original)
        resized = (max(1, round(original[0] * scale)), max(1, round(original[1] * scale)))
        levels, device = torch.from_numpy(np.ascontiguousarray(images)), self._model.device
        on_gpu = device.type == "cuda"
        if on_gpu:
            levels = levels.pin_memory()
        pixels = levels.to(device, non_blocking=True).permute(0, 3, 1, 2).float()
        if resized != original:
            pixels = F.interpolate(pixels, resized, mode="bilinear", align_corners=False, antialias=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):  # The encoder is nearly all of the work.
            embedding = self._model.image_encoder(self._model.preprocess(pixels)).float()
        return _Encoded(embedding, original, resized)

    def _answer(self, encoded: _Encoded, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        """Masks for a batch; prompts with as many clicks as one another are decoded together."""
        scale_y = encoded.resized[0] / encoded.original[0]
        scale_x = encoded.resized[1] / encoded.original[1]
        groups: dict[tuple[int, bool], list[int]] = {}
        for row, prompt in enumerate(prompts):
            groups.setdefault((len(prompt.positive) + len(prompt.negative), prompt.box is not None), []).append(row)
        device = self._model.device
        low = None
        for rows in groups.values():
            chosen = [prompts[row].scaled(scale_x, scale_y) for row in rows]
            points = None
            if chosen[0].positive or chosen[0].negative:
                where = [[*prompt.positive, *prompt.negative] for prompt in chosen]
                signs = [[1] * len(prompt.positive) + [0] * len(prompt.negative) for prompt in chosen]
                points = (torch.tensor(where, device=device), torch.tensor(signs, device=device))
            boxes = None
            if chosen[0].box is not None:
                boxes = torch.tensor([prompt.box for prompt in chosen], device=device)
            sparse, dense = self._model.prompt_encoder(points, boxes, None)
            masks, iou = decode_masks(self._model.mask_decoder, encoded.embedding[rows], self._position, sparse, dense)
            if self._best_of_several:
                masks = masks[torch.arange(len(rows), device=device), 1 + iou[:, 1:].argmax(1)][:, None]
            if low is None:
                low = masks.new_empty((len(prompts), 1, *masks.shape[-2:]))
            low[rows] = masks[:, :1]
        assert low is not None
        logits = self._model.postprocess_masks(low, encoded.resized, encoded.original)
        return logits[:, 0].float().sigmoid().cpu().numpy()
