"""nnInteractive's own client at the real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from nnInteractive.inference.remote import nnInteractiveRemoteInferenceSession

from tests.support.sites import Site

Connect = Callable[..., Any]


@pytest.fixture
def connect(server: Site) -> Iterator[Connect]:
    """Return a function that connects a client, to the shared server or another address."""
    with ExitStack() as open_clients:

        def one(address: str = "", label: str = "", **options: Any) -> Any:
            url = f"{address or server.address}/nninteractive{f'/{label}' if label else ''}"
            return open_clients.enter_context(closing(nnInteractiveRemoteInferenceSession(url, **options)))

        yield one
