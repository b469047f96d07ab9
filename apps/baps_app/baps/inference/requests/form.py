"""Validate the fields of a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from baps.errors import InputError

CONFIRMS = "confirms"
"""A field that the server adds to a request: whether a trainer sent it, see ``baps.annotations.disputes``."""

DO_NOT_SAVE = "do not save"
"""The choice of the option ``save_as`` that saves nothing."""

Form = TypeVar("Form", bound=BaseModel)


def read_form(form: type[Form], request: Mapping[str, Any], usage: str) -> Form:
    """Read the fields of a request that a form defines; a field that is None counts as missing.

    Args:
        form: the pydantic model that the fields must fit.
        request: the request as it was received.
        usage: a sentence on how to give the fields.

    Returns:
        The validated form.

    Raises:
        InputError: if a field is invalid; the message ends with ``usage``.
    """
    try:
        return form.model_validate({key: value for key, value in request.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"The request's field {where!r} cannot be used: {first['msg']}. {usage}") from None
