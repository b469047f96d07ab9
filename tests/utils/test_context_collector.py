"""What is told reaches whoever listens, and nobody else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from baps.utils.context_collector import notes


def test_what_is_told_is_heard_in_its_own_context() -> None:
    notes.give("to nobody")
    with notes.collecting() as heard:
        notes.give("one", "two")
        with ThreadPoolExecutor(1) as others:
            others.submit(notes.give, "of another user").result()
        with notes.collecting() as inside:
            notes.give("three")
        notes.give("four")
    notes.give("too late")
    assert (heard, inside) == (["one", "two", "four"], ["three"])
