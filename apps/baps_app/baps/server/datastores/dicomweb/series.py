"""The series of a PACS. They are requested one by one or page by page; the complete list is never in memory."""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dicomweb_client import DICOMwebClient

from baps.errors import BapsError
from baps.io import VOLUME_INFIX
from baps.server.datastores.dicomweb.client import convert_pacs_errors, status_code
from baps.site.pacs_studies import PacsStudies, Worklist, json_values

NON_IMAGE_MODALITIES = frozenset(
    ("SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "REG", "FID", "AU", "DOC", "ECG", "HD", "EPS",
     "PLAN", "M3D", "RWV", "SMR", "TEXTUREMAP", "ANN", "SM")
)  # fmt: skip
"""Modalities of series that are not images, or cannot be segmented: a whole-slide image (SM) is not a volume."""

_DISPLAYED_KEYWORDS = ("StudyDate", "StudyTime", "Modality", "RetrieveURL", "PatientID", "StudyInstanceUID")
"""Attributes that OHIF displays of an image that Next Sample offers."""

_FURTHER_KEYWORDS = ("SeriesInstanceUID", "NumberOfSeriesRelatedInstances")

_UID = re.compile(r"[0-9.]{1,64}")
"""Less strict than the standard: some scanners write components with a leading zero."""

PAGE = 200
"""Number of series that are requested at once."""

SHORT_PAGE = 50
"""A shorter page is the last one. A longer one need not be complete, because servers have limits of their own."""

_MAX_CACHED = 4096
"""Maximum number of series in the cache."""

FRESH_SECONDS = 30.0
"""Seconds for which a series, or the number of series on one page, is cached."""

_TOTAL_SECONDS = 600.0
"""Seconds for which the number of series of a large PACS is cached."""

_OFFSET_REFUSALS = (400, 404, 413, 416, 500)
"""HTTP statuses of servers that do not search beyond some thousands of series."""


@dataclass(frozen=True, slots=True)
class Series:
    """A series, as the PACS describes it.

    Attributes:
        uid: SeriesInstanceUID.
        study: StudyInstanceUID.
        modality: Modality, or "".
        count: Number of its objects, or "" if the PACS does not send it.
        displayed: Attributes that OHIF displays, as pairs of keyword and value.
        served: Whether it matches the query. Some PACS ignore a part of a query.
    """

    uid: str
    study: str
    modality: str
    count: str
    displayed: tuple[tuple[str, str], ...]
    served: bool

    @property
    def is_image(self) -> bool:
        """Whether it holds images that can be segmented, judged by its modality."""
        return self.modality not in NON_IMAGE_MODALITIES


def series_of(image_id: str) -> str:
    """Return the SeriesInstanceUID of an image: its name without the number of a volume.

    Args:
        image_id: Name of the image in the datastore.
    """
    return image_id.partition(VOLUME_INFIX)[0]


def is_uid(text: str) -> bool:
    """Return whether a text can be used as a UID in addresses and file names.

    Args:
        text: Text that the PACS or a viewer sent.
    """
    return bool(_UID.fullmatch(text)) and bool(text.strip("."))


