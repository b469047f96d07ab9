"""Find the size of a pixel, from whichever attribute of a DICOM image holds it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from baps.errors import InputError
from baps.io.dicom.values import read_numbers

_CENTIMETRES = 3
"""Value of PhysicalUnitsXDirection for centimetres (DICOM PS3.3, C.8.5.5.1.15)."""

_TISSUE = 1
"""Value of RegionSpatialFormat for a two-dimensional image, not a curve or a spectrum."""


def find_pixel_spacing(datasets: Sequence[Dataset], name: str) -> tuple[tuple[float, float] | None, str]:
    """Find the spacing of an image or a frame.

    PixelSpacing has precedence, then what an X-ray says about its detector, an ultrasound image about its regions, and
    the aspect ratio of a pixel.

    Args:
        datasets: datasets that may hold the spacing, the most specific first.
        name: name of the file, for the error message.

    Returns:
        Distance of neighbouring columns and of neighbouring rows, mm, or None if it is unknown; and a sentence on its
        source, "" for PixelSpacing.

    Raises:
        InputError: if an attribute holds anything else than two numbers above 0.
    """
    spacing = _pair(datasets, "PixelSpacing", name)
    if spacing is not None:
        return spacing, ""
    spacing = _pair(datasets, "ImagerPixelSpacing", name)
    if spacing is not None:
        factor = _magnification(datasets, name)
        if factor != 1:
            return (spacing[0] / factor, spacing[1] / factor), (
                f"Spacing from ImagerPixelSpacing and EstimatedRadiographicMagnificationFactor ({factor:g})."
            )
        return spacing, "Spacing from ImagerPixelSpacing: it is that of the detector, larger than that of the patient."
    spacing = _pair(datasets, "NominalScannedPixelSpacing", name)
    if spacing is not None:
        return spacing, "Spacing from NominalScannedPixelSpacing."
    spacing = _ultrasound(datasets, name)
    if spacing is not None:
        return spacing, "Spacing from the calibration of the ultrasound region (SequenceOfUltrasoundRegions)."
    spacing = _pair(datasets, "PixelAspectRatio", name)
    if spacing is not None:
        return (
            1.0,
            spacing[1] / spacing[0],
        ), "Only the shape of a pixel is known (PixelAspectRatio); its width is taken as 1 mm."
    return None, ""


def _pair(datasets: Sequence[Dataset], keyword: str, name: str) -> tuple[float, float] | None:
    """Return the distances of columns and of rows; DICOM stores the rows first."""
    for dataset in datasets:
        values = read_numbers(dataset, keyword, 2, name)
        if values is not None:
            if (values <= 0).any():
                raise InputError(
                    f"The {keyword} of {name} is {values[0]:g}\\{values[1]:g}; they must be above 0. Export it again."
                )
            return float(values[1]), float(values[0])
    return None


def _magnification(datasets: Sequence[Dataset], name: str) -> float:
    for dataset in datasets:
        values = read_numbers(dataset, "EstimatedRadiographicMagnificationFactor", 1, name)
        if values is not None:
            return float(values[0]) if values[0] > 0 else 1.0
    return 1.0


def _ultrasound(datasets: Sequence[Dataset], name: str) -> tuple[float, float] | None:
    """Return the spacing of the largest calibrated region of tissue."""
    regions: list[tuple[float, NDArray[np.float64]]] = []
    for dataset in datasets:
        for region in dataset.get("SequenceOfUltrasoundRegions") or []:
            units = region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection")
            if region.get("RegionSpatialFormat") != _TISSUE or units != (_CENTIMETRES, _CENTIMETRES):
                continue
            steps = [_number(region, f"PhysicalDelta{axis}", name) for axis in "XY"]
            corners = [
                _number(region, f"RegionLocation{corner}", name) for corner in ("MinX0", "MaxX1", "MinY0", "MaxY1")
            ]
            step = np.array([10 * abs(step_cm) for step_cm in steps], np.float64)
            if (step > 0).all():
                regions.append(((corners[1] - corners[0]) * (corners[3] - corners[2]), step))
    if not regions:
        return None
    across, down = max(regions, key=lambda region: region[0])[1]
    return float(across), float(down)


def _number(region: Dataset, keyword: str, name: str) -> float:
    value = read_numbers(region, keyword, 1, name)
    return 0.0 if value is None else float(value[0])
