"""Base class of the infer tasks that work through a volume, as a job that can be cancelled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

from monailabel.interfaces.tasks.infer_v2 import InferType

from baps.server.infer.base import Save, SegmenterT, SegmentingInfer
from baps.server.jobs import CLIENT, Client, Job, LongRequests


class VolumeInfer(SegmentingInfer[SegmenterT]):
    """Answers a request with a mask of the whole volume, by which viewers replace the whole segment.

    Attributes:
        model: Name of the task, in the list of jobs.
        kind: Type, which decides in which section the viewers offer the task.
        summary: Text for the viewers.

    Args:
        segmenter: See ``SegmentingInfer``.
        lock_file: See ``SegmentingInfer``.
        labels: Names and values of the site's labels.
        save: See ``SegmentingInfer``.
        jobs: Lists the request while it runs, so that it can be cancelled.
    """

    model: ClassVar[str]
    kind: ClassVar[InferType]
    summary: ClassVar[str]

    def __init__(
        self,
        segmenter: Callable[[], SegmenterT],
        lock_file: Path,
        labels: Mapping[str, int],
        save: Save,
        jobs: LongRequests,
    ) -> None:
        super().__init__(self.kind, 3, self.summary, self._options(labels), segmenter, lock_file, labels, save)
        self._values, self._jobs = labels, jobs

    def _options(self, labels: Mapping[str, int]) -> dict[str, Any]:
        """Return the options that the viewers offer beside ``save_as``; lists are choices."""
        return {}

    def _running(self, request: dict[str, Any]) -> AbstractContextManager[Job]:
        """Begin a job for the client of a request."""
        client = request.get(CLIENT)
        return self._jobs.running(self.model, client if isinstance(client, Client) else None)
