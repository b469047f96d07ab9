"""An adapter: what is put around a black box so that it does better on a site's images.

Before it, a visual prompt changes the image; after it, a head corrects the answer. Either alone is an adapter too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .blackbox import BlackBox, Prompt
from .output_head import OutputHead
from .visual_prompt import VisualPrompt, build_visual_prompt, to_pixels, to_tensor, visual_prompt_from_record


@dataclass(frozen=True)
class Adapter:
    """A visual prompt and, where there is one, an output-side head; both on the CPU.

    Attributes:
        visual_prompt: changes images; untrained, it changes nothing.
        head: corrects answers, or None.
    """

    visual_prompt: VisualPrompt
    head: OutputHead | None = None

    def change(self, pixels: NDArray[np.uint8], prompts: Sequence[Prompt]) -> NDArray[np.uint8]:
        """Images (B, S, S, 3) uint8 as the black box gets them."""
        images = to_tensor(pixels)
        return to_pixels(self.visual_prompt.change(images, self.visual_prompt.encoder.features(images), prompts))

    def refine(
        self, pixels: NDArray[np.uint8], prompts: Sequence[Prompt], probability: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Answers (B, S, S) of the black box, corrected.

        Args:
            pixels: the images before they were changed, (B, S, S, 3) uint8.
            prompts: one an image, pixels of the canvas.
            probability: (B, S, S).
        """
        if self.head is None:
            return probability
        refined: NDArray[np.float32] = self.head.refine(
            to_tensor(pixels), torch.from_numpy(probability), prompts
        ).numpy()
        return refined

    def record(self) -> dict[str, Any]:
        """What ``adapter_from_record`` needs beside the state."""
        return {"visual_prompt": self.visual_prompt.record(), "head": self.head is not None}

    def state(self) -> dict[str, torch.Tensor]:
        """All weights by name."""
        parts = {"visual_prompt": self.visual_prompt, **({"head": self.head} if self.head else {})}
        return {f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over weights that ``state`` gave.

        Raises:
            RuntimeError: if they do not fit.
        """
        for part, module in (("visual_prompt", self.visual_prompt), ("head", self.head)):
            mine = {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")}
            if module is not None:
                module.load_state_dict(mine)
                module.eval()


def unchanging() -> Adapter:
    """An adapter that changes nothing."""
    return Adapter(build_visual_prompt("basis"))


def adapter_from_record(record: Mapping[str, Any]) -> Adapter:
    """An adapter like the one that ``Adapter.record`` described; its state is still to be loaded.

    Raises:
        BapsError: as ``visual_prompt_from_record``.
    """
    return Adapter(visual_prompt_from_record(record["visual_prompt"]), OutputHead() if record["head"] else None)


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
    return adapter.refine(pixels, prompts, black_box.segment(adapter.change(pixels, prompts), prompts))
