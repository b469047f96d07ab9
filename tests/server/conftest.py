"""Servers for the tests of the app, in the process of the tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.client import threaded_site
from tests.support.sites import Site


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The protected server, shared by the tests that leave it as it was."""
    with threaded_site(tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Site]:
    """A server for one test alone."""
    with threaded_site(tmp_path) as running:
        yield running
