"""The application in the process of the test: requests of every kind without a server of their own.

``site_client`` returns a FastAPI ``TestClient``. ``threaded_site`` serves the same application at an address, for
clients that open connections themselves, such as MONAI Label's.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

import psutil
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.client import MONAILabelClient
from monailabel.config import settings as monailabel_settings

from baps.server.application import create_app
from baps.server.middleware.connections import Connection
from baps.site.settings import read_settings
from tests.support.sites import SAMPLES, Site

ADDRESS = "http://127.0.0.1:8000"
"""Where the requests of a ``TestClient`` seem to go: a server without users serves its own machine only."""


@contextmanager
def site_client(
    folder: Path,
    cases: int = 1,
    settings: Mapping[str, Any] = MappingProxyType({}),
    address: str = ADDRESS,
    **options: Any,
) -> Iterator[TestClient]:
    """Serve a copy of the first sample volumes, in ``studies`` below a folder, to a ``TestClient``.

    Args:
        folder: Empty folder for studies, adapters and the audit file.
        cases: Number of sample volumes.
        settings: Further settings, as ``read_settings`` takes them.
        address: Scheme and host of the requests.
        options: Further arguments of ``create_app``.

    Yields:
        The client. Its ``app.state`` is that of the application.
    """
    with _application(folder, cases, settings, **options) as application:
        client = TestClient(application, address, client=("127.0.0.1", 50000), follow_redirects=False)
        with client:
            yield client


@contextmanager
def threaded_site(
    folder: Path,
    cases: int = 6,
    extra: Callable[[], object] = lambda: None,
    settings: Mapping[str, Any] = MappingProxyType({}),
    pacs: str = "",
    **options: Any,
) -> Iterator[Site]:
    """Serve the same application at an address, by uvicorn in a thread of this process.

    Args:
        folder, cases, settings, options: As for ``site_client``.
        extra: Called when the sample volumes are there, to add other images.
        pacs: DICOMweb address of a PACS that is served in place of the folder, or "".

    Yields:
        The site. Its process is this one, which no test may end, and its log is empty.
    """
    log = folder / "server.log"
    log.touch()
    with _application(folder, cases, settings, extra, pacs, **options) as application:
        config = uvicorn.Config(application, http=Connection, log_config=None, lifespan="on")
        server = uvicorn.Server(config)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = f"http://127.0.0.1:{listener.getsockname()[1]}"
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            while not server.started:
                thread.join(0.01)
                assert thread.is_alive(), "The server did not start."
            try:
                client = MONAILabelClient(address, tmpdir=str(folder))
                yield Site(address, psutil.Process(), client, folder / "studies", folder / "adapters", log)
            finally:
                server.should_exit = True
                thread.join(30)


@contextmanager
def _application(
    folder: Path,
    cases: int,
    settings: Mapping[str, Any],
    extra: Callable[[], object] = lambda: None,
    pacs: str = "",
    **options: Any,
) -> Iterator[FastAPI]:
    """Create an application, and restore the environment, and the logs of this process, in the end."""
    studies = folder / "studies"
    studies.mkdir(parents=True, exist_ok=True)
    for path in sorted((SAMPLES / "images").glob("*.nii.gz"))[:cases]:
        shutil.copy(path, studies)
    extra()
    earlier = time.time() - 60  # The datastore waits until a new file is whole.
    for path in studies.rglob("*"):
        os.utime(path, (earlier, earlier))
    given = {"labels": "spleen=2,liver=1", "adapters": str(folder / "adapters"), **settings}
    sessions = mock.patch.object(monailabel_settings, "MONAI_LABEL_SESSION_PATH", str(folder / "sessions"))
    with mock.patch.dict(os.environ), sessions, mock.patch("baps.server.app.redact_logs"):
        yield create_app(read_settings(given), pacs or studies, **options)
