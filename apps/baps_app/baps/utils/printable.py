"""Texts of requests and files, made fit for a terminal and for one line of a log."""

from __future__ import annotations

import unicodedata
from typing import Any

_DIRECTIONS = frozenset(map(chr, (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))))
"""Characters that turn the direction of what follows: they make a line look like another one."""


def is_control(letter: str) -> bool:
    """Return whether a terminal obeys a character instead of showing it: C0 and C1, directions, ends of lines."""
    return letter in _DIRECTIONS or unicodedata.category(letter) in ("Cc", "Zl", "Zp", "Cs")


def printable(text: object) -> str:
    """Return a text without control characters; what is no text as it is written."""
    return "".join(letter for letter in str(text) if not is_control(letter))


def printable_values(value: Any) -> Any:
    """Return what JSON can hold, with every text and name in it as ``printable`` makes it."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): printable_values(one) for key, one in value.items()}
    return [printable_values(one) for one in value] if isinstance(value, (list, tuple)) else value
