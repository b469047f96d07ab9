from __future__ import annotations

import threading
import time

from baps.utils.priority_lock import PriorityLock, low_priority
from tests.support.crowd import Crowd


def _order(arrivals: str) -> str:
    """Return the order in which low-priority requests (L) and clicks (c) get a lock that was held when they came."""
    lock, order, threads = PriorityLock(), list[str](), list[threading.Thread]()

    def request(name: str) -> None:
        if name == "L":
            with low_priority(), lock:
                order.append(name)
        else:
            with lock:
                order.append(name)

    with lock:
        for name in arrivals:
            threads.append(threading.Thread(target=request, args=(name,)))
            threads[-1].start()
            while len(lock._normal) + len(lock._low) < len(threads):
                time.sleep(0.001)
    for thread in threads:
        thread.join(10)
    return "".join(order)


def test_click_precedes_earlier_low_priority_requests() -> None:
    assert _order("LLc") == "cLL"
    assert _order("cLc") == "ccL"


def test_low_priority_requests_are_not_starved() -> None:
    assert _order("LL" + 12 * "c") == "ccccLccccLcccc"


def test_lock_is_exclusive_after_an_error() -> None:
    lock, inside, max_inside = PriorityLock(), 0, 0

    def request() -> None:
        nonlocal inside, max_inside
        for _ in range(200):
            try:
                with lock:
                    inside += 1
                    max_inside = max(max_inside, inside)
                    inside -= 1
                    raise ZeroDivisionError
            except ZeroDivisionError:
                pass

    threads = [threading.Thread(target=request) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (max_inside, inside, lock._free) == (1, 0, 1)


def test_a_lock_of_several_places_admits_as_many() -> None:
    lock, crowd = PriorityLock(3), Crowd(3)

    def request() -> None:
        with lock:
            crowd.join()

    threads = [threading.Thread(target=request) for _ in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert crowd.most == 3
    assert lock._free == 3
