"""Define the tensors of a remote black box, and check what it declares and returns.

==================  ============  =================  =======================================================
tensor              datatype      shape              content
==================  ============  =================  =======================================================
``image``           UINT8         [-1, H, W, 3]      RGB; if H and W are -1, the operator sets the size
``points``          FP32          [-1, -1, 2]        see ``prompt_tensors``
``labels``          INT32         [-1, -1]           see ``prompt_tensors``
``sizes``           INT32         [-1, 2]            H and W of the slice in the upper left corner of the image
``probabilities``   FP32          [-1, H, W]         of the object, in [0, 1]
``masks``           UINT8, BOOL   [-1, H, W]         0 or 1, from a model that returns no probabilities
==================  ============  =================  =======================================================

The first four are inputs; a model that works on the square with its padding has no ``sizes``. One of the others is the
output, ``probabilities`` if there are both. A model may declare 1 instead of -1 for the number of images per request. H
must equal W, because black boxes get square images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baps.blackbox.remote.inference_protocol import Description, Tensor
from baps.errors import BapsError, InputError

PROBABILITIES, MASKS = "probabilities", "masks"
_Declared = tuple[tuple[str, ...], tuple[str, ...]]
_INPUTS: dict[str, _Declared] = {
    "image": (("UINT8",), ("-1", "H", "W", "3")),
    "points": (("FP32",), ("-1", "-1", "2")),
    "labels": (("INT32",), ("-1", "-1")),
}
_OPTIONAL_INPUTS: dict[str, _Declared] = {"sizes": (("INT32",), ("-1", "2"))}
_OUTPUTS: dict[str, _Declared] = {
    PROBABILITIES: (("FP32",), ("-1", "H", "W")),
    MASKS: (("UINT8", "BOOL"), ("-1", "H", "W")),
}

_ROUNDING = 1e-4
"""Distance beyond 0 or 1 up to which a probability is clipped instead of refused."""


@dataclass(frozen=True)
class TensorForm:
    """What varies between the tensors of models.

    Attributes:
        output: name of the output that is requested.
        image_size: width and height of the images, pixels, or None for any.
        single_image: whether a request may hold one image only.
        sizes: whether the model gets the size of the slice in each image, so that it can ignore the padding.
    """

    output: str
    image_size: int | None
    single_image: bool
    sizes: bool


def check_description(description: Description, where: str) -> TensorForm:
    """Check the metadata of a model.

    Args:
        description: the metadata.
        where: address of the model, for the error message.

    Returns:
        The form of its tensors.

    Raises:
        InputError: if the inputs or outputs cannot be used; the message lists what was found and what is expected.
    """
    output = next((name for name in _OUTPUTS if name in description.outputs), PROBABILITIES)
    inputs = _INPUTS | {name: form for name, form in _OPTIONAL_INPUTS.items() if name in description.inputs}
    faults = [
        f"the {kind} {name} is {tensors.get(name, 'missing')}, but {_describe(form)} is expected"
        for kind, tensors, forms in (
            ("input", description.inputs, inputs),
            ("output", description.outputs, {output: _OUTPUTS[output]}),
        )
        for name, form in forms.items()
        if name not in tensors or not _fits(tensors[name], form)
    ]
    faults += [
        f"there is an input {name}, for which there is no value" for name in description.inputs if name not in inputs
    ]
    declared = [description.inputs.get("image"), description.outputs.get(output)]
    sizes = {size for tensor in declared if tensor for size in tensor.shape[1:3]} - {-1}
    if not faults and len(sizes) > 1:
        faults = [f"its images are {declared[0]} and its {output} {declared[1]}, but all must be squares of one size"]
    if faults:
        raise InputError(
            f"The model at {where} cannot be used as a black box: {'; '.join(faults)}. Give it these tensors, or give "
            "the address of another model."
        )
    first = [description.inputs[name].shape[0] for name in inputs] + [description.outputs[output].shape[0]]
    return TensorForm(output, next(iter(sizes), None), 1 in first, "sizes" in inputs)


def check_output(output: NDArray[Any], shape: tuple[int, ...], name: str, where: str) -> NDArray[np.float32]:
    """Check an output, and convert it to probabilities; masks become 0 and 1.

    Args:
        output: the tensor that was received, (B, H, W).
        shape: the shape that it must have.
        name: name of the output.
        where: address of the model, for the error message.

    Returns:
        Probabilities, (B, H, W) in [0, 1].

    Raises:
        BapsError: if the shape or type is wrong, or the values are not probabilities or masks.
    """
    dtypes: tuple[type, ...] = (np.float32,) if name == PROBABILITIES else (np.uint8, np.bool_)
    fault = ""
    if output.shape != shape or output.dtype not in dtypes:
        fault = f"have the shape {output.shape} and type {output.dtype}, but {shape} of {_describe(_OUTPUTS[name])}"
        fault += " is expected"
    elif not np.isfinite(output).all():
        fault = "are not finite everywhere"
    elif output.min() < -_ROUNDING or output.max() > 1 + _ROUNDING:
        fault = f"reach from {output.min():g} to {output.max():g}, but must lie in 0 to 1"
    if fault:
        raise BapsError(f"The {name} that the model at {where} returned {fault}. Fix the model on its server.")
    return output.astype(np.float32).clip(0, 1)


def _fits(tensor: Tensor, form: _Declared) -> bool:
    datatypes, pattern = form
    if tensor.datatype not in datatypes or len(tensor.shape) != len(pattern) or tensor.shape[0] not in (-1, 1):
        return False
    rest = zip(tensor.shape[1:], pattern[1:], strict=True)
    return all((size == -1 or size > 0) if wanted in "HW" else str(size) == wanted for size, wanted in rest)


def _describe(form: _Declared) -> str:
    return f"{' or '.join(form[0])} [{', '.join(form[1])}]"
