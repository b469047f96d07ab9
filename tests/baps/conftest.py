from __future__ import annotations

from collections.abc import Iterator

import pytest

from faulty_server import FaultyServer, faulty_server


@pytest.fixture
def faulty() -> Iterator[FaultyServer]:
    """A server of a remote model, which answers as a test wants it to."""
    with faulty_server() as server:
        yield server
