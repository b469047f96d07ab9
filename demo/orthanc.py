"""A real PACS to try and to test with: Orthanc of Debian's packages, which this machine alone reaches.

Orthanc 1.10 listens on every address, whatever its settings say. So it runs in a network namespace of its own, where
the system lets users make one; else what it listens on is looked at, and it is stopped if others could reach it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import requests

from baps.demo.server import free_port, running
from baps.errors import BapsError
from baps.site.server_command import is_loopback
from demo import loopback

PROGRAM = shutil.which("Orthanc") or shutil.which("/usr/sbin/Orthanc")  # Not on everybody's path.
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def missing() -> str:
    """What has to be installed first, or ""."""
    if PROGRAM and PLUGIN.exists():
        return ""
    return "Orthanc with its DICOMweb plugin is not installed: apt-get install orthanc orthanc-dicomweb"


@contextmanager
def running_orthanc(folder: Path, users: Mapping[str, str] | None = None, reachable: bool = False) -> Iterator[str]:
    """Start it on an empty store below a folder, for users with passwords or for anybody; yields its address.

    Args:
        folder: an empty one.
        users: their passwords, or None.
        reachable: whether others may reach it, where that cannot be prevented.

    Raises:
        BapsError: if they could and may not.
    """
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
    settings["HttpBindAddresses"] = ["127.0.0.1"]  # Newer ones heed it.
    (folder / "orthanc.json").write_text(json.dumps(settings))
    login = "".join(f"{user}:{password}@" for user, password in users.items())
    command = [str(PROGRAM), str(folder / "orthanc.json")]
    apart = loopback.possible()
    if apart:
        command = loopback.command_within(port, command)
    page = f"http://{login}127.0.0.1:{port}/system"
    with running(command, os.environ, page, folder / "orthanc.log") as process:
        if not apart and not reachable:
            _check_addresses(process)
        yield f"http://127.0.0.1:{port}"


def _check_addresses(process: psutil.Process) -> None:
    """Refuse a server that listens on addresses that other machines reach.

    Raises:
        BapsError: if it does.
    """
    addresses = {one.laddr for one in process.connections("tcp") if one.status == psutil.CONN_LISTEN}
    if open_ones := sorted(f"{ip} port {port}" for ip, port in addresses if not is_loopback(ip)):
        raise BapsError(
            f"Orthanc listens on {', '.join(open_ones)}, where others may reach it, and this system lets no user "
            "keep it apart (unshare -rn true). It was stopped. Allow user namespaces, take a newer one, or say that "
            "others may reach it: make pacs OPEN=1."
        )


def store(address: str, folder: Path) -> None:
    """Put every file of a folder into it."""
    for file in sorted(folder.rglob("*.dcm")):
        requests.post(f"{address}/instances", data=file.read_bytes(), timeout=30).raise_for_status()
