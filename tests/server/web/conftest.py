"""Sites whose pages the tests open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.web_site import WebSite, web_site


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebSite]:
    """A site that is shared by the tests that change nothing."""
    with web_site(tmp_path_factory.mktemp("pages")) as site:
        yield site


@pytest.fixture
def own_pages(tmp_path: Path) -> Iterator[WebSite]:
    """A site for one test alone."""
    with web_site(tmp_path) as site:
        yield site
