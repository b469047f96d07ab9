"""Run the real nninteractive-server with a tiny network, in an environment of its own (``.venv-nninteractive``)."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.tiny_nninteractive import write_checkpoint

ENVIRONMENT = ROOT / ".venv-nninteractive"
KEY = "key-of-the-test"
LICENCE = "CC BY-NC-SA 4.0"


class NnInteractiveServer:
    """The server.

    Args:
        folder: folder for models and logs.
        *flags: further flags of its command.
    """

    def __init__(self, folder: Path, *flags: str) -> None:
        self._folder, self._flags = folder, flags
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, seed: int = 1) -> None:
        """Start it with the model of a seed, and wait until it responds."""
        model = self._folder / f"model{seed}"
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "support"), "NN_INTERACTIVE_API_KEY": KEY}
        if not model.exists():
            write_checkpoint(model, seed, LICENCE)
        command = [ENVIRONMENT / "bin" / "nninteractive-server", "--model-dir", model, "--fold", "0", "--device", "cpu"]
        command += ["--torch-n-threads", "1", "--no-torch-compile", "--port", str(self._port), *self._flags]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/healthz", timeout=5).close()  # noqa: S310 (of this machine)
                return
            except OSError:
                assert self._process.poll() is None, (self._folder / "server.log").read_text()[-2000:]
                assert time.monotonic() < deadline, "The server does not respond."
                time.sleep(0.1)

    def kill(self) -> None:
        """Kill it, if it runs."""
        if self._process:
            self._process.kill()
            self._process.wait()


@contextmanager
def nninteractive_server(folder: Path, *flags: str) -> Iterator[NnInteractiveServer]:
    """Run the server with the model of seed 1 while the block runs; skip the test if it is not installed."""
    if not (ENVIRONMENT / "installed").exists():
        pytest.skip("nninteractive-server is not installed: make .venv-nninteractive/installed")
    server = NnInteractiveServer(folder, *flags)
    try:
        server.start()
        yield server
    finally:
        server.kill()
