"""Infer task that segments one slice from clicks or a box."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferType

from baps.errors import InputError
from baps.imaging.canvas import AS_STORED, SLICE_AXIS
from baps.inference.requests.click import PACKED, read_click
from baps.inference.segmenter import Segmenter
from baps.io.slice_nrrd import write_slice_nrrd
from baps.prompts import Prompt
from baps.server.infer.base import IMAGE_ID, NO_LABEL, Save, SegmentingInfer, format_adapter

KeepPrompt = Callable[[str, str, int, Prompt], None]

_PLANES = (AS_STORED, "axial", "coronal", "sagittal")


class PromptedInfer(SegmentingInfer[Segmenter]):
    """Segments one slice from clicks or a box; the mask has the voxel order of the volume.

    Args:
        segmenter: See ``SegmentingInfer``.
        lock_file: See ``SegmentingInfer``.
        labels: See ``SegmentingInfer``.
        save: See ``SegmentingInfer``.
        adapted: Whether adapters are used, or the unadapted black box.
        keep_prompt: Keeps the prompt of a label on a slice, given the name of the image, the label, the slice across K
            and the prompt.
    """

    def __init__(
        self,
        segmenter: Callable[[], Segmenter],
        lock_file: Path,
        labels: dict[str, int],
        save: Save,
        adapted: bool,
        keep_prompt: KeepPrompt = lambda image, label, index, prompt: None,
    ) -> None:
        super().__init__(
            InferType.DEEPGROW,
            dimension=2,
            description=("Promptable segmentation, adapted to this site" if adapted else "The same model, unadapted"),
            config={"plane": list(_PLANES), **({"adapter": [NO_LABEL, *labels]} if adapted else {})},
            segmenter=segmenter,
            lock_file=lock_file,
            labels=labels,
            save=save,
        )
        self._adapted, self._keep_prompt = adapted, keep_prompt

    def _answer(
        self, segmenter: Segmenter, path: Path, request: dict[str, Any], begun: float
    ) -> tuple[str, dict[str, Any]]:
        volume, _ = segmenter.volume(path)
        click = read_click(request, volume, self._names)
        label = click.label or self._label_choice(request, "adapter", NO_LABEL)
        save_as = self._save_as(request)
        if save_as and click.plane.axis != SLICE_AXIS:
            raise InputError("Only a mask of a stored slice (across K) can be saved. Click on one, or omit save_as.")
        result = segmenter.segment(
            path, click.plane, click.prompt, segmenter.load_adapter(label) if self._adapted else None
        )
        volume = result.volume  # The file may have been replaced since the click was read.
        named = label or (self._names[0] if len(self._names) == 1 else "")
        if named and click.plane.axis == SLICE_AXIS:
            self._keep_prompt(str(request.get(IMAGE_ID) or ""), named, click.plane.index, click.prompt)
        notes = list(click.notes)
        if self._adapted and click.plane.axis != SLICE_AXIS:
            notes.append(
                "Adapters are trained on the slices as they are stored. This mask is from the unadapted model."
            )
        if result.used_fallback:
            notes.append("The adapted mask violated a click; this mask is less adapted.")
        if save_as:
            mask = np.zeros(volume.shape, bool)
            click.plane.insert(mask, result.mask)
            notes.append(self._save_mask(request, volume, save_as, mask, [click.plane.index]))
        notes += volume.notes
        name = self._new_reply()
        compress = bool(request.get("result_compress", True))
        write_slice_nrrd(Path(name), volume, click.plane, result.mask, compress, bool(request.get(PACKED)))
        return name, {
            "label": label,
            "slice": click.plane.index,
            "axis": "IJK"[click.plane.axis],
            "notes": notes,
            "adapter": format_adapter(result.adapter),
            "window": result.window.to_dict(),
            "encoding_cached": result.encoding_cached,
            "latencies": {
                "segment_ms": round(result.seconds * 1000, 1),
                "total_ms": round((time.perf_counter() - begun) * 1000, 1),
            },
        }
