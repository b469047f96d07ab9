"""Fixtures: one Orthanc for all tests of this folder, which can be emptied."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import requests

from demo import orthanc
from tests.support.marks import starts


@pytest.fixture(scope="session")
@starts("pacs")
def shared_orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run Orthanc; yields its address."""
    if orthanc.missing():
        pytest.skip(orthanc.missing())
    with orthanc.running_orthanc(tmp_path_factory.mktemp("orthanc"), reachable=True) as address:
        yield address


@pytest.fixture(scope="session")
def empty_orthanc(shared_orthanc: str) -> Callable[[], str]:
    """Return a function that empties the shared Orthanc and returns its address."""

    def empty() -> str:
        for patient in requests.get(f"{shared_orthanc}/patients", timeout=30).json():
            requests.delete(f"{shared_orthanc}/patients/{patient}", timeout=30).raise_for_status()
        return shared_orthanc

    return empty
