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
def test_make_pacs(tmp_path: Path, end: signal.Signals) -> None:
    port, log = free_port(), tmp_path / "pacs.txt"
    command = [sys.executable, "-m", "demo.pacs", "--port", str(port)]
    command += [] if loopback.is_possible() else ["--open"]  # Tests also run in containers that allow no namespaces.
    with log.open("w") as output:
        # Tests in the background ignore SIGINT, and their children would too.
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


def test_missing_orthanc_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orthanc, "PROGRAM", None)
    with pytest.raises(SystemExit, match="apt-get install orthanc orthanc-dicomweb"):
        pacs.main(free_port())


def test_port_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orthanc, "missing", lambda: "")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(SystemExit, match="cannot be used"):
            pacs.main(other.getsockname()[1])
