"""The plan of an adaptation, and the adapter that is served during it; the same for clicks and for organs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from baps.adapters.old_records import restore_old_settings
from baps.evaluation.splits import Split

AnyAdapter = TypeVar("AnyAdapter")


@dataclass(frozen=True)
class ServedAdapter(Generic[AnyAdapter]):
    """The adapter that is served while another one is trained.

    Attributes:
        adapter: the adapter.
        record: the record of its training.
    """

    adapter: AnyAdapter
    record: Mapping[str, Any]

    @property
    def trained_on(self) -> frozenset[str]:
        """Hashes of the patients that it, or its predecessors, were trained on; it cannot be evaluated on them."""
        return frozenset(self.record["seen_patients"])


@dataclass(frozen=True)
class AdaptationPlan:
    """What an adaptation will do.

    Attributes:
        split: the patients to train on and the patients that are held out.
        facts: all that the result depends on, except the adapter that the training starts from; plain JSON.
    """

    split: Split
    facts: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """The same for two adaptations of the same model to the same data with the same settings."""
        facts = {**self.facts, "settings": restore_old_settings(self.facts["settings"])}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
