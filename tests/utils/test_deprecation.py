from __future__ import annotations

import warnings

import pytest

from baps.utils.deprecation import OldNameWarning, rename_old_keys, warn_of_old_name

OLD_NAMES = {"rate": "learning_rate", "batch": "batch_size"}


def test_old_keys_are_renamed_with_one_warning_each() -> None:
    with pytest.warns(OldNameWarning) as warned:
        assert rename_old_keys({"rate": 1, "seed": 2}, OLD_NAMES, "in a request") == {"learning_rate": 1, "seed": 2}
    assert [str(warning.message) for warning in warned] == [
        "rate in a request is now called learning_rate. The next release will not read rate."
    ]


def test_new_key_takes_precedence() -> None:
    for values in ({"rate": 1, "learning_rate": 2}, {"learning_rate": 2, "rate": 1}):
        with pytest.warns(OldNameWarning):
            assert rename_old_keys(values, OLD_NAMES) == {"learning_rate": 2}


def test_new_keys_give_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    values = {"learning_rate": 1, "other": None}
    assert rename_old_keys(values, OLD_NAMES) == values
    assert not recwarn.list


def test_warning_is_shown_once_per_process() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default", OldNameWarning)
        for _ in range(3):
            warn_of_old_name("an old name of this test", "a new one")
        warn_of_old_name("another", "a new one")
    assert len(caught) == 2
