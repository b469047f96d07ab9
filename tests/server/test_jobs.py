from __future__ import annotations

import pytest

from baps.errors import NotFoundError
from baps.server.jobs import Client, LongRequests


def test_a_job_is_listed_as_long_as_it_runs() -> None:
    jobs = LongRequests()
    assert jobs.to_dicts() == []
    with jobs.running("a") as first, jobs.running("b") as second:
        first.report(3, 40)
        listed = jobs.to_dicts()
        assert [(one["id"], one["model"], one["done"], one["total"]) for one in listed] == [
            (first.id, "a", 3, 40),
            (second.id, "b", 0, 0),
        ]
        assert set(listed[0]) == {"id", "model", "done", "total", "seconds"}
    assert jobs.to_dicts() == []


def test_a_job_that_failed_is_no_longer_listed() -> None:
    jobs = LongRequests()
    with pytest.raises(ZeroDivisionError), jobs.running("a"):
        raise ZeroDivisionError
    assert jobs.to_dicts() == []


def test_cancelling_one_leaves_the_others() -> None:
    jobs = LongRequests()
    with jobs.running("a") as first, jobs.running("a") as second:
        jobs.cancel(first.id)
        assert (first.cancelled, second.cancelled) == (True, False)
    with pytest.raises(NotFoundError, match="There is no job"):
        jobs.cancel(first.id)


def test_a_job_is_cancelled_when_its_client_disconnects() -> None:
    jobs, gone = LongRequests(), list[bool]()
    with jobs.running("a", Client(lambda: bool(gone))) as job:
        assert not job.cancelled
        gone.append(True)
        assert job.cancelled
        gone.clear()
        assert job.cancelled  # For good.
    with jobs.running("a") as other:
        assert not other.cancelled


def test_users_list_and_cancel_only_their_own_jobs() -> None:
    jobs = LongRequests()
    anna, bert = (Client(lambda: False, name) for name in ("anna", "bert"))
    with jobs.running("a", anna) as hers, jobs.running("a", bert) as his:
        assert [one["id"] for one in jobs.to_dicts("anna")] == [hers.id]
        assert [one["id"] for one in jobs.to_dicts()] == [hers.id, his.id]
        with pytest.raises(NotFoundError, match="There is no job"):
            jobs.cancel(his.id, "anna")
        assert not his.cancelled
        jobs.cancel(hers.id, "anna")
        jobs.cancel(his.id)
        assert hers.cancelled
        assert his.cancelled
