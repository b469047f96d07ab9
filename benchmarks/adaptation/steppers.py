"""Steppers for comparison only: CMA-ES, and backpropagation through the model itself."""

from __future__ import annotations

from collections.abc import Sequence

import cma
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from baps.adapters.visual_prompt import VisualPrompt
from baps.blackbox import BlackBox
from baps.blackbox.decoding import decode_masks
from baps.blackbox.loading import bundled_network
from baps.prompts import Prompt
from baps.training.batches import Batch
from baps.training.losses import image_losses
from baps.training.settings import AdaptationSettings
from baps.training.steps import GetOrQuery, PromptSpaceStepper, Stepper, query_black_box


def trainable_parameters(visual_prompt: VisualPrompt) -> list[torch.nn.Parameter]:
    """Return the weights that are trained."""
    return [value for value in visual_prompt.parameters() if value.requires_grad]


class CmaEsStepper(Stepper):
    """CMA-ES (Hansen; the package ``cma``) on the trained weights: one generation per step, on the same slices."""

    batch_size = 8

    def __init__(self, seed: int, population: int = 10, spread: float = 0.1) -> None:
        self.seed, self.population, self.spread = seed, population, spread
        self.queries_per_slice = population

    def start(self, visual_prompt: VisualPrompt, steps: int) -> None:
        self.visual_prompt = visual_prompt
        first = parameters_to_vector(trainable_parameters(visual_prompt)).detach().numpy()
        options = {"popsize": self.population, "seed": self.seed + 1, "verbose": -9, "maxiter": steps + 1}
        self.search = cma.CMAEvolutionStrategy(first, self.spread, options)

    @torch.no_grad()
    def step(self, black_box: BlackBox, batch: Batch, generator: torch.Generator, get_or_query: GetOrQuery) -> None:
        candidates = self.search.ask()

        def query() -> list[float]:
            codes = []
            for candidate in candidates:
                self._set_weights(candidate)
                codes.append(self.visual_prompt(batch.features, batch.prompts, batch.images))
            images = self.visual_prompt.apply_code(batch.images, torch.cat(codes))
            answers = query_black_box(black_box, images, batch.prompts * len(candidates), batch.sizes * len(candidates))
            losses: list[float] = self.answer_losses(answers, batch).view(len(candidates), -1).mean(1).tolist()
            return losses

        self.search.tell(candidates, get_or_query(query))
        self._set_weights(self.search.result.xfavorite)  # The mean of the distribution.

    def answer_losses(self, answers: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Compute one loss per answer, (P * B,), those of the first candidate on all B slices first."""
        return image_losses(answers, batch.target.repeat(len(answers) // len(batch.target), 1, 1))

    def _set_weights(self, weights: NDArray[np.float64]) -> None:
        vector_to_parameters(torch.from_numpy(weights).float(), trainable_parameters(self.visual_prompt))


class WhiteBoxStepper(PromptSpaceStepper):
    """Exact gradients through the bundled model, which no black box allows: an upper bound. Rounding is omitted.

    It queries nothing, and makes as many steps as prompt-space optimisation does.
    """

    def __init__(self, settings: AdaptationSettings) -> None:
        super().__init__(settings)
        self.model = bundled_network()[0].eval().requires_grad_(False)

    def step(self, black_box: BlackBox, batch: Batch, generator: torch.Generator, get_or_query: GetOrQuery) -> None:
        code = self.visual_prompt(batch.features, batch.prompts, batch.images)
        images = self.visual_prompt.apply_unrounded(batch.images, code).clamp(0, 255)
        self.descend(image_losses(self._segment(images, batch.prompts), batch.target).mean())

    def _segment(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Compute probabilities (B, S, S) with a graph, for images of the model's own size and clicks.

        Prompts with the same number of clicks are decoded together, as ``SamBlackBox`` does.
        """
        embeddings = self.model.image_encoder(self.model.preprocess(images))
        position = self.model.prompt_encoder.get_dense_pe()
        clicks = [[*prompt.positive, *prompt.negative] for prompt in prompts]
        losses: dict[int, torch.Tensor] = {}
        for count in {len(points) for points in clicks}:
            rows = [row for row, points in enumerate(clicks) if len(points) == count]
            coordinates = torch.tensor([clicks[row] for row in rows])
            signs = torch.tensor([[n < len(prompts[row].positive) for n in range(count)] for row in rows]).int()
            sparse, dense = self.model.prompt_encoder((coordinates, signs), None, None)
            masks, _ = decode_masks(self.model.mask_decoder, embeddings[rows], position, sparse, dense)
            losses.update(zip(rows, masks[:, :1], strict=True))
        size = (images.shape[-2], images.shape[-1])
        low = torch.stack([losses[row] for row in range(len(prompts))])
        return self.model.postprocess_masks(low, size, size)[:, 0].sigmoid()
