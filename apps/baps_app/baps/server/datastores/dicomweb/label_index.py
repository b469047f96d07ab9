"""Index of the labelled images in a PACS. The PACS is queried from time to time, and only new labels are read."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset

from baps.errors import BapsError
from baps.server.datastores.dicomweb.client import convert_pacs_errors, status_code
from baps.server.datastores.dicomweb.fetching import fetch_headers, fetch_object
from baps.server.datastores.dicomweb.register import LabelRegister
from baps.server.datastores.dicomweb.series import FRESH_SECONDS, SHORT_PAGE, SeriesList, is_uid
from baps.server.datastores.dicomweb.stored_segments import MODALITIES, StoredSegment, is_structure_set, stored_segments
from baps.site.pacs_studies import PacsStudies, json_values
from baps.utils.keyed_locks import KeyedLocks

logger = logging.getLogger(__name__)

_UID_KEYWORDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_SERIES_KEYWORDS = ("StudyInstanceUID", "SeriesInstanceUID", "NumberOfSeriesRelatedInstances", "Modality")

_COUNT_SECONDS = 5.0
"""Seconds for which the number of labelled images is cached. Another process may change it."""

_PAGE = 1000
"""Number of series of labels that are requested at once."""


class LabelIndex:
    """The labels of a PACS.

    To list all labels costs one request per thousand series of each modality, because not every PACS accepts several
    modalities at once, and one or two requests per new series.

    Args:
        client: Client of the PACS.
        studies: Query that selects the studies, also those of labels.
        images: The series that are served.
        register: Register of the known labels.
        find_volume: Returns the image of a label. It gets the SeriesInstanceUID of the image, and a function that
            fetches the label object.
    """

    def __init__(
        self,
        client: DICOMwebClient,
        studies: PacsStudies,
        images: SeriesList,
        register: LabelRegister,
        find_volume: Callable[[str, Callable[[], Dataset]], str],
    ) -> None:
        self._find_volume = find_volume
        self._client, self._filters, self._images = client, studies.study_filters, images
        self.register = register
        self._listing_locks = KeyedLocks()  # One per study and one for all of them, which do not wait for each other.
        self._refreshed_at: float | None = None
        self._count: tuple[int, float, int] | None = None

    @property
    def is_fresh(self) -> bool:
        """Whether the index was refreshed within the last ``FRESH_SECONDS``."""
        return self._refreshed_at is not None and time.monotonic() - self._refreshed_at < FRESH_SECONDS

    @property
    def was_refreshed(self) -> bool:
        """Whether the index was refreshed since it was created or invalidated."""
        return self._refreshed_at is not None

    def invalidate(self) -> None:
        """Let the next ``refresh`` query the PACS in any case."""
        self._refreshed_at = None

    def refresh(self) -> None:
        """Query the PACS for all labels, unless the index is fresh.

        Raises:
            BapsError: if the PACS does not respond.
        """
        with self._listing_locks.holding(None):
            if not self.is_fresh:
                started = time.monotonic()
                self._list_labels(None)
                self._refreshed_at = started

    def refresh_study(self, study: str) -> None:
        """Query the PACS for the labels of one study.

        Args:
            study: StudyInstanceUID.

        Raises:
            BapsError: if the PACS does not respond.
        """
        with self._listing_locks.holding(study):
            self._list_labels(study)

    def _list_labels(self, study: str | None) -> None:
        """List the series of labels of one study or all, and register those that are new."""
        listing_id = self.register.new_listing_id()
        for modality in MODALITIES:
            for series_study, series, count in self._list_series(modality, study):
                if self._images.is_listed(series_study) and not self.register.is_known(series, count, listing_id):
                    segments = self._read_series(series_study, series)
                    if segments is None:
                        self.register.keep_series(series, listing_id)
                    else:
                        self.register.register_series(series_study, series, count, listing_id, segments)
        self.register.end_listing(listing_id, study)
        self.find_images(study)

    def find_images(self, study: str | None = None) -> None:
        """Search for the images to which new labels refer.

        Args:
            study: StudyInstanceUID of the labels, or None for all.

        Raises:
            BapsError: if the PACS does not respond.
        """
        for instance, label_study, series, images in self.register.without_image():
            if study not in (None, label_study):
                continue
            served = (uid for uid in images if (match := self._images.find(uid)) and match.is_image)
            image = next(served, "")
            if image:
                fetch_label = partial(fetch_object, self._client, label_study, series, instance)
                image = self._find_volume(image, fetch_label)
            self.register.set_image(instance, image)

    def _list_series(self, modality: str, study: str | None) -> Iterator[tuple[str, str, str]]:
        """Yield study, UID and number of objects of each series of labels of a modality, requested page by page."""
        offset, previous = 0, set[str]()
        options: dict[str, Any] = {} if study is None else {"study_instance_uid": study}
        filters = {**(self._filters if study is None else {}), "Modality": modality}
        while True:
            with convert_pacs_errors():
                page = self._client.search_for_series(search_filters=filters, limit=_PAGE, offset=offset, **options)
            rows = [[(json_values(match, keyword) or [""])[0] for keyword in _SERIES_KEYWORDS] for match in page]
            uids = {uid for _, uid, _, _ in rows}
            if uids <= previous:
                return
            for series_study, uid, count, series_modality in rows:
                series_study = series_study or study or ""
                # Some servers ignore the filters.
                if series_modality in ("", modality) and is_uid(series_study) and is_uid(uid):
                    yield series_study, uid, count
            if len(page) < SHORT_PAGE:
                return
            previous, offset = uids, offset + len(page)

    def _read_series(self, study: str, series: str) -> list[StoredSegment] | None:
        """Return the segments of a series of label objects; none if it is malformed, None if the PACS fails to send it.

        Raises:
            BapsError: if the PACS does not respond.
        """
        try:
            headers = fetch_headers(self._client, study, series)
            return [segment for header in headers for segment in self._read_header(header)]
        except BapsError as error:
            if status_code(error) is None and not isinstance(error.__cause__, ValueError):
                raise
            logger.warning("A series of labels was skipped (%s).", type(error.__cause__).__name__)
            return None
        except Exception as error:  # pydicom raises many kinds for malformed objects.
            logger.warning("A series of labels was skipped (%s).", type(error).__name__)
            return []

    def _read_header(self, header: Dataset) -> list[StoredSegment]:
        """Return the segments of a header. If the metadata of a structure set lack its contours, fetch the object."""
        segments = stored_segments(header)
        if not segments and is_structure_set(header):
            study, series, instance = (str(header.get(keyword) or "") for keyword in _UID_KEYWORDS)
            if all(map(is_uid, (study, series, instance))):
                segments = stored_segments(fetch_object(self._client, study, series, instance))
        return segments

    def newest(self, image: str | None = None) -> dict[str, dict[str, list[StoredSegment]]]:
        """Return the segments that a person drew or confirmed, by image and label, the newest first.

        Args:
            image: Name of one image, or None for all.

        Raises:
            BapsError: if the register or the worklist cannot be read.
        """
        segments: dict[str, dict[str, list[StoredSegment]]] = {}
        for image_id, segment in self.register.segments(image):
            if self._images.is_listed(segment.study):
                segments.setdefault(image_id, {}).setdefault(segment.name, []).append(segment)
        return segments

    def count(self) -> int:
        """Return the number of labelled images. It is cached, because every click needs it.

        Raises:
            BapsError: if the register or the worklist cannot be read.
        """
        changes, now = self.register.changes, time.monotonic()
        if self._count is None or self._count[0] != changes or now - self._count[1] > _COUNT_SECONDS:
            self._count = changes, now, len(self.labelled())
        return self._count[2]

    def labelled(self) -> list[str]:
        """Return the names of the labelled images.

        Raises:
            BapsError: if the register or the worklist cannot be read.
        """
        return [image for study, image in self.register.labelled() if self._images.is_listed(study)]
