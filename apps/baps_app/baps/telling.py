"""What an answer has to say beside its mask, for a reply that has no other place for it than a header."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_told: ContextVar[list[str] | None] = ContextVar("told", default=None)


@contextmanager
def listening() -> Iterator[list[str]]:
    """A list of the sentences that are told in this context."""
    found: list[str] = []
    token = _told.set(found)
    try:
        yield found
    finally:
        _told.reset(token)


def tell(sentences: Sequence[str]) -> None:
    """Tell them to whoever listens."""
    if (found := _told.get()) is not None:
        found.extend(sentences)
