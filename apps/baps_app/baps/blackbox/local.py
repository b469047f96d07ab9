"""Implement what SAM and SAM 2 share as black boxes in this process."""

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
from typing_extensions import override

from baps.blackbox.interface import BlackBox, Capabilities, Encoding
from baps.errors import BapsError
from baps.prompts import Point, Prompt

Params = ParamSpec("Params")
Result = TypeVar("Result")

Clicks = tuple[torch.Tensor, torch.Tensor]
"""Positions (B, N, 2) as (X, Y) in pixels, and 1 for a positive or 0 for a negative click, (B, N)."""


@dataclass(frozen=True)
class Embeddings:
    """Images as the network's encoder embedded them.

    Attributes:
        tensors: embeddings of the images, (B, ...) each.
        original: size of the images, (H, W) in pixels.
        resized: size of the images inside the network's square input, (H, W) in pixels.
    """

    tensors: tuple[torch.Tensor, ...]
    original: tuple[int, int]
    resized: tuple[int, int]

    def to(self, device: torch.device) -> Embeddings:
        """Move the embeddings to another device.

        Args:
            device: the device.

        Returns:
            New embeddings.
        """
        return replace(self, tensors=tuple(tensor.to(device) for tensor in self.tensors))

    def select(self, rows: Sequence[int]) -> Embeddings:
        """Select some of the images.

        Args:
            rows: indices of the images.

        Returns:
            New embeddings.
        """
        return replace(self, tensors=tuple(tensor[rows] for tensor in self.tensors))


