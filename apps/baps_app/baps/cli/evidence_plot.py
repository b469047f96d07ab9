"""Draw the confidence sequences of a label's adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baps.errors import InputError


def draw_evidence(
    file: Path, label: str, sequences: Mapping[str, tuple[NDArray[np.float64], list[tuple[float, float]]]]
) -> None:
    """Draw the differences of the patients of every version, their mean, and its confidence sequence.

    Args:
        file: PNG or PDF file to write.
        label: the label.
        sequences: by version, differences of Dice (patients,) in order of arrival, and the interval after each.

    Raises:
        InputError: if matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("Plots need matplotlib. Run pip install matplotlib.") from error
    drawn = {version: sequence for version, sequence in sequences.items() if len(sequence[0])}
    figure = Figure(figsize=(7, 2.6 * max(1, len(drawn))), layout="constrained")
    axes = figure.subplots(max(1, len(drawn)), squeeze=False)[:, 0]
    for axis, (version, (differences, intervals)) in zip(axes, drawn.items(), strict=False):
        patients = np.arange(1, len(differences) + 1)
        low, high = np.array(intervals).T
        axis.axhline(0, color="gray", linewidth=0.8)
        axis.fill_between(patients, low, high, alpha=0.25, label="confidence sequence, 95 %")
        axis.plot(patients, differences.cumsum() / patients, label="mean")
        axis.plot(patients, differences, ".", color="black", label="patients")
        axis.set(title=f"{label} {version}", xlabel="patients", ylabel="gain, Dice", ylim=(-0.6, 0.8))
        axis.legend(fontsize=8, loc="lower right")
    try:
        figure.savefig(file, dpi=120)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file} cannot be written ({error}). Name a PNG or PDF file in a folder that exists."
        ) from error
