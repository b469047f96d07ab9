"""Run SAM-HQ (Ke et al., *Segment Anything in High Quality*, 2023) and SAM 3 (Meta, 2025) with transformers.

Their images are prepared by the image processors of that package. Of SAM 3 only the part that answers clicks and boxes
is used (its tracker), not the one that finds objects by words.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import (
    Sam3ImageProcessor,
    Sam3TrackerModel,
    SamHQModel,
    SamImageProcessor,
)

from baps.blackbox.local import Clicks, Embeddings, LocalBlackBox
from baps.errors import InputError

_MODEL_TYPES = {"sam_hq": ("sam_hq",), "sam3": ("sam3_video", "sam3_tracker", "sam3_tracker_video")}
"""Values of ``model_type`` in the configuration, by the name of the black box."""


def read_transformers_model(name: str, weights: Path) -> SamHQModel | Sam3TrackerModel:
    """Read a model from the files that transformers saves.

    Args:
        name: ``sam_hq`` or ``sam3``.
        weights: path of ``model.safetensors``; its ``config.json`` lies beside it.

    Returns:
        The model, on the CPU.

    Raises:
        InputError: if the files cannot be used.
    """
    config = weights.with_name("config.json")
    if weights.name != "model.safetensors" or not config.is_file():
        raise InputError(
            f"The black box {name} needs the files that transformers saves: give the path of model.safetensors, with "
            f"config.json beside it, not {weights}."
        )
    try:
        model_type = json.loads(config.read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{config} is not a configuration of transformers ({type(error).__name__}).") from error
    if model_type not in _MODEL_TYPES[name]:
        raise InputError(f"{config} describes the model {model_type}, not {name}. Give the files of {name}.")
    network = SamHQModel if name == "sam_hq" else Sam3TrackerModel
    try:
        model, report = network.from_pretrained(
            weights.parent, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # Many types, depending on what is wrong; each means that the files cannot be used.
        raise InputError(
            f"{weights} cannot be loaded as {name} ({type(error).__name__}). Download it again."
        ) from error
    if missing := sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}):
        raise InputError(f"{weights} does not hold {name}: {len(missing)} tensors are missing, such as {missing[0]}.")
    return model


class TransformersBlackBox(LocalBlackBox):
    """SAM-HQ or SAM 3 in this process.

    Args:
        model: the model, on its device already; it is put into eval mode.
        name: ``sam_hq`` or ``sam3``.
        weights_sha256: see ``Capabilities``.
        batch_size: see ``Capabilities``.
    """

    def __init__(
        self, model: SamHQModel | Sam3TrackerModel, name: str, weights_sha256: str = "", *, batch_size: int = 1
    ) -> None:
        self._pads = isinstance(model, SamHQModel)
        """Whether an image keeps its proportions and is padded; else it is stretched."""
        side = int(
            model.config.vision_config.image_size if self._pads else model.config.prompt_encoder_config.image_size
        )
        super().__init__(model, side, name, weights_sha256, clicks=True, batch_size=batch_size, preprocessing=name)
        self._model = model
        square = {"height": side, "width": side}
        self._processor: Any = (
            SamImageProcessor(size={"longest_edge": side}, pad_size=square)
            if self._pads
            else Sam3ImageProcessor(size=square)
        )

    def _resized(self, original: tuple[int, int]) -> tuple[int, int]:
        if not self._pads:
            return self._input_size, self._input_size
        scale = self._input_size / max(original)
        return max(1, int(original[0] * scale + 0.5)), max(1, int(original[1] * scale + 0.5))

    def _pixels(self, images: NDArray[np.uint8]) -> torch.Tensor:
        prepared = self._processor(list(images), return_tensors="pt", device=self._device)
        pixels: torch.Tensor = prepared["pixel_values"].to(self._device)
        return pixels

    def _encoder(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        embeddings = self._model.get_image_embeddings(pixels)
        if not self._pads:
            return tuple(embeddings)
        image, intermediate = embeddings
        return (image, *intermediate)

    def _decoder(self, embedded: Embeddings, clicks: Clicks | None, boxes: torch.Tensor | None) -> torch.Tensor:
        # The second dimension of prompts and masks is for several objects in one image. Here it is 1.
        prompts: dict[str, Any] = (
            {} if clicks is None else {"input_points": clicks[0][:, None], "input_labels": clicks[1][:, None]}
        )
        if boxes is not None:
            prompts["input_boxes"] = boxes[:, None]
        if self._pads:
            prompts["image_embeddings"], *prompts["intermediate_embeddings"] = embedded.tensors
        else:
            prompts["image_embeddings"] = list(embedded.tensors)
        masks: torch.Tensor = self._model(**prompts, multimask_output=False).pred_masks
        return masks[:, 0]

    def _probabilities(self, low: torch.Tensor, embedded: Embeddings) -> torch.Tensor:
        if self._pads:
            side, (height, width) = (self._input_size, self._input_size), embedded.resized
            low = F.interpolate(low, side, mode="bilinear", align_corners=False)[..., :height, :width]
        return F.interpolate(low, embedded.original, mode="bilinear", align_corners=False).sigmoid()
