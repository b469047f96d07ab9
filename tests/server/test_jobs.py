from __future__ import annotations

import pytest

from baps.errors import NotFoundError
from baps.server.jobs import Jobs, requested_by


def test_a_job_is_listed_as_long_as_it_runs() -> None:
    jobs = Jobs()
    assert jobs.records() == []
    with jobs.running("a") as first, jobs.running("b") as second:
        first.report(3, 40)
        listed = jobs.records()
        assert [(one["id"], one["model"], one["done"], one["total"]) for one in listed] == [
            (first.id, "a", 3, 40),
            (second.id, "b", 0, 0),
        ]
        assert set(listed[0]) == {"id", "model", "done", "total", "seconds"}
    assert jobs.records() == []


def test_a_job_that_failed_is_no_longer_listed() -> None:
    jobs = Jobs()
    with pytest.raises(ZeroDivisionError), jobs.running("a"):
        raise ZeroDivisionError
    assert jobs.records() == []


def test_cancelling_one_leaves_the_others() -> None:
    jobs = Jobs()
    with jobs.running("a") as first, jobs.running("a") as second:
        jobs.cancel(first.id)
        assert (first.cancelled, second.cancelled) == (True, False)
    with pytest.raises(NotFoundError, match="There is no job"):
        jobs.cancel(first.id)


def test_a_job_ends_when_who_asked_has_left() -> None:
    jobs, gone = Jobs(), list[bool]()
    with requested_by(lambda: bool(gone)), jobs.running("a") as job:
        assert not job.cancelled
        gone.append(True)
        assert job.cancelled
        gone.clear()
        assert job.cancelled  # For good.
    with jobs.running("a") as other:
        assert not other.cancelled


def test_a_user_sees_and_ends_their_own_jobs_alone() -> None:
    jobs = Jobs()
    with (
        requested_by(lambda: False, "anna"), jobs.running("a") as hers, requested_by(lambda: False, "bert"),
        jobs.running("a") as his,
    ):  # fmt: skip
        assert [one["id"] for one in jobs.records("anna")] == [hers.id]
        assert [one["id"] for one in jobs.records()] == [hers.id, his.id]
        with pytest.raises(NotFoundError, match="There is no job"):
            jobs.cancel(his.id, "anna")
        assert not his.cancelled
        jobs.cancel(hers.id, "anna")
        jobs.cancel(his.id)
        assert hers.cancelled
        assert his.cancelled
