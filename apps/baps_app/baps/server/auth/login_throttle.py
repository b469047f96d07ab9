"""Rate limit for failed logins, so that nobody can guess passwords of the OpenID provider."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from ipaddress import ip_address, ip_network

_WINDOW_SECONDS = 300.0
_MAX_KEYS = 4096


class LoginThrottle:
    """Counts failures of the last five minutes by key, such as an address, in bounded memory.

    Args:
        max_failures: Number of failures after which no further attempt is allowed.
        clock: Returns the time in seconds.
    """

    def __init__(self, max_failures: int = 10, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_failures, self._clock, self._lock = max_failures, clock, threading.Lock()
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def count(self, key: str) -> int:
        """Count an attempt as failed, unless the key has failed too often.

        If there are too many keys, the one that failed longest ago is forgotten.

        Args:
            key: Key of the attempt.

        Returns:
            0 if the attempt was counted, else the seconds until the next attempt is allowed.
        """
        with self._lock:
            now, times = self._clock(), self._failures.setdefault(key, deque(maxlen=self._max_failures))
            if len(times) == self._max_failures and (seconds := round(times[0] + _WINDOW_SECONDS - now)) > 0:
                return seconds
            times.append(now)
            self._failures.move_to_end(key)
            if len(self._failures) > _MAX_KEYS:
                self._failures.popitem(last=False)
            return 0

    def uncount(self, key: str) -> None:
        """Remove the last failure of a key: the attempt was counted, but did not fail.

        Args:
            key: Key of the attempt.
        """
        with self._lock:
            if times := self._failures.get(key):
                times.pop()


def network_key(address: str) -> str:
    """Return the key under which an address is counted.

    For IPv6 this is the /64 network, because a client usually owns all addresses of its network.

    Args:
        address: IP address, or any other text, which is returned unchanged.
    """
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ip_network((parsed, 64), strict=False)) if parsed.version == 6 else str(parsed)
