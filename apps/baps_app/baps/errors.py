"""Errors whose message is meant for the person who can mend them.

Every message is a full sentence: what was wrong, where, and what to do.
"""

from __future__ import annotations


class BapsError(Exception):
    """Something went wrong that the operator of the server has to mend."""


class InputError(BapsError, ValueError):
    """The caller gave something that cannot be used (HTTP 400)."""


class NotFoundError(InputError):
    """The caller asked for something that does not exist (HTTP 404)."""


class StorageError(BapsError):
    """The disk is full, or cannot be written to (HTTP 507)."""


class BudgetSpentError(BapsError):
    """The black box may be asked no more images."""


class MissingExtraError(BapsError):
    """A package of an optional extra is not installed.

    Args:
        feature: what needs it; the beginning of the sentence.
        extra: name of the extra that brings it.
    """

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs packages that are not installed. Install them: pip install 'baps-monailabel[{extra}]'"
        )
