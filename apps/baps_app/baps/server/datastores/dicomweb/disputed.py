"""Labels in a PACS that take an organ away from another annotator: marked in the object itself, and not counted.

See ``baps.annotations.disputes``. Objects are never changed, so the earlier one stays, and counts. The mark stands in
the description of the segment or structure, where other programs show it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pydicom.dataset import Dataset

DISPUTED_MARK = "BAPS: not confirmed"
"""What the description begins with."""

_WHERE = (
    ("SegmentSequence", "SegmentLabel", "SegmentDescription"),
    ("StructureSetROISequence", "ROIName", "ROIDescription"),
)


def mark_disputed(label: Dataset, organs: Collection[str]) -> None:
    """Mark organs of a label object as disputed; marks of others are taken off."""
    for item, name, description in _described(label):
        if name in organs:
            setattr(item, description, f"{MARK}, it replaces what another annotator drew")
        elif str(item.get(description) or "").startswith(DISPUTED_MARK):
            delattr(item, description)


def disputed_organs(label: Dataset) -> set[str]:
    """Return the organs of a label object that are disputed."""
    return {
        name
        for item, name, description in _described(label)
        if str(item.get(description) or "").startswith(DISPUTED_MARK)
    }


def author_of(label: Dataset) -> str:
    """Return who made a label object, or ""."""
    keyword = "OperatorsName" if label.get("Modality") == "RTSTRUCT" else "ContentCreatorName"
    return str(label.get(keyword) or "").partition("=")[0].strip()


def _described(label: Dataset) -> Iterator[tuple[Dataset, str, str]]:
    for sequence, name, description in _WHERE:
        for item in label.get(sequence) or []:
            yield item, str(item.get(name) or "").strip(), description
