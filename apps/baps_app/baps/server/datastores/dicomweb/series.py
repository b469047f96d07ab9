"""The series of a PACS: asked for one by one, or page by page; never all of them held."""

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
"""Modalities of what is no image, or none to click on: a whole slide (SM) is no volume."""

_SHOWN = ("StudyDate", "StudyTime", "Modality", "RetrieveURL", "PatientID", "StudyInstanceUID")
"""What OHIF shows of an image that Next Sample offers."""

_TOLD = ("SeriesInstanceUID", "NumberOfSeriesRelatedInstances")

_UID = re.compile(r"[0-9.]{1,64}")
"""Wider than the standard: scanners write components with a leading zero."""

PAGE = 200
"""Series that are asked for at once."""

SHORT_PAGE = 50
"""A shorter page is the last one; a longer one need not be, for servers have limits of their own."""

_MOST_KEPT = 4096
"""Series that are remembered."""

FRESH_SECONDS = 30.0
"""Seconds that what is known of a series, or how many there are on a page, holds."""

_COUNTED_FOR = 600.0
"""Seconds that the number of series of an archive holds."""

_TOO_FAR = (400, 404, 413, 416, 500)
"""Answers of HTTP of servers that do not look beyond some thousands of series."""


@dataclass(frozen=True, slots=True)
class Series:
    """What a PACS answers of a series.

    Attributes:
        uid, study: SeriesInstanceUID and StudyInstanceUID.
        modality: or "".
        count: how many objects it has, or "" where the PACS does not say.
        shown: what OHIF shows of it, by keyword.
        served: whether it matches the query, whatever the PACS made of that.
    """

    uid: str
    study: str
    modality: str
    count: str
    shown: tuple[tuple[str, str], ...]
    served: bool

    @property
    def is_image(self) -> bool:
        """Whether it holds images that can be clicked on, by its modality."""
        return self.modality not in NON_IMAGE_MODALITIES


def series_of(image_id: str) -> str:
    """Return the SeriesInstanceUID of an image of the datastore: its name, without the number of a volume."""
    return image_id.partition(VOLUME_INFIX)[0]


def is_uid(text: str) -> bool:
    """Return whether a text can stand as a UID in addresses and file names."""
    return bool(_UID.fullmatch(text)) and bool(text.strip("."))


