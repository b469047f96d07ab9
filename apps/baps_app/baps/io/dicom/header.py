"""Read headers that do not follow the standard: malformed elements are left out, the rest is kept."""

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

# These warnings quote values, which may identify a patient; pydicom 3 logs them too.
warnings.filterwarnings("ignore", module=r"pydicom\.(valuerep|jsonrep|dataset|dataelem|charset|values|misc)")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

IDENTITY_KEYWORDS = (
    "PatientID",
    "PatientName",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "SOPClassUID",
)
"""Attributes that identify the patient and the image. They are kept unchanged, or not at all."""

_NUMBER_VRS = ("DS", "IS")
"""Numbers as text. Many are longer than the standard allows, but they could be read."""

_TEXT_VRS = ("DA", "DT", "TM", "UI")
"""Values that may be of another type than text, but are checked as text."""


def read_json_header(elements: Mapping[str, Any]) -> Dataset:
    """Read a dataset in DICOM's JSON form. An element that cannot be read is left out.

    Args:
        elements: elements by tag, eight hexadecimal digits.

    Returns:
        The dataset.
    """
    try:
        return Dataset.from_json(dict(elements))
    except Exception:  # pydicom raises many types, and does not say which element is malformed.
        header = Dataset()
        for tag, element in elements.items():
            try:
                header.add(_read_element(tag, element))
            except Exception:  # noqa: S112  # as above
                continue
        return header


def _read_element(tag: str, element: Mapping[str, Any]) -> DataElement:
    if element.get("vr") == "SQ":
        items = [read_json_header(item or {}) for item in element.get("Value") or []]
        return DataElement(Tag(int(tag, 16)), "SQ", Sequence(items))
    (parsed,) = Dataset.from_json({tag: dict(element)})
    return parsed


def keep_well_formed(header: Dataset) -> Dataset:
    """Copy the well-formed public elements of a header, and those that identify the patient and the image in any case.

    Args:
        header: the header.

    Returns:
        The copy.
    """
    kept = Dataset()
    for tag in list(header.keys()):
        if Tag(tag).is_private:
            continue
        try:
            element = header[tag]  # The element is read here, which may fail.
            if element.VR == "SQ":
                kept.add(DataElement(tag, "SQ", Sequence([keep_well_formed(item) for item in element.value or []])))
                continue
            values = element.value if element.VM > 1 else [element.value]
            if element.VR == "IS" and any(value != int(value) for value in values if value not in (None, "")):
                continue
            if keyword_for_tag(tag) not in IDENTITY_KEYWORDS and element.VR not in _NUMBER_VRS:
                for value in values:
                    validate_value(element.VR, str(value) if element.VR in _TEXT_VRS else value, config.RAISE)
            kept.add(DataElement(tag, element.VR, element.value))
        except Exception:  # noqa: S112  # pydicom raises many types; each means a malformed value.
            continue
    return kept
