from __future__ import annotations

import pytest

from baps.fseft.models import FSEFT_CLASSES, class_index


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("spleen", "spleen"),
        ("Spleen", "spleen"),
        ("right kidney", "kidney_right"),
        ("Kidney, left", "kidney_left"),
        ("oesophagus", "esophagus"),
        ("Liver tumour", "liver_tumor"),
        ("IVC", "inferior_vena_cava"),
        ("inferior vena cava", "inferior_vena_cava"),
        ("portal and splenic vein", "portal_vein_and_splenic_vein"),
    ],
)
def test_a_site_may_name_organs_in_its_own_way(asked: str, meant: str) -> None:
    found = class_index(FSEFT_CLASSES, asked)
    assert found is not None
    assert FSEFT_CLASSES[found] == meant


@pytest.mark.parametrize("asked", ["kidney", "liver lesion", "", "heart"])
def test_another_organ_is_not_taken_for_one_that_sounds_alike(asked: str) -> None:
    assert class_index(FSEFT_CLASSES, asked) is None
