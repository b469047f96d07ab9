"""The tensors of a black box that is asked over a wire, and what is accepted of them.

==================  ============  =================  =======================================================
tensor              datatype      shape              content
==================  ============  =================  =======================================================
``image``           UINT8         [-1, H, W, 3]      RGB; where H and W are -1, the operator says the side
``points``          FP32          [-1, -1, 2]        see ``prompt_tensors``
``labels``          INT32         [-1, -1]           likewise
``probabilities``   FP32          [-1, H, W]         of the object, in [0, 1]
``masks``           UINT8, BOOL   [-1, H, W]         0 or 1, from a model that gives no probabilities
==================  ============  =================  =======================================================

The first three go in; one of the others comes out, ``probabilities`` if there are both. A model may say 1 instead of -1
for the images in a request, and H must be W: black boxes are asked square images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baps.blackbox.remote.inference_protocol import Description, Tensor
from baps.errors import BapsError, InputError

PROBABILITIES, MASKS = "probabilities", "masks"
_Form = tuple[tuple[str, ...], tuple[str, ...]]
_INPUTS: dict[str, _Form] = {
    "image": (("UINT8",), ("-1", "H", "W", "3")),
    "points": (("FP32",), ("-1", "-1", "2")),
    "labels": (("INT32",), ("-1", "-1")),
}
_OUTPUTS: dict[str, _Form] = {
    PROBABILITIES: (("FP32",), ("-1", "H", "W")),
    MASKS: (("UINT8", "BOOL"), ("-1", "H", "W")),
}

_ROUNDING = 1e-4
"""How far beyond 0 or 1 a probability may lie before it is taken for a fault."""


@dataclass(frozen=True)
class Form:
    """What of a model's tensors is its own.

    Attributes:
        output: the one that is asked for.
        side: of its images, pixels, or None where it takes any.
        one_by_one: it takes but one image in a request.
    """

    output: str
    side: int | None
    one_by_one: bool


def check_description(about: Description, where: str) -> Form:
    """Read a model's metadata.

    Args:
        about: the metadata.
        where: the model, for the message.

    Raises:
        InputError: if it has other inputs, or outputs that cannot be used; the message says what was found and what is
            expected of each.
    """
    output = next((name for name in _OUTPUTS if name in about.outputs), PROBABILITIES)
    faults = [
        f"the {kind} {name} is {tensors.get(name, 'missing')}, but {_said(form)} is expected"
        for kind, tensors, forms in (
            ("input", about.inputs, _INPUTS),
            ("output", about.outputs, {output: _OUTPUTS[output]}),
        )
        for name, form in forms.items()
        if name not in tensors or not _fits(tensors[name], form)
    ]
    faults += [f"there is an input {name}, which nobody would give" for name in about.inputs if name not in _INPUTS]
    used = [about.inputs.get("image"), about.outputs.get(output)]
    sides = {size for tensor in used if tensor for size in tensor.shape[1:3]} - {-1}
    if not faults and len(sides) > 1:
        faults = [f"its images are {used[0]} and its {output} {used[1]}, but all must be squares of one size"]
    if faults:
        raise InputError(
            f"The model at {where} cannot be used as a black box: {'; '.join(faults)}. Give it these tensors, or give "
            "the address of another model."
        )
    first = [about.inputs[name].shape[0] for name in _INPUTS] + [about.outputs[output].shape[0]]
    return Form(output, next(iter(sides), None), 1 in first)


def check_answer(answer: NDArray[Any], shape: tuple[int, ...], output: str, where: str) -> NDArray[np.float32]:
    """Read an answer, (B, H, W), as probabilities in [0, 1]; masks become 0 and 1.

    Args:
        answer: what came.
        shape: what it must have.
        output: its name.
        where: the model, for the message.

    Raises:
        BapsError: on another shape or type, or values that are no probabilities or masks.
    """
    kinds: tuple[type, ...] = (np.float32,) if output == PROBABILITIES else (np.uint8, np.bool_)
    fault = ""
    if answer.shape != shape or answer.dtype not in kinds:
        fault = f"have the shape {answer.shape} and type {answer.dtype}, but {shape} of {_said(_OUTPUTS[output])}"
        fault += " is expected"
    elif not np.isfinite(answer).all():
        fault = "are not finite everywhere"
    elif answer.min() < -_ROUNDING or answer.max() > 1 + _ROUNDING:
        fault = f"reach from {answer.min():g} to {answer.max():g}, but must lie in 0 to 1"
    if fault:
        raise BapsError(f"The {output} that the model at {where} answered {fault}. Mend the model on its server.")
    return answer.astype(np.float32).clip(0, 1)


def _fits(tensor: Tensor, form: _Form) -> bool:
    datatypes, pattern = form
    if tensor.datatype not in datatypes or len(tensor.shape) != len(pattern) or tensor.shape[0] not in (-1, 1):
        return False
    rest = zip(tensor.shape[1:], pattern[1:], strict=True)
    return all((size == -1 or size > 0) if wanted in "HW" else str(size) == wanted for size, wanted in rest)


def _said(form: _Form) -> str:
    return f"{' or '.join(form[0])} [{', '.join(form[1])}]"
