"""Base class of the infer tasks: checks the request, and writes and saves the mask."""

from __future__ import annotations

import os
import tempfile
import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from numpy.typing import NDArray

from baps.errors import InputError, NotFoundError
from baps.imaging.volume import Volume
from baps.inference.requests.click import PACKED
from baps.inference.requests.form import CONFIRMS, DO_NOT_SAVE
from baps.io import write_nrrd
from baps.utils.throttle import inference_lock

NO_LABEL = "as clicked"
"""Choice of the option ``adapter`` for the label of the click."""

IMAGE_ID = "image_id"
"""Field that the app adds to a request: the name of the image, because MONAI Label replaces ``image`` by its file."""

Save = Callable[[str, Volume, str, NDArray[np.bool_], Collection[int], str, bool], str]
"""Saves a mask, as ``save_labels.save_mask``. It takes the image, the volume, the label, the mask (I, J, K), the
slices across K, the author, and whether the user may confirm labels of others."""

SegmenterT = TypeVar("SegmenterT")
"""What computes the masks, ``baps.inference.segmenter.Segmenter`` or ``baps.fseft.predictor.OrganSegmenter``."""


class SegmentingInfer(InferTask, Generic[SegmenterT]):
    """Answers a request about an image with a mask in its voxel order. A running training waits meanwhile.

    Attributes:
        needs_clicks: Whether the user must click or draw first.

    Args:
        kind: Type, which decides in which section the viewers offer the task.
        dimension: 2 if viewers replace one slice of the segment by the mask, 3 if they replace the whole segment.
        description: Text for the viewers.
        config: Options that the viewers offer beside ``save_as``; lists are choices.
        segmenter: Returns the segmenter. Called at the first request, because each training creates this task too.
        lock_file: Lock file of running inference, see ``baps.utils.throttle``.
        labels: Names and values of the site's labels.
        save: Saves a mask, for the option ``save_as``.
    """

    needs_clicks: ClassVar[bool] = True

    def __init__(
        self,
        kind: InferType,
        dimension: int,
        description: str,
        config: dict[str, Any],
        segmenter: Callable[[], SegmenterT],
        lock_file: Path,
        labels: Mapping[str, int],
        save: Save,
    ) -> None:
        # At every Next Sample, Slicer runs the first model that names one of the site's labels, without a click. So a
        # task that needs clicks names none. Both viewers take the names from the app.
        own_labels = {} if self.needs_clicks else dict(labels)
        config = {**config, "save_as": [DO_NOT_SAVE, *labels]}
        super().__init__(
            type=kind, labels=own_labels or [], dimension=dimension, description=description, config=config
        )
        self._segmenter, self._lock_file, self._names, self._save = segmenter, lock_file, list(labels), save
        # A separate folder: a client on this machine saves its copy under the same name, in /tmp by default, and MONAI
        # Label removes the file that it has sent.
        self._replies = tempfile.TemporaryDirectory(prefix="baps-replies-")

    def is_valid(self) -> bool:
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        begun = time.perf_counter()
        image = request.get("image")
        if not isinstance(image, str) or not image:
            raise NotFoundError("There is no such image in the datastore. Choose one that Next Sample offers.")
        segmenter = self._segmenter()
        with inference_lock(self._lock_file):
            return self._answer(segmenter, Path(image), request, begun)

    @abstractmethod
    def _answer(
        self, segmenter: SegmenterT, path: Path, request: dict[str, Any], begun: float
    ) -> tuple[str, dict[str, Any]]:
        """Answer a request.

        Args:
            segmenter: The segmenter.
            path: File of the image.
            request: The request.
            begun: Time at which the request began, by ``time.perf_counter``.

        Returns:
            The file of the mask, and the JSON of the reply, which has ``notes`` and ``adapter``.
        """

    def _write_reply(self, request: dict[str, Any], mask: Volume) -> str:
        """Write the mask of a whole volume.

        Args:
            request: The request, which says whether the file is compressed.
            mask: The mask, (I, J, K).

        Returns:
            Name of the file.
        """
        name = self._new_reply()
        write_nrrd(Path(name), mask, bool(request.get("result_compress", True)), bool(request.get(PACKED)))
        return name

    def _new_reply(self) -> str:
        """Create an empty file for a reply, and return its name."""
        handle, name = tempfile.mkstemp(suffix=".nrrd", dir=self._replies.name)
        os.close(handle)
        return name

    def _label_choice(self, request: dict[str, Any], option: str, none: str) -> str:
        """Read an option whose choices are labels.

        Args:
            request: The request.
            option: Name of the option.
            none: Choice that names no label.

        Returns:
            The label, or "".

        Raises:
            InputError: If it is not a label of the site.
        """
        value = request.get(option)
        chosen = str(value[0] if isinstance(value, list) and value else value)
        if chosen in ("None", "", none):
            return ""
        if chosen not in self._names:
            raise InputError(f"There is no {option} {chosen!r}. Choose one of {none}, {', '.join(self._names)}.")
        return chosen

    def _save_as(self, request: dict[str, Any]) -> str:
        """Return the label to save the mask as, or "".

        Raises:
            InputError: If it is not a label of the site.
        """
        return self._label_choice(request, "save_as", DO_NOT_SAVE)

    def _save_mask(
        self, request: dict[str, Any], volume: Volume, name: str, mask: NDArray[np.bool_], slices: Collection[int]
    ) -> str:
        """Save a mask as a label.

        Args:
            request: The request.
            volume: The image.
            name: The label.
            mask: (I, J, K).
            slices: Slices across K that the mask replaces.

        Returns:
            A note for the reply.

        Raises:
            BapsError: As ``save_labels.save_mask``.
        """
        author = str(request.get("client_id") or "")
        confirms = request.get(CONFIRMS) is True
        return self._save(str(request.get(IMAGE_ID)), volume, name, mask, slices, author, confirms)


def format_adapters(reply: Mapping[str, Any]) -> str:
    """Format the adapters that a mask was made with, for the audit file.

    Args:
        reply: The JSON of the reply.

    Returns:
        ``spleen/v0002``; ``spleen: v0001, liver: v0003`` for several organs; "" for none.
    """
    adapter = reply["adapter"]
    if isinstance(adapter, Mapping):
        return ", ".join(f"{organ}: {version}" for organ, version in adapter.items())
    return adapter or ""


def format_adapter(adapter: tuple[str, str] | None) -> str | None:
    """Format the label and the version of an adapter for the reply, as in ``spleen/v0002``."""
    return "/".join(part for part in adapter if part) if adapter else None
