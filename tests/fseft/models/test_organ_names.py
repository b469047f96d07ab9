from __future__ import annotations

import pytest

from baps.fseft.models import FSEFT_CLASSES, class_index


@pytest.mark.parametrize(
    ("queried", "meant"),
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
def test_a_site_may_name_organs_in_its_own_way(queried: str, meant: str) -> None:
    result = class_index(FSEFT_CLASSES, queried)
    assert result is not None
    assert FSEFT_CLASSES[result] == meant


@pytest.mark.parametrize("queried", ["kidney", "liver lesion", "", "heart"])
def test_another_organ_is_not_taken_for_one_that_sounds_alike(queried: str) -> None:
    assert class_index(FSEFT_CLASSES, queried) is None
