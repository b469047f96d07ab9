from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import baps.server.datastores.conversions
from baps.imaging.volume import Volume
from baps.io import read_volume
from baps.server.datastores.conversions import Conversions
from tests.support.paths import ROOT

SERIES = ROOT / "sample-data" / "dicom" / "ct_01"


def test_a_slow_series_is_converted_once_and_does_not_delay_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("slow", "other"):
        shutil.copytree(SERIES, tmp_path / name)
    conversions, started, may_continue, read = (
        Conversions(tmp_path / ".converted"),
        threading.Event(),
        threading.Event(),
        [],
    )

    def reading(source: Path) -> Volume:
        read.append(source.name)
        if source.name == "slow":
            started.set()
            assert may_continue.wait(60)
        return read_volume(source)

    monkeypatch.setattr(baps.server.datastores.conversions, "read_volume", reading)
    with ThreadPoolExecutor(3) as pool:
        try:
            slow = [pool.submit(conversions.convert, tmp_path / "slow", "slow") for _ in range(2)]
            assert started.wait(60)
            other = pool.submit(conversions.convert, tmp_path / "other", "other").result(60)
            assert read_volume(other).shape == (128, 128, 24)
            assert not any(future.done() for future in slow)
        finally:
            may_continue.set()
        assert {future.result(60) for future in slow} == {tmp_path / ".converted" / "slow.nii.gz"}
    assert sorted(read) == ["other", "slow"]
