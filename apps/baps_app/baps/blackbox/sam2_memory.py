"""Hold what SAM 2 remembers about the slices of a volume while it propagates an object."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sam2.sam2_video_predictor import SAM2VideoPredictor

from baps.prompts import Point

_OBJECT = 0
"""Id of the only object."""


class Sam2Memory:
    """The state of sam2's own video predictor, for slices that arrive one by one.

    The predictor would load a folder of JPEG files and keep every frame and result. Here it sees the current slice
    only, and results that are too far back for it to use are dropped.

    Args:
        model: the predictor.
        size: size of the slices, (H, W) in pixels.
    """

    def __init__(self, model: SAM2VideoPredictor, size: tuple[int, ...]) -> None:
        self._model, self._size = model, size
        self._state: dict[str, Any] = {
            "images": {},
            "num_frames": np.iinfo(np.int64).max,  # It is not known where the object ends.
            "video_height": size[0],
            "video_width": size[1],
            "device": model.device,
            "storage_device": model.device,
            "point_inputs_per_obj": {},
            "mask_inputs_per_obj": {},
            "cached_features": {},
            "constants": {},
            "obj_id_to_idx": OrderedDict(),
            "obj_idx_to_id": OrderedDict(),
            "obj_ids": [],
            "output_dict_per_obj": {},
            "temp_output_dict_per_obj": {},
            "frames_tracked_per_obj": {},
        }

    def remember(self, index: int, image: torch.Tensor, mask: NDArray[np.bool_]) -> None:
        """Add a known mask.

        Args:
            index: index of the slice.
            image: the slice as the encoder takes it, (1, 3, S, S).
            mask: the mask, (H, W).
        """
        self._state["images"] = {index: image[0]}
        self._model.add_new_mask(self._state, index, _OBJECT, torch.from_numpy(mask))
        self._model.propagate_in_video_preflight(self._state)
        self._state["mask_inputs_per_obj"][_OBJECT].clear()

    def propagate(self, index: int, image: torch.Tensor, downwards: bool, background: Sequence[Point]) -> torch.Tensor:
        """Segment the object on the next slice, and remember the result.

        Args:
            index: index of the slice.
            image: the slice as the encoder takes it, (1, 3, S, S).
            downwards: whether the slice before had a higher index.
            background: negative clicks, (X, Y) in pixels of the slice.

        Returns:
            Logits, (1, 1, h, w).
        """
        self._state["images"] = {index: image[0]}
        outputs = self._state["output_dict_per_obj"][_OBJECT]
        output, logits = self._model._run_single_frame_inference(
            inference_state=self._state,
            output_dict=outputs,
            frame_idx=index,
            batch_size=1,
            is_init_cond_frame=False,
            point_inputs=self._clicks(background) if background else None,
            mask_inputs=None,
            reverse=downwards,
            run_mem_encoder=True,
        )
        max_distance = max(self._model.num_maskmem, self._model.max_obj_ptrs_in_encoder)
        remembered = outputs["non_cond_frame_outputs"]
        remembered[index] = output
        for other in [other for other in remembered if abs(other - index) > max_distance]:
            del remembered[other]
        return logits

    def _clicks(self, background: Sequence[Point]) -> dict[str, torch.Tensor]:
        height, width = self._size
        input_size = self._model.image_size
        points = [[x * input_size / width, y * input_size / height] for x, y in background]
        device = self._state["device"]
        return {
            "point_coords": torch.tensor([points], device=device),
            "point_labels": torch.zeros(1, len(points), dtype=torch.int32, device=device),
        }
