"""An adapter: what is put around a black box so that it does better on a site's images.

Before it, the part of the image around the prompt is enlarged and a visual prompt changes it; after it, a head corrects
the answer. Each alone is an adapter too.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
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

    def views(self, prompts: Sequence[Prompt], side: int) -> list[View]:
        """Which parts of images of ``side`` pixels the black box is shown."""
        return [crop_for_prompt(prompt, side, self.zoom) for prompt in prompts]

    def moved(self, prompts: Sequence[Prompt], side: int) -> list[Prompt]:
        """Prompts in pixels of what the black box is shown."""
        views = self.views(prompts, side)
        return [move(prompt, view, side) for prompt, view in zip(prompts, views, strict=True)]

    def shown(self, prompt: Prompt, side: int) -> Hashable:
        """What of a prompt the shown image depends on; while it stays the same, an encoding can be kept."""
        return self.views([prompt], side)[0], prompt if self.visual_prompt.conditioned_on_click else None

    @property
    def of_the_image(self) -> bool:
        """What is shown depends on the image alone, whatever the prompt is."""
        return self.zoom >= 1 and not self.visual_prompt.conditioned_on_click

    def change(self, pixels: NDArray[np.uint8], prompts: Sequence[Prompt]) -> NDArray[np.uint8]:
        """What the black box is shown of images (B, S, S, 3) uint8; its size is the same."""
        images, side = to_tensor(pixels), pixels.shape[1]
        features = self.visual_prompt.encoder.features(images)  # Of the whole: the same for every click.
        shown = crop(images, self.views(prompts, side))
        return to_pixels(self.visual_prompt.change(shown, features, self.moved(prompts, side)))

    def refine(
        self, pixels: NDArray[np.uint8], prompts: Sequence[Prompt], probability: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Answers (B, S, S) of the black box to what it was shown, corrected and back in the whole images.

        Args:
            pixels: the whole images, (B, S, S, 3) uint8.
            prompts: one an image, pixels of the whole.
            probability: (B, S, S).
        """
        side, answers = pixels.shape[1], torch.from_numpy(probability)
        views = self.views(prompts, side)
        if self.head:
            answers = self.head.refine(crop(to_tensor(pixels), views), answers, self.moved(prompts, side))
        whole: NDArray[np.float32] = paste(answers, views, side).numpy()
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
    answers = black_box.segment(adapter.change(pixels, prompts), adapter.moved(prompts, pixels.shape[1]))
    return adapter.refine(pixels, prompts, answers)


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
    change = adapter.change
    return keep(adapter.shown(prompt, len(pixels)), lambda: black_box.encode(change(pixels[None], [prompt])[0], ahead))


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
    encoding = encode_cached(black_box, adapter, pixels, prompt, keep)
    if adapter is None:
        return black_box.decode(encoding, prompt)
    answer = black_box.decode(encoding, adapter.moved([prompt], len(pixels))[0])
    return adapter.refine(pixels[None], [prompt], answer[None])[0]