class SeriesList:
    """The series that are served. Every answer of the PACS is checked against the query and the worklist.

    Args:
        client: of the PACS.
        studies: the query.
        worklist: the only studies that are served, or None for all.
    """

    def __init__(self, client: DICOMwebClient, studies: PacsStudies, worklist: Worklist | None) -> None:
        self._client, self._studies, self._worklist = client, studies, worklist
        self._kept: OrderedDict[str, tuple[float, Series]] = OrderedDict()
        self._lock = threading.Lock()
        self._total: tuple[float, int] | None = None
        self._one_page = False

    def is_listed(self, study: str) -> bool:
        """Return whether the worklist, if there is one, has a study."""
        return self._worklist is None or study in self._worklist.studies()

    def find(self, uid: str) -> Series | None:
        """Return a series, or None if the PACS has none of the name or it is not served; asked once in a while.

        Raises:
            BapsError: if the PACS does not answer, or the worklist cannot be read.
        """
        with self._lock:
            when, series = self._kept.get(uid, (0.0, None))
        if series is None or time.monotonic() - when > FRESH_SECONDS:
            if not is_uid(uid) or self._studies.filters.get("SeriesInstanceUID", uid) != uid:
                return None
            found = self._search(SeriesInstanceUID=uid)
            series = next((one for one in found if one.uid == uid and one.served), None)
            if series is None:
                with self._lock:
                    self._kept.pop(uid, None)
        return series if series and self.is_listed(series.study) else None

    def pages(self, start: int = 0) -> Iterator[list[Series]]:
        """Yield all series, a page at a time.

        Args:
            start: where to begin, see ``places``; what is before it comes last.
        """
        if self._worklist is not None:
            studies = list(self._worklist.studies())
            for study in studies[start:] + studies[:start]:
                yield [one for one in self._search(study) if one.study == study and one.served]
            return
        for first, end in ((start, None), (0, start)):
            before: set[str] = set()
            while end is None or first < end:
                page = self._search(limit=PAGE, offset=first)
                uids = {one.uid for one in page}
                if uids <= before:  # The end; or the PACS gives the same page again and again.
                    break
                yield [one for one in page if one.served]
                if len(page) < SHORT_PAGE:
                    break
                before, first = uids, first + len(page)

    def places(self) -> int:
        """Return at how many places ``pages`` can begin."""
        return self.total() if self._worklist is None else len(self._worklist.studies())

    def total(self) -> int:
        """Return how many images are served. Of more than a page it is the number of series, which is found by halving.

        Raises:
            BapsError: if the PACS does not answer.
        """
        if self._total is None or time.monotonic() > self._total[0]:
            self._count()
        assert self._total is not None
        return self._total[1]

    @property
    def is_one_page(self) -> bool:
        """Whether all series, of images or not, came as one page when they were last counted."""
        return self._one_page

    @property
    def counted(self) -> int | None:
        """The total as it was last found, or None."""
        return self._total and self._total[1]

    def forget(self) -> None:
        """Ask the PACS anew: something was, or may have been, stored there."""
        with self._lock:
            self._kept.clear()
        if self._total and self._total[1] <= PAGE:
            self._total = None

    def _count(self) -> None:
        begun, self._one_page = time.monotonic(), False
        if self._worklist is not None:
            total = sum(one.is_image for page in self.pages() for one in page)
            self._total = begun + max(_COUNTED_FOR, len(self._worklist.studies()) / 2), total
            return
        first = self._search(limit=PAGE, offset=0)
        if len(first) < SHORT_PAGE or not self._has(len(first), first[0].uid):
            self._one_page = True
            self._total = begun + FRESH_SECONDS, sum(one.is_image and one.served for one in first)
            return
        low, high = len(first), 2 * len(first)  # There is a series at the lower place, and none at the higher.
        while self._has(high, first[0].uid):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._has(middle, first[0].uid) else (low, middle)
        self._total = begun + _COUNTED_FOR, high

    def _has(self, place: int, first: str) -> bool:
        """Whether there is a series at a place; a PACS that knows no pages gives the first one again."""
        try:
            page = self._search(limit=1, offset=place)
        except BapsError as error:
            if status_code(error) in _TOO_FAR:
                return False
            raise
        return bool(page) and page[0].uid != first

    def _search(self, study: str | None = None, limit: int | None = None, offset: int = 0, **more: str) -> list[Series]:
        """Ask for series that match the query, and remember them."""
        given: dict[str, Any] = {"search_filters": {**self._studies.filters, **more}}
        if study is not None:
            given["study_instance_uid"] = study
        if limit is not None:
            given |= {"limit": limit, "offset": offset}
        with convert_pacs_errors():
            found = [self._read(answer, study or "") for answer in self._client.search_for_series(**given)]
        now = time.monotonic()
        with self._lock:
            for one in found:
                if one.served:
                    self._kept[one.uid] = now, one
                    self._kept.move_to_end(one.uid)
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return found

    def _read(self, answer: Mapping[str, Any], study: str) -> Series:
        said = {keyword: (json_values(answer, keyword) or [""])[0] for keyword in (*_SHOWN, *_TOLD)}
        said["StudyInstanceUID"] = said["StudyInstanceUID"] or study
        uid, count = said["SeriesInstanceUID"], said["NumberOfSeriesRelatedInstances"]
        # Of others no address can be made.
        served = is_uid(uid) and is_uid(said["StudyInstanceUID"]) and self._studies.matches(answer)
        shown = tuple((name, said[name] or "UNK") for name in _SHOWN)
        return Series(uid, said["StudyInstanceUID"], said["Modality"], count, shown, served)
