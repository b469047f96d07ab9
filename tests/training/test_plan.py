from __future__ import annotations

from baps.evaluation.splits import Split
from baps.training.plan import AdaptationPlan


def test_fingerprint_depends_on_the_facts_only() -> None:
    split = Split(("a", "b"), (("a",), ("b",)))
    first, same, different = (AdaptationPlan(split, {"settings": {}, "seed": seed}) for seed in (0, 0, 1))
    assert first.fingerprint == same.fingerprint != different.fingerprint
