from __future__ import annotations

from baps.adapters.old_records import rename_record, rename_settings, restore_old_settings

SETTINGS = {"batch": 8, "corrected": 0.5, "radius": 0.1, "rate": 0.03, "seed": 1}
RENAMED = {"batch_size": 8, "correction_ratio": 0.5, "perturbation_radius": 0.1, "learning_rate": 0.03, "seed": 1}


def test_record_of_version_01_is_converted() -> None:
    old = {"known_patients": ["a"], "recalled_images": 3, "status": "refused", "settings": SETTINGS, "seconds": 1.0}
    new = {"seen_patients": ["a"], "replayed_images": 3, "status": "rejected", "settings": RENAMED, "seconds": 1.0}
    assert rename_record(old) == new
    assert rename_record(new) == new
    assert rename_record({"status": "passed"}) == {"status": "accepted"}
    assert rename_record({"status": "unverified", "settings": None}) == {"status": "unverified", "settings": None}


def test_settings_survive_the_conversion() -> None:
    assert rename_settings(SETTINGS) == rename_settings(RENAMED) == RENAMED
    assert restore_old_settings(RENAMED) == restore_old_settings(SETTINGS) == SETTINGS
