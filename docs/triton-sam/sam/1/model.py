"""SAM in Triton's Python backend: segments batches of square images with one prompt per image.

The prompts are the tensors of SAM's exported decoder: points (B, N, 2) are (X, Y) in pixels; labels (B, N) are 1 for a
positive click, 0 for a negative click, 2 and 3 for the corners of the box, and -1 for padding. sizes (B, 2) are the
height and the width of the slice in the upper left corner of each image; the rest is padding. This file needs torch and
segment-anything, and nothing of BAPS.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from segment_anything import sam_model_registry

_INPUTS = ("image", "points", "labels", "sizes")
_BOX_CORNER, _PADDING = 2, -1


class TritonPythonModel:
    """The model, with the methods that Triton calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the checkpoint that the configuration names; only tensors are unpickled."""
        parameters = json.loads(args["model_config"])["parameters"]
        gpu = args["model_instance_kind"] == "GPU"
        self.device = torch.device(f"cuda:{args['model_instance_device_id']}" if gpu else "cpu")
        self.model = sam_model_registry[parameters["variant"]["string_value"]]()
        state = torch.load(parameters["checkpoint"]["string_value"], map_location="cpu", weights_only=True)
        self.model.load_state_dict(state)
        self.model.eval().requires_grad_(False).to(self.device)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with probabilities or an error. The images of all requests are encoded together."""
        inputs = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in _INPUTS] for request in requests
        ]
        counts = [len(images) for images, *_ in inputs]
        try:
            images, sizes = (np.concatenate([tensors[place] for tensors in inputs]) for place in (0, 3))
            embeddings = self.embed(images, sizes).split(counts)
        except Exception as error:  # An error must not stop the server.
            return [pb_utils.InferenceResponse([], pb_utils.TritonError(str(error)))] * len(requests)
        responses = []
        for (images, points, labels, _), embedded in zip(inputs, embeddings, strict=True):
            try:
                output = pb_utils.Tensor("probabilities", self.decode(embedded, points, labels, images.shape[1:3]))
                responses.append(pb_utils.InferenceResponse([output]))
            except Exception as error:
                responses.append(pb_utils.InferenceResponse([], pb_utils.TritonError(str(error))))
        return responses

    @torch.inference_mode()
    def segment(self, images: np.ndarray, points: np.ndarray, labels: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Compute probabilities (B, S, S) for images (B, S, S, 3) uint8: encode all images, then decode each prompt."""
        return self.decode(self.embed(images, sizes), points, labels, images.shape[1:3])

    @torch.inference_mode()
    def embed(self, images: np.ndarray, sizes: np.ndarray) -> torch.Tensor:
        """Encode images (B, S, S, 3) uint8 as (B, C, h, w)."""
        pixels = self.model.preprocess(torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float())
        for row, (height, width) in enumerate(sizes):  # SAM's padding is 0 after normalisation.
            pixels[row, :, height:] = 0
            pixels[row, :, :, width:] = 0
        return self.model.image_encoder(pixels)

    @torch.inference_mode()
    def decode(
        self, embeddings: torch.Tensor, points: np.ndarray, labels: np.ndarray, size: tuple[int, int]
    ) -> np.ndarray:
        """Compute probabilities (B, S, S) from the encodings (B, C, h, w) of images of a size (S, S)."""
        masks = []
        for row in range(len(embeddings)):
            clicks = (labels[row] < _BOX_CORNER) & (labels[row] != _PADDING)
            clicked = box = None
            if clicks.any():
                coordinates = torch.from_numpy(points[row][clicks][None]).to(self.device)
                clicked = (coordinates, torch.from_numpy(labels[row][clicks][None]).to(self.device))
            if (labels[row] >= _BOX_CORNER).any():
                corners = np.concatenate([points[row][labels[row] == corner][0] for corner in (2, 3)])
                box = torch.from_numpy(corners[None]).to(self.device)
            sparse, dense = self.model.prompt_encoder(clicked, box, None)
            logits, _ = self.model.mask_decoder(
                embeddings[row : row + 1], self.model.prompt_encoder.get_dense_pe(), sparse, dense, False
            )
            masks.append(self.model.postprocess_masks(logits, size, size)[0, 0].sigmoid())
        return torch.stack(masks).float().cpu().numpy()
