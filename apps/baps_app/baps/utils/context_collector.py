"""Values that deep code gives, for whoever collects them around it: in one context, unseen by other threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Collected(Generic[Value]):
    """What is given within a context.

    Args:
        name: of what is collected.
    """

    def __init__(self, name: str) -> None:
        self._found: ContextVar[list[Value] | None] = ContextVar(name, default=None)

    @contextmanager
    def collecting(self) -> Iterator[list[Value]]:
        """A list of what is given in this context."""
        found: list[Value] = []
        token = self._found.set(found)
        try:
            yield found
        finally:
            self._found.reset(token)

    def give(self, *values: Value) -> None:
        """Give values to whoever collects; to nobody, if nobody does."""
        if (found := self._found.get()) is not None:
            found.extend(values)


served: Collected[str] = Collected("served")
"""Adapters that an answer was made with, as label/version."""

notes: Collected[str] = Collected("notes")
"""Sentences that an answer has beside its mask, for a reply that has no other place for them than a header."""
