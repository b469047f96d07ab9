"""The infer task: a click in, a mask of the volume out."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from numpy.typing import NDArray

from baps.click import PACKED, read_click
from baps.errors import InputError, NotFoundError
from baps.formats.slice_nrrd import write_slice_nrrd
from baps.geometry import AS_STORED, SLICE_AXIS
from baps.segmenter import Segmenter
from baps.volume import Volume
from baps.yielding import clicking

NO_LABEL = "as clicked"
"""The choice of the option ``adapter`` that leaves the label to the click."""

DO_NOT_SAVE = "do not save"
"""The choice of the option ``save_as`` that saves nothing."""

IMAGE_ID = "image_id"
"""A field that the app itself puts into a request: the image's name, for ``image`` becomes its file."""

Save = Callable[[str, Volume, str, NDArray[np.bool_], Collection[int], str], bool]
"""Saves a mask, see ``lib.saving.save_shown``: image, volume, label, mask (I, J, K), slices across K, author."""

_PLANES = (AS_STORED, "axial", "coronal", "sagittal")


class PromptedInfer(InferTask):
    """Clicks or a box on one slice, answered with a mask of that slice in the volume's frame.

    Args:
        segmenter: made when the first click comes, for every training process builds this task too.
        labels: of the site.
        adapted: with the published adapters, or the black box as it is.
        save: what the option ``save_as`` does.
    """

    def __init__(self, segmenter: Callable[[], Segmenter], labels: dict[str, int], adapted: bool, save: Save) -> None:
        super().__init__(
            type=InferType.DEEPGROW,
            # None of its own: Slicer would run the first model that names one of the site's labels, without a click, at
            # every Next Sample. Both viewers take the names from the app.
            labels=[],
            dimension=2,
            description=("Promptable segmentation, adapted to this site" if adapted else "The same model, not adapted"),
            config={
                "plane": list(_PLANES),
                **({"adapter": [NO_LABEL, *labels]} if adapted else {}),
                "save_as": [DO_NOT_SAVE, *labels],
            },
        )
        self._segmenter, self._names, self._adapted, self._save = segmenter, list(labels), adapted, save
        # A folder of its own: a client on this machine saves its copy under the same name, in /tmp by default, and the
        # host removes the file that it has sent.
        self._replies = tempfile.TemporaryDirectory(prefix="baps-replies-")

    def is_valid(self) -> bool:
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        begun = time.perf_counter()
        image = request.get("image")
        if not isinstance(image, str) or not image:
            raise NotFoundError("There is no such image in the datastore. Choose one that Next Sample offers.")
        segmenter = self._segmenter()
        with clicking(segmenter.store.clicks):
            return self._answer(segmenter, Path(image), request, begun)

    def _answer(
        self, segmenter: Segmenter, path: Path, request: dict[str, Any], begun: float
    ) -> tuple[str, dict[str, Any]]:
        volume, _ = segmenter.volume(path)
        click = read_click(request, volume, self._names)
        label = click.label or self._chosen(request, "adapter", NO_LABEL)
        save_as = self._chosen(request, "save_as", DO_NOT_SAVE)
        if save_as and click.plane.axis != SLICE_AXIS:
            raise InputError("A mask across another axis than K is no slice of the label. Save one on a stored slice.")
        found = segmenter.segment(path, click.plane, click.prompt, label, self._adapted)
        notes = list(click.notes)
        if self._adapted and click.plane.axis != SLICE_AXIS:
            notes.append("Adapters are made for the slices as they are stored; this one was answered without.")
        if found.gave_way:
            notes.append("The adapted answer went against a click; this one was given with less of the adapter.")
        if save_as:
            mask = np.zeros(volume.shape, bool)
            click.plane.put(mask, found.mask)
            author = str(request.get("client_id") or "")
            new = self._save(str(request.get(IMAGE_ID)), volume, save_as, mask, [click.plane.index], author)
            notes.append(f"Saved as {save_as}." if new else f"It was saved as {save_as} before.")
        handle, name = tempfile.mkstemp(suffix=".nrrd", dir=self._replies.name)
        os.close(handle)
        compress = bool(request.get("result_compress", True))
        write_slice_nrrd(Path(name), volume, click.plane, found.mask, compress, bool(request.get(PACKED)))
        return name, {
            "label": label,
            "slice": click.plane.index,
            "axis": "IJK"[click.plane.axis],
            "notes": notes,
            "adapter": "/".join(part for part in found.adapter if part) if found.adapter else None,
            "window": found.window.record(),
            "encoding_kept": found.encoding_kept,
            "latencies": {
                "segment_ms": round(found.seconds * 1000, 1),
                "total_ms": round((time.perf_counter() - begun) * 1000, 1),
            },
        }

    def _chosen(self, request: dict[str, Any], option: str, none: str) -> str:
        """The label that an option names, or ""."""
        given = request.get(option)
        chosen = str(given[0] if isinstance(given, list) and given else given)
        if chosen in ("None", "", none):
            return ""
        if chosen not in self._names:
            raise InputError(f"There is no {option} {chosen!r}. Choose one of {none}, {', '.join(self._names)}.")
        return chosen
