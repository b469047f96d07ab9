"""Errors as replies."""

from __future__ import annotations

from fastapi import Request
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
    return JSONResponse({"detail": without_paths(getattr(error, "msg", None) or str(error))}, code)
