"""Define the errors whose message is meant for the person who can fix them.

Every message is a full sentence: what is wrong, where, and what to do about it.
"""

from __future__ import annotations


class BapsError(Exception):
    """Something is wrong that the operator of the server has to fix (HTTP 5xx)."""


class InputError(BapsError, ValueError):
    """The caller sent something that cannot be used (HTTP 400)."""


class NotFoundError(InputError):
    """The caller asked for something that does not exist (HTTP 404)."""


class StorageError(BapsError):
    """The disk is full or cannot be written to (HTTP 507)."""


class BudgetSpentError(BapsError):
    """The query budget is spent: no more images may be sent to the black box."""


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
