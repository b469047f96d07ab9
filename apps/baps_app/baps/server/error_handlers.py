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
from baps.server.request_context import context_of
from baps.server.web.layout import error_page, is_page
from baps.utils.redaction import shorten_paths

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Error numbers of a full disk, an exhausted quota and a read-only disk."""


async def handle_domain_error(request: Request, error: Exception) -> Response:
    """Return the message and the status code of an error of this project or of MONAI Label."""
    if isinstance(error, (NotFoundError, ImageNotFoundException, LabelNotFoundException)):
        code = 404
    elif isinstance(error, (InputError, MONAILabelException)):
        code = 400
    elif isinstance(error, StorageError):
        code = 507
    else:
        code = 503
    return _reply(request, shorten_paths(getattr(error, "msg", None) or str(error)), code)


async def handle_os_error(request: Request, error: Exception) -> Response:
    """Return a message for a disk that cannot be written to.

    Raises:
        OSError: If it is another error of the system.
    """
    if not isinstance(error, OSError) or error.errno not in _NO_ROOM:
        raise error
    sentence = f"The server cannot write to its disk ({error.strerror}). Tell its operator, then try again."
    return _reply(request, sentence, 507)


async def handle_http_error(request: Request, error: Exception) -> Response:
    """Return FastAPI's response or a page, unless an upload failed because the disk is full.

    FastAPI would report that the upload cannot be parsed. ``handle_os_error`` handles it instead.
    """
    assert isinstance(error, HTTPException)
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in _NO_ROOM:
        return await handle_os_error(request, cause)
    if is_page(request):
        return error_page(request, error.status_code, str(error.detail))
    return await http_exception_handler(request, error)


async def handle_validation_error(request: Request, error: Exception) -> Response:
    """Return a message for a request whose fields are missing or of the wrong type.

    FastAPI's own response repeats the fields, which may be neither text nor JSON.
    """
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = " ".join(map(str, first["loc"]))
    return _reply(request, f"The request's {where[:200]} cannot be used: {first['msg']}.", 422)


def refuse(request: Request, refusal: HTTPException) -> Response:
    """Return the response to a request that the guard refuses.

    Args:
        request: The request.
        refusal: Why, and the status.

    Returns:
        A page if a user has sent it from a browser, else JSON.
    """
    if is_page(request) and context_of(request).principal:
        return error_page(request, refusal.status_code, str(refusal.detail))
    return JSONResponse({"detail": refusal.detail}, refusal.status_code, refusal.headers)


def _reply(request: Request, sentence: str, code: int) -> Response:
    """Return an error response. Unpaired surrogates, which JSON can hold and UTF-8 cannot, are escaped."""
    sentence = sentence.encode(errors="backslashreplace").decode()
    return error_page(request, code, sentence) if is_page(request) else JSONResponse({"detail": sentence}, code)
