"""Read from the command line where the server listens, and below which path it is served."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from baps.site.server_command import is_loopback

logger = logging.getLogger(__name__)


def parse_bind_host(words: Sequence[str]) -> str:
    """Return the address in the command line of MONAI Label or uvicorn, or their default.

    If the application is started in another way, the address is not known here; the guard then checks where each
    request arrives.

    Args:
        words: The command line, beginning with the program.
    """
    host = _option(words, "-i", "--host")
    if host is not None:
        return host
    return "0.0.0.0" if "start_server" in words else "127.0.0.1"  # noqa: S104 (the default of MONAI Label)


def warn_without_proxy(host: str) -> None:
    """Warn that a proxy is needed if other machines reach the server directly.

    Args:
        host: Address that the server listens on.
    """
    if not is_loopback(host):
        logger.warning(
            "Other machines reach this server directly. TLS, and bounds on slow connections from many addresses, need "
            "a proxy: put nginx before the server (deploy/nginx.conf), and listen on 127.0.0.1."
        )


def parse_root_path_option(words: Sequence[str]) -> str:
    """Return the root path in the command line of MONAI Label or uvicorn, or "".

    Args:
        words: The command line, beginning with the program.
    """
    return _option(words, "--root_path", "--root-path") or ""


def _option(words: Sequence[str], *names: str) -> str | None:
    """Return the value of an option that has several names, or None."""
    reader = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    reader.add_argument(*names, dest="value")
    value = reader.parse_known_args(list(words[1:]))[0].value
    return None if value is None else str(value)
