"""The size of a pixel, from whichever attribute of a DICOM image says it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from baps.errors import InputError
from baps.io.dicom.values import numbers

_CENTIMETRES = 3
"""Of PhysicalUnitsXDirection (DICOM PS3.3, C.8.5.5.1.15)."""

_TISSUE = 1
"""Of RegionSpatialFormat: a two-dimensional image, no curve or spectrum."""


def pixel_spacing(where: Sequence[Dataset], name: str) -> tuple[tuple[float, float] | None, str]:
    """Find the spacing of an image or a frame.

    PixelSpacing is used where it is there; then what an X-ray says of its detector, an ultrasound image of its regions,
    and the shape of a pixel.

    Args:
        where: the datasets that may say it, the most specific first.
        name: of the file, for messages.

    Returns:
        Distance of neighbouring columns and of neighbouring rows, mm, or None where nothing is said; and a sentence on
        where it comes from, "" for PixelSpacing.

    Raises:
        InputError: if an attribute holds something else than two numbers above 0.
    """
    found = _pair(where, "PixelSpacing", name)
    if found is not None:
        return found, ""
    found = _pair(where, "ImagerPixelSpacing", name)
    if found is not None:
        factor = _magnification(where, name)
        if factor != 1:
            return (found[0] / factor, found[1] / factor), (
                f"Spacing from ImagerPixelSpacing and EstimatedRadiographicMagnificationFactor ({factor:g})."
            )
        return found, "Spacing from ImagerPixelSpacing: it is that of the detector, larger than that of the patient."
    found = _pair(where, "NominalScannedPixelSpacing", name)
    if found is not None:
        return found, "Spacing from NominalScannedPixelSpacing."
    found = _ultrasound(where, name)
    if found is not None:
        return found, "Spacing from the calibration of the ultrasound region (SequenceOfUltrasoundRegions)."
    found = _pair(where, "PixelAspectRatio", name)
    if found is not None:
        return (
            1.0,
            found[1] / found[0],
        ), "Only the shape of a pixel is known (PixelAspectRatio); its width is taken as 1 mm."
    return None, ""


def _pair(where: Sequence[Dataset], keyword: str, name: str) -> tuple[float, float] | None:
    """Columns and rows; DICOM gives the distance of the rows first."""
    for dataset in where:
        found = numbers(dataset, keyword, 2, name)
        if found is not None:
            if (found <= 0).any():
                raise InputError(
                    f"The {keyword} of {name} is {found[0]:g}\\{found[1]:g}; numbers above 0 must stand there. Export "
                    "it again."
                )
            return float(found[1]), float(found[0])
    return None


def _magnification(where: Sequence[Dataset], name: str) -> float:
    for dataset in where:
        found = numbers(dataset, "EstimatedRadiographicMagnificationFactor", 1, name)
        if found is not None:
            return float(found[0]) if found[0] > 0 else 1.0
    return 1.0


def _ultrasound(where: Sequence[Dataset], name: str) -> tuple[float, float] | None:
    """Of the largest calibrated region of tissue."""
    regions: list[tuple[float, NDArray[np.float64]]] = []
    for dataset in where:
        for region in dataset.get("SequenceOfUltrasoundRegions") or []:
            units = region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection")
            if region.get("RegionSpatialFormat") != _TISSUE or units != (_CENTIMETRES, _CENTIMETRES):
                continue
            steps = [_one(region, f"PhysicalDelta{axis}", name) for axis in "XY"]
            corners = [_one(region, f"RegionLocation{corner}", name) for corner in ("MinX0", "MaxX1", "MinY0", "MaxY1")]
            step = np.array([10 * abs(one) for one in steps], np.float64)
            if (step > 0).all():
                regions.append(((corners[1] - corners[0]) * (corners[3] - corners[2]), step))
    if not regions:
        return None
    across, down = max(regions, key=lambda region: region[0])[1]
    return float(across), float(down)


def _one(region: Dataset, keyword: str, name: str) -> float:
    found = numbers(region, keyword, 1, name)
    return 0.0 if found is None else float(found[0])
