"""Rename the keys of records, and of the settings in them, that version 0.1 wrote.

Adapters of that version serve as they did. The program wrote these names, not the operator, so no warning is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OLD_SETTINGS = {
    "batch": "batch_size",
    "corrected": "correction_ratio",
    "radius": "perturbation_radius",
    "rate": "learning_rate",
}
"""Settings of a training by their names in version 0.1."""

_OLD_KEYS = {"known_patients": "seen_patients", "recalled_images": "replayed_images"}
_OLD_STATUS = {"passed": "accepted", "refused": "rejected"}


def rename_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the keys and the status in the record of an adapter.

    Args:
        record: record of this version or of 0.1.

    Returns:
        The record with today's names.
    """
    renamed = {_OLD_KEYS.get(key, key): value for key, value in record.items()}
    if isinstance(renamed.get("settings"), dict):
        renamed["settings"] = rename_settings(renamed["settings"])
    if isinstance(renamed.get("black_box"), dict):  # Every model saw the padded canvas.
        renamed["black_box"] = {"preprocessing": "canvas", **renamed["black_box"]}
    if "status" in renamed:
        renamed["status"] = _OLD_STATUS.get(renamed["status"], renamed["status"])
    return renamed


def rename_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the settings of a training.

    Args:
        settings: settings by name, of this version or of 0.1.

    Returns:
        The settings by today's names.
    """
    return {OLD_SETTINGS.get(name, name): value for name, value in settings.items()}


def restore_old_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the settings of a training back to the names of version 0.1.

    Fingerprints are computed from these, so that an adapter of that version is recognised as one of the same settings.

    Args:
        settings: settings by today's name.

    Returns:
        The settings by the names of version 0.1.
    """
    old_names = {new: old for old, new in OLD_SETTINGS.items()}
    return {old_names.get(name, name): value for name, value in settings.items()}
