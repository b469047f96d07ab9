"""Roles of the users of the server."""

from __future__ import annotations

from enum import Enum


class Role(str, Enum):
    """Role of a user. Each role includes those before it.

    Attributes:
        ANNOTATOR: Segments and saves labels.
        TRAINER: Also trains, publishes adapters, and confirms labels.
        ADMIN: Also manages users and reads the audit file.
    """

    ANNOTATOR = "annotator"
    TRAINER = "trainer"
    ADMIN = "admin"

    def may(self, needed: Role) -> bool:
        """Return whether this role includes another one.

        Args:
            needed: The role that is needed.

        Returns:
            Whether it suffices.
        """
        order = list(Role)
        return order.index(self) >= order.index(needed)
