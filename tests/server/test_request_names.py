from __future__ import annotations

import pytest

from baps.errors import InputError
from baps.server.request_names import json_object, printable


@pytest.mark.parametrize(
    "text", ['{"a": NaN}', '{"a": [1e999]}', '{"a": "\\ud800"}', "[]", "{", "[" * 100_000, "1" * 9999]
)
def test_what_cannot_be_answered_again_is_no_object(text: str) -> None:
    with pytest.raises(InputError, match="params"):
        json_object(text, "params")


def test_an_object_is_read_as_it_is() -> None:
    assert json_object('{"a": [1, 2.5, null, "\\u00fc"]}', "params") == {"a": [1, 2.5, None, "ü"]}
    assert json_object("", "params") == {}


def test_only_text_that_can_be_shown_is_kept() -> None:
    assert printable("Dr. Who\n\ud800") == "Dr. Who"
    assert printable(float("nan")) == ""
    assert len(printable("a" * 1000)) == 200
