from __future__ import annotations

import pytest

from web.attempts import Attempts


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_who_fails_ten_times_in_five_minutes_has_to_wait() -> None:
    clock = Clock()
    attempts = Attempts(clock)
    for _ in range(10):
        assert attempts.wait("10.0.0.1") == 0
        attempts.failed("10.0.0.1")
        clock.now += 10
    assert attempts.wait("10.0.0.1") == 200
    assert attempts.wait("10.0.0.2") == 0
    clock.now += 201
    assert attempts.wait("10.0.0.1") == 0
    attempts.failed("10.0.0.1")
    assert attempts.wait("10.0.0.1") > 0  # The others are not yet five minutes old.


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("10.0.0.1", "10.0.0.2", False),
    ],
)
def test_an_ipv6_address_counts_with_its_network(one: str, other: str, same: bool) -> None:
    attempts = Attempts()
    for _ in range(10):
        attempts.failed(one)
    assert (attempts.wait(other) > 0) == same


def test_memory_is_bounded_and_the_oldest_are_forgotten() -> None:
    attempts = Attempts()
    for number in range(5000):
        for _ in range(10):
            attempts.failed(f"10.{number >> 8}.{number & 255}.1")
    assert len(attempts._failed) == 4096
    assert attempts.wait("10.0.0.1") == 0
    assert attempts.wait("10.19.135.1") > 0
