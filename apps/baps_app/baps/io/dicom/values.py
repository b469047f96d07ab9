"""Read values of DICOM attributes, or raise a sentence that names the attribute that cannot be used."""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from baps.errors import InputError


def read_numbers(dataset: Dataset, keyword: str, count: int, name: str) -> NDArray[np.float64] | None:
    """Read the numbers of an attribute.

    Args:
        dataset: dataset, with or without the attribute.
        keyword: keyword of the attribute.
        count: how many numbers it must hold.
        name: name of the file, for the error message.

    Returns:
        The numbers, (count,), or None if the attribute is missing or empty.

    Raises:
        InputError: if the attribute holds anything else than that many finite numbers.
    """
    if keyword not in dataset:
        return None
    try:
        value = dataset[keyword].value
        if value is None or value == "" or (hasattr(value, "__len__") and not len(value)):
            return None
        values = np.atleast_1d(np.asarray(value, np.float64))
    except (TypeError, ValueError, OverflowError):
        values = np.array([np.nan])
        value = raw_text(dataset, keyword)
    if len(values) != count or not np.isfinite(values).all():
        requirement = "a finite number" if count == 1 else f"{count} finite numbers"
        raise InputError(
            f"The {keyword} of {name} is {format_value(value)}; it must be {requirement}. Export it again."
        )
    return values


def raw_text(dataset: Dataset, keyword: str) -> str:
    """Return the text of an attribute that cannot be converted.

    Args:
        dataset: dataset with the attribute.
        keyword: keyword of the attribute.

    Returns:
        The text.
    """
    raw: Any = dataset.get_item(keyword)
    value = getattr(raw, "value", "")
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return "\\".join(map(str, value)) if isinstance(value, MutableSequence) else str(value)


def format_value(value: Any) -> str:
    """Format the value of an attribute for a message, and shorten it.

    Args:
        value: the value.

    Returns:
        The text in quotes.
    """
    text = "\\".join(f"{one:g}" if isinstance(one, float) else str(one) for one in np.ravel(np.asarray(value, object)))
    return f"'{text[:60]}'"
