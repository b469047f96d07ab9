"""Rate limit of logins that failed: whoever fails too often has to wait. A provider's password might be guessed."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from ipaddress import ip_address, ip_network

_SECONDS = 300.0
_KEYS = 4096


class LoginThrottle:
    """Failures of the last minutes by a key, such as an address, in bounded memory.

    Args:
        most: failures after which one has to wait.
        clock: of seconds.
    """

    def __init__(self, most: int = 10, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock, self._lock = most, clock, threading.Lock()
        self._failed: OrderedDict[str, deque[float]] = OrderedDict()

    def count(self, key: str) -> int:
        """Count an attempt as failed, or give the seconds until there may be one, of which none is counted.

        The key that failed longest ago is forgotten where there are too many.
        """
        with self._lock:
            now, times = self._clock(), self._failed.setdefault(key, deque(maxlen=self._most))
            if len(times) == self._most and (seconds := round(times[0] + _SECONDS - now)) > 0:
                return seconds
            times.append(now)
            self._failed.move_to_end(key)
            if len(self._failed) > _KEYS:
                self._failed.popitem(last=False)
            return 0

    def take_back(self, key: str) -> None:
        """Count one failure less: an attempt that was counted and did not fail."""
        with self._lock:
            if times := self._failed.get(key):
                times.pop()


def network_of(address: str) -> str:
    """An address as a key; one of IPv6 counts with its network, for whoever has one has all of it."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ip_network((parsed, 64), strict=False)) if parsed.version == 6 else str(parsed)
