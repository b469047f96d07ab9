"""All attacks: those that MONAI Label as it comes falls to, and those of the second round, of users with a role."""

from __future__ import annotations

import attacks_load as _attacks_load  # noqa: F401
from attacks import ATTACKS

__all__ = ["ATTACKS"]
