"""Answer the pieces that ``replica_process`` sends, as a program."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch

from baps.blackbox.loading import load_black_box
from baps.blackbox.replicas import Answer


def main() -> None:
    """Load a black box and answer pieces until the parent closes the connection. The argument is its file number."""
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(1)  # The same for any number of replicas: the last bits depend on it.
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    with suppress(EOFError, ConnectionError):
        try:
            model = load_black_box(*connection.recv())
        except Exception as error:  # The parent reports it.
            connection.send((_sentence(error), None))
            return
        connection.send(("", None))
        while True:
            images, prompts = connection.recv()
            reply: tuple[str, Answer | None]
            try:
                reply = "", model._segment(images, prompts)
            except Exception as error:
                reply = _sentence(error), None
            connection.send(reply)


def _sentence(error: Exception) -> str:
    return f"{str(error).rstrip('.') or type(error).__name__}."
