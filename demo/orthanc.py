"""A real PACS to try and to test with: Orthanc of Debian's packages, on loopback."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import requests

from server import free_port, running

PROGRAM = shutil.which("Orthanc") or shutil.which("/usr/sbin/Orthanc")  # Not on everybody's path.
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def missing() -> str:
    """What has to be installed first, or ""."""
    if PROGRAM and PLUGIN.exists():
        return ""
    return "Orthanc with its DICOMweb plugin is not installed: apt-get install orthanc orthanc-dicomweb"


@contextmanager
def running_orthanc(folder: Path, users: Mapping[str, str] | None = None) -> Iterator[str]:
    """Start it on an empty store below a folder, for users with passwords or for anybody; yields its address."""
    users = users or {}
    port = free_port()
    settings = {
        "StorageDirectory": str(folder / "store"),
        "IndexDirectory": str(folder / "store"),
        "HttpPort": port,
        "HttpServerEnabled": True,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": bool(users),
        "RegisteredUsers": users,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    login = "".join(f"{user}:{password}@" for user, password in users.items())
    command = [str(PROGRAM), str(folder / "orthanc.json")]
    with running(command, os.environ, f"http://{login}127.0.0.1:{port}/system", folder / "orthanc.log"):
        yield f"http://127.0.0.1:{port}"


def store(address: str, folder: Path) -> None:
    """Put every file of a folder into it."""
    for file in sorted(folder.rglob("*.dcm")):
        requests.post(f"{address}/instances", data=file.read_bytes(), timeout=30).raise_for_status()
