"""Serve models in separate processes, which tests query."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import requests

from baps.demo.server import free_port

BUNDLED = ("-c", "from baps.cli import main; main()", "blackbox", "serve", "--device", "cpu")
"""Arguments of Python for ``baps blackbox serve``."""
BRIGHTNESS = ("-m", "tests.support.brightness_host")
"""Arguments of Python for the cheap black box of the tests; ``--weights <letter>`` changes its hash."""
SAM = ("-m", "tests.support.sam_host")
"""Arguments of Python for a SAM that sees slices without padding."""
_START_SECONDS = 180


class Host:
    """A model in a process, which can be killed and started again on the same ports.

    Attributes:
        addresses: addresses of the model by ``http`` and ``grpc``.
    """

    def __init__(self, command: Sequence[str], name: str, log: Path) -> None:
        port, grpc_port = free_port(), free_port()
        self._command = [sys.executable, *command, "--port", str(port), "--grpc-port", str(grpc_port)]
        self._log, self._ready = log, f"http://127.0.0.1:{port}/v2/models/{name}/ready"
        self.addresses = {"http": f"http://127.0.0.1:{port}/{name}", "grpc": f"grpc://127.0.0.1:{grpc_port}/{name}"}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        """Start the process, without waiting until the model is ready."""
        with self._log.open("a") as output:
            self.process = subprocess.Popen([*self._command, *more], stdout=output, stderr=output)

    def wait(self) -> None:
        """Wait until the model is ready."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                break
            try:
                if requests.get(self._ready, timeout=10).ok:
                    return
            except requests.ConnectionError:
                time.sleep(0.2)
        raise RuntimeError(f"The model is not served:\n{self._log.read_text(errors='replace')}")

    def kill(self) -> None:
        """Stop the process as a power cut does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextmanager
def hosted(folder: Path, command: Sequence[str], name: str) -> Iterator[Host]:
    """Run a host that is ready, with its log in the folder."""
    if find_spec("kserve") is None:
        pytest.skip("A model is served by the extra 'hosting', which is not installed.")
    host = Host(command, name, folder / "host.log")
    try:
        host.start()
        host.wait()
        yield host
    finally:
        host.kill()
