"""Texts without what could name a patient: paths of files, and the UIDs of DICOM."""

from __future__ import annotations

import re

_PATH = re.compile(r"(?<![\w:/.])(?:/[^\s/'\",;:()]+){2,}/?")
_UID = re.compile(r"\b[0-2](?:\.\d+){5,}\b")


def without_names(text: str) -> str:
    """A text with words in place of paths and UIDs."""
    return _UID.sub("<uid>", _PATH.sub("<path>", text))


def without_paths(text: str) -> str:
    """A text with the name of a file in place of its path."""
    return _PATH.sub(lambda found: found[0].rstrip("/").rpartition("/")[2], text)
