"""A server of nnInteractive's protocol whose replies a test chooses, and the real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faulty_nninteractive import FaultyNnInteractive, faulty_nninteractive
from tests.support.marks import starts
from tests.support.nninteractive_server import NnInteractiveServer, nninteractive_server


@pytest.fixture
def faulty() -> Iterator[FaultyNnInteractive]:
    """Run a server with replies that a test chooses."""
    with faulty_nninteractive() as server:
        yield server


@pytest.fixture(scope="session")
@starts("server")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NnInteractiveServer]:
    """Run the real nninteractive-server, which tests share and do not stop."""
    with nninteractive_server(tmp_path_factory.mktemp("nninteractive")) as server:
        yield server


@pytest.fixture
@starts("server")
def own_server(tmp_path: Path) -> Iterator[NnInteractiveServer]:
    """Run the real nninteractive-server for one test, which may kill it. It ends sessions that are silent for 2 s."""
    with nninteractive_server(tmp_path, "--liveness-timeout-seconds", "2") as server:
        yield server
