"""A server on files, a PACS with a server, and a browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from baps.demo.server import running_server
from demo import orthanc
from tests.support.frames import FRAMES, SUFFIXES, write_volume
from tests.support.marks import starts
from tests.support.organ_weights import small_organ_model
from tests.support.pacs_site import CASES, Pacs
from tests.support.series import ORIENTATIONS, copy_real_series, write_series
from tests.support.sites import Site, site


@pytest.fixture(scope="session")
@starts("server")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Run the server on two sample volumes and one in each geometry and format; its temporary files are in ``tmp``."""
    folder = tmp_path_factory.mktemp("hospital")
    (folder / "tmp").mkdir()

    def add() -> None:
        for frame in FRAMES:
            for suffix in SUFFIXES:
                write_volume(folder / "studies", frame, suffix)

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TMPDIR", str(folder / "tmp"))
        yield from site(
            folder,
            cases=2,
            extra=add,
            settings={"organ_weights": str(small_organ_model(folder)), "organ_min_dice": "0"},
        )


@pytest.fixture(scope="session")
@starts("server", "pacs")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    """Run Orthanc with the series of ``Pacs``, and the server on its DICOMweb."""
    if orthanc.missing():
        pytest.skip(orthanc.missing())
    folder = tmp_path_factory.mktemp("pacs")
    series = {name: write_series(folder / "dicom" / name, name) for name in ORIENTATIONS}
    for case in CASES:
        series[case] = write_series(folder / "dicom" / case, "axial", case, f"phantom-{case}")
    series["gap"] = write_series(folder / "dicom" / "gap", "axial", patient="phantom-gap", skip=12)
    if real := copy_real_series(folder / "dicom" / "real"):
        series["real"] = real
    settings = {
        "labels": "spleen=2,liver=1",
        "adapters": str(folder / "adapters"),
        "organ_weights": str(small_organ_model(folder)),
        "organ_min_dice": "0",
    }
    with pytest.MonkeyPatch.context() as patched, orthanc.running_orthanc(folder, reachable=True) as address:
        orthanc.store(address, folder / "dicom")
        patched.setenv("MONAI_LABEL_DATASTORE_CACHE_PATH", str(folder / "cache"))
        with running_server(f"{address}/dicom-web", folder / "server.log", settings) as (server, _):
            yield Pacs(server, address, series, folder / "server.log", folder / "cache")


@pytest.fixture(scope="session")
@starts("browser")
def browser() -> Iterator[object]:
    """Run Debian's Chromium, which renders without a GPU."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed: apt-get install chromium fonts-dejavu-core")
    from playwright.sync_api import sync_playwright

    from tests.support.ohif import FLAGS

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield started
        started.close()
