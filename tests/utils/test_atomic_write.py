from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from baps.utils.atomic_write import atomic_write


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "a.json"
    path.write_text("old")
    return path


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("exists", [True, False])
def test_target_is_the_old_file_until_the_new_one_is_complete(target: Path, exists: bool) -> None:
    if not exists:
        target.unlink()
    with atomic_write(target) as partial:
        assert partial.parent == target.parent
        partial.write_text("half")
        assert target.exists() == exists
        assert not exists or target.read_text() == "old"
        partial.write_text("new")
    assert target.read_text() == "new"
    assert _names(target.parent) == ["a.json"]


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt])
def test_failure_leaves_only_the_old_file(target: Path, error: type[BaseException]) -> None:
    with pytest.raises(error, match="half way"), atomic_write(target) as partial:
        partial.write_text("half")
        raise error("half way")
    assert target.read_text() == "old"
    assert _names(target.parent) == ["a.json"]


def test_failed_replacement_leaves_the_old_file(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("baps.utils.atomic_write.os.replace", full)
    with pytest.raises(OSError, match="No space left"), atomic_write(target) as partial:
        partial.write_text("new")
    assert target.read_text() == "old"
    assert _names(target.parent) == ["a.json"]


def test_the_original_error_is_raised_even_if_the_writer_deleted_the_partial_file(target: Path) -> None:
    with pytest.raises(ValueError, match="half way"), atomic_write(target) as partial:
        partial.unlink()
        raise ValueError("half way")
    with pytest.raises(FileNotFoundError), atomic_write(target) as partial:
        partial.unlink()
    assert target.read_text() == "old"


def test_concurrent_writers_do_not_share_a_file(target: Path) -> None:
    with atomic_write(target) as first:
        first.write_text("first")
        with atomic_write(target) as second:
            assert first != second
            second.write_text("second")
        assert target.read_text() == "second"
    assert target.read_text() == "first"


@pytest.mark.parametrize(
    ("umask", "mode", "expected"),
    [(0o022, 0o666, 0o644), (0o077, 0o666, 0o600), (0o002, 0o666, 0o664), (0, 0o600, 0o600)],
)
def test_the_umask_limits_the_permissions(target: Path, umask: int, mode: int, expected: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_write(target, mode=mode) as partial:
            partial.write_text("new")
    finally:
        os.umask(before)
    assert target.stat().st_mode & 0o777 == expected


@pytest.mark.parametrize("suffix", ["", ".nii.gz"])
def test_the_partial_file_is_hidden_and_has_the_suffix(target: Path, suffix: str) -> None:
    with atomic_write(target, suffix) as partial:
        assert partial.name.startswith(".partial-")
        assert partial.name.endswith(suffix)


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "none" / "a.json"):
        pytest.fail("There is nowhere to write to.")
