from __future__ import annotations

from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from baps.errors import InputError
from baps.io import read_volume
from tests.support.paths import ROOT

SAMPLE = ROOT / "sample-data" / "dicom" / "ct_01" / "001.dcm"


def _film(path: Path, **tags: Any) -> Path:
    """Write a picture without a position and without PixelSpacing."""
    image = pydicom.dcmread(SAMPLE)
    del image.ImagePositionPatient, image.ImageOrientationPatient, image.PixelSpacing
    for name, value in tags.items():
        setattr(image, name, value)
    image.save_as(path)
    return path


def _region(kind: int, units: int, step: tuple[float, float], size: int) -> Dataset:
    region = Dataset()
    region.RegionSpatialFormat, region.PhysicalUnitsXDirection, region.PhysicalUnitsYDirection = kind, units, units
    region.PhysicalDeltaX, region.PhysicalDeltaY = step
    region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
    region.RegionLocationMaxX1 = region.RegionLocationMaxY1 = size
    return region


@pytest.mark.parametrize(
    ("tags", "spacing", "note"),
    [
        ({"PixelSpacing": [0.7, 0.4], "ImagerPixelSpacing": [9, 9]}, (0.4, 0.7), ""),
        ({"ImagerPixelSpacing": [0.2, 0.1]}, (0.1, 0.2), "that of the detector"),
        (
            {"ImagerPixelSpacing": [0.3, 0.15], "EstimatedRadiographicMagnificationFactor": 1.5},
            (0.1, 0.2),
            "EstimatedRadiographicMagnificationFactor",
        ),
        ({"NominalScannedPixelSpacing": [0.2, 0.1]}, (0.1, 0.2), "NominalScannedPixelSpacing"),
        ({"PixelAspectRatio": [4, 2]}, (1, 2), "Only the shape of a pixel is known"),
        ({}, (1, 1), "has no pixel size"),
        (
            {
                "SequenceOfUltrasoundRegions": [
                    _region(2, 3, (9, 9), 100),  # An M-mode strip.
                    _region(1, 3, (0.02, 0.03), 60),
                    _region(1, 3, (0.04, -0.05), 30),
                    _region(1, 4, (7, 7), 90),  # Seconds.
                ]
            },
            (0.2, 0.3),
            "calibration of the ultrasound region",
        ),
    ],
)
def test_spacing_and_its_source(tmp_path: Path, tags: Any, spacing: tuple[float, float], note: str) -> None:
    volume = read_volume(_film(tmp_path / "a.dcm", **tags))
    assert volume.spacing[:2] == pytest.approx(spacing)
    assert [message for message in volume.notes if note in message] if note else not volume.notes


@pytest.mark.parametrize("value", [[0.5, 0], [-1, 1], [0.5, 0.5, 0.5]])
def test_error_names_an_invalid_spacing(tmp_path: Path, value: list[float]) -> None:
    with pytest.raises(InputError, match="The PixelSpacing of a.dcm is"):
        read_volume(_film(tmp_path / "a.dcm", PixelSpacing=value))


def test_error_names_a_value_that_is_not_a_number(tmp_path: Path) -> None:
    path = _film(tmp_path / "a.dcm", PixelSpacing=["0.51", "0.52"])
    path.write_bytes(path.read_bytes().replace(b"0.51\\0.52", b"0.51\\x.52"))
    with pytest.raises(InputError, match=r"The PixelSpacing of a.dcm is '0.51\\x.52'; it must be 2 finite numbers"):
        read_volume(path)


def test_error_names_a_magnification_that_is_not_a_number(tmp_path: Path) -> None:
    path = _film(tmp_path / "a.dcm", ImagerPixelSpacing=[0.3, 0.15], EstimatedRadiographicMagnificationFactor="1.2345")
    path.write_bytes(path.read_bytes().replace(b"1.2345", b"a.bcde"))
    with pytest.raises(
        InputError, match="The EstimatedRadiographicMagnificationFactor of a.dcm is 'a.bcde'; it must be a finite"
    ):
        read_volume(path)


def test_error_names_a_calibration_that_is_not_a_number(tmp_path: Path) -> None:
    path = _film(tmp_path / "a.dcm", SequenceOfUltrasoundRegions=[_region(1, 3, (float("nan"), 0.1), 60)])
    with pytest.raises(InputError, match="The PhysicalDeltaX of a.dcm is 'nan'; it must be a finite number"):
        read_volume(path)
