"""Marks that follow from fixtures: which processes a test needs, and which tests share them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest

_Function = TypeVar("_Function", bound=Callable[..., object])
_SHARED = ("session", "package", "module", "class")
NOT_FAST = ("slow", "server", "pacs", "browser")
"""Marks of the tests that ``make test`` leaves to ``make test-rest``."""


def starts(*marks: str) -> Callable[[_Function], _Function]:
    """Mark every test that uses a fixture. Write it below ``@pytest.fixture``.

    Args:
        marks: of ``NOT_FAST``, by what the fixture starts.
    """

    def note(function: _Function) -> _Function:
        function.starts = marks  # type: ignore[attr-defined]
        return function

    return note


def mark_by_fixtures(items: list[pytest.Item]) -> None:
    """Add the marks of ``starts`` to the tests, and send the tests of one shared fixture to one worker of xdist."""
    for item in items:
        groups = []
        for name in getattr(item, "fixturenames", ()):
            for fixture in item._fixtureinfo.name2fixturedefs.get(name, ())[-1:]:  # type: ignore[attr-defined]
                marks = getattr(fixture.func, "starts", ())
                for mark in marks:
                    item.add_marker(mark)
                if fixture.scope in _SHARED and marks and marks != ("browser",):  # A browser starts in a second.
                    groups.append(f"{fixture.baseid}::{name}")
        if groups and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(min(groups, key=len)))


def slow_first(items: list[pytest.Item]) -> None:
    """Put the slow tests first: no worker of xdist then begins one when the others have finished."""
    items.sort(key=lambda item: not any(item.get_closest_marker(mark) for mark in NOT_FAST))
