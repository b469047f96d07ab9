"""What SAM and SAM2 have in common as black boxes in this process."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from baps.blackbox.interface import BlackBox, Capabilities, Encoding
from baps.errors import BapsError
from baps.prompts import Prompt

Given = ParamSpec("Given")
Answer = TypeVar("Answer")

Clicks = tuple[torch.Tensor, torch.Tensor]
"""Places (B, N, 2) as (X, Y), and 1 for a foreground click or 0 for a background one, (B, N)."""


@dataclass(frozen=True)
class Embedded:
    """Images as the network's encoder gave them.

    Attributes:
        tensors: of the images, (B, ...) each.
        original: size of the images, pixels, (H, W).
        resized: their size inside the network's square input, pixels, (H, W).
    """

    tensors: tuple[torch.Tensor, ...]
    original: tuple[int, int]
    resized: tuple[int, int]

    def to(self, device: torch.device) -> Embedded:
        """The same on another device."""
        return replace(self, tensors=tuple(tensor.to(device) for tensor in self.tensors))

    def of(self, rows: Sequence[int]) -> Embedded:
        """Some of the images."""
        return replace(self, tensors=tuple(tensor[rows] for tensor in self.tensors))


def enough_memory(call: Callable[Given, Answer]) -> Callable[Given, Answer]:
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


class LocalBlackBox(BlackBox):
    """An encoder and a decoder of prompts, as networks in this process.

    Args:
        model: both, on its device already; it is put into evaluation mode.
        side: of the encoder's square input, pixels.
        name, weights_sha256, batch_size: see ``Capabilities``.
        clicks: False for a model that was trained with boxes alone.
        video: it has a memory of slices.
    """

    def __init__(
        self,
        model: nn.Module,
        side: int,
        name: str,
        weights_sha256: str,
        *,
        clicks: bool,
        batch_size: int,
        video: bool = False,
    ) -> None:
        super().__init__()
        model.eval().requires_grad_(False)
        self._device = next(model.parameters()).device
        self._side = side
        self._capabilities = Capabilities(
            name=name,
            weights_sha256=weights_sha256,
            clicks=clicks,
            negative_clicks=clicks,
            boxes=True,
            encodings=True,
            batch_size=batch_size,
            input_side=side,
            video=video,
        )

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @enough_memory
    @torch.inference_mode()
    def _segment(self, images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        return self._answer(self._embed(images), prompts)

    @enough_memory
    @torch.inference_mode()
    def _encode(self, image: NDArray[np.uint8]) -> Encoding:
        embedded = self._embed(image[None])
        # Kept in main memory: that of a GPU is small, and bringing it back takes less than a millisecond.
        return Encoding(embedded.to(torch.device("cpu")), sum(tensor.nbytes for tensor in embedded.tensors))

    @enough_memory
    @torch.inference_mode()
    def _decode(self, encoding: Encoding, prompt: Prompt) -> NDArray[np.float32]:
        embedded = encoding._content
        assert isinstance(embedded, Embedded)
        return self._answer(embedded.to(self._device), [prompt])[0]

    def _embed(self, images: NDArray[np.uint8]) -> Embedded:
        original = (images.shape[1], images.shape[2])
        pixels = self._pixels(images)
        with self._faster():  # The encoder is nearly all of the work.
            tensors = self._encoder(pixels)
        return Embedded(tuple(tensor.float() for tensor in tensors), original, self._resized(original))

    def _pixels(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """Images (B, H, W, 3) on the device, (B, 3, h, w) in [0, 255], of the size that the encoder takes."""
        original = (images.shape[1], images.shape[2])
        resized = self._resized(original)
        levels = torch.from_numpy(np.ascontiguousarray(images))
        if self._device.type == "cuda":
            levels = levels.pin_memory()
        pixels = levels.to(self._device, non_blocking=True).permute(0, 3, 1, 2).float()
        if resized != original:
            pixels = F.interpolate(pixels, resized, mode="bilinear", align_corners=False, antialias=True)
        return pixels

    def _faster(self) -> torch.autocast:
        """Half precision where there is a GPU."""
        return torch.autocast("cuda", torch.bfloat16, enabled=self._device.type == "cuda")

    def _answer(self, embedded: Embedded, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        """Masks for a batch; prompts with as many clicks as one another are decoded together."""
        (original_height, original_width), (height, width) = embedded.original, embedded.resized
        groups: dict[tuple[int, bool], list[int]] = {}
        for row, prompt in enumerate(prompts):
            groups.setdefault((len(prompt.positive) + len(prompt.negative), prompt.box is not None), []).append(row)
        low = None
        for rows in groups.values():
            chosen = [prompts[row].scaled(width / original_width, height / original_height) for row in rows]
            clicks, boxes = None, None
            if chosen[0].positive or chosen[0].negative:
                where = [[*prompt.positive, *prompt.negative] for prompt in chosen]
                signs = [[1] * len(prompt.positive) + [0] * len(prompt.negative) for prompt in chosen]
                clicks = (torch.tensor(where, device=self._device), torch.tensor(signs, device=self._device))
            if chosen[0].box is not None:
                boxes = torch.tensor([prompt.box for prompt in chosen], device=self._device)
            masks = self._decoder(embedded.of(rows), clicks, boxes)
            if low is None:
                low = masks.new_empty((len(prompts), *masks.shape[1:]))
            low[rows] = masks
        assert low is not None
        return self._enlarge(low, embedded)[:, 0].float().sigmoid().cpu().numpy()

    @abstractmethod
    def _resized(self, original: tuple[int, int]) -> tuple[int, int]:
        """Size (H, W) of an image (H, W) inside the encoder's input, pixels."""

    @abstractmethod
    def _encoder(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Tensors (B, ...) of images (B, 3, H, W) in [0, 255], resized already."""

    @abstractmethod
    def _decoder(self, embedded: Embedded, clicks: Clicks | None, boxes: torch.Tensor | None) -> torch.Tensor:
        """Logits (B, 1, h, w) for prompts of one form, one an image: clicks, boxes (B, 4) as (X0, Y0, X1, Y1)."""

    @abstractmethod
    def _enlarge(self, low: torch.Tensor, embedded: Embedded) -> torch.Tensor:
        """Logits (B, 1, h, w) to the size of the images, (B, 1, H, W)."""
