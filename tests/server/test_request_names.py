from __future__ import annotations

import pytest

from baps.errors import InputError
from baps.server.request_names import json_object, printable_name


@pytest.mark.parametrize(
    "text", ['{"a": NaN}', '{"a": [1e999]}', '{"a": "\\ud800"}', "[]", "{", "[" * 100_000, "1" * 9999]
)
def test_values_that_json_cannot_hold_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="params"):
        json_object(text, "params")


def test_an_object_is_returned_unchanged() -> None:
    assert json_object('{"a": [1, 2.5, null, "\\u00fc"]}', "params") == {"a": [1, 2.5, None, "ü"]}
    assert json_object("", "params") == {}


def test_printable_name() -> None:
    assert printable_name("Dr. Who\n\ud800") == "Dr. Who"
    assert printable_name(float("nan")) == ""
    assert len(printable_name("a" * 1000)) == 200
