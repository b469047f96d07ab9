from __future__ import annotations

import pytest

from baps.fseft.models import FSEFT_CLASSES, class_index


@pytest.mark.parametrize(
    ("name", "meant"),
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
        ("gall bladder", "gallbladder"),
        ("Bladder", "urinary_bladder"),
    ],
)
def test_organ_names_are_matched_by_words(name: str, meant: str) -> None:
    result = class_index(FSEFT_CLASSES, name)
    assert result is not None
    assert FSEFT_CLASSES[result] == meant


@pytest.mark.parametrize("name", ["kidney", "liver lesion", "", "heart"])
def test_similar_names_of_other_organs_do_not_match(name: str) -> None:
    assert class_index(FSEFT_CLASSES, name) is None
