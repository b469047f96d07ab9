"""What the users of the server may do."""

from __future__ import annotations

from enum import Enum


class Role(str, Enum):
    """What a user may do; each one may do what those before it may."""

    ANNOTATOR = "annotator"
    TRAINER = "trainer"
    ADMIN = "admin"

    def may(self, needed: Role) -> bool:
        """Whether this role suffices where another one is needed."""
        order = list(Role)
        return order.index(self) >= order.index(needed)
