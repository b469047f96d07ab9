"""Base class of the infer tasks: finds the image, and creates the file of the reply."""

from __future__ import annotations

import os
import tempfile
import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from numpy.typing import NDArray

from baps.errors import InputError, NotFoundError
from baps.imaging.volume import Volume
from baps.inference.requests.form import CONFIRMS, DO_NOT_SAVE
from baps.utils.throttle import inference_lock

NO_LABEL = "as clicked"
"""Choice of the option ``adapter`` that uses the label of the click."""

IMAGE_ID = "image_id"
"""Field that the app adds to a request: the name of the image, for ``image`` is replaced by its file."""

Save = Callable[[str, Volume, str, NDArray[np.bool_], Collection[int], str, bool], str]
"""Saves a mask, as ``save_labels.save_mask``: takes image, volume, label, mask (I, J, K), slices across K, author, and
whether the user may confirm labels of others."""

Answering = TypeVar("Answering")
"""What computes the masks: ``baps.inference.segmenter.Segmenter`` or ``baps.fseft.predictor.OrganSegmenter``."""


class SegmentingInfer(InferTask, Generic[Answering]):
    """Answers a request about an image with a mask in its voxel order; a running training waits meanwhile.

    Args:
        kind: Type, which decides in which section the viewers offer the task.
        dimension: 2 if viewers replace one slice of the segment by the mask, 3 if they replace the whole segment.
        description: Text for the viewers.
        config: Options that the viewers offer beside ``save_as``; lists are choices.
        segmenter: Returns the segmenter. It is called at the first request, for every training creates this task too.
        clicks: Lock file of running inference, see ``baps.utils.throttle``.
        labels: Names of the site's labels.
        save: Saves a mask, for the option ``save_as``.
    """

    def __init__(
        self,
        kind: InferType,
        dimension: int,
        description: str,
        config: dict[str, Any],
        segmenter: Callable[[], Answering],
        clicks: Path,
        labels: Collection[str],
        save: Save,
    ) -> None:
        # No labels of its own: Slicer would run the first model that names one of the site's labels, without a click,
        # at every Next Sample. Both viewers take the names from the app.
        config = {**config, "save_as": [DO_NOT_SAVE, *labels]}
        super().__init__(type=kind, labels=[], dimension=dimension, description=description, config=config)
        self._segmenter, self._clicks, self._names, self._save = segmenter, clicks, list(labels), save
        # A folder of its own: a client on this machine saves its copy under the same name, in /tmp by default, and
        # MONAI Label removes the file that it has sent.
        self._replies = tempfile.TemporaryDirectory(prefix="baps-replies-")

    def is_valid(self) -> bool:
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        begun = time.perf_counter()
        image = request.get("image")
        if not isinstance(image, str) or not image:
            raise NotFoundError("There is no such image in the datastore. Choose one that Next Sample offers.")
        segmenter = self._segmenter()
        with inference_lock(self._clicks):
            return self._answer(segmenter, Path(image), request, begun)

    @abstractmethod
    def _answer(
        self, segmenter: Answering, path: Path, request: dict[str, Any], begun: float
    ) -> tuple[str, dict[str, Any]]:
        """Answer a request.

        Args:
            segmenter: The segmenter.
            path: File of the image.
            request: The request.
            begun: Time at which it began, by ``time.perf_counter``.

        Returns:
            The file with the mask, and the JSON of the reply, which has ``notes`` and ``adapter``.
        """

    def _new_reply(self) -> str:
        """Create an empty file for a reply.

        Returns:
            Its name.
        """
        handle, name = tempfile.mkstemp(suffix=".nrrd", dir=self._replies.name)
        os.close(handle)
        return name

    def _chosen(self, request: dict[str, Any], option: str, none: str) -> str:
        """Return the label that an option names, or "".

        Args:
            request: The request.
            option: Name of the option.
            none: Choice that names no label.

        Raises:
            InputError: If it is not a label of the site.
        """
        given = request.get(option)
        chosen = str(given[0] if isinstance(given, list) and given else given)
        if chosen in ("None", "", none):
            return ""
        if chosen not in self._names:
            raise InputError(f"There is no {option} {chosen!r}. Choose one of {none}, {', '.join(self._names)}.")
        return chosen

    def _save_as(self, request: dict[str, Any]) -> str:
        """Return the label that the mask is to be saved as, or "".

        Raises:
            InputError: If it is not a label of the site.
        """
        return self._chosen(request, "save_as", DO_NOT_SAVE)

    def _keep(
        self, request: dict[str, Any], volume: Volume, name: str, mask: NDArray[np.bool_], slices: Collection[int]
    ) -> str:
        """Save a mask as a label.

        Args:
            request: The request.
            volume: The image.
            name: The label.
            mask: (I, J, K).
            slices: Slices across K that are replaced.

        Returns:
            A note for the reply.

        Raises:
            BapsError: As ``save_labels.save_mask``.
        """
        author = str(request.get("client_id") or "")
        confirms = request.get(CONFIRMS) is True
        return self._save(str(request.get(IMAGE_ID)), volume, name, mask, slices, author, confirms)


def adapters_used(reply: Mapping[str, Any]) -> str:
    """Name the adapters that a reply was made with, for the audit file: ``spleen/v0002`` or ``spleen: v0001, ...``."""
    adapter = reply["adapter"]
    if isinstance(adapter, Mapping):
        return ", ".join(f"{organ}: {version}" for organ, version in adapter.items())
    return adapter or ""


def named(adapter: tuple[str, str] | None) -> str | None:
    """Return label and version of an adapter as the reply has them, such as ``spleen/v0002``."""
    return "/".join(part for part in adapter if part) if adapter else None
