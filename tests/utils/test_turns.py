from __future__ import annotations

import threading
import time

from baps.utils.turns import Turns, long_answer


def _order(asked: str) -> str:
    """The order in which those have their turn who ask while somebody else has it: long answers (L) and clicks (c)."""
    turns, order, threads = Turns(), list[str](), list[threading.Thread]()

    def ask(name: str) -> None:
        if name == "L":
            with long_answer(), turns:
                order.append(name)
        else:
            with turns:
                order.append(name)

    with turns:
        for name in asked:
            threads.append(threading.Thread(target=ask, args=(name,)))
            threads[-1].start()
            while len(turns._short) + len(turns._long) < len(threads):
                time.sleep(0.001)
    for thread in threads:
        thread.join(10)
    return "".join(order)


def test_a_click_goes_before_long_answers_that_asked_earlier() -> None:
    assert _order("LLc") == "cLL"
    assert _order("cLc") == "ccL"


def test_long_answers_go_on_beside_clicks_without_a_pause() -> None:
    assert _order("LL" + 12 * "c") == "ccccLccccLcccc"


def test_one_at_a_time_has_the_turn_also_after_an_error() -> None:
    turns, inside, most = Turns(), 0, 0

    def ask() -> None:
        nonlocal inside, most
        for _ in range(200):
            try:
                with turns:
                    inside += 1
                    most = max(most, inside)
                    inside -= 1
                    raise ZeroDivisionError
            except ZeroDivisionError:
                pass

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (most, inside, turns._taken) == (1, 0, False)
