"""Check values in requests: names that may become part of a path, and JSON."""

from __future__ import annotations

import json
from typing import Any

from baps.errors import InputError


def checked_name(value: str, what: str) -> str:
    """Check a name that may become part of a path.

    Args:
        value: The name.
        what: The thing that it names, for the message.

    Returns:
        The name.

    Raises:
        InputError: If it contains a separator or could name another folder.
    """
    size = len(value.encode(errors="replace"))
    if size > 200 or set(value) & set("/\\") or not value.isprintable() or value.strip(". ") == "":
        raise InputError(
            f"The {what} {value!r} is not a valid name: use up to 200 printable bytes, no slashes, not only dots."
        )
    return value


def printable_name(value: object) -> str:
    """Return the printable characters among the first 200 of a text.

    Args:
        value: The text.

    Returns:
        The characters, or "" if the value is not a text.
    """
    return "".join(filter(str.isprintable, value[:200])) if isinstance(value, str) else ""


def json_object(text: str, what: str) -> dict[str, Any]:
    """Parse a form field that contains a JSON object.

    Args:
        text: The field.
        what: Name of the field, for the message.

    Returns:
        The object.

    Raises:
        InputError: If it is not a JSON object, or contains NaN, infinity or an unpaired surrogate.
    """
    try:
        value = json.loads(text or "{}")
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()  # Python reads more than it can write.
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is not valid JSON: {error}. Send an object such as {{}}.") from None
    if not isinstance(value, dict):
        raise InputError(f"{what} must be a JSON object, not {type(value).__name__}.")
    return value
