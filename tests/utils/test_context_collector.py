"""Collected values reach the collector of their own context, and no other one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from baps.utils.context_collector import Collected


def test_values_are_collected_in_their_own_context() -> None:
    notes: Collected[str] = Collected("notes")
    notes.give("to nobody")
    with notes.collecting() as outer:
        notes.give("one", "two")
        with ThreadPoolExecutor(1) as executor:
            executor.submit(notes.give, "of another user").result()
        with notes.collecting() as inner:
            notes.give("three")
        notes.give("four")
    notes.give("too late")
    assert (outer, inner) == (["one", "two", "four"], ["three"])
