"""Errors as replies."""

from __future__ import annotations

import errno

from fastapi import Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException
from starlette.exceptions import HTTPException

from baps.errors import InputError, NotFoundError, StorageError
from baps.utils.redaction import shorten_paths

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""A disk that is full, a quota that is used up, a disk that is read only."""


async def handle_domain_error(_: Request, error: Exception) -> JSONResponse:
    """A sentence and the right status code for an error that was foreseen."""
    if isinstance(error, (NotFoundError, ImageNotFoundException, LabelNotFoundException)):
        code = 404
    elif isinstance(error, (InputError, MONAILabelException)):
        code = 400
    elif isinstance(error, StorageError):
        code = 507
    else:
        code = 503
    return _reply(shorten_paths(getattr(error, "msg", None) or str(error)), code)


async def handle_os_error(_: Request, error: Exception) -> JSONResponse:
    """Answer with a sentence for a disk that cannot be written to.

    Raises:
        OSError: if it is another error of the system, of which the server knows nothing.
    """
    if not isinstance(error, OSError) or error.errno not in _NO_ROOM:
        raise error
    return _reply(f"The server cannot write to its disk ({error.strerror}). Tell its operator, then try again.", 507)


async def handle_http_error(request: Request, error: Exception) -> Response:
    """Answer as FastAPI does, which says of an upload that the disk has no room for that it cannot be parsed.

    That one gets what ``handle_os_error`` says.
    """
    assert isinstance(error, HTTPException)
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in _NO_ROOM:
        return await handle_os_error(request, cause)
    return await http_exception_handler(request, error)


async def handle_validation_error(_: Request, error: Exception) -> JSONResponse:
    """A sentence for a request whose fields are missing or of another kind.

    The host's framework repeats what was sent, which need not be text or JSON.
    """
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = " ".join(map(str, first["loc"]))
    return _reply(f"The request's {where[:200]} cannot be used: {first['msg']}.", 422)


def _reply(sentence: str, code: int) -> JSONResponse:
    """Half of a surrogate pair, which JSON can carry, has no bytes; it is shown as it was written."""
    return JSONResponse({"detail": sentence.encode(errors="backslashreplace").decode()}, code)
