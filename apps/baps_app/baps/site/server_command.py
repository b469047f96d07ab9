"""Build the command that starts the server, and check its arguments. ``baps serve``, the demo and the tests use it."""

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
from baps.utils.deprecation import OldNameWarning
from baps.utils.url_host import url_host

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

PROTECTED = {"BAPS_SERVING": "protected"}
"""Environment variable of the protected server, whose requests pass the guard, and of its trainings. The server sets it
for itself; no other server inherits it."""

_NO_OLD_NAME_WARNINGS = f"ignore::FutureWarning:{OldNameWarning.__module__}"
"""Filter for PYTHONWARNINGS, which takes only Python's own categories."""


def serving_command(
    studies: str, host: str, port: int, settings: Mapping[str, str], stock: bool = False, app: Path | None = None
) -> tuple[list[str], dict[str, str]]:
    """Return the command line and the environment of the server.

    Args:
        studies: Folder of images, or the DICOMweb address of a PACS.
        host: Address that the server listens on.
        port: Port that the server listens on.
        settings: Names and values, as ``read_settings`` takes them.
        stock: Start MONAI Label's own server instead of the protected one.
        app: Folder of another MONAI Label app, or None for this project's.

    Returns:
        The words of the command, and its environment.

    Raises:
        BapsError: If MONAI Label is not installed, or the app's folder cannot be used.
    """
    check_installed()
    app = app or prepare_app_folder()
    # Python must not import modules from the current folder, nor from one that an empty entry of PYTHONPATH names.
    program = ["-m", "monailabel.main"] if stock else [str(PACKAGES / "baps" / "server" / "launch.py")]
    studies = studies if is_pacs(studies) else str(Path(studies).absolute())
    command = [sys.executable, *program, "start_server", "--app", str(app), "--studies", studies]
    command += ["--host", host, "--port", str(port)]
    environment = server_environment()
    if not stock:
        command += ["--uvicorn_app", "baps.server.asgi:app"]
        settings = {**settings, **absolute_paths(settings)}
        # This process has read the settings and warned of old names; the server and its trainings read them again.
        filters = environment.get("PYTHONWARNINGS", "")
        environment["PYTHONWARNINGS"] = f"{filters},{_NO_OLD_NAME_WARNINGS}".lstrip(",")
    for name, value in settings.items():
        command += ["--conf", name, value]
    return command, environment


def check_installed() -> None:
    """Check that the extra ``server`` is installed.

    Raises:
        MissingExtraError: If MONAI Label is not installed.
    """
    if find_spec("monailabel") is None:
        raise MissingExtraError("The server", "server")


def server_environment() -> dict[str, str]:
    """Return the environment of a server: that of this process without ``PROTECTED``, and what MONAI Label needs.

    Returns:
        The variables.
    """
    paths = {name: str(Path(value).absolute()) for name in _PATHS if (value := os.environ.get(name))}
    # A folder on PYTHONPATH comes before Python's own modules: never add the folder of all installed packages.
    installed = str(PACKAGES) in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    inherited = {name: value for name, value in os.environ.items() if name not in PROTECTED}
    return {
        **inherited,
        **paths,  # The server changes to another folder.
        # MONAI Label searches it for the programs of dcmqi and for python.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        # MONAI Label appends to PYTHONPATH. If PYTHONPATH were empty, the current folder would be importable.
        "PYTHONPATH": str(app_folder() if installed else PACKAGES),
        "MONAI_LABEL_TRACKING_ENABLED": "false",
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
        # MLflow would send usage data to its makers.
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }


def is_pacs(studies: str) -> bool:
    """Return whether the studies are on a PACS rather than in a folder.

    Args:
        studies: Folder of images, or the DICOMweb address of a PACS.

    Returns:
        Whether they are on a PACS.
    """
    return studies.startswith(("http://", "https://"))


def check_studies(studies: str, worklist: Path | None = None) -> None:
    """Check that the studies can be served, without sending a request to a PACS.

    Args:
        studies: Folder of images, or the DICOMweb address of a PACS and a query.
        worklist: File of the studies of the PACS that are served, or None for all.

    Raises:
        InputError: If there is no such folder; if the address names no host or holds a password; or if the query or the
            worklist cannot be used.
    """
    if not is_pacs(studies):
        if worklist is not None:
            raise InputError("A worklist selects studies of a PACS. Omit it for a folder of images.")
        if not Path(studies).is_dir():
            raise InputError(f"There is no folder {studies}. Give a folder of images, or the DICOMweb URL of a PACS.")
        return
    address = urlsplit(studies)
    if not address.hostname:
        raise InputError(f"The address {studies} has no host. Give one such as http://pacs:8042/dicom-web.")
    if address.username or address.password:
        raise InputError(
            "The address of the PACS contains a user or a password, which other users of this machine could read. Set "
            "MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD in the environment instead."
        )
    read_pacs_studies(studies)
    if worklist is not None:
        Worklist(worklist).studies()


def check_listening(host: str, requires_login: bool) -> None:
    """Check that a server without users listens on this machine only.

    Args:
        host: Address that the server listens on.
        requires_login: Whether users must sign in.

    Raises:
        InputError: If other machines could use the server without signing in.
    """
    if not requires_login and not is_loopback(host):
        raise InputError(
            f"The server would listen on {url_host(host) or 'every address'}, which other machines can reach, and let "
            "anyone in. Add users: baps users add NAME --role annotator --file users.json, then --users "
            "users.json (with make: USERS=users.json), or an OpenID provider (--openid). Or listen on 127.0.0.1."
        )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address, or every address of a name.

    Args:
        host: An address or a name; "" stands for every address.

    Returns:
        Whether no other machine can reach it.
    """
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host or "0.0.0.0", None)}  # noqa: S104 (not bound)
        return all(ip_address(address.partition("%")[0]).is_loopback for address in addresses)
    except (OSError, UnicodeError, ValueError):
        return False


def check_port(host: str, port: int) -> None:
    """Check that the server can listen on an address.

    Args:
        host: The address, or a name of this machine.
        port: The port.

    Raises:
        InputError: If the port is in use or needs more rights, or the host is not this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # As the server does, because a closed connection may linger.
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"Port {port} of {url_host(host)} cannot be used: {getattr(error, 'strerror', None) or error}. Stop the "
            "program that listens on it, or give another --port or --host (with make: PORT=... or HOST=...)."
        ) from error
