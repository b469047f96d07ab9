"""Collect all attacks: those that succeed on an unmodified MONAI Label server, and those by users with a role."""

from __future__ import annotations

from stress.attack import attacks_access as _access  # noqa: F401
from stress.attack import attacks_files as _files  # noqa: F401
from stress.attack import attacks_labels as _labels  # noqa: F401
from stress.attack import attacks_load as _load  # noqa: F401
from stress.attack import attacks_page as _page  # noqa: F401
from stress.attack import attacks_people as _people  # noqa: F401
from stress.attack.attacks import ATTACKS

__all__ = ["ATTACKS"]
