"""What the operator reads when the server has started: said when it answers, not before."""

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

_PATIENCE = 600.0
"""Seconds after which nobody waits for the server to answer."""

_BETWEEN = 0.2
"""Seconds between two tries."""


def announce(host: str, port: int, page: str, lines: Callable[[], Sequence[str]]) -> None:
    """Print lines once the server answers, in a thread of their own.

    Args:
        host, port: that it listens on.
        page: a path that it answers whoever asks.
        lines: makes what is printed.
    """
    threading.Thread(target=_announce, args=(host, port, page, lines), name="announce", daemon=True).start()


def _announce(host: str, port: int, page: str, lines: Callable[[], Sequence[str]]) -> None:
    end = time.monotonic() + _PATIENCE
    while not answers(host, port, page):
        if time.monotonic() > end:
            return
        time.sleep(_BETWEEN)
    print("\n".join(lines()), flush=True)


def answers(host: str, port: int, page: str) -> bool:
    """Return whether a server answers a request for a page.

    Args:
        host: that it listens on; where that is every address, this machine is asked.
        port, page: likewise.
    """
    asked = http.client.HTTPConnection(_near(host), port, timeout=30)
    try:
        asked.request("GET", page, headers={"Accept": "text/html"})
        return asked.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        asked.close()


def server_lines(host: str, port: int, root: str, app: BapsApp) -> list[str]:
    """Say what is served and where, and what is not ready or not used.

    Args:
        host, port: that the server listens on.
        root: the path that it is served below, or "".
        app: what is served.
    """
    at = address(host, port, root)
    lines = [
        f"==> Serving {app.studies}; stop with Ctrl+C.",
        f"    In a browser: {at}" + (f" (OHIF: {at}ohif/)" if app.remote else ""),
        f"    In 3D Slicer, as the server of the module MONAI Label: {at}",
    ]
    if root:
        lines.append(f"    Through a proxy: its address, and below it {root}/")
    if not app.loaded:
        lines.append("    The model is still being loaded; clicks wait for it.")
    if not app.remote:
        lines += [f"    {one}" for one in unused_labels(Path(app.studies), skip_named_folders=True)]
    return lines


def address(host: str, port: int, root: str = "") -> str:
    """Return the address of a server for a browser: of every address, by the name of this machine."""
    try:
        found = ip_address(host)
    except ValueError:
        return f"http://{host or gethostname()}:{port}{root}/"
    if found.is_unspecified:
        return f"http://{gethostname()}:{port}{root}/"
    return f"http://{url_host(host)}:{port}{root}/"


def _near(host: str) -> str:
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (not bound)
