"""What SAM 2 remembers of the slices of a volume while it carries an object through them."""

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
"""There is but one."""


class Sam2Memory:
    """The state of sam2's own predictor for videos, for slices that come one by one.

    The predictor would load a folder of JPEG files, keep all of it, and all that it made of it. Here it sees the slice
    of the moment, and what lies too far behind for it to look at is dropped.

    Args:
        model: the predictor.
        size: of the slices, pixels, (H, W).
    """

    def __init__(self, model: SAM2VideoPredictor, size: tuple[int, ...]) -> None:
        self._model, self._size = model, size
        self._state: dict[str, Any] = {
            "images": {},
            "num_frames": np.iinfo(np.int64).max,  # Nobody knows yet where the object ends.
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
        """Take up where the object is on a slice.

        Args:
            index: of the slice.
            image: (1, 3, S, S), as the encoder takes it.
            mask: (H, W).
        """
        self._state["images"] = {index: image[0]}
        self._model.add_new_mask(self._state, index, _OBJECT, torch.from_numpy(mask))
        self._model.propagate_in_video_preflight(self._state)
        self._state["mask_inputs_per_obj"][_OBJECT].clear()

    def carry_on(self, index: int, image: torch.Tensor, downwards: bool, background: Sequence[Point]) -> torch.Tensor:
        """The object on the next slice, as logits (1, 1, h, w), which are remembered too.

        Args:
            index, image: as for ``remember``.
            downwards: the slice before had a higher index.
            background: clicks beside the object, (X, Y) in pixels of the slice.
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
        reach = max(self._model.num_maskmem, self._model.max_obj_ptrs_in_encoder)
        passed = outputs["non_cond_frame_outputs"]
        passed[index] = output
        for other in [other for other in passed if abs(other - index) > reach]:
            del passed[other]
        return logits

    def _clicks(self, background: Sequence[Point]) -> dict[str, torch.Tensor]:
        height, width = self._size
        side = self._model.image_size
        places = [[(x + 0.5) * side / width - 0.5, (y + 0.5) * side / height - 0.5] for x, y in background]
        device = self._state["device"]
        return {
            "point_coords": torch.tensor([places], device=device),
            "point_labels": torch.zeros(1, len(places), dtype=torch.int32, device=device),
        }
