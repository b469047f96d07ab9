"""Headers that are not as the standard wants them: what is malformed is left out, the rest is kept."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

from pydicom import config
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.valuerep import validate_value

# Their warnings quote the values, which may be a patient's; pydicom 3 logs them too.
warnings.filterwarnings("ignore", module=r"pydicom\.(valuerep|jsonrep|dataset|dataelem|charset|values|misc)")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

IDENTITY = ("PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
"""What says whose image it is, and which: kept as it is or not at all."""

_NUMBERS = ("DS", "IS")
"""Texts that are numbers, or they could not be read; many are longer than the standard wants."""

_TEXTS = ("DA", "DT", "TM", "UI")
"""Values that may be of another type than text, which they are checked as."""


def read_json_header(answer: Mapping[str, Any]) -> Dataset:
    """Read a data set in DICOM's JSON form; an element that cannot be read is left out.

    Args:
        answer: elements by tag, eight hexadecimal digits.
    """
    try:
        return Dataset.from_json(dict(answer))
    except Exception:  # pydicom raises many kinds. Which element it is, it does not say.
        header = Dataset()
        for tag, element in answer.items():
            try:
                header.add(_read_element(tag, element))
            except Exception:  # noqa: S112  # as above
                continue
        return header


def _read_element(tag: str, element: Mapping[str, Any]) -> DataElement:
    if element.get("vr") == "SQ":
        items = [read_json_header(item or {}) for item in element.get("Value") or []]
        return DataElement(Tag(int(tag, 16)), "SQ", Sequence(items))
    (found,) = Dataset.from_json({tag: dict(element)})
    return found


def well_formed(header: Dataset) -> Dataset:
    """Copy what is well-formed and public of a header, and what says whose it is in any case."""
    kept = Dataset()
    for tag in list(header.keys()):
        if Tag(tag).is_private:
            continue
        try:
            element = header[tag]  # Read now, which may fail.
            if element.VR == "SQ":
                kept.add(DataElement(tag, "SQ", Sequence([well_formed(item) for item in element.value or []])))
                continue
            values = element.value if element.VM > 1 else [element.value]
            if element.VR == "IS" and any(value != int(value) for value in values if value not in (None, "")):
                continue
            if keyword_for_tag(tag) not in IDENTITY and element.VR not in _NUMBERS:
                for value in values:
                    validate_value(element.VR, str(value) if element.VR in _TEXTS else value, config.RAISE)
            kept.add(DataElement(tag, element.VR, element.value))
        except Exception:  # noqa: S112  # pydicom raises many kinds; each means a malformed value.
            continue
    return kept
