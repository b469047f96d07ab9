"""Collect values that deeply nested code reports, without passing a list through every call.

A collector sees the values of its own context only, not those of other threads or requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Collected(Generic[Value]):
    """Collects the values that are reported within a context.

    Args:
        name: name of the context variable.
    """

    def __init__(self, name: str) -> None:
        self._current: ContextVar[list[Value] | None] = ContextVar(name, default=None)

    @contextmanager
    def collecting(self) -> Iterator[list[Value]]:
        """Collect the values that are reported while the block runs.

        Yields:
            The list of values, which grows as they are reported.
        """
        collected: list[Value] = []
        token = self._current.set(collected)
        try:
            yield collected
        finally:
            self._current.reset(token)

    def give(self, *values: Value) -> None:
        """Report values to the innermost collector, if there is one.

        Args:
            *values: the values to report.
        """
        if (collected := self._current.get()) is not None:
            collected.extend(values)
