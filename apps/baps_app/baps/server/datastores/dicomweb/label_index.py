"""Which images of a PACS have labels: asked of it from time to time, and only what is new is looked at."""

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

_WHERE = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_TOLD = ("StudyInstanceUID", "SeriesInstanceUID", "NumberOfSeriesRelatedInstances")

_COUNTED_FOR = 5.0
"""Seconds that a count holds that another process may have changed."""

_PAGE = 1000
"""Series of labels that are asked for at once."""


class LabelIndex:
    """The labels of a PACS.

    A look at all of them costs a request for each thousand of each modality, for not every PACS takes several
    modalities at once, and one or two for each new one.

    Args:
        client: of the PACS.
        studies: the query; what it says of studies holds for labels too.
        images: the series that are served.
        register: what is known.
        which_volume: tells the image that a label belongs to, of a series and of what fetches the label.
    """

    def __init__(
        self,
        client: DICOMwebClient,
        studies: PacsStudies,
        images: SeriesList,
        register: LabelRegister,
        which_volume: Callable[[str, Callable[[], Dataset]], str],
    ) -> None:
        self._which_volume = which_volume
        self._client, self._filters, self._images = client, studies.study_filters, images
        self.register = register
        self._looking = KeyedLocks()  # Of a study, or of all of them: one does not wait for the other.
        self._looked: float | None = None
        self._counted: tuple[int, float, int] | None = None

    @property
    def is_fresh(self) -> bool:
        """Whether the PACS was asked a short while ago."""
        return self._looked is not None and time.monotonic() - self._looked < FRESH_SECONDS

    @property
    def was_refreshed(self) -> bool:
        """Whether the PACS was asked at all, since the labels were last forgotten."""
        return self._looked is not None

    def forget(self) -> None:
        """Ask the PACS anew, of all labels."""
        self._looked = None

    def refresh(self) -> None:
        """Ask the PACS which labels it has, unless it was asked a short while ago.

        Raises:
            BapsError: if it does not answer.
        """
        with self._looking.holding(None):
            if not self.is_fresh:
                begun = time.monotonic()
                self._look(None)
                self._looked = begun

    def refresh_study(self, study: str) -> None:
        """Ask the PACS which labels a study has.

        Raises:
            BapsError: if it does not answer.
        """
        with self._looking.holding(study):
            self._look(study)

    def _look(self, study: str | None) -> None:
        sweep = self.register.next_sweep()
        for modality in MODALITIES:
            for of_study, series, count in self._listed(modality, study):
                if self._images.is_listed(of_study) and not self.register.is_known(series, count, sweep):
                    found = self._described(of_study, series)
                    if found is None:
                        self.register.keep(series, sweep)
                    else:
                        self.register.describe(of_study, series, count, sweep, found)
        self.register.end_sweep(sweep, study)
        self.find_images(study)

    def find_images(self, among: str | None = None) -> None:
        """Look for the images that new labels refer to: the labels of one study, or all."""
        for instance, study, series, images in self.register.without_image():
            if among not in (None, study):
                continue
            found = (image for image in images if (one := self._images.find(image)) and one.is_image)
            image = next(found, "")
            if image:
                image = self._which_volume(image, partial(fetch_object, self._client, study, series, instance))
            self.register.set_image(instance, image)

    def _listed(self, modality: str, study: str | None) -> Iterator[tuple[str, str, str]]:
        """Study, UID and number of objects of each series of labels of a modality; they are asked for page by page."""
        offset, before = 0, set[str]()
        given: dict[str, Any] = {} if study is None else {"study_instance_uid": study}
        filters = {**(self._filters if study is None else {}), "Modality": modality}
        while True:
            with convert_pacs_errors():
                page = self._client.search_for_series(search_filters=filters, limit=_PAGE, offset=offset, **given)
            told = [[(json_values(answer, keyword) or [""])[0] for keyword in (*_TOLD, "Modality")] for answer in page]
            uids = {uid for _, uid, _, _ in told}
            if uids <= before:
                return
            # Some servers ignore what they are asked for.
            found = [(of or study or "", uid, count) for of, uid, count, kind in told if kind in ("", modality)]
            yield from (one for one in found if is_uid(one[0]) and is_uid(one[1]))
            if len(page) < SHORT_PAGE:
                return
            before, offset = uids, offset + len(page)

    def _described(self, study: str, series: str) -> list[StoredSegment] | None:
        """What a series of label objects holds; a broken one nothing. None where the PACS does not give it."""
        try:
            return [one for header in fetch_headers(self._client, study, series) for one in self._segments(header)]
        except BapsError as error:
            if status_code(error) is None and not isinstance(error.__cause__, ValueError):
                raise
            logger.warning("A series of labels was passed over (%s).", type(error.__cause__).__name__)
            return None
        except Exception as error:  # Of one object among many: malformed.
            logger.warning("A series of labels was passed over (%s).", type(error).__name__)
            return []

    def _segments(self, header: Dataset) -> list[StoredSegment]:
        """What a header says. Metadata of a structure set may leave out its contours; then the object says it."""
        found = stored_segments(header)
        if not found and is_structure_set(header):
            study, series, instance = (str(header.get(name) or "") for name in _WHERE)
            if all(map(is_uid, (study, series, instance))):
                found = stored_segments(fetch_object(self._client, study, series, instance))
        return found

    def newest(self, image: str | None = None) -> dict[str, dict[str, list[StoredSegment]]]:
        """By image and label what a person drew or confirmed, the newest first; of one image or all."""
        found: dict[str, dict[str, list[StoredSegment]]] = {}
        for where, segment in self.register.segments(image):
            if self._images.is_listed(segment.study):
                found.setdefault(where, {}).setdefault(segment.name, []).append(segment)
        return found

    def count(self) -> int:
        """The number of images that have a label that counts; clicks ask for it."""
        changes, now = self.register.changes, time.monotonic()
        if self._counted is None or self._counted[0] != changes or now - self._counted[1] > _COUNTED_FOR:
            self._counted = changes, now, len(self.labelled())
        return self._counted[2]

    def labelled(self) -> list[str]:
        """The images that have a label that counts."""
        return [image for study, image in self.register.labelled() if self._images.is_listed(study)]
