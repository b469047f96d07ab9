"""Parse the address and the root path of the server from the command line."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from baps.site.server_command import is_loopback

logger = logging.getLogger(__name__)


def parse_bind_host(words: Sequence[str]) -> str:
    """Parse the address that the server listens on from the command line of MONAI Label or uvicorn.

    If the application is started in another way, the address is not known here. The guard then checks the address that
    each request arrives at.

    Args:
        words: The command line, beginning with the program.

    Returns:
        The address, or the default of the command.
    """
    host = _option(words, "-i", "--host")
    if host is not None:
        return host
    return "0.0.0.0" if "start_server" in words else "127.0.0.1"  # noqa: S104 (the default of MONAI Label)


def warn_without_proxy(host: str) -> None:
    """Log a warning that a proxy is needed, if other machines reach the server directly.

    Args:
        host: Address that the server listens on.
    """
    if not is_loopback(host):
        logger.warning(
            "Other machines reach this server directly. TLS and limits on slow connections from many addresses need a "
            "proxy: put nginx in front of the server (deploy/nginx.conf), and listen on 127.0.0.1."
        )


def parse_root_path_option(words: Sequence[str]) -> str:
    """Parse the root path from the command line of MONAI Label or uvicorn.

    Args:
        words: The command line, beginning with the program.

    Returns:
        The root path, or "".
    """
    return _option(words, "--root_path", "--root-path") or ""


def _option(words: Sequence[str], *names: str) -> str | None:
    """Return the value of an option that has several names, or None."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument(*names, dest="value")
    value = parser.parse_known_args(list(words[1:]))[0].value
    return None if value is None else str(value)
