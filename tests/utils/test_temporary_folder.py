"""The folder of temporary files is removed when a server stops, or at the next start after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from baps.utils.temporary_folder import temporary_folder

_SERVER = """
import tempfile, time
from baps.utils.temporary_folder import temporary_folder
with temporary_folder():
    print(tempfile.mkstemp()[1], flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path / f"baps-{os.getuid()}"


def test_temporary_files_are_removed_with_the_folder(shared: Path) -> None:
    with temporary_folder() as folder:
        assert Path(tempfile.mkstemp()[1]).parent == folder == Path(os.environ["TMPDIR"])
        assert {path.stat().st_mode & 0o077 for path in (shared, folder)} == {0}
    assert not [path for path in shared.iterdir() if path.is_dir()]
    assert tempfile.gettempdir() == str(shared.parent)


def test_only_folders_of_killed_servers_are_removed(shared: Path) -> None:
    servers = [subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    files = [Path(server.stdout.readline().strip()) for server in servers if server.stdout]
    assert all(file.exists() for file in files)
    os.kill(servers[0].pid, signal.SIGKILL)
    servers[0].wait()
    with temporary_folder():
        assert [file.exists() for file in files] == [False, True]
    servers[1].kill()
    servers[1].wait()


def test_links_and_other_folders_are_not_touched(shared: Path) -> None:
    other_folder = shared.parent / "other"
    other_folder.mkdir()
    (other_folder / "kept").touch()
    shared.mkdir(mode=0o700)
    (shared / "link").symlink_to(other_folder)
    (shared / "server-dead").mkdir()
    (shared / "server-dead" / "link").symlink_to(other_folder)
    with temporary_folder():
        assert not (shared / "server-dead").exists()
    assert (other_folder / "kept").exists()


@pytest.mark.parametrize("obstacle", ["file", "link", "open"])
def test_folder_of_another_user_is_not_used(shared: Path, obstacle: str) -> None:
    link_target = shared.parent / "elsewhere"
    link_target.mkdir()
    if obstacle == "file":
        shared.touch()
    elif obstacle == "link":
        shared.symlink_to(link_target)
    else:
        shared.mkdir()
        shared.chmod(0o777)
    with temporary_folder() as folder:
        assert folder.parent == shared.parent
    assert not folder.exists()
    assert not list(link_target.iterdir())
