"""What a request says, read with care: names that may become part of a path, and JSON."""

from __future__ import annotations

import json
from typing import Any

from baps.errors import InputError


def checked_name(value: str, what: str) -> str:
    """A name from a request that may become part of a path.

    Raises:
        InputError: if it has a separator or could mean another folder.
    """
    size = len(value.encode(errors="replace"))
    if size > 200 or set(value) & set("/\\") or not value.isprintable() or value.strip(". ") == "":
        raise InputError(f"The {what} {value!r} is no name: up to 200 printing bytes, no slashes, not dots alone.")
    return value


def printable(value: object) -> str:
    """The beginning of a text, without what cannot be shown; "" for anything else."""
    return "".join(filter(str.isprintable, value[:200])) if isinstance(value, str) else ""


def json_object(text: str, what: str) -> dict[str, Any]:
    """An object that a form field holds.

    Raises:
        InputError: if it is something else, or has what cannot be said in JSON: NaN, infinity, half a character.
    """
    try:
        value = json.loads(text or "{}")
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()  # Python reads more than it can write.
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is no valid JSON: {error}. Send an object such as {{}}.") from None
    if not isinstance(value, dict):
        raise InputError(f"{what} must be a JSON object, not {type(value).__name__}.")
    return value
