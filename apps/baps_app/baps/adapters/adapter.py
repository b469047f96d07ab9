"""An adapter: what is put around a black box so that it does better on a site's images.

Before it, the part of the image around the prompt is enlarged and a visual prompt changes it; after it, a head corrects
the answer. Each alone is an adapter too.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from baps.adapters.output_head import OutputHead
from baps.adapters.visual_prompt import (
    VisualPrompt,
    build_visual_prompt,
    to_pixels,
    to_tensor,
    visual_prompt_from_record,
)
from baps.adapters.zoom import View, crop, crop_for_prompt, move, paste
from baps.blackbox import BlackBox, Encoding
from baps.prompts import Prompt

Keep = Callable[[Hashable, Callable[[], Encoding]], Encoding]
"""Gives the encoding that is kept for what an adapter shows of an image, see ``Adapter.shown``, or makes it."""


@dataclass(frozen=True)
class Crops:
    """The parts of a batch of images that a black box is shown, computed once for the image, the prompt and the mask.

    Attributes:
        pixels: the whole images, (B, S, S, 3) uint8.
        views: the part of each image.
        prompts: one per image, (X, Y) in pixels of its enlarged part.
    """

    pixels: NDArray[np.uint8]
    views: Sequence[View]
    prompts: Sequence[Prompt]

    @cached_property
    def whole(self) -> torch.Tensor:
        """The whole images, (B, 3, S, S) in [0, 255]."""
        return to_tensor(self.pixels)

    @cached_property
    def images(self) -> torch.Tensor:
        """The enlarged parts, (B, 3, S, S) in [0, 255]."""
        return crop(self.whole, self.views)


@dataclass(frozen=True)
class Adapter:
    """A visual prompt and, where there are any, a zoom and an output-side head; all on the CPU.

    Attributes:
        visual_prompt: changes images; untrained, it changes nothing.
        head: corrects answers, or None.
        zoom: share of an image's side that the black box is shown, see ``crop_for_prompt``; 1 for all of it.
    """

    visual_prompt: VisualPrompt
    head: OutputHead | None = None
    zoom: float = 1.0

    def crop(self, pixels: NDArray[np.uint8], prompts: Sequence[Prompt]) -> Crops:
        """Crop images around their prompts.

        Args:
            pixels: the whole images, (B, S, S, 3) uint8.
            prompts: one per image, (X, Y) in its pixels.

        Returns:
            The parts, which ``change``, ``shown`` and ``refine`` take.
        """
        side = pixels.shape[1]
        views = [crop_for_prompt(prompt, side, self.zoom) for prompt in prompts]
        return Crops(pixels, views, [move(prompt, view, side) for prompt, view in zip(prompts, views, strict=True)])

    def shown(self, crops: Crops) -> Hashable:
        """Return the key of what is shown of one image; while it stays the same, an encoding can be kept."""
        return crops.views[0], crops.prompts[0] if self.visual_prompt.conditioned_on_click else None

    @property
    def of_the_image(self) -> bool:
        """What is shown depends on the image alone, whatever the prompt is."""
        return self.zoom >= 1 and not self.visual_prompt.conditioned_on_click

    def change(self, crops: Crops) -> NDArray[np.uint8]:
        """Apply the visual prompt to images.

        Args:
            crops: of B images, see ``crop``.

        Returns:
            What the black box is shown, (B, S, S, 3) uint8.
        """
        features = self.visual_prompt.encoder.features(crops.whole)  # Of the whole: the same for every click.
        return to_pixels(self.visual_prompt.change(crops.images, features, crops.prompts))

    def refine(self, crops: Crops, probability: NDArray[np.float32]) -> NDArray[np.float32]:
        """Correct the black box's answers by the head, and put them back into the whole images.

        Args:
            crops: of B images, see ``crop``.
            probability: the answers to what the black box was shown, (B, S, S).

        Returns:
            Probabilities in the frame of the whole images, (B, S, S); 0 around the parts.
        """
        answers = torch.from_numpy(probability)
        if self.head:
            answers = self.head.refine(crops.images, answers, crops.prompts)
        whole: NDArray[np.float32] = paste(answers, crops.views, crops.pixels.shape[1]).numpy()
        return whole

    def less(self) -> Sequence[Adapter | None]:
        """What remains of it without its visual prompt, then the model as it is."""
        if self.head is None and self.zoom == 1:
            return [None]
        return [replace(self, visual_prompt=identity_adapter().visual_prompt), None]

    def record(self) -> dict[str, Any]:
        """What ``adapter_from_record`` needs beside the state."""
        return {"visual_prompt": self.visual_prompt.record(), "head": self.head is not None, "zoom": self.zoom}

    def state(self) -> dict[str, torch.Tensor]:
        """All weights by name."""
        parts = {"visual_prompt": self.visual_prompt, **({"head": self.head} if self.head else {})}
        return {f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over weights that ``state`` gave.

        Raises:
            RuntimeError: if they do not fit.
        """
        if self.head is None and any(key.startswith("head.") for key in state):
            raise RuntimeError("There are weights of a head, but no head.")
        for part, module in (("visual_prompt", self.visual_prompt), ("head", self.head)):
            mine = {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")}
            if module is not None:
                module.load_state_dict(mine)
                module.eval()


@cache
def identity_adapter() -> Adapter:
    """An adapter that changes nothing."""
    return Adapter(build_visual_prompt("basis"))


def adapter_from_record(record: Mapping[str, Any]) -> Adapter:
    """An adapter like the one that ``Adapter.record`` described; its state is still to be loaded.

    Raises:
        BapsError: as ``visual_prompt_from_record``.
        ValueError: if the zoom is none.
    """
    head, zoom = OutputHead() if record["head"] else None, float(record["zoom"])
    if not 0 < zoom <= 1:
        raise ValueError(f"The zoom {zoom} is no share of an image.")
    return Adapter(visual_prompt_from_record(record["visual_prompt"]), head, zoom)


def segment_adapted(
    black_box: BlackBox, adapter: Adapter | None, pixels: NDArray[np.uint8], prompts: Sequence[Prompt]
) -> NDArray[np.float32]:
    """Ask a black box through an adapter, or as it is.

    Args:
        black_box: the model.
        adapter: or None.
        pixels: (B, S, S, 3) uint8.
        prompts: one an image, pixels of the canvas.

    Returns:
        Probabilities, (B, S, S).
    """
    if adapter is None:
        return black_box.segment(pixels, prompts)
    crops = adapter.crop(pixels, prompts)
    return adapter.refine(crops, black_box.segment(adapter.change(crops), crops.prompts))


def encode_cached(
    black_box: BlackBox,
    adapter: Adapter | None,
    pixels: NDArray[np.uint8],
    prompt: Prompt,
    keep: Keep,
    ahead: bool = False,
) -> Encoding:
    """The expensive half of ``segment_cached``; ``ahead`` of a prompt that may come."""
    if adapter is None:
        return keep(None, lambda: black_box.encode(pixels, ahead))
    return _encode_crops(black_box, adapter, adapter.crop(pixels[None], [prompt]), keep, ahead)


def _encode_crops(black_box: BlackBox, adapter: Adapter, crops: Crops, keep: Keep, ahead: bool = False) -> Encoding:
    return keep(adapter.shown(crops), lambda: black_box.encode(adapter.change(crops)[0], ahead))


def segment_cached(
    black_box: BlackBox, adapter: Adapter | None, pixels: NDArray[np.uint8], prompt: Prompt, keep: Keep
) -> NDArray[np.float32]:
    """As ``segment_adapted`` for one image (S, S, 3), in two halves where the black box has them.

    Args:
        black_box, adapter, pixels, prompt: as there, one of each.
        keep: keeps the expensive half; other prompts on the image may meet it.

    Returns:
        Probability, (S, S).
    """
    if not black_box.capabilities.encodings:
        return segment_adapted(black_box, adapter, pixels[None], [prompt])[0]
    if adapter is None:
        return black_box.decode(encode_cached(black_box, None, pixels, prompt, keep), prompt)
    crops = adapter.crop(pixels[None], [prompt])
    answer = black_box.decode(_encode_crops(black_box, adapter, crops, keep), crops.prompts[0])
    return adapter.refine(crops, answer[None])[0]
