"""Adapt a black box to a site's images with an adapter around it.

Before the black box, the part of the image around the prompt is enlarged, and a visual prompt changes it. After the
black box, a head corrects the mask. Each of the three alone is an adapter too.
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
from baps.adapters.zoom import Crop, crop_for_prompt, crop_images, paste_crops, prompt_to_crop, size_in_crop
from baps.blackbox import BlackBox, Encoding, Size
from baps.prompts import Prompt

GetEncoding = Callable[[Hashable, Callable[[], Encoding]], Encoding]
"""Function that returns the cached encoding for a key (see ``Adapter.encoding_key``), or makes it with its argument."""


@dataclass(frozen=True)
class Crops:
    """The parts of a batch of images that the black box sees, computed once for the image, the prompt and the mask.

    Attributes:
        pixels: the whole images, (B, S, S, 3) uint8, RGB.
        regions: the crop of each image.
        prompts: one per image, in pixels of its enlarged crop.
        sizes: size of the part of each enlarged crop that shows the slice, or None if there is no padding.
    """

    pixels: NDArray[np.uint8]
    regions: Sequence[Crop]
    prompts: Sequence[Prompt]
    sizes: Sequence[Size] | None = None

    @cached_property
    def whole(self) -> torch.Tensor:
        """Convert the whole images to a tensor, once.

        Returns:
            The whole images, (B, 3, S, S) in [0, 255].
        """
        return to_tensor(self.pixels)

    @cached_property
    def images(self) -> torch.Tensor:
        """Crop and enlarge the images, once.

        Returns:
            The enlarged crops, (B, 3, S, S) in [0, 255].
        """
        return crop_images(self.whole, self.regions)


@dataclass(frozen=True)
class Adapter:
    """A visual prompt and, optionally, a zoom and an output head; all on the CPU.

    Attributes:
        visual_prompt: network that changes images. Untrained, it changes nothing.
        head: network that corrects masks, or None.
        zoom: share of the image's width that the black box sees, see ``crop_for_prompt``; 1 for the whole image.
    """

    visual_prompt: VisualPrompt
    head: OutputHead | None = None
    zoom: float = 1.0

    def crop(self, pixels: NDArray[np.uint8], prompts: Sequence[Prompt], sizes: Sequence[Size] | None = None) -> Crops:
        """Crop images around their prompts.

        Args:
            pixels: the whole images, (B, S, S, 3) uint8, RGB.
            prompts: one per image, in pixels of the image.
            sizes: size of the part of each image that shows the slice, or None if there is no padding.

        Returns:
            The crops, which ``transform_images``, ``encoding_key`` and ``refine_masks`` take.
        """
        size = pixels.shape[1]
        regions = [crop_for_prompt(prompt, size, self.zoom) for prompt in prompts]
        mapped = [prompt_to_crop(prompt, region, size) for prompt, region in zip(prompts, regions, strict=True)]
        if sizes is not None:
            sizes = [size_in_crop(one, region, size) for one, region in zip(sizes, regions, strict=True)]
        return Crops(pixels, regions, mapped, sizes)

    def encoding_key(self, crops: Crops) -> Hashable:
        """Return what the transformed image depends on beside the image. Equal keys share an encoding.

        Args:
            crops: crop of one image, see ``crop``.

        Returns:
            The part of a cache key that belongs to the prompt.
        """
        if not self.visual_prompt.conditioned_on_click:
            return crops.regions[0], None
        return crops.regions[0], self.visual_prompt.encoding_key(crops.images, crops.prompts)

    @property
    def prompt_independent(self) -> bool:
        """Whether the transformed image depends on the image alone, and not on the prompt."""
        return self.zoom >= 1 and not self.visual_prompt.conditioned_on_click

    def transform_images(self, crops: Crops) -> NDArray[np.uint8]:
        """Apply the visual prompt to images.

        Args:
            crops: crops of B images, see ``crop``.

        Returns:
            The images that the black box sees, (B, S, S, 3) uint8, RGB.
        """
        # Of the whole images, so that they are the same for every click.
        features = self.visual_prompt.encoder.features(crops.whole)
        return to_pixels(self.visual_prompt.transform_images(crops.images, features, crops.prompts))

    def refine_masks(self, crops: Crops, probability: NDArray[np.float32]) -> NDArray[np.float32]:
        """Correct the black box's masks with the head, and paste them into the whole images.

        Args:
            crops: crops of B images, see ``crop``.
            probability: what the black box predicted for the transformed images, (B, S, S).

        Returns:
            Probabilities on the whole images, (B, S, S); 0 outside the crops.
        """
        refined = torch.from_numpy(probability)
        if self.head:
            refined = self.head.refine_masks(crops.images, refined, crops.prompts)
        whole: NDArray[np.float32] = paste_crops(refined, crops.regions, crops.pixels.shape[1]).numpy()
        return whole

    def fallbacks(self) -> Sequence[Adapter | None]:
        """List less adapted variants: without the visual prompt, then None for the unadapted model.

        Returns:
            The variants, the most adapted first.
        """
        if self.head is None and self.zoom == 1:
            return [None]
        return [replace(self, visual_prompt=identity_adapter().visual_prompt), None]

    def to_dict(self) -> dict[str, Any]:
        """Describe the adapter for its record; ``adapter_from_record`` builds an untrained copy from it.

        Returns:
            ``visual_prompt``, ``head`` and ``zoom``.
        """
        return {"visual_prompt": self.visual_prompt.to_dict(), "head": self.head is not None, "zoom": self.zoom}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Collect all weights.

        Returns:
            The tensors by name, each name prefixed with its part.
        """
        parts = {"visual_prompt": self.visual_prompt, **({"head": self.head} if self.head else {})}
        return {f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Load weights that ``state_dict`` returned.

        Args:
            state: tensors by name.

        Raises:
            RuntimeError: if the weights do not fit this adapter.
        """
        if self.head is None and any(key.startswith("head.") for key in state):
            raise RuntimeError("There are weights for a head, but the adapter has no head.")
        for part, module in (("visual_prompt", self.visual_prompt), ("head", self.head)):
            own = {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")}
            if module is not None:
                module.load_state_dict(own)
                module.eval()


@cache
def identity_adapter() -> Adapter:
    """Return the adapter that changes nothing.

    Returns:
        The adapter, which is shared.
    """
    return Adapter(build_visual_prompt("basis"))


def adapter_from_record(record: Mapping[str, Any]) -> Adapter:
    """Build an adapter like the one that ``Adapter.to_dict`` described. Its weights are still to be loaded.

    Args:
        record: what ``Adapter.to_dict`` returned.

    Returns:
        The untrained adapter.

    Raises:
        BapsError: if the encoder cannot be loaded, see ``visual_prompt_from_record``.
        ValueError: if the zoom is out of range.
    """
    head, zoom = OutputHead() if record["head"] else None, float(record["zoom"])
    if not 0 < zoom <= 1:
        raise ValueError(f"The zoom {zoom} is not above 0 and at most 1.")
    return Adapter(visual_prompt_from_record(record["visual_prompt"]), head, zoom)


def segment_adapted(
    black_box: BlackBox,
    adapter: Adapter | None,
    pixels: NDArray[np.uint8],
    prompts: Sequence[Prompt],
    sizes: Sequence[Size] | None = None,
) -> NDArray[np.float32]:
    """Segment images with a black box and its adapter.

    Args:
        black_box: the model.
        adapter: its adapter, or None for the unadapted model.
        pixels: images, (B, S, S, 3) uint8, RGB.
        prompts: one per image, in pixels of the image.
        sizes: size of the part of each image that shows the slice, or None if there is no padding.

    Returns:
        Probabilities, (B, S, S).
    """
    if adapter is None:
        return black_box.segment(pixels, prompts, sizes)
    crops = adapter.crop(pixels, prompts, sizes)
    return adapter.refine_masks(crops, black_box.segment(adapter.transform_images(crops), crops.prompts, crops.sizes))


def encode_cached(
    black_box: BlackBox,
    adapter: Adapter | None,
    pixels: NDArray[np.uint8],
    prompt: Prompt,
    get_encoding: GetEncoding,
    size: Size | None = None,
    prefetch: bool = False,
) -> Encoding:
    """Run the expensive half of ``segment_cached``.

    Args:
        black_box: the model, which must have encodings.
        adapter: its adapter, or None for the unadapted model.
        pixels: one image, (S, S, 3) uint8, RGB.
        prompt: the prompt, in pixels of the image.
        get_encoding: returns the cached encoding of this image for a key, or makes it.
        size: size of the part of the image that shows the slice, or None if there is no padding.
        prefetch: whether the encoding is made in advance, so that no user waits for it yet.

    Returns:
        The encoding of the transformed image.
    """
    if adapter is None:
        return get_encoding(None, lambda: black_box.encode(pixels, prefetch, size))
    crops = adapter.crop(pixels[None], [prompt], None if size is None else [size])
    return _encode_crops(black_box, adapter, crops, get_encoding, prefetch)


def _encode_crops(
    black_box: BlackBox, adapter: Adapter, crops: Crops, get_encoding: GetEncoding, prefetch: bool = False
) -> Encoding:
    size = crops.sizes[0] if crops.sizes else None
    return get_encoding(
        adapter.encoding_key(crops), lambda: black_box.encode(adapter.transform_images(crops)[0], prefetch, size)
    )


def segment_cached(
    black_box: BlackBox,
    adapter: Adapter | None,
    pixels: NDArray[np.uint8],
    prompt: Prompt,
    get_encoding: GetEncoding,
    size: Size | None = None,
) -> NDArray[np.float32]:
    """Segment one image as ``segment_adapted`` does, and reuse its encoding where the black box has encodings.

    Args:
        black_box: the model.
        adapter: its adapter, or None for the unadapted model.
        pixels: one image, (S, S, 3) uint8, RGB.
        prompt: the prompt, in pixels of the image.
        get_encoding: returns the cached encoding of this image for a key, or makes it.
        size: size of the part of the image that shows the slice, or None if there is no padding.

    Returns:
        Probabilities, (S, S).
    """
    sizes = None if size is None else [size]
    if not black_box.capabilities.encodings:
        return segment_adapted(black_box, adapter, pixels[None], [prompt], sizes)[0]
    if adapter is None:
        return black_box.decode(encode_cached(black_box, None, pixels, prompt, get_encoding, size), prompt)
    crops = adapter.crop(pixels[None], [prompt], sizes)
    probability = black_box.decode(_encode_crops(black_box, adapter, crops, get_encoding), crops.prompts[0])
    return adapter.refine_masks(crops, probability[None])[0]
