"""Sessions that have expired go from the disk, also after a start and beside what a kill has left."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from monailabel.utils.sessions import Sessions

from baps.server.expired_sessions import remove_expired


def test_only_expired_sessions_are_removed(tmp_path: Path) -> None:
    before = Sessions(str(tmp_path / "sessions"))
    names = []
    for number in range(3):
        (tmp_path / "x.nii.gz").write_bytes(b"voxels")
        names.append(before.add_session(str(tmp_path / "x.nii.gz"), session_id=f"s{number}")[0])
    text = json.loads((tmp_path / "sessions" / "s0" / "meta.info").read_text())
    (tmp_path / "sessions" / "s0" / "meta.info").write_text(json.dumps({**text, "last_access_ts": 1}))
    (tmp_path / "sessions" / "s1" / "meta.info").write_text(json.dumps({**text, "expiry": 10**9, "last_access_ts": 1}))
    for name, age in (("half", 7200), ("new", 0)):
        (tmp_path / "sessions" / name).mkdir()
        os.utime(tmp_path / "sessions" / name, (time.time() - age, time.time() - age))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "sessions" / "link").symlink_to(tmp_path / "elsewhere")
    assert remove_expired(Sessions(str(tmp_path / "sessions"))) == 3  # A new process, which has none in memory.
    assert sorted(path.name for path in (tmp_path / "sessions").iterdir()) == ["link", "new", "s2"]
    assert (tmp_path / "elsewhere").is_dir()
