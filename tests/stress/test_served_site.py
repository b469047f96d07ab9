"""The parts of the benchmark of trust that attack a running server: each finds what it looks for."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from stress.attack.headers import missing_headers
from stress.fuzz.server_bombs import send_bombs
from stress.kill.savers import _kept
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
def test_a_header_that_is_missing_is_noticed(changed: dict[str, str], path: str, missing: list[str]) -> None:
    assert missing_headers(path, {**_GOOD, **changed}) == missing


@pytest.mark.slow
def test_bombs_that_are_sent_take_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("npz name", "nifti header", "dicom jpeg 2000", "label seg rle")
    found = send_bombs(tmp_path / "site", names)
    assert (found["bombs"], found["bombs_over_bound"]) == (10, 0), found["over_bound"]
    assert {row["verdict"] for row in found["by_name"].values()} == {"refused"}
    monkeypatch.setattr("stress.fuzz.bombs._TIMES", 0)
    monkeypatch.setattr("stress.fuzz.bombs._SLACK_MB", 0)
    assert send_bombs(tmp_path / "other", ("nifti largest",))["bombs_over_bound"] == 3


def test_a_label_that_no_version_holds_is_noticed(tmp_path: Path) -> None:
    version = tmp_path / "studies" / "labels-history" / "final" / "ct_01" / "20261129T000000.000000Z"
    version.mkdir(parents=True)
    mask = np.zeros((4, 4, 2), bool)
    mask[1, 2, 1] = True
    nibabel.save(nibabel.Nifti1Image(np.where(mask, 2, 0).astype(np.uint8), np.eye(4)), version / "label.nii.gz")
    info = {"author": "a", "label_info": [{"name": "spleen", "idx": 2}]}
    (version / "version.json").write_text(json.dumps({"info": info}))
    place = Site(tmp_path, "", None, "")  # type: ignore[arg-type]
    assert _kept(place, "a", "ct_01", mask)
    assert not _kept(place, "b", "ct_01", mask)
    assert not _kept(place, "a", "ct_01", np.roll(mask, 1))
