from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from baps.server.auth.login_throttle import LoginThrottle, network_key


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_ten_failures_in_five_minutes_require_a_wait() -> None:
    clock = Clock()
    throttle = LoginThrottle(clock=clock)
    for _ in range(10):
        assert throttle.count("10.0.0.1") == 0
        clock.now += 10
    assert throttle.count("10.0.0.1") == 200
    assert throttle.count("10.0.0.2") == 0
    clock.now += 201
    assert throttle.count("10.0.0.1") == 0
    assert throttle.count("10.0.0.1") > 0  # The others are not yet five minutes old.


def test_a_successful_attempt_is_uncounted() -> None:
    throttle = LoginThrottle(max_failures=3)
    for _ in range(9):
        assert throttle.count("rita") == 0
        throttle.uncount("rita")
    throttle.uncount("nobody")
    assert [throttle.count("rita") > 0 for _ in range(4)] == [False, False, False, True]


def test_concurrent_attempts_do_not_exceed_the_limit() -> None:
    throttle = LoginThrottle()
    with ThreadPoolExecutor(16) as pool:
        waits = list(pool.map(lambda _: throttle.count("rita"), range(200)))
    assert waits.count(0) == 10


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("10.0.0.1", "10.0.0.2", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
    ],
)
def test_ipv6_addresses_are_counted_by_network(first: str, second: str, same: bool) -> None:
    assert (network_key(first) == network_key(second)) == same


def test_the_number_of_keys_is_limited_and_the_oldest_are_forgotten() -> None:
    throttle = LoginThrottle()
    for number in range(5000):
        for _ in range(10):
            throttle.count(f"{number}")
    assert len(throttle._failures) == 4096
    assert throttle.count("0") == 0
    assert throttle.count("4999") > 0
