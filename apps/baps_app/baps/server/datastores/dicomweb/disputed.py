"""Mark labels in a PACS that take an organ away from another annotator. Marked organs are not used.

See ``baps.annotations.disputes``. Objects in a PACS are never changed, so the earlier label stays and is used. The mark
is in the description of the segment or structure, where other programs display it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pydicom.dataset import Dataset

DISPUTED_MARK = "BAPS: not confirmed"
"""Beginning of the description of a disputed organ."""

_DESCRIPTIONS = (
    ("SegmentSequence", "SegmentLabel", "SegmentDescription"),
    ("StructureSetROISequence", "ROIName", "ROIDescription"),
)
"""For each kind of label object, its sequence of organs, and the attributes with the name and the description."""


def mark_disputed(label: Dataset, organs: Collection[str]) -> None:
    """Mark organs of a label object as disputed, and remove the marks of its other organs.

    Args:
        label: Label object, which is changed.
        organs: Names of the disputed organs.
    """
    for item, name, description in _organs(label):
        if name in organs:
            setattr(item, description, f"{DISPUTED_MARK}, it replaces what another annotator drew")
        elif _is_marked(item, description):
            delattr(item, description)


def disputed_organs(label: Dataset) -> set[str]:
    """Return the organs of a label object that are marked as disputed.

    Args:
        label: Label object, or its header.
    """
    return {name for item, name, description in _organs(label) if _is_marked(item, description)}


def author_of(label: Dataset) -> str:
    """Return the author of a label object, or "".

    Args:
        label: Label object, or its header.
    """
    keyword = "OperatorsName" if label.get("Modality") == "RTSTRUCT" else "ContentCreatorName"
    return str(label.get(keyword) or "").partition("=")[0].strip()


def _is_marked(item: Dataset, description: str) -> bool:
    return str(item.get(description) or "").startswith(DISPUTED_MARK)


def _organs(label: Dataset) -> Iterator[tuple[Dataset, str, str]]:
    """Yield the item, the name and the keyword of the description of each organ."""
    for sequence, name, description in _DESCRIPTIONS:
        for item in label.get(sequence) or []:
            yield item, str(item.get(name) or "").strip(), description
