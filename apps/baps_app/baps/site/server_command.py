"""How the server is started, and what must hold before. ``baps serve``, the demo and the tests use it."""

from __future__ import annotations

import os
import socket
import sys
import sysconfig
from collections.abc import Mapping
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from baps.errors import InputError, MissingExtraError
from baps.site.app_folder import PACKAGES, app_folder, prepare_app_folder
from baps.site.pacs_studies import Worklist, read_pacs_studies
from baps.site.settings import absolute_paths

_PATHS = (
    "BAPS_CONFIG",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "MONAI_LABEL_DATASTORE_CACHE_PATH",
    "MONAI_LABEL_DICOMWEB_CACHE_PATH",
    "MONAI_LABEL_SESSION_PATH",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TMPDIR",
    "XDG_STATE_HOME",
)
"""Variables that name a file or a folder."""


def serving_command(
    studies: str, host: str, port: int, settings: Mapping[str, str], stock: bool = False, app: Path | None = None
) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment of the server.

    Args:
        studies: folder of images, or the DICOMweb address of a PACS.
        host: address that it listens on.
        port: likewise.
        settings: names and values as ``read_settings`` takes them.
        stock: MONAI Label's own server instead of the protected one.
        app: folder of another MONAI Label app than ours.

    Raises:
        BapsError: if MONAI Label is not installed, or the app's folder cannot be used.
    """
    check_installed()
    app = app or prepare_app_folder()
    # Neither the folder that one is in nor one that the environment names by an empty word is a place of modules.
    program = ["-m", "monailabel.main"] if stock else [str(PACKAGES / "baps" / "server" / "launch.py")]
    studies = studies if is_pacs(studies) else str(Path(studies).absolute())
    command = [sys.executable, *program, "start_server", "--app", str(app), "--studies", studies]
    command += ["--host", host, "--port", str(port)]
    if not stock:
        command += ["--uvicorn_app", "baps.server.asgi:app"]
        settings = {**settings, **absolute_paths(settings)}
    for name, value in settings.items():
        command += ["--conf", name, value]
    return command, server_environment()


def check_installed() -> None:
    """Refuse to start a server where the package was installed without its extra.

    Raises:
        MissingExtraError: if MONAI Label is not there.
    """
    if find_spec("monailabel") is None:
        raise MissingExtraError("The server", "server")


def server_environment() -> dict[str, str]:
    """The environment of the server: this process's, and what MONAI Label needs."""
    paths = {name: str(Path(value).absolute()) for name in _PATHS if (value := os.environ.get(name))}
    # Before Python's own modules may stand a folder of ours, but not all that pip installed.
    installed = str(PACKAGES) in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    return {
        **os.environ,
        **paths,  # The server leaves the folder that it is started in.
        # MONAI Label looks for dcmqi's programs and for python there.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        # MONAI Label adds to it, so that an empty one would name the folder that a program is started in.
        "PYTHONPATH": str(app_folder() if installed else PACKAGES),
        "MONAI_LABEL_TRACKING_ENABLED": "false",
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
        # MLflow would tell its makers that it is used.
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }


def is_pacs(studies: str) -> bool:
    """Whether the studies lie on a PACS rather than in a folder."""
    return studies.startswith(("http://", "https://"))


def check_studies(studies: str, worklist: Path | None = None) -> None:
    """Refuse studies that cannot be served; a PACS is not asked.

    Args:
        studies: folder of images, or the DICOMweb address of a PACS and a query.
        worklist: the studies of the PACS that are served, or None for all.

    Raises:
        InputError: if there is no such folder; if the address names no host or holds a password; or if the query or the
            worklist cannot be used.
    """
    if not is_pacs(studies):
        if worklist is not None:
            raise InputError("A worklist chooses studies of a PACS. Omit it for a folder of images.")
        if not Path(studies).is_dir():
            raise InputError(f"There is no folder {studies}. Give a folder of images, or the DICOMweb URL of a PACS.")
        return
    address = urlsplit(studies)
    if not address.hostname:
        raise InputError(f"The address {studies} names no host. Give one such as http://pacs:8042/dicom-web.")
    if address.username or address.password:
        raise InputError(
            "The address of the PACS holds a user or a password, which other users of this machine could read. Set "
            "MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD in the environment instead."
        )
    read_pacs_studies(studies)
    if worklist is not None:
        Worklist(worklist).studies()


def check_listening(host: str, closed: bool) -> None:
    """Refuse to listen where other machines can reach a server that lets everybody in.

    Raises:
        InputError: if they could.
    """
    if not closed and not is_loopback(host):
        raise InputError(
            f"The server would listen on {host or 'every address'}, where other machines reach it, and let everybody "
            "in. Name those who may use it: baps users add NAME --role annotator --file users.json, then --users "
            "users.json (with make: USERS=users.json), or an OpenID provider (--openid). Or listen on 127.0.0.1."
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address, or all that a name stands for."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host or "0.0.0.0", None)}  # noqa: S104 (not bound)
        return all(ip_address(address.partition("%")[0]).is_loopback for address in found)
    except (OSError, UnicodeError, ValueError):
        return False


def check_port(host: str, port: int) -> None:
    """Refuse an address that the server could not listen on.

    Raises:
        InputError: if the port is taken or needs more rights, or the host is not this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server: a closed connection may linger
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"Port {port} of {host} cannot be used: {getattr(error, 'strerror', None) or error}. Stop the program that "
            "listens on it, or give another --port or --host (with make: PORT=... or HOST=...)."
        ) from error
