"""All attacks: those that MONAI Label as it comes falls to, and those of the second round, of users with a role."""

from __future__ import annotations

from stress.attack import attacks_access as _access  # noqa: F401
from stress.attack import attacks_files as _files  # noqa: F401
from stress.attack import attacks_labels as _labels  # noqa: F401
from stress.attack import attacks_load as _load  # noqa: F401
from stress.attack.attacks import ATTACKS

__all__ = ["ATTACKS"]
