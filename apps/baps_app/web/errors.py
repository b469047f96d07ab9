"""Errors as replies."""

from __future__ import annotations

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException

from baps.discreet import without_paths
from baps.errors import InputError, NotFoundError


async def said(_: Request, error: Exception) -> JSONResponse:
    """A sentence and the right status code for an error that was foreseen."""
    if isinstance(error, (NotFoundError, ImageNotFoundException, LabelNotFoundException)):
        code = 404
    elif isinstance(error, (InputError, MONAILabelException)):
        code = 400
    else:
        code = 503
    return _reply(without_paths(getattr(error, "msg", None) or str(error)), code)


async def misfit(_: Request, error: Exception) -> JSONResponse:
    """A sentence for a request whose fields are missing or of another kind.

    The host's framework repeats what was sent, which need not be text or JSON.
    """
    assert isinstance(error, RequestValidationError)  # noqa: S101 (it is the handler of these)
    first = error.errors()[0]
    where = " ".join(map(str, first["loc"]))
    return _reply(f"The request's {where[:200]} cannot be used: {first['msg']}.", 422)


def _reply(sentence: str, code: int) -> JSONResponse:
    """Half of a surrogate pair, which JSON can carry, has no bytes; it is shown as it was written."""
    return JSONResponse({"detail": sentence.encode(errors="backslashreplace").decode()}, code)
