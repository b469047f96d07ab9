from __future__ import annotations

import pytest

from baps.errors import InputError
from baps.utils.deprecation import OldNameWarning
from baps.utils.limits import DEFAULT_MAX_VOLUME_MB, MAX_VOLUME_MB_VARIABLE, OLD_VARIABLE, max_volume_bytes


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MAX_VOLUME_MB_VARIABLE, raising=False)
    monkeypatch.delenv(OLD_VARIABLE, raising=False)


def test_the_limit_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max_volume_bytes() == DEFAULT_MAX_VOLUME_MB << 20
    monkeypatch.setenv(MAX_VOLUME_MB_VARIABLE, "3")
    assert max_volume_bytes() == 3 << 20
    monkeypatch.setenv(MAX_VOLUME_MB_VARIABLE, "plenty")
    with pytest.raises(InputError, match="max_volume_mb must be a whole number of megabytes, not 'plenty'"):
        max_volume_bytes()


def test_the_variable_of_version_01_is_read_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OLD_VARIABLE, "2")
    with pytest.warns(OldNameWarning, match=MAX_VOLUME_MB_VARIABLE):
        assert max_volume_bytes() == 2 << 20
    monkeypatch.setenv(MAX_VOLUME_MB_VARIABLE, "3")
    assert max_volume_bytes() == 3 << 20
