from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response

from baps.errors import BapsError, InputError, NotFoundError, StorageError
from baps.server.error_handlers import handle_domain_error, handle_http_error, handle_os_error, handle_validation_error

REQUEST = Request({"type": "http", "path": "/info/", "headers": []})


def _reply(answer: Coroutine[Any, Any, Response]) -> Response:
    """In a thread of its own: a browser of other tests has a loop in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, answer).result()


@pytest.mark.parametrize(
    ("error", "code"),
    [(NotFoundError, 404), (InputError, 400), (StorageError, 507), (BapsError, 503)],
)
def test_status_codes(error: type[Exception], code: int) -> None:
    reply = _reply(handle_domain_error(REQUEST, error("The slice \ud800 is none.")))
    assert (reply.status_code, json.loads(reply.body)["detail"]) == (code, "The slice \\ud800 is none.")


@pytest.mark.parametrize("given", [float("nan"), "\ud800", object()])
def test_validation_errors_do_not_repeat_the_request(given: object) -> None:
    """It need be no JSON, and would make the refusal an error."""
    wrong = {"type": "dict_type", "loc": ("body", "\ud800"), "msg": "Input should be an object", "input": given}
    reply = _reply(handle_validation_error(REQUEST, RequestValidationError([wrong])))
    sentence = "The request's body \\ud800 cannot be used: Input should be an object."
    assert (reply.status_code, json.loads(reply.body)) == (422, {"detail": sentence})


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_full_disk(code: int) -> None:
    full = OSError(code, "No space left on device", "/srv/baps/SMITH^JOHN.nii.gz")
    unread = HTTPException(400, "There was an error parsing the body")
    unread.__cause__ = full
    for reply in (_reply(handle_os_error(REQUEST, full)), _reply(handle_http_error(REQUEST, unread))):
        assert (reply.status_code, b"(No space left on device)" in reply.body) == (507, True)
        assert b"SMITH" not in reply.body


def test_other_os_errors_are_raised() -> None:
    with pytest.raises(PermissionError):
        _reply(handle_os_error(REQUEST, PermissionError(errno.EACCES, "no")))
    assert _reply(handle_http_error(REQUEST, HTTPException(404, "none"))).status_code == 404
