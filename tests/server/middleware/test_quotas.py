from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from baps.server.middleware.quotas import GROUPS, FairQueue, QueueFullError


def test_free_slots_are_given_to_users_in_turn() -> None:
    """One user sends eight requests before two others send one each; they wait for one response, not for eight."""

    async def order() -> list[str]:
        queue, served = FairQueue(1, 1, 100), list[str]()

        async def ask(user: str) -> None:
            async with queue.slot(user):
                served.append(user)
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(ask(user)) for user in "aaaaaaaabc"]
        await asyncio.gather(*tasks)
        return served

    served = asyncio.run(order())
    assert sorted(served) == sorted("aaaaaaaabc")
    assert {served.index("b"), served.index("c")} <= {1, 2, 3}


@pytest.mark.parametrize(("users", "together"), [("aaaaa", 2), ("ab", 2), ("aabbcc", 3), ("aaab", 3)])
def test_total_and_per_user_slots_are_limited(users: str, together: int) -> None:
    async def run() -> int:
        queue, running, max_running = FairQueue(3, 2, 100), 0, 0

        async def ask(user: str) -> None:
            nonlocal running, max_running
            async with queue.slot(user):
                running += 1
                max_running = max(max_running, running)
                await asyncio.sleep(0.01)
                running -= 1

        await asyncio.gather(*map(ask, users))
        return max_running

    assert asyncio.run(run()) == together


def test_too_many_waiting_requests_of_one_user_are_refused() -> None:
    async def run() -> None:
        queue = FairQueue(1, 1, 2)
        async with queue.slot("a"):
            waiting = [asyncio.ensure_future(AsyncExitStack().enter_async_context(queue.slot("a"))) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(QueueFullError):
                async with queue.slot("a"):
                    pass
            other_user = asyncio.ensure_future(AsyncExitStack().enter_async_context(queue.slot("b")))
            await asyncio.sleep(0)
            assert not other_user.done()
            for request in (*waiting, other_user):
                request.cancel()
            await asyncio.gather(*waiting, other_user, return_exceptions=True)

    asyncio.run(run())


def test_cancelled_requests_release_their_slots() -> None:
    async def run() -> None:
        queue = FairQueue(1, 1, 10)

        async def ask() -> None:
            async with queue.slot("a"):
                await asyncio.sleep(0)

        async with queue.slot("b"):
            waiting, granted = asyncio.ensure_future(ask()), asyncio.ensure_future(ask())
            await asyncio.sleep(0)
            waiting.cancel()
        granted.cancel()  # It has the slot, but has not run since.
        await asyncio.gather(waiting, granted, return_exceptions=True)
        await asyncio.wait_for(ask(), 5)
        assert queue._free == 1
        assert not queue._held

    asyncio.run(run())


@pytest.mark.parametrize(
    ("request_", "group"),
    [
        ("POST /infer/baps", "clicks"),
        ("POST /infer/whole_organ", "whole organs"),
        ("POST /activelearning/random", "next samples"),
        ("GET /datastore/image", "images"),
        ("HEAD /datastore/image", "images"),
        ("GET /proxy/dicom/studies/1.2/series/3.4/instances/5/frames/1", "images"),
        ("GET /session/abc", "images"),
        ("GET /datastore/", "lists"),
        ("GET /datastore/image/info", "pages"),
        ("PUT /datastore/label", "changes"),
        ("POST /proxy/dicom/studies", "changes"),
        ("PUT /session/", "changes"),
        ("POST /train/baps", "changes"),
        ("DELETE /progress/a", "changes"),
        ("POST /login", "sign-ins"),
        ("GET /login/openid", "sign-ins at the provider"),
        ("GET /ohif/app.js", "pages"),
        ("GET /ohif/a\nb", "pages"),
    ],
)
def test_each_request_has_a_group(request_: str, group: str) -> None:
    assert next(one.name for one in GROUPS if one.requests.fullmatch(request_)) == group
