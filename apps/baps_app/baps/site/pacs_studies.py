"""Select the series of a PACS that are served: by a query after its address, and by a worklist of studies.

The query has the form of DICOMweb's own search (QIDO-RS): ``https://pacs/dicom-web?Modality=CT&StudyDate=20260101-``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pydicom.datadict import tag_for_keyword

from baps.errors import BapsError, InputError

_OF_STUDIES = ("StudyDate", "StudyTime", "AccessionNumber", "ModalitiesInStudy", "ReferringPhysicianName",
               "StudyInstanceUID", "StudyID", "StudyDescription")  # fmt: skip
_OF_SERIES = ("Modality", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "SeriesDate", "BodyPartExamined",
              "ProtocolName", "Manufacturer", "ManufacturerModelName", "StationName", "InstitutionName",
              "PerformedProcedureStepStartDate")  # fmt: skip
_ATTRIBUTES = _OF_STUDIES + _OF_SERIES
_UID = re.compile(r"[0-9.]{1,64}")
_MAX_BYTES = 8 << 20
"""Size of a worklist of 100,000 studies."""


@dataclass(frozen=True)
class PacsStudies:
    """A PACS, and the filters for the series that are served.

    Attributes:
        address: Address of its DICOMweb service, without a query.
        filters: Values to match, by the keyword of the attribute.
    """

    address: str
    filters: Mapping[str, str] = field(default_factory=dict)

    @property
    def study_filters(self) -> dict[str, str]:
        """The filters that select whole studies, and so the labels in them."""
        return {keyword: expected for keyword, expected in self.filters.items() if keyword in _OF_STUDIES}

    def matches(self, answer: Mapping[str, Any]) -> bool:
        """Return whether a series matches the filters, which some servers ignore.

        Args:
            answer: The series in the response of the PACS, in the DICOM JSON model. A missing attribute is a match.

        Returns:
            Whether the series is served.
        """
        for keyword, expected in self.filters.items():
            values = json_values(answer, keyword)
            if values and not any(_is_match(keyword, expected, value) for value in values):
                return False
        return True


class Worklist:
    """A file with one StudyInstanceUID per line, which is read again when it changes.

    Empty lines, and what follows a ``#``, are ignored.

    Args:
        file: The worklist.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stamp: tuple[int, int, int] | None = None
        self._studies: dict[str, None] = {}

    def studies(self) -> Mapping[str, None]:
        """Read the studies.

        Returns:
            The studies in the order of the file, each once, as the keys of a mapping.

        Raises:
            BapsError: If the file cannot be read, or a line is not a UID.
        """
        try:
            status = self._file.stat()
            stamp = status.st_mtime_ns, status.st_size, status.st_ino
            if stamp != self._stamp:
                if status.st_size > _MAX_BYTES:
                    raise BapsError(f"The worklist {self._file} has more than {_MAX_BYTES >> 20} MB. Make it shorter.")
                self._studies = self._read()
                self._stamp = stamp
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not a text file"
            raise BapsError(f"The worklist {self._file} cannot be read ({reason}). Give a text file.") from error
        return self._studies

    def _read(self) -> dict[str, None]:
        studies: dict[str, None] = {}
        for number, line in enumerate(self._file.read_text(encoding="utf-8-sig").splitlines(), start=1):
            uid = line.partition("#")[0].strip()
            if uid and not _UID.fullmatch(uid):
                raise BapsError(
                    f"Line {number} of the worklist {self._file} is not a StudyInstanceUID. Write one UID per line, "
                    "of digits and dots."
                )
            if uid:
                studies[uid] = None
        return studies


def read_pacs_studies(studies: str) -> PacsStudies:
    """Parse the address of a PACS and the query after it.

    Args:
        studies: The address and the query, as in ``https://pacs/dicom-web?Modality=CT``.

    Returns:
        The PACS, and the filters of the query.

    Raises:
        InputError: If the query names an attribute that is unknown or given twice, or a value that cannot match.
    """
    address = urlsplit(studies.strip())
    if address.fragment:
        raise InputError("The address of the PACS contains a #. Write it as %23 if it belongs to a value.")
    filters: dict[str, str] = {}
    for keyword, expected in parse_qsl(address.query, keep_blank_values=True):
        if keyword not in _ATTRIBUTES:
            raise InputError(
                f"STUDIES cannot select series by {keyword[:64]!r}. Known attributes: {', '.join(_ATTRIBUTES)}. List "
                "the studies of patients in a worklist."
            )
        if keyword in filters:
            raise InputError(f"STUDIES names {keyword} twice. Give one value, with * or ? for what may differ.")
        _check(keyword, expected)
        filters[keyword] = expected
    return PacsStudies(address._replace(query="").geturl().rstrip("/?"), filters)


def json_values(answer: Mapping[str, Any], keyword: str) -> list[str]:
    """Return the values of an attribute of a data set in the DICOM JSON model.

    Args:
        answer: The data set.
        keyword: Keyword of the attribute.

    Returns:
        The values as text, empty if the data set does not have the attribute.
    """
    element = answer.get(f"{tag_for_keyword(keyword):08X}")
    values = (element.get("Value") if isinstance(element, dict) else None) or []
    named = (value.get("Alphabetic", "") if isinstance(value, dict) else value for value in values)
    return [str(value).strip() for value in named if value is not None]


def _check(keyword: str, expected: str) -> None:
    if not expected:
        raise InputError(f"STUDIES gives no value for {keyword}. Omit the attribute, or give a value.")
    if keyword.endswith("Date"):
        days = expected.split("-")
        if len(days) > 2 or not any(days) or not all(not day or _is_day(day) for day in days):
            raise InputError(
                f"{keyword} in STUDIES must be a day such as 20260131, or days such as 20260101-20260131 or 20260101-, "
                f"not {expected[:64]!r}."
            )
    if keyword.endswith("UID") and not _UID.fullmatch(expected):
        raise InputError(f"{keyword} in STUDIES must be one UID. List several studies in a worklist.")
    if keyword in ("Modality", "ModalitiesInStudy") and not re.fullmatch(r"[A-Z*?]{1,16}", expected):
        raise InputError(f"{keyword} in STUDIES must be one modality such as CT, not {expected[:64]!r}.")


def _is_day(text: str) -> bool:
    try:
        return bool(re.fullmatch(r"\d{8}", text)) and bool(datetime.strptime(text, "%Y%m%d"))
    except ValueError:
        return False


def _is_match(keyword: str, expected: str, value: str) -> bool:
    if keyword.endswith("Date"):
        first, dash, last = expected.partition("-")
        return value == expected if not dash else (first or "") <= value <= (last or "99999999")
    if keyword.endswith("Time"):  # Only the PACS compares times, which have ranges and several precisions.
        return True
    pattern = re.escape(expected).replace(r"\*", ".*").replace(r"\?", ".")
    return bool(re.fullmatch(pattern, value, re.IGNORECASE | re.DOTALL))
