"""Where the server was told to listen, as far as its command line says."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def told_host(words: Sequence[str]) -> str:
    """The address in the command line of MONAI Label or uvicorn; without one, what they listen on then.

    Who starts the application in another way is not known here; the guard then sees where each request arrives.

    Args:
        words: the command line, the program first.
    """
    reader = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    reader.add_argument("-i", "--host")
    told = reader.parse_known_args(list(words[1:]))[0].host
    if told is not None:
        return str(told)
    return "0.0.0.0" if "start_server" in words else "127.0.0.1"  # noqa: S104 (what MONAI Label takes)
