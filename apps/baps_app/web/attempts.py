"""Logins that failed: whoever fails too often has to wait. A provider's password might be guessed."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from ipaddress import ip_address, ip_network

_MOST = 10
_SECONDS = 300.0
_ADDRESSES = 4096


class Attempts:
    """Failures of the last minutes by address, in bounded memory.

    Args:
        clock: of seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._failed: OrderedDict[str, deque[float]] = OrderedDict()

    def wait(self, address: str) -> int:
        """Seconds until an address may try again, 0 if it may now."""
        with self._lock:
            times = self._failed.get(_network(address))
            if times is None or len(times) < _MOST:
                return 0
            return max(0, round(times[0] + _SECONDS - self._clock()))

    def failed(self, address: str) -> None:
        """Count a failure; the address that failed longest ago is forgotten where there are too many."""
        with self._lock:
            times = self._failed.setdefault(_network(address), deque(maxlen=_MOST))
            times.append(self._clock())
            self._failed.move_to_end(_network(address))
            if len(self._failed) > _ADDRESSES:
                self._failed.popitem(last=False)


def _network(address: str) -> str:
    """An IPv6 address counts with its network: whoever has one has all of it."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ip_network((parsed, 64), strict=False)) if parsed.version == 6 else str(parsed)
