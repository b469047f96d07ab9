"""Offer a local black box to other machines through the Open Inference Protocol, with KServe's server.

KServe and tritonclient cannot be imported into one process, because both register the protocol's messages. So this
module and ``inference_protocol`` are never imported together: a process hosts a model, or queries one.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
from kserve import InferRequest, InferResponse, Model
from kserve.errors import InferenceError, InvalidInput
from kserve.model_repository import ModelRepository
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from kserve.protocol.grpc.interceptors import ExceptionToStatusInterceptor
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.infer_type import InferOutput
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.server import RESTServer
from numpy.typing import NDArray
from typing_extensions import override

from baps.blackbox.interface import BlackBox, Size
from baps.blackbox.remote.prompt_tensors import to_prompts
from baps.errors import BapsError, InputError

_GRACE_SECONDS = 10
"""Seconds that open requests have when the server stops."""


class HostedModel(Model):
    """A black box as a KServe model.

    Args:
        black_box: the black box.
        name: name of the model in its address.
        hard_masks: whether to return masks (0 or 1) instead of probabilities.
    """

    def __init__(self, black_box: BlackBox, name: str, hard_masks: bool = False) -> None:
        super().__init__(name)
        self._black_box, self._hard_masks = black_box, hard_masks
        self.ready = True

    @property
    def declaration(self) -> str:
        """Text that identifies the weights and the preprocessing, which version 0.1 did not name: it had only one."""
        capabilities = self._black_box.capabilities
        text = f"baps {capabilities.name} sha256 {capabilities.weights_sha256}"
        return f"{text} {capabilities.preprocessing}" if self._takes_sizes else text

    @property
    def _takes_sizes(self) -> bool:
        return self._black_box.capabilities.preprocessing != "canvas"

    @override
    def get_input_types(self) -> list[dict[str, Any]]:
        size = self._black_box.capabilities.input_size
        inputs = [
            {"name": "image", "datatype": "UINT8", "shape": [-1, size, size, 3]},
            {"name": "points", "datatype": "FP32", "shape": [-1, -1, 2]},
            {"name": "labels", "datatype": "INT32", "shape": [-1, -1]},
        ]
        if self._takes_sizes:
            inputs.append({"name": "sizes", "datatype": "INT32", "shape": [-1, 2]})
        return inputs

    @override
    def get_output_types(self) -> list[dict[str, Any]]:
        size = self._black_box.capabilities.input_size
        name, datatype = ("masks", "UINT8") if self._hard_masks else ("probabilities", "FP32")
        return [{"name": name, "datatype": datatype, "shape": [-1, size, size]}]

    async def predict(self, payload: InferRequest, *_: object, **__: object) -> InferResponse:
        """Answer a request in a thread, so that the readiness of the model can be queried meanwhile.

        Args:
            payload: the request.

        Returns:
            The response.

        Raises:
            InvalidInput: if the request cannot be used.
            InferenceError: if the model fails.
        """
        try:
            answer = await asyncio.to_thread(self._answer, payload)
        except (InputError, InvalidInput) as error:
            raise InvalidInput(str(error)) from error
        except BapsError as error:
            raise InferenceError(str(error)) from error
        [declared] = self.get_output_types()
        output = InferOutput(declared["name"], list(answer.shape), declared["datatype"])
        output.set_data_from_numpy(answer)
        return InferResponse(
            payload.id,
            self.name,
            [output],
            model_version=self._black_box.capabilities.weights_sha256,
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )

    def _answer(self, request: InferRequest) -> np.ndarray[Any, Any]:
        values = {}
        for declared in self.get_input_types():
            tensor = request.get_input_by_name(declared["name"])
            if tensor is None or tensor.datatype != declared["datatype"]:
                raise InputError(f"The request needs an input {declared['name']} of type {declared['datatype']}.")
            values[declared["name"]] = tensor.as_numpy()
        prompts = to_prompts(values["points"], values["labels"])
        sizes = _read_sizes(values["sizes"], values["image"]) if self._takes_sizes else None
        probabilities = self._black_box.segment(values["image"], prompts, sizes)
        return (probabilities > 0.5).astype(np.uint8) if self._hard_masks else probabilities


def _read_sizes(sizes: NDArray[np.int32], images: NDArray[np.uint8]) -> list[Size]:
    """Check the sizes of the slices in images (B, H, W, 3), and convert them."""
    if (
        images.ndim != 4
        or sizes.shape != (len(images), 2)
        or not (sizes >= 1).all()
        or (sizes > images.shape[1:3]).any()
    ):
        raise InputError(
            "sizes must give the height and the width of the slice in each image, (B, 2) in pixels, from 1 to those of "
            f"the image; its shape is {sizes.shape}, and that of the images {images.shape}."
        )
    return [(int(height), int(width)) for height, width in sizes]


class _Declaring(DataPlane):
    """A data plane whose metadata includes the model's declaration, for which KServe has no place of its own."""

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        model = self.get_model_from_registry(model_name)
        return {**await super().model_metadata(model_name), "platform": model.declaration}


def host(black_box: BlackBox, name: str, address: str, port: int, grpc_port: int, hard_masks: bool = False) -> None:
    """Serve a black box until the process is stopped.

    Args:
        black_box: the black box.
        name: name of the model.
        address: address to listen on. KServe's own start listens on all addresses of the machine.
        port: port for HTTP.
        grpc_port: port for gRPC.
        hard_masks: whether to return masks (0 or 1) instead of probabilities.
    """
    models = ModelRepository()
    models.update(HostedModel(black_box, name, hard_masks))
    plane, repository = _Declaring(models), ModelRepositoryExtension(models)
    http = RESTServer("kserve.model_server:app", plane, repository, port, grace_period=_GRACE_SECONDS)
    http.config.host = address

    async def serve() -> None:
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        server = grpc.aio.server(interceptors=(ExceptionToStatusInterceptor(),), options=options)
        add_GRPCInferenceServiceServicer_to_server(InferenceServicer(plane, repository), server)
        server.add_insecure_port(f"[{address}]:{grpc_port}" if ":" in address else f"{address}:{grpc_port}")
        await server.start()
        await http.start()
        await server.stop(_GRACE_SECONDS)

    asyncio.run(serve())
