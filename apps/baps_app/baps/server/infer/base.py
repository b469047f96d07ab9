"""What the infer tasks have in common: the image that is meant, and a file for the reply."""

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
"""The choice of the option ``adapter`` that leaves the label to the click."""

IMAGE_ID = "image_id"
"""A field that the app itself puts into a request: the image's name, for ``image`` becomes its file."""

Save = Callable[[str, Volume, str, NDArray[np.bool_], Collection[int], str, bool], str]
"""As ``save_labels.save_shown``, of image, volume, label, mask (I, J, K), slices across K, author, and whether who asks
confirms."""

Answering = TypeVar("Answering")
"""What finds the masks: ``baps.inference.segmenter.Segmenter``, or ``baps.fseft.predictor.OrganSegmenter``."""


class SegmentingInfer(InferTask, Generic[Answering]):
    """Answers a request about an image with a mask in its frame, a training waiting meanwhile.

    Args:
        kind: which decides where the viewers offer the task.
        dimension: 2 if a viewer is to replace one slice by the mask, 3 if all of the segment.
        description: for the viewers.
        config: options that the viewers offer beside ``save_as``; lists are choices.
        segmenter: made when the first request comes, for every training process builds this task too.
        clicks: the lock of those who click, see ``baps.utils.throttle``.
        labels: of the site.
        save: what the option ``save_as`` does.
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
        with inference_lock(self._clicks):
            return self._answer(segmenter, Path(image), request, begun)

    @abstractmethod
    def _answer(
        self, segmenter: Answering, path: Path, request: dict[str, Any], begun: float
    ) -> tuple[str, dict[str, Any]]:
        """The file with the mask, and what the reply says beside; ``begun`` is the time of the performance counter."""

    def _new_reply(self) -> str:
        """The name of an empty file for a reply."""
        handle, name = tempfile.mkstemp(suffix=".nrrd", dir=self._replies.name)
        os.close(handle)
        return name

    def _chosen(self, request: dict[str, Any], option: str, none: str) -> str:
        """The label that an option names, or "".

        Raises:
            InputError: if it is no label of the site.
        """
        given = request.get(option)
        chosen = str(given[0] if isinstance(given, list) and given else given)
        if chosen in ("None", "", none):
            return ""
        if chosen not in self._names:
            raise InputError(f"There is no {option} {chosen!r}. Choose one of {none}, {', '.join(self._names)}.")
        return chosen

    def _save_as(self, request: dict[str, Any]) -> str:
        """The label that the mask is to be saved as, or "".

        Raises:
            InputError: if it is no label of the site.
        """
        return self._chosen(request, "save_as", DO_NOT_SAVE)

    def _keep(
        self, request: dict[str, Any], volume: Volume, name: str, mask: NDArray[np.bool_], slices: Collection[int]
    ) -> str:
        """Save a mask (I, J, K) as the label that ``save_as`` names, on these slices across K; a note for the reply.

        Raises:
            BapsError: as ``save_labels.save_shown``.
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
    """Label and version of an adapter as the reply gives them."""
    return "/".join(part for part in adapter if part) if adapter else None
