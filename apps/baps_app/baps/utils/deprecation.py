"""Read the names of version 0.1 with one warning each, which tells the new name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")


class OldNameWarning(FutureWarning):
    """A name of version 0.1 was used, which the next release does not read any more."""


def warn_of_old_name(old: str, new: str, where: str = "") -> None:
    """Warn that a name has changed.

    Args:
        old: the name that was used.
        new: the name to use.
        where: where it was used, as in ``in the environment``, or "".
    """
    message = f"{old}{where and f' {where}'} is now called {new}. The next release will not read {old}."
    warnings.warn(message, OldNameWarning, stacklevel=1)  # Of this line, so that each sentence is shown once.


def rename_old_keys(values: Mapping[str, Value], old_names: Mapping[str, str], where: str = "") -> dict[str, Value]:
    """Rename the old keys among some values, and warn about each of them. A value under the new name takes precedence.

    Args:
        values: values by name, old or new.
        old_names: new name by old name.
        where: see ``warn_of_old_name``.

    Returns:
        The values by new name.
    """
    renamed = {name: value for name, value in values.items() if name not in old_names}
    for old in values.keys() & old_names.keys():
        warn_of_old_name(old, old_names[old], where)
        renamed.setdefault(old_names[old], values[old])
    return renamed
