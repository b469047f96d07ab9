"""Served models that tests share and do not change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hosts import BRIGHTNESS, BUNDLED, SAM, Host, hosted
from tests.support.marks import starts


@pytest.fixture(scope="session")
@starts("server")
def bundled_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Serve the bundled model with ``baps blackbox serve``."""
    with hosted(tmp_path_factory.mktemp("bundled"), BUNDLED, "bundled") as host:
        yield host


@pytest.fixture(scope="session")
@starts("server")
def hard_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Serve the bundled model with hard masks."""
    command = (*BUNDLED, "--hard-masks", "--name", "hard")
    with hosted(tmp_path_factory.mktemp("hard"), command, "hard") as host:
        yield host


@pytest.fixture(scope="session")
@starts("server")
def sam_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Serve a SAM that sees slices without padding."""
    with hosted(tmp_path_factory.mktemp("sam_host"), SAM, "small") as host:
        yield host


@pytest.fixture
@starts("server")
def own_host(tmp_path: Path) -> Iterator[Host]:
    """Serve a cheap model for one test, which may kill it."""
    with hosted(tmp_path, BRIGHTNESS, "brightness") as host:
        yield host
