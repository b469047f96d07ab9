"""Redact what could identify a patient in texts: paths of files and DICOM UIDs."""

from __future__ import annotations

import re
from typing import Any

_PATH = re.compile(r"(?<![\w:/.])(?:/[^\s/'\",;:()]+){2,}/?")
_UID = re.compile(r"\b[0-2](?:\.\d+){5,}\b")


def redact_identifiers(text: str) -> str:
    """Replace paths and DICOM UIDs by placeholders.

    Args:
        text: a message.

    Returns:
        The message with ``<path>`` and ``<uid>`` in place of them.
    """
    return _UID.sub("<uid>", _PATH.sub("<path>", text))


def shorten_paths(text: str) -> str:
    """Replace each path by the name of its file.

    Args:
        text: a message.

    Returns:
        The message without folders.
    """
    return _PATH.sub(lambda match: match[0].rstrip("/").rpartition("/")[2], text)


def shorten_paths_in_json(value: Any) -> Any:
    """Replace each path in a JSON value by the name of its file.

    Args:
        value: any JSON value.

    Returns:
        A copy of the value without folders.
    """
    if isinstance(value, str):
        return value.rstrip("/").rpartition("/")[2] if value.startswith("/") else shorten_paths(value)
    if isinstance(value, dict):
        return {
            key: shorten_paths_in_json(item) for key, item in dict(value).items()
        }  # Another thread may add to the original.
    return [shorten_paths_in_json(item) for item in value] if isinstance(value, list) else value
