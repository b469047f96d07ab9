"""The real server in a process of its own, for the demo and the tests."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import requests

from baps.site.server_command import serving_command

_START_SECONDS = 180


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_server(
    studies: Path | str, log: Path, settings: Mapping[str, str], stock: bool = False
) -> Iterator[tuple[str, psutil.Process]]:
    """Start the server as ``make serve`` does, wait until it answers, and stop it in the end.

    Args:
        studies: folder of images, or the DICOMweb address of a PACS.
        log: file for what it prints.
        settings: names and values for ``--conf``.
        stock: MONAI Label's own server instead of the protected one.

    Yields:
        Its address and its process.

    Raises:
        RuntimeError: if it does not answer in time or dies; the message has the end of the log.
    """
    port = free_port()
    command, environment = serving_command(str(studies), "127.0.0.1", port, settings, stock)
    address = f"http://127.0.0.1:{port}"
    page = "info" if stock else "auth"  # The latter needs no login, and only ours has it.
    with running(command, environment, f"{address}/{page}/", log) as process:
        yield address, process


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], page: str, log: Path) -> Iterator[psutil.Process]:
    """As ``running_server``, with a command of any server and the address of a page that it will answer with."""
    with log.open("w") as output:
        child = subprocess.Popen(  # noqa: S603 (a list of words that no shell reads)
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
    try:
        _wait(page, child, log)
        yield psutil.Process(child.pid)
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _wait(page: str, child: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise RuntimeError(f"The server stopped at its start. The end of {log}:\n{_tail(log)}")
        try:
            if requests.get(page, timeout=30).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.5)
    raise RuntimeError(f"The server did not answer within {_START_SECONDS} s. The end of {log}:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
