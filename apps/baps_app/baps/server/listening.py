"""Where the server was told to listen, and below which path, as far as its command line says."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from baps.site.server_command import is_loopback

logger = logging.getLogger(__name__)


def parse_bind_host(words: Sequence[str]) -> str:
    """The address in the command line of MONAI Label or uvicorn; without one, what they listen on then.

    Who starts the application in another way is not known here; the guard then sees where each request arrives.

    Args:
        words: the command line, the program first.
    """
    told = _told(words, "-i", "--host")
    if told is not None:
        return told
    return "0.0.0.0" if "start_server" in words else "127.0.0.1"  # noqa: S104 (what MONAI Label takes)


def warn_without_proxy(host: str) -> None:
    """Log what this server cannot do alone, if other machines reach it."""
    if not is_loopback(host):
        logger.warning(
            "Other machines reach this server directly. TLS, and bounds on slow connections from many addresses, are "
            "the work of a proxy: put nginx before the server (deploy/nginx.conf), and listen on 127.0.0.1."
        )


def parse_root_path_option(words: Sequence[str]) -> str:
    """The root path in the command line of MONAI Label or uvicorn, or "".

    Args:
        words: the command line, the program first.
    """
    return _told(words, "--root_path", "--root-path") or ""


def _told(words: Sequence[str], *names: str) -> str | None:
    """The value of an option, which has several names."""
    reader = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    reader.add_argument(*names, dest="told")
    told = reader.parse_known_args(list(words[1:]))[0].told
    return None if told is None else str(told)
