"""The parts of the stress run that use a running server detect faults."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from stress.attack.headers import missing_headers
from stress.fuzz.server_bombs import send_bombs
from stress.kill.concurrent_saves import _is_on_disk
from stress.served_site import Site

_GOOD = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@pytest.mark.parametrize(
    ("changed", "path", "missing"),
    [
        ({}, "/info/", []),
        ({"Cache-Control": "max-age=60"}, "/info/", ["Cache-Control"]),
        ({"Cache-Control": "max-age=60"}, "/ohif/app.js", []),
        ({"Content-Security-Policy": ""}, "/ohif/app.js", ["Content-Security-Policy", "frame-ancestors"]),
        ({"Content-Security-Policy": "default-src *; frame-ancestors 'self'"}, "/", ["Content-Security-Policy"]),
        ({"Content-Security-Policy": "default-src 'self'; frame-ancestors *"}, "/", [
            "Content-Security-Policy", "frame-ancestors"]),
        ({"X-Content-Type-Options": "", "Referrer-Policy": "unsafe-url"}, "/", [
            "X-Content-Type-Options", "Referrer-Policy"]),
    ],
)  # fmt: skip
def test_missing_headers_are_detected(changed: dict[str, str], path: str, missing: list[str]) -> None:
    assert missing_headers(path, {**_GOOD, **changed}) == missing


@pytest.mark.slow
def test_sent_bombs_take_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("npz name", "nifti header", "dicom jpeg 2000", "label seg rle")
    figures = send_bombs(tmp_path / "site", names)
    assert (figures["bombs"], figures["bombs_over_bound"]) == (10, 0), figures["over_bound"]
    assert {row["verdict"] for row in figures["by_name"].values()} == {"refused"}
    monkeypatch.setattr("stress.fuzz.bombs._MAX_VOLUMES_HELD", 0)
    monkeypatch.setattr("stress.fuzz.bombs._SLACK_MB", 0)
    assert send_bombs(tmp_path / "other", ("nifti largest",))["bombs_over_bound"] == 3


def test_missing_label_version_is_detected(tmp_path: Path) -> None:
    version = tmp_path / "studies" / "labels-history" / "final" / "ct_01" / "20261129T000000.000000Z"
    version.mkdir(parents=True)
    mask = np.zeros((4, 4, 2), bool)
    mask[1, 2, 1] = True
    nibabel.save(nibabel.Nifti1Image(np.where(mask, 2, 0).astype(np.uint8), np.eye(4)), version / "label.nii.gz")
    info = {"author": "a", "label_info": [{"name": "spleen", "idx": 2}]}
    (version / "version.json").write_text(json.dumps({"info": info}))
    site = Site(tmp_path, "", None, "")  # type: ignore[arg-type]
    assert _is_on_disk(site, "a", "ct_01", mask)
    assert not _is_on_disk(site, "b", "ct_01", mask)
    assert not _is_on_disk(site, "a", "ct_01", np.roll(mask, 1))