def convert_out_of_memory(call: Callable[Params, Result]) -> Callable[Params, Result]:
    """Convert a CUDA out-of-memory error to BapsError and free the cache, so that the next call may succeed.

    Args:
        call: the function to guard.

    Returns:
        The guarded function.

    Raises:
        BapsError: from the guarded function, if the GPU has not enough memory.
    """

    @wraps(call)
    def guarded(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        try:
            return call(*args, **kwargs)
        except torch.OutOfMemoryError:
            pass
        torch.cuda.empty_cache()  # After the except block, because the error holds on to tensors.
        raise BapsError(
            "The GPU has not enough memory for the model. Stop other programs on it, choose a smaller model, or "
            "serve from the CPU (device=cpu)."
        )

    return guarded


class LocalBlackBox(BlackBox):
    """Base of networks in this process that have an image encoder and a prompt decoder.

    Args:
        model: the network, on its device already; it is put into eval mode.
        input_size: width and height of the encoder's square input, pixels.
        name: see ``Capabilities``.
        weights_sha256: see ``Capabilities``.
        clicks: False for a model that was trained with boxes only.
        batch_size: see ``Capabilities``.
        video: whether the model has a memory of slices.
        preprocessing: see ``Capabilities``.
    """

    def __init__(
        self,
        model: nn.Module,
        input_size: int,
        name: str,
        weights_sha256: str,
        *,
        clicks: bool,
        batch_size: int,
        video: bool = False,
        preprocessing: str,
    ) -> None:
        super().__init__()
        model.eval().requires_grad_(False)
        self._device = next(model.parameters()).device
        self._input_size = input_size
        self._capabilities = Capabilities(
            name=name,
            weights_sha256=weights_sha256,
            clicks=clicks,
            negative_clicks=clicks,
            boxes=True,
            encodings=True,
            batch_size=batch_size,
            input_size=input_size,
            video=video,
            preprocessing=preprocessing,
        )

    @property
    @override
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @convert_out_of_memory
    @torch.inference_mode()
    def _segment(self, images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        return self._predict(self._embed(images), prompts)

    @convert_out_of_memory
    @torch.inference_mode()
    def _encode(self, image: NDArray[np.uint8]) -> Encoding:
        embedded = self._embed(image[None])
        # Keep it in main memory: GPU memory is scarce, and moving it back takes less than a millisecond.
        return Encoding(embedded.to(torch.device("cpu")), sum(tensor.nbytes for tensor in embedded.tensors))

    @convert_out_of_memory
    @torch.inference_mode()
    def _decode(self, encoding: Encoding, prompt: Prompt) -> NDArray[np.float32]:
        embedded = encoding._content
        assert isinstance(embedded, Embeddings)
        return self._predict(embedded.to(self._device), [prompt])[0]

    def _embed(self, images: NDArray[np.uint8]) -> Embeddings:
        original = (images.shape[1], images.shape[2])
        pixels = self._pixels(images)
        with self._half_precision():  # The encoder does nearly all of the work.
            tensors = self._encoder(pixels)
        return Embeddings(tuple(tensor.float() for tensor in tensors), original, self._resized(original))

    def _pixels(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """Move images (B, H, W, 3) to the device, (B, 3, h, w) in [0, 255], resized for the encoder."""
        original = (images.shape[1], images.shape[2])
        resized = self._resized(original)
        levels = torch.from_numpy(np.ascontiguousarray(images))
        if self._device.type == "cuda":
            levels = levels.pin_memory()
        pixels = levels.to(self._device, non_blocking=True).permute(0, 3, 1, 2).float()
        if resized != original:
            pixels = F.interpolate(pixels, resized, mode="bilinear", align_corners=False, antialias=True)
        return pixels

    def _half_precision(self) -> torch.autocast:
        """Use half precision if there is a GPU."""
        return torch.autocast("cuda", torch.bfloat16, enabled=self._device.type == "cuda")

    def _predict(self, embedded: Embeddings, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        """Predict masks for a batch; prompts with the same number of clicks are decoded together."""
        (original_height, original_width), (height, width) = embedded.original, embedded.resized

        def to_input(point: Point) -> Point:
            # As the models' own predictors do: the first pixel stays at 0. The prompt encoder adds half a pixel.
            return point[0] * (width / original_width), point[1] * (height / original_height)

        groups: dict[tuple[int, bool], list[int]] = {}
        for row, prompt in enumerate(prompts):
            groups.setdefault((len(prompt.positive) + len(prompt.negative), prompt.box is not None), []).append(row)
        low = None
        for rows in groups.values():
            group = [prompts[row].mapped(to_input) for row in rows]
            clicks, boxes = None, None
            if group[0].positive or group[0].negative:
                points = [[*prompt.positive, *prompt.negative] for prompt in group]
                signs = [[1] * len(prompt.positive) + [0] * len(prompt.negative) for prompt in group]
                clicks = (torch.tensor(points, device=self._device), torch.tensor(signs, device=self._device))
            if group[0].box is not None:
                boxes = torch.tensor([prompt.box for prompt in group], device=self._device)
            masks = self._decoder(embedded.select(rows), clicks, boxes)
            if low is None:
                low = masks.new_empty((len(prompts), *masks.shape[1:]))
            low[rows] = masks
        assert low is not None
        return self._probabilities(low.float(), embedded)[:, 0].cpu().numpy()

    @abstractmethod
    def _resized(self, original: tuple[int, int]) -> tuple[int, int]:
        """Return the size (H, W) of an image (H, W) inside the encoder's input, pixels."""

    @abstractmethod
    def _encoder(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Embed images (B, 3, H, W) in [0, 255] that are resized already, as tensors (B, ...)."""

    @abstractmethod
    def _decoder(self, embedded: Embeddings, clicks: Clicks | None, boxes: torch.Tensor | None) -> torch.Tensor:
        """Return logits (B, 1, h, w) for prompts of one form, one per image: clicks, boxes (B, 4) as X0, Y0, X1, Y1."""

    @abstractmethod
    def _probabilities(self, low: torch.Tensor, embedded: Embeddings) -> torch.Tensor:
        """Convert logits (B, 1, h, w) to probabilities at the pixels of the images, (B, 1, H, W)."""
