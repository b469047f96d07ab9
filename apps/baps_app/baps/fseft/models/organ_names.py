"""Which class is meant by the name that a site gives an organ."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SPELLINGS = {"oesophagus": "esophagus", "tumour": "tumor", "coeliac": "celiac"}
_NAMES = {
    "postcava": "inferior vena cava",
    "ivc": "inferior vena cava",
    "lkidney": "left kidney",
    "rkidney": "right kidney",
}


def class_index(classes: Sequence[str], organ: str) -> int | None:
    """The place of an organ among classes, or None if there is none of that name.

    Case, the order of the words, and what stands between them do not matter: ``Right Kidney`` is ``kidney_right``.
    """
    meant = _words(organ)
    return next((place for place, name in enumerate(classes) if _words(name) == meant), None)


def _words(name: str) -> frozenset[str]:
    words = " ".join(_SPELLINGS.get(word, word) for word in re.findall(r"[^\W_]+", name.casefold()))
    return frozenset(_NAMES.get(words, words).split()) - {"and", "or"}