class SeriesList:
    """The series that are served. Every response of the PACS is checked against the query and the worklist.

    Args:
        client: Client of the PACS.
        studies: Query that selects the studies.
        worklist: Studies that are served, or None for all.
    """

    def __init__(self, client: DICOMwebClient, studies: PacsStudies, worklist: Worklist | None) -> None:
        self._client, self._studies, self._worklist = client, studies, worklist
        self._cache: OrderedDict[str, tuple[float, Series]] = OrderedDict()
        self._lock = threading.Lock()
        self._total: tuple[float, int] | None = None
        self._one_page = False

    def is_listed(self, study: str) -> bool:
        """Return whether a study is on the worklist, or there is no worklist.

        Args:
            study: StudyInstanceUID.

        Raises:
            BapsError: if the worklist cannot be read.
        """
        return self._worklist is None or study in self._worklist.studies()

    def find(self, uid: str) -> Series | None:
        """Find a series. It is cached for ``FRESH_SECONDS``.

        Args:
            uid: SeriesInstanceUID.

        Returns:
            The series, or None if the PACS has no such series or it is not served.

        Raises:
            BapsError: if the PACS does not respond, or the worklist cannot be read.
        """
        with self._lock:
            cached_at, series = self._cache.get(uid, (0.0, None))
        if series is None or time.monotonic() - cached_at > FRESH_SECONDS:
            if not is_uid(uid) or self._studies.filters.get("SeriesInstanceUID", uid) != uid:
                return None
            matches = self._search(SeriesInstanceUID=uid)
            series = next((match for match in matches if match.uid == uid and match.served), None)
            if series is None:
                with self._lock:
                    self._cache.pop(uid, None)
        return series if series and self.is_listed(series.study) else None

    def pages(self, start: int = 0) -> Iterator[list[Series]]:
        """Yield all series, page by page.

        Args:
            start: Index of the series, or of the study on the worklist, to begin with; see ``start_count``. The ones
                before it come last.

        Raises:
            BapsError: if the PACS does not respond, or the worklist cannot be read.
        """
        if self._worklist is not None:
            studies = list(self._worklist.studies())
            for study in studies[start:] + studies[:start]:
                yield [series for series in self._search(study) if series.study == study and series.served]
            return
        for first, end in ((start, None), (0, start)):
            previous: set[str] = set()
            while end is None or first < end:
                page = self._search(limit=PAGE, offset=first)
                uids = {series.uid for series in page}
                if uids <= previous:  # The end, or the PACS ignores the offset and sends the same page again.
                    break
                yield [series for series in page if series.served]
                if len(page) < SHORT_PAGE:
                    break
                previous, first = uids, first + len(page)

    def start_count(self) -> int:
        """Return the number of indices at which ``pages`` can begin.

        Raises:
            BapsError: if the PACS does not respond, or the worklist cannot be read.
        """
        return self.total() if self._worklist is None else len(self._worklist.studies())

    def total(self) -> int:
        """Return the number of images that are served.

        If there is more than one page, it is the number of all series, which is determined by bisection.

        Raises:
            BapsError: if the PACS does not respond, or the worklist cannot be read.
        """
        if self._total is None or time.monotonic() > self._total[0]:
            self._count()
        assert self._total is not None
        return self._total[1]

    @property
    def is_one_page(self) -> bool:
        """Whether all series, including those that are not images, were one page when they were last counted."""
        return self._one_page

    @property
    def last_total(self) -> int | None:
        """The total when it was last determined, or None."""
        return self._total and self._total[1]

    def invalidate(self) -> None:
        """Clear the cache, because something was, or may have been, stored in the PACS."""
        with self._lock:
            self._cache.clear()
        if self._total and self._total[1] <= PAGE:
            self._total = None

    def _count(self) -> None:
        started, self._one_page = time.monotonic(), False
        if self._worklist is not None:
            total = sum(series.is_image for page in self.pages() for series in page)
            self._total = started + max(_TOTAL_SECONDS, len(self._worklist.studies()) / 2), total
            return
        first_page = self._search(limit=PAGE, offset=0)
        if len(first_page) < SHORT_PAGE or not self._has_series_at(len(first_page), first_page[0].uid):
            self._one_page = True
            self._total = started + FRESH_SECONDS, sum(series.is_image and series.served for series in first_page)
            return
        low, high = len(first_page), 2 * len(first_page)  # There is a series at index low, and none at index high.
        while self._has_series_at(high, first_page[0].uid):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._has_series_at(middle, first_page[0].uid) else (low, middle)
        self._total = started + _TOTAL_SECONDS, high

    def _has_series_at(self, index: int, first_uid: str) -> bool:
        """Return whether there is a series at an index. A PACS that ignores the offset sends the first series again."""
        try:
            page = self._search(limit=1, offset=index)
        except BapsError as error:
            if status_code(error) in _OFFSET_REFUSALS:
                return False
            raise
        return bool(page) and page[0].uid != first_uid

    def _search(
        self, study: str | None = None, limit: int | None = None, offset: int = 0, **filters: str
    ) -> list[Series]:
        """Search for series that match the query, and cache them."""
        options: dict[str, Any] = {"search_filters": {**self._studies.filters, **filters}}
        if study is not None:
            options["study_instance_uid"] = study
        if limit is not None:
            options |= {"limit": limit, "offset": offset}
        with convert_pacs_errors():
            matches = [self._parse(match, study or "") for match in self._client.search_for_series(**options)]
        now = time.monotonic()
        with self._lock:
            for series in matches:
                if series.served:
                    self._cache[series.uid] = now, series
                    self._cache.move_to_end(series.uid)
            while len(self._cache) > _MAX_CACHED:
                self._cache.popitem(last=False)
        return matches

    def _parse(self, match: Mapping[str, Any], study: str) -> Series:
        """Parse a series from DICOM JSON, with the study in which it was searched for, or ""."""
        keywords = (*_DISPLAYED_KEYWORDS, *_FURTHER_KEYWORDS)
        values = {keyword: (json_values(match, keyword) or [""])[0] for keyword in keywords}
        values["StudyInstanceUID"] = values["StudyInstanceUID"] or study
        uid, study = values["SeriesInstanceUID"], values["StudyInstanceUID"]
        # Without valid UIDs, no address of the series can be built.
        served = is_uid(uid) and is_uid(study) and self._studies.matches(match)
        displayed = tuple((keyword, values[keyword] or "UNK") for keyword in _DISPLAYED_KEYWORDS)
        return Series(uid, study, values["Modality"], values["NumberOfSeriesRelatedInstances"], displayed, served)
