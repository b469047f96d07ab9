"""A request's fields, checked against a form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from baps.errors import InputError

CONFIRMS = "confirms"
"""A field that the server itself adds to a request: whether a trainer sent it, see ``baps.annotations.disputes``."""

DO_NOT_SAVE = "do not save"
"""The choice of the option ``save_as`` that saves nothing."""

Form = TypeVar("Form", bound=BaseModel)


def read_form(form: type[Form], request: Mapping[str, Any], usage: str) -> Form:
    """The fields of a request that a form knows; one that is None counts as left out.

    Args:
        form: what they must be.
        request: as it came.
        usage: a sentence on how the fields are given.

    Raises:
        InputError: if a field has the wrong form; the message ends with ``usage``.
    """
    try:
        return form.model_validate({key: value for key, value in request.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"The request's field {where!r} cannot be used: {first['msg']}. {usage}") from None
