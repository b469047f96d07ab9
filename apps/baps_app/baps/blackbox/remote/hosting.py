"""A local black box behind the Open Inference Protocol, for other machines: KServe's server, with our model in it.

KServe and tritonclient cannot be imported into one process (both register the protocol's messages), so this module and
``inference_protocol`` never meet: a process hosts a model, or asks one.
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

from baps.blackbox.interface import BlackBox
from baps.blackbox.remote.prompt_tensors import to_prompts
from baps.errors import BapsError, InputError

_GRACE_SECONDS = 10


class HostedModel(Model):
    """A black box as a model of KServe's.

    Args:
        black_box: answers.
        name: of the model, in its address.
        hard_masks: answer with masks, 0 or 1, and not with probabilities.
    """

    def __init__(self, black_box: BlackBox, name: str, hard_masks: bool = False) -> None:
        super().__init__(name)
        self._black_box, self._hard_masks = black_box, hard_masks
        self.ready = True

    @property
    def declaration(self) -> str:
        """What tells these weights from others."""
        able = self._black_box.capabilities
        return f"baps {able.name} sha256 {able.weights_sha256}"

    def get_input_types(self) -> list[dict[str, Any]]:
        side = self._black_box.capabilities.input_side
        return [
            {"name": "image", "datatype": "UINT8", "shape": [-1, side, side, 3]},
            {"name": "points", "datatype": "FP32", "shape": [-1, -1, 2]},
            {"name": "labels", "datatype": "INT32", "shape": [-1, -1]},
        ]

    def get_output_types(self) -> list[dict[str, Any]]:
        side = self._black_box.capabilities.input_side
        name, datatype = ("masks", "UINT8") if self._hard_masks else ("probabilities", "FP32")
        return [{"name": name, "datatype": datatype, "shape": [-1, side, side]}]

    async def predict(self, payload: InferRequest, *_: object, **__: object) -> InferResponse:
        """Answer a request, in a thread: the model's readiness can be asked meanwhile."""
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
        given = {}
        for declared in self.get_input_types():
            tensor = request.get_input_by_name(declared["name"])
            if tensor is None or tensor.datatype != declared["datatype"]:
                raise InputError(f"The request needs an input {declared['name']} of type {declared['datatype']}.")
            given[declared["name"]] = tensor.as_numpy()
        prompts = to_prompts(given["points"], given["labels"])
        probabilities = self._black_box.segment(given["image"], prompts)
        return (probabilities > 0.5).astype(np.uint8) if self._hard_masks else probabilities


class _Declaring(DataPlane):
    """KServe has no place of its own where a model could say what it is."""

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        model = self.get_model_from_registry(model_name)
        return {**await super().model_metadata(model_name), "platform": model.declaration}


def host(black_box: BlackBox, name: str, address: str, port: int, grpc_port: int, hard_masks: bool = False) -> None:
    """Serve until the process is told to stop.

    Args:
        black_box: what is served.
        name: of the model.
        address: that is listened on; KServe's own start would take every address of the machine.
        port: for HTTP.
        grpc_port: for gRPC.
        hard_masks: answer with masks, 0 or 1, and not with probabilities.
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
