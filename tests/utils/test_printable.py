"""Control characters are removed from texts."""

from __future__ import annotations

import json

import pytest

from baps.utils.printable import printable, printable_values


@pytest.mark.parametrize("letter", ["\x1b", "\x07", "\x9b", "\n", "\r", "\u202e", "\u2066", "\u2028", "\x7f", "\ud800"])
def test_control_characters_are_removed(letter: str) -> None:
    assert printable(f"a{letter}b") == "ab"


def test_letters_of_all_languages_are_kept() -> None:
    text = "Leber, печень, 肝臓, کبد\u200cی, e\u0301, 🙂"
    assert printable(text) == text


def test_all_texts_of_a_value_are_cleaned() -> None:
    value = {"a\x1b": ["\x9b1", {"b": "\u202e2"}, 3, None, True, 1.5]}
    assert printable_values(value) == {"a": ["1", {"b": "2"}, 3, None, True, 1.5]}
    json.dumps(printable_values(value))
