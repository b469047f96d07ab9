"""Convert errors to responses."""

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
"""Error numbers of a full disk, an exhausted quota and a read-only disk."""


async def handle_domain_error(_: Request, error: Exception) -> JSONResponse:
    """Return the message and the status code of an error of this project or of MONAI Label."""
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
    """Return a message for a disk that cannot be written to.

    Raises:
        OSError: If it is another error of the system.
    """
    if not isinstance(error, OSError) or error.errno not in _NO_ROOM:
        raise error
    return _reply(f"The server cannot write to its disk ({error.strerror}). Tell its operator, then try again.", 507)


async def handle_http_error(request: Request, error: Exception) -> Response:
    """Return FastAPI's response, unless an upload failed because the disk is full.

    FastAPI would report that the upload cannot be parsed. ``handle_os_error`` handles it instead.
    """
    assert isinstance(error, HTTPException)
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in _NO_ROOM:
        return await handle_os_error(request, cause)
    return await http_exception_handler(request, error)


async def handle_validation_error(_: Request, error: Exception) -> JSONResponse:
    """Return a message for a request whose fields are missing or of the wrong type.

    FastAPI's own response repeats the fields, which may be neither text nor JSON.
    """
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = " ".join(map(str, first["loc"]))
    return _reply(f"The request's {where[:200]} cannot be used: {first['msg']}.", 422)


def _reply(sentence: str, code: int) -> JSONResponse:
    """Return an error response. Unpaired surrogates, which JSON can hold and UTF-8 cannot, are escaped."""
    return JSONResponse({"detail": sentence.encode(errors="backslashreplace").decode()}, code)
