"""Names of version 0.1 that are still read. Each gives one warning, which names the new one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")


class OldNameWarning(FutureWarning):
    """A name of version 0.1 was used; the next release does not read it any more."""


def warn_of_old_name(old: str, new: str, where: str = "") -> None:
    """Warn that a name was changed.

    Args:
        old: the name that was used.
        new: the name to use.
        where: the place it was used, as in ``in the environment``, or "".
    """
    said = f"{old}{where and f' {where}'} is now called {new}. The next release will not read {old}."
    warnings.warn(said, OldNameWarning, stacklevel=1)  # Of this line, so that each sentence is shown once.


def rename_old_keys(values: Mapping[str, Value], old_names: Mapping[str, str], where: str = "") -> dict[str, Value]:
    """Return values under their new names, and warn of each old name among them.

    Where both names are given, the value of the new one is returned.

    Args:
        values: by name, old or new.
        old_names: the new names by the old ones.
        where: as for ``warn_of_old_name``.

    Returns:
        The values by new names.
    """
    renamed = {name: value for name, value in values.items() if name not in old_names}
    for old in values.keys() & old_names.keys():
        warn_of_old_name(old, old_names[old], where)
        renamed.setdefault(old_names[old], values[old])
    return renamed
