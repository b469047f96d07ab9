"""Run the server in a separate process, for the demo and the tests."""

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
    """Return a port of this machine that no program listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_server(
    studies: Path | str, log: Path, settings: Mapping[str, str], stock: bool = False
) -> Iterator[tuple[str, psutil.Process]]:
    """Start the server as ``baps serve`` does, wait until it responds, and stop it at the end.

    Args:
        studies: Folder of images, or the DICOMweb address of a PACS.
        log: File for the output of the server.
        settings: Names and values of settings.
        stock: Start MONAI Label's own server instead of the protected one.

    Yields:
        The address of the server, and its process.

    Raises:
        RuntimeError: If it stops or does not respond in time. The message contains the end of the log.
    """
    port = free_port()
    command, environment = serving_command(str(studies), "127.0.0.1", port, settings, stock)
    address = f"http://127.0.0.1:{port}"
    page = "info" if stock else "auth"  # The latter needs no login; the stock server does not have it.
    with running(command, environment, f"{address}/{page}/", log) as process:
        yield address, process


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], page: str, log: Path) -> Iterator[psutil.Process]:
    """Start any server, wait until it responds, and stop it at the end.

    Args:
        command: Command line of the server.
        environment: Environment of the server.
        page: Address of a page that the server responds to with success.
        log: File for the output of the server.

    Yields:
        The process.

    Raises:
        RuntimeError: As ``running_server``.
    """
    with log.open("w") as output:
        child = subprocess.Popen(  # noqa: S603 (no shell)
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
    try:
        _wait_for_response(page, child, log)
        yield psutil.Process(child.pid)
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _wait_for_response(page: str, child: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise RuntimeError(f"The server stopped while starting. The end of {log}:\n{_tail(log)}")
        try:
            if requests.get(page, timeout=30).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.5)
    raise RuntimeError(f"The server did not respond within {_START_SECONDS} s. The end of {log}:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
