"""Remove control characters from texts of requests and files.

The result is safe to show in a terminal and fits in one line of a log.
"""

from __future__ import annotations

import unicodedata
from typing import Any

_DIRECTIONS = frozenset(map(chr, (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))))
"""Characters that change the direction of the text after them, so that a line can be made to look like another one."""


def is_control(letter: str) -> bool:
    """Return whether a terminal acts on a character instead of showing it.

    Args:
        letter: one character.

    Returns:
        True for the control characters C0 and C1, changes of direction, line ends and surrogates.
    """
    return letter in _DIRECTIONS or unicodedata.category(letter) in ("Cc", "Zl", "Zp", "Cs")


def printable(text: object) -> str:
    """Remove the control characters of a text.

    Args:
        text: the text. Any other object is converted to one.

    Returns:
        The text without control characters.
    """
    return "".join(letter for letter in str(text) if not is_control(letter))


def printable_values(value: Any) -> Any:
    """Remove the control characters of every text in a JSON value.

    Args:
        value: any JSON value.

    Returns:
        A copy of the value whose texts and keys went through ``printable``.
    """
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): printable_values(item) for key, item in value.items()}
    return [printable_values(item) for item in value] if isinstance(value, (list, tuple)) else value
