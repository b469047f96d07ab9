"""Print what is served and where, once the server responds."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING

from baps.annotations.label_files import unused_labels
from baps.utils.url_host import url_host

if TYPE_CHECKING:
    from baps.server.app import BapsApp

_MAX_WAIT = 600.0
"""Maximum time to wait for the server to respond, in seconds."""

_RETRY_SECONDS = 0.2
"""Time between two attempts."""


def announce(host: str, port: int, page: str, lines: Callable[[], Sequence[str]]) -> None:
    """Print lines once the server responds, in a thread.

    Args:
        host: Address that the server listens on.
        port: Port that it listens on.
        page: Path that needs no login.
        lines: Returns the lines.
    """
    threading.Thread(target=_announce, args=(host, port, page, lines), name="announce", daemon=True).start()


def _announce(host: str, port: int, page: str, lines: Callable[[], Sequence[str]]) -> None:
    end = time.monotonic() + _MAX_WAIT
    while not is_responding(host, port, page):
        if time.monotonic() > end:
            return
        time.sleep(_RETRY_SECONDS)
    print("\n".join(lines()), flush=True)


def is_responding(host: str, port: int, page: str) -> bool:
    """Return whether a server responds to a request for a page.

    Args:
        host: Address that it listens on. If it is all addresses, the request goes to the loopback address.
        port: Port that it listens on.
        page: Path of the page.

    Returns:
        Whether it responds, other than with a server error.
    """
    connection = http.client.HTTPConnection(_local_address(host), port, timeout=30)
    try:
        connection.request("GET", page, headers={"Accept": "text/html"})
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def server_lines(host: str, port: int, root: str, app: BapsApp) -> list[str]:
    """Describe what is served and where, and what is not ready or not used.

    Args:
        host: Address that the server listens on.
        port: Port that it listens on.
        root: Path below which a proxy serves it, or "".
        app: The app.

    Returns:
        The lines.
    """
    url = address(host, port, root)
    lines = [
        f"==> Serving {app.studies}; stop with Ctrl+C.",
        f"    In a browser: {url}" + (f" (OHIF: {url}ohif/)" if app.remote else ""),
        f"    In 3D Slicer, as the server of the module MONAI Label: {url}",
    ]
    if root:
        lines.append(f"    Through a proxy: its address, and below it {root}/")
    if not app.loaded:
        lines.append("    The model is still loading; clicks wait for it.")
    if not app.remote:
        lines += [f"    {one}" for one in unused_labels(Path(app.studies), skip_named_folders=True)]
    return lines


def address(host: str, port: int, root: str = "") -> str:
    """Return the address of a server for a browser.

    Args:
        host: Address that it listens on. If it is all addresses, the name of this machine is used.
        port: Port that it listens on.
        root: Path below which a proxy serves it, or "".

    Returns:
        The address.
    """
    try:
        ip = ip_address(host)
    except ValueError:
        return f"http://{host or gethostname()}:{port}{root}/"
    if ip.is_unspecified:
        return f"http://{gethostname()}:{port}{root}/"
    return f"http://{url_host(host)}:{port}{root}/"


def _local_address(host: str) -> str:
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (not bound)
