"""Values of DICOM attributes, or a sentence that names the attribute which cannot be used."""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from baps.errors import InputError


def numbers(dataset: Dataset, keyword: str, count: int, name: str) -> NDArray[np.float64] | None:
    """Read the numbers of an attribute.

    Args:
        dataset: that holds it, or not.
        keyword: of the attribute.
        count: how many numbers it must hold.
        name: of the file, for messages.

    Returns:
        (count,), or None where the attribute is missing or empty.

    Raises:
        InputError: if it holds anything else than so many finite numbers.
    """
    if keyword not in dataset:
        return None
    try:
        value = dataset[keyword].value
        if value is None or value == "" or (hasattr(value, "__len__") and not len(value)):
            return None
        found = np.atleast_1d(np.asarray(value, np.float64))
    except (TypeError, ValueError, OverflowError):
        found = np.array([np.nan])
        value = raw_text(dataset, keyword)
    if len(found) != count or not np.isfinite(found).all():
        wanted = "a finite number" if count == 1 else f"{count} finite numbers"
        raise InputError(f"The {keyword} of {name} is {shown(value)}; {wanted} must stand there. Export it again.")
    return found


def raw_text(dataset: Dataset, keyword: str) -> str:
    """What stands in an attribute that cannot be converted."""
    raw: Any = dataset.get_item(keyword)
    value = getattr(raw, "value", "")
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return "\\".join(map(str, value)) if isinstance(value, MutableSequence) else str(value)


def shown(value: Any) -> str:
    """The value of an attribute for a message, shortened."""
    text = "\\".join(f"{one:g}" if isinstance(one, float) else str(one) for one in np.ravel(np.asarray(value, object)))
    return f"'{text[:60]}'"
