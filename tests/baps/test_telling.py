"""What is told reaches whoever listens, and nobody else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from baps.telling import listening, tell


def test_what_is_told_is_heard_in_its_own_context() -> None:
    tell(["to nobody"])
    with listening() as heard:
        tell(["one", "two"])
        with ThreadPoolExecutor(1) as others:
            others.submit(tell, ["of another user"]).result()
        with listening() as inside:
            tell(["three"])
        tell(["four"])
    tell(["too late"])
    assert (heard, inside) == (["one", "two", "four"], ["three"])
