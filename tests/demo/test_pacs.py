"""``make pacs``, as a person starts it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import requests

from baps.demo.server import free_port
from demo import loopback, orthanc, pacs


@pytest.mark.slow
@pytest.mark.skipif(bool(orthanc.missing()), reason=orthanc.missing())
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_pacs_and_the_server_beside_it(tmp_path: Path, end: signal.Signals) -> None:
    port, log = free_port(), tmp_path / "pacs.txt"
    command = [sys.executable, "-m", "demo.pacs", "--port", str(port)]
    command += [] if loopback.possible() else ["--open"]  # As a container may be, where tests run too.
    with log.open("w") as output:
        # Where the tests run in the background they ignore SIGINT, and would hand that on.
        child = subprocess.Popen(
            command, stdout=output, env={**os.environ, "PYTHONUNBUFFERED": "1"}, restore_signals=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 180
        while "Open http" not in log.read_text():
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        server = f"http://127.0.0.1:{port}"
        assert f"{server}/ohif/" in log.read_text()
        studies = requests.get(f"{server}/proxy/dicom/qido/studies", timeout=30).json()
        assert [study["00100020"]["Value"] for study in studies] == [["SAMPLE-CT-01"]]
        started = psutil.Process(child.pid).children(recursive=True)
        assert len(started) >= 2
        child.send_signal(end)
        assert child.wait(60) == 0
        assert not [one for one in started if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        assert log.read_text().endswith("Stopped.\n")
    finally:
        child.kill()


def test_without_orthanc_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orthanc, "PROGRAM", None)
    with pytest.raises(SystemExit, match="apt-get install orthanc orthanc-dicomweb"):
        pacs.main(free_port())


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orthanc, "missing", lambda: "")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SystemExit, match="cannot be used"):
            pacs.main(taken.getsockname()[1])
