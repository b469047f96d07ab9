"""Servers for the tests of the app."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.marks import starts
from tests.support.sites import Site, site


@pytest.fixture(scope="session")
@starts("server")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The protected server, shared by the tests that leave it as it was."""
    yield from site(tmp_path_factory.mktemp("site"))


@pytest.fixture
@starts("server")
def own_server(tmp_path: Path) -> Iterator[Site]:
    """A server for one test alone."""
    yield from site(tmp_path)
