"""Match the name that a site gives an organ to a class of a model."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SPELLINGS = {"oesophagus": "esophagus", "tumour": "tumor", "coeliac": "celiac"}
_SYNONYMS = {
    "postcava": "inferior vena cava",
    "ivc": "inferior vena cava",
    "lkidney": "left kidney",
    "rkidney": "right kidney",
    "gall bladder": "gallbladder",
    "bladder": "urinary bladder",
    "left head of femur": "left femur",
    "right head of femur": "right femur",
}


def class_index(classes: Sequence[str], organ: str) -> int | None:
    """Find the index of an organ among classes.

    Case, the order of the words and the separators do not matter: ``Right Kidney`` is ``kidney_right``.

    Args:
        classes: names of the classes.
        organ: the name of the organ.

    Returns:
        The index, or None if there is no class of that name.
    """
    words = _normalised_words(organ)
    return next((index for index, name in enumerate(classes) if _normalised_words(name) == words), None)


def _normalised_words(name: str) -> frozenset[str]:
    words = " ".join(_SPELLINGS.get(word, word) for word in re.findall(r"[^\W_]+", name.casefold()))
    return frozenset(_SYNONYMS.get(words, words).split()) - {"and", "or"}
