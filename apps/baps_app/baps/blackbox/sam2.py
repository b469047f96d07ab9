"""Run SAM 2 and 2.1 as black boxes (Ravi et al., *SAM 2: Segment Anything in Images and Videos*, 2024).

They segment image by image, or propagate from slice to slice with SAM 2's own memory, with the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import sam2
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import OmegaConf
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch.nn import functional as F

from baps.blackbox.local import Clicks, Embeddings, LocalBlackBox, convert_out_of_memory
from baps.blackbox.sam2_memory import Sam2Memory
from baps.errors import InputError
from baps.prompts import Point

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of the images that the encoder was trained with (ImageNet), in [0, 1]."""

_SIZES = {(96, 12): "t", (96, 16): "s", (112, 24): "b+", (144, 48): "l"}
"""Size of the model by the width of the encoder and its number of blocks."""

_BOX_CORNERS = (2, 3)
"""Labels of the two points that represent a box."""


def build_sam2_model(size: str, version: str = "2.1") -> SAM2VideoPredictor:
    """Build SAM 2 with random weights, on the CPU.

    It does not use hydra's global state, of which a process has only one: MONAI Label's own SAM2 sets it too.

    Args:
        size: ``t``, ``s``, ``b+`` or ``l``.
        version: ``2`` or ``2.1``.

    Returns:
        The model.
    """
    config = OmegaConf.load(
        Path(sam2.__file__).parent / "configs" / f"sam{version}" / f"sam{version}_hiera_{size}.yaml"
    )
    # As in sam2.build_sam: if the single mask is not stable, the best of three is returned.
    decoder = {
        "dynamic_multimask_via_stability": True,
        "dynamic_multimask_stability_delta": 0.05,
        "dynamic_multimask_stability_thresh": 0.98,
    }
    # The video predictor is the image model with a memory.
    config.model["_target_"] = "sam2.sam2_video_predictor.SAM2VideoPredictor"
    model = instantiate(
        config.model,
        sam_mask_decoder_extra_args=decoder,
        binarize_mask_from_pts_for_mem_enc=True,  # As in sam2.build_sam: the binary mask is remembered.
        _recursive_=True,
    )
    assert isinstance(model, SAM2VideoPredictor)
    return model


def sam2_from_state(state: Mapping[str, torch.Tensor]) -> tuple[SAM2VideoPredictor, str]:
    """Build the model that a checkpoint holds.

    Args:
        state: state dict of the checkpoint.

    Returns:
        The model and its name.

    Raises:
        InputError: if it is not a SAM 2 checkpoint, or its tensors do not fit.
    """
    width = state.get("image_encoder.trunk.patch_embed.proj.weight", torch.empty(0)).shape[:1]
    blocks = {key.split(".")[3] for key in state if key.startswith("image_encoder.trunk.blocks.")}
    size = _SIZES.get((width[0] if width else 0, len(blocks)))
    if size is None:
        raise InputError("It is not a SAM 2 checkpoint (tiny, small, base+ or large): its image encoder is missing.")
    version = "2.1" if "no_obj_embed_spatial" in state else "2"
    model = build_sam2_model(size, version)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"It looks like SAM {version} {size}, but its tensors do not fit: {error}") from error
    return model, f"sam{version}_hiera_{size}"


class Sam2BlackBox(LocalBlackBox):
    """SAM 2 in this process.

    Args:
        model: the model, on its device already; it is put into eval mode.
        name: see ``Capabilities``.
        weights_sha256: see ``Capabilities``.
        batch_size: see ``Capabilities``.
    """

    def __init__(self, model: SAM2VideoPredictor, name: str, weights_sha256: str = "", *, batch_size: int = 1) -> None:
        super().__init__(
            model,
            model.image_size,
            name,
            weights_sha256,
            clicks=True,
            batch_size=batch_size,
            video=True,
            preprocessing="sam2",
        )
        self._model = model
        self._mean = torch.tensor(_MEAN, device=self._device).view(3, 1, 1) * 255
        self._std = torch.tensor(_STD, device=self._device).view(3, 1, 1) * 255
        with torch.inference_mode():
            self._position = model.sam_prompt_encoder.get_dense_pe()

    def _resized(self, original: tuple[int, int]) -> tuple[int, int]:
        return self._input_size, self._input_size  # An image is stretched, not padded.

    def _encoder(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self._model.forward_image(self._normalised(pixels))
        _, features, _, sizes = self._model._prepare_backbone_features(output)
        if self._model.directly_add_no_mem_embed:
            features[-1] = features[-1] + self._model.no_mem_embed
        fine, middle, coarse = (x.permute(1, 2, 0).unflatten(2, size) for x, size in zip(features, sizes, strict=True))
        return coarse, fine, middle

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels - self._mean) / self._std

    def _decoder(self, embedded: Embeddings, clicks: Clicks | None, boxes: torch.Tensor | None) -> torch.Tensor:
        coarse, *finer = embedded.tensors
        if boxes is not None:
            corners, labels = boxes.reshape(-1, 2, 2), torch.tensor([_BOX_CORNERS], device=boxes.device)
            labels = labels.expand(len(boxes), 2)
            clicks = (
                (torch.cat([corners, clicks[0]], 1), torch.cat([labels, clicks[1]], 1)) if clicks else (corners, labels)
            )
        sparse, dense = self._model.sam_prompt_encoder(points=clicks, boxes=None, masks=None)
        masks, _, _, _ = self._model.sam_mask_decoder(
            image_embeddings=coarse,
            image_pe=self._position,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
            repeat_image=False,
            high_res_features=finer,
        )
        logits: torch.Tensor = masks
        return logits

    def _probabilities(self, low: torch.Tensor, embedded: Embeddings) -> torch.Tensor:
        return F.interpolate(low, embedded.original, mode="bilinear", align_corners=False).sigmoid()

    @convert_out_of_memory
    @torch.inference_mode()
    def _remember(self, memory: object, index: int, image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> Sam2Memory:
        state = memory if isinstance(memory, Sam2Memory) else Sam2Memory(self._model, mask.shape)
        with self._half_precision():
            state.remember(index, self._normalised(self._pixels(image[None])), mask)
        return state

    @convert_out_of_memory
    @torch.inference_mode()
    def _propagate(
        self, memory: object, index: int, image: NDArray[np.uint8], downwards: bool, background: Sequence[Point]
    ) -> NDArray[np.float32]:
        assert isinstance(memory, Sam2Memory)
        with self._half_precision():
            low = memory.propagate(index, self._normalised(self._pixels(image[None])), downwards, background)
        logits = F.interpolate(low.float(), image.shape[:2], mode="bilinear", align_corners=False)
        return logits[0, 0].sigmoid().cpu().numpy()
