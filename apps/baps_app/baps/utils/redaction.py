"""Texts without what could name a patient: paths of files, and the UIDs of DICOM."""

from __future__ import annotations

import re
from typing import Any

_PATH = re.compile(r"(?<![\w:/.])(?:/[^\s/'\",;:()]+){2,}/?")
_UID = re.compile(r"\b[0-2](?:\.\d+){5,}\b")


def without_names(text: str) -> str:
    """A text with words in place of paths and UIDs."""
    return _UID.sub("<uid>", _PATH.sub("<path>", text))


def without_paths(text: str) -> str:
    """A text with the name of a file in place of its path."""
    return _PATH.sub(lambda found: found[0].rstrip("/").rpartition("/")[2], text)


def redact_paths(value: Any) -> Any:
    """A value of JSON with the name of a file in place of each path."""
    if isinstance(value, str):
        return value.rstrip("/").rpartition("/")[2] if value.startswith("/") else without_paths(value)
    if isinstance(value, dict):
        return {key: redact_paths(one) for key, one in dict(value).items()}  # Others may add to it meanwhile.
    return [redact_paths(one) for one in value] if isinstance(value, list) else value
