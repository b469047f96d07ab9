"""The infer task: a click in, a mask of the volume out."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from baps.click import PACKED, read_click
from baps.errors import InputError, NotFoundError
from baps.formats.slice_nrrd import write_slice_nrrd
from baps.geometry import AS_STORED, SLICE_AXIS
from baps.segmenter import Segmenter
from baps.yielding import clicking

NO_LABEL = "as clicked"
"""The choice of the option ``adapter`` that leaves the label to the click."""

_PLANES = (AS_STORED, "axial", "coronal", "sagittal")


class PromptedInfer(InferTask):
    """Clicks or a box on one slice, answered with a mask of that slice in the volume's frame.

    Args:
        segmenter: made when the first click comes, for every training process builds this task too.
        labels: of the site.
        adapted: with the published adapters, or the black box as it is.
        dimension: 2 for a mask of the clicked slice, 3 for one of the volume.
        description: for the viewers.
        options: for the viewers, beside ``adapter``; the plane, if they are left out.
    """

    def __init__(
        self,
        segmenter: Callable[[], Segmenter],
        labels: dict[str, int],
        adapted: bool,
        dimension: int = 2,
        description: str = "",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            type=InferType.DEEPGROW,
            # None of its own: Slicer would run the first model that names one of the site's labels, without a click, at
            # every Next Sample. Both viewers take the names from the app.
            labels=[],
            dimension=dimension,
            description=description
            or ("Promptable segmentation, adapted to this site" if adapted else "The same model, not adapted"),
            config={**(options or {"plane": list(_PLANES)}), **({"adapter": [NO_LABEL, *labels]} if adapted else {})},
        )
        self._segmenter, self._names, self._adapted = segmenter, list(labels), adapted
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
        label = self._label(request, click.label)
        found = segmenter.segment(path, click.plane, click.prompt, label, self._adapted)
        notes = list(click.notes)
        if self._adapted and click.plane.axis != SLICE_AXIS:
            notes.append("Adapters are made for the slices as they are stored; this one was answered without.")
        if found.gave_way:
            notes.append("The adapted answer went against a click; this one was given with less of the adapter.")
        name = self._new_reply()
        compress = bool(request.get("result_compress", True))
        write_slice_nrrd(Path(name), volume, click.plane, found.mask, compress, bool(request.get(PACKED)))
        return name, {
            "label": label,
            "slice": click.plane.index,
            "axis": "IJK"[click.plane.axis],
            "notes": notes,
            "adapter": named(found.adapter),
            "window": found.window.record(),
            "encoding_kept": found.encoding_kept,
            "latencies": {
                "segment_ms": round(found.seconds * 1000, 1),
                "total_ms": round((time.perf_counter() - begun) * 1000, 1),
            },
        }

    def _label(self, request: dict[str, Any], clicked: str) -> str:
        """The label whose adapter is asked for: that of the click, else the option's."""
        option = request.get("adapter")
        chosen = str(option[0] if isinstance(option, list) and option else option)
        if chosen not in ("None", "", NO_LABEL, *self._names):
            raise InputError(f"There is no adapter {chosen!r}. Choose one of {', '.join((NO_LABEL, *self._names))}.")
        return clicked or (chosen if chosen in self._names else "")

    def _new_reply(self) -> str:
        """The name of a file for the reply, which the host removes."""
        handle, name = tempfile.mkstemp(suffix=".nrrd", dir=self._replies.name)
        os.close(handle)
        return name


def named(adapter: tuple[str, str] | None) -> str | None:
    """Label and version of an adapter as the reply gives them."""
    return "/".join(part for part in adapter if part) if adapter else None
