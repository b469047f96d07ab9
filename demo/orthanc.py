"""Run a real PACS for the demo and the tests: Orthanc from Debian's packages, reachable from this machine only.

Orthanc 1.10 ignores its settings and listens on all addresses. It runs in a separate network namespace if the system
lets users create one. Otherwise its addresses are checked, and it is stopped if other machines could reach it.
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

PROGRAM = shutil.which("Orthanc") or shutil.which("/usr/sbin/Orthanc")  # Not on the PATH of every user.
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def missing() -> str:
    """Return a message on what to install, or "" if nothing is missing."""
    if PROGRAM and PLUGIN.exists():
        return ""
    return "Orthanc with its DICOMweb plugin is not installed: apt-get install orthanc orthanc-dicomweb"


@contextmanager
def running_orthanc(folder: Path, users: Mapping[str, str] | None = None, reachable: bool = False) -> Iterator[str]:
    """Start Orthanc on an empty store, and stop it at the end.

    Args:
        folder: An empty folder for the store and the log.
        users: Passwords by the name of the user, or None for no login.
        reachable: Whether other machines may reach it, if this cannot be prevented.

    Yields:
        The address of Orthanc.

    Raises:
        BapsError: If other machines could reach it and may not.
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
    settings["HttpBindAddresses"] = ["127.0.0.1"]  # Newer versions honour it.
    (folder / "orthanc.json").write_text(json.dumps(settings))
    login = "".join(f"{user}:{password}@" for user, password in users.items())
    command = [str(PROGRAM), str(folder / "orthanc.json")]
    is_isolated = loopback.is_possible()
    if is_isolated:
        command = loopback.isolated_command(port, command)
    page = f"http://{login}127.0.0.1:{port}/system"
    with running(command, os.environ, page, folder / "orthanc.log") as process:
        if not is_isolated and not reachable:
            _check_addresses(process)
        yield f"http://127.0.0.1:{port}"


def _check_addresses(process: psutil.Process) -> None:
    """Check that a server listens only on addresses that other machines cannot reach.

    Raises:
        BapsError: If other machines can reach it.
    """
    connections = process.connections("tcp")
    addresses = {connection.laddr for connection in connections if connection.status == psutil.CONN_LISTEN}
    if reachable := sorted(f"{ip} port {port}" for ip, port in addresses if not is_loopback(ip)):
        raise BapsError(
            f"Orthanc listens on {', '.join(reachable)}, which other machines can reach, and this system does not let "
            "users isolate it (unshare -rn true). It was stopped. Allow user namespaces, install a newer Orthanc, or "
            "let others reach it: make pacs OPEN=1."
        )


def store(address: str, folder: Path) -> None:
    """Store every DICOM file of a folder in Orthanc."""
    for file in sorted(folder.rglob("*.dcm")):
        requests.post(f"{address}/instances", data=file.read_bytes(), timeout=30).raise_for_status()
