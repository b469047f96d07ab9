"""deploy/backup.sh saves a site so that it can be restored completely."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from baps.adapters.adapter import Adapter
from baps.adapters.output_head import OutputHead
from baps.adapters.visual_prompt import build_visual_prompt
from baps.annotations.history import LabelHistory
from baps.blackbox import BlackBox
from baps.registry.store import AdapterStore
from baps.site.audit import AuditFile
from baps.site.roles import Role
from baps.site.users import Users
from deploy.advisories import ROOT

BACKUP = ROOT / "deploy" / "backup.sh"


def _backup(file: Path, *folders: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(BACKUP), str(file), *map(str, folders)], capture_output=True, text=True)


def _files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Read the mode and content of each file, by path."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mode, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and not {".converted", "readings"} & set(path.parts)
    }


def test_lost_site_is_restored_completely(tmp_path: Path, new_black_box: Callable[[], BlackBox]) -> None:
    site = tmp_path / "site"
    studies, state, etc = site / "studies", site / "state", site / "etc"
    for folder in (studies, state / "cache" / "unsent", state / "adapters" / "organs" / "readings", etc):
        folder.mkdir(parents=True)
    (studies / "ct_01.nii.gz").write_bytes(bytes(1000))
    (studies / ".converted").mkdir()
    (studies / ".converted" / "series.nii.gz").write_bytes(b"made again")
    (state / "adapters" / "organs" / "readings" / "a.npy").write_bytes(b"made again")
    (studies / "datastore_v2.json").write_text(json.dumps({"objects": {"ct_01": {"image": {}, "labels": {}}}}))
    for words, author in (("one", "anna"), ("two", "ben")):
        (tmp_path / "new").write_text(words)
        LabelHistory(studies).save("ct_01", "final", tmp_path / "new", ".nii.gz", {"author": author})
    versions = [(one.name, one.sha256, one.info) for one in LabelHistory(studies).versions("ct_01", "final")]
    store, capabilities = AdapterStore(state / "adapters"), new_black_box().capabilities
    adapter = Adapter(build_visual_prompt("basis", 0), OutputHead(0).eval())
    record = {"adapter": adapter.to_dict(), "black_box": {"weights_sha256": capabilities.weights_sha256}}
    for _ in range(2):
        store.publish("spleen", store.add("spleen", adapter, record))
    token = Users(etc / "users.json").add("anna", Role.ANNOTATOR)
    audit = AuditFile(state / "adapters" / "audit.jsonl")
    audit.check()
    hashed = audit.hashed("ct_01")
    (state / "cache" / "unsent" / "20261122-1.2.3.dcm").write_bytes(b"a label")
    before = _files(site)

    process = _backup(tmp_path / "kept.tar.gz", etc, state, studies)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "kept.tar.gz").stat().st_mode & 0o777 == 0o600
    shutil.rmtree(site)
    subprocess.run(["tar", "-xpf", str(tmp_path / "kept.tar.gz"), "-C", "/"], check=True)  # noqa: S607

    assert _files(site) == before
    assert not (studies / ".converted").exists()
    assert not (state / "adapters" / "organs" / "readings").exists()
    assert (studies / "labels" / "final" / "ct_01.nii.gz").read_text() == "two"
    history = LabelHistory(studies)
    assert [(one.name, one.sha256, one.info) for one in history.versions("ct_01", "final")] == versions
    history.restore("ct_01", "final", versions[0][0])
    assert (studies / "labels" / "final" / "ct_01.nii.gz").read_text() == "one"
    assert store.served("spleen", *capabilities.identity) == ("spleen", "v0002")
    assert store.load("spleen", "v0002").label == "spleen"
    assert store.roll_back("spleen") == "v0001"
    known = Users(etc / "users.json").find(token)
    assert known is not None
    assert known.name == "anna"
    assert AuditFile(state / "adapters" / "audit.jsonl").hashed("ct_01") == hashed


def test_linked_folder_is_saved_with_its_content(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "ct_01.nii.gz").write_bytes(b"voxels")
    (tmp_path / "studies").symlink_to(tmp_path / "disk")
    assert _backup(tmp_path / "kept.tar.gz", tmp_path / "studies").returncode == 0
    listed = subprocess.run(["tar", "-tf", str(tmp_path / "kept.tar.gz")], capture_output=True, text=True)  # noqa: S607
    assert "studies/./ct_01.nii.gz" in listed.stdout


@pytest.mark.parametrize("folder", ["/nowhere/at/all", "relative"])
def test_failed_backup_names_the_folder_and_keeps_the_former_archive(tmp_path: Path, folder: str) -> None:
    file = tmp_path / "kept.tar.gz"
    file.write_text("of yesterday")
    process = _backup(file, folder)
    assert process.returncode == 2
    assert folder in process.stderr
    assert file.read_text() == "of yesterday"
    assert _backup(tmp_path / "none" / "kept.tar.gz", tmp_path).returncode == 1
