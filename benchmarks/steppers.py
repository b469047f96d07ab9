"""Ways to train a visual prompt that are only compared with: CMA-ES, and backpropagation through the model itself."""

from __future__ import annotations

import json
from collections.abc import Sequence

import cma
import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from baps.adaptation.batches import Batch
from baps.adaptation.losses import image_losses
from baps.adaptation.steps import Recall, Stepper, ask
from baps.blackbox import BlackBox, Prompt
from baps.blackbox.bundled_model import build_bundled_model
from baps.blackbox.decoding import decode_masks
from baps.blackbox.loading import BUNDLED_WEIGHTS
from baps.blackbox.weights import load_weights
from baps.visual_prompt import VisualPrompt


def trained(visual_prompt: VisualPrompt) -> list[torch.nn.Parameter]:
    """The weights that may move."""
    return [value for value in visual_prompt.parameters() if value.requires_grad]


def bundled_model() -> Sam:
    """The network of the bundled black box itself."""
    state, _ = load_weights(BUNDLED_WEIGHTS, "")
    model = build_bundled_model(json.loads(BUNDLED_WEIGHTS.with_suffix(".json").read_text())["input_side"])
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return model.eval().requires_grad_(False)


class CmaEsStepper(Stepper):
    """CMA-ES (Hansen; the package ``cma``) on the weights that may move: a generation a step, on the same slices."""

    batch = 8

    def __init__(self, seed: int, population: int = 10, spread: float = 0.1) -> None:
        self.seed, self.asked_each, self.spread = seed, population, spread

    def start(self, visual_prompt: VisualPrompt, steps: int) -> None:
        self.visual_prompt = visual_prompt
        first = parameters_to_vector(trained(visual_prompt)).detach().numpy()
        options = {"popsize": self.asked_each, "seed": self.seed + 1, "verbose": -9, "maxiter": steps + 1}
        self.search = cma.CMAEvolutionStrategy(first, self.spread, options)

    @torch.no_grad()
    def step(self, black_box: BlackBox, batch: Batch, generator: torch.Generator, recall: Recall) -> None:
        candidates = self.search.ask()

        def asked() -> list[float]:
            codes = []
            for candidate in candidates:
                self._take(candidate)
                codes.append(self.visual_prompt(batch.features, batch.prompts, batch.images.shape[-1]))
            changed = self.visual_prompt.apply_code(batch.images, torch.cat(codes))
            answers = ask(black_box, changed, batch.prompts * len(candidates))
            truth = batch.truth.repeat(len(candidates), 1, 1)
            found: list[float] = image_losses(answers, truth).view(len(candidates), -1).mean(1).tolist()
            return found

        self.search.tell(candidates, recall(asked))
        self._take(self.search.result.xfavorite)  # The mean of the distribution.

    def _take(self, weights: NDArray[np.float64]) -> None:
        vector_to_parameters(torch.from_numpy(weights).float(), trained(self.visual_prompt))


class WhiteBoxStepper(Stepper):
    """Exact gradients through the bundled model: what no black box allows, as a bound. Rounding is left out."""

    batch = 16
    asked_each = 2
    """One is asked; two keep the number of steps equal to that of prompt-space optimisation."""

    def __init__(self, rate: float) -> None:
        self.rate, self.model = rate, bundled_model()

    def start(self, visual_prompt: VisualPrompt, steps: int) -> None:
        self.visual_prompt = visual_prompt
        constant = [p for name, p in visual_prompt.named_parameters() if name == "head.bias"]
        rest = [p for name, p in visual_prompt.named_parameters() if name != "head.bias"]
        self.adam = torch.optim.Adam([{"params": constant, "lr": self.rate}, {"params": rest, "lr": self.rate / 10}])
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.adam, steps, self.rate / 100)

    def step(self, black_box: BlackBox, batch: Batch, generator: torch.Generator, recall: Recall) -> None:
        code = self.visual_prompt(batch.features, batch.prompts, batch.images.shape[-1])
        changed = self.visual_prompt.unrounded(batch.images, code).clamp(0, 255)
        loss = image_losses(self._answer(changed, batch.prompts), batch.truth).mean()
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        self.schedule.step()

    def _answer(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Probabilities (B, S, S) with a graph, for images of the model's own size and one click each."""
        where = torch.tensor([prompt.positive for prompt in prompts])
        sparse, dense = self.model.prompt_encoder((where, torch.ones(where.shape[:2])), None, None)
        embeddings = self.model.image_encoder(self.model.preprocess(images))
        position = self.model.prompt_encoder.get_dense_pe()
        masks, _ = decode_masks(self.model.mask_decoder, embeddings, position, sparse, dense)
        size = (images.shape[-2], images.shape[-1])
        return self.model.postprocess_masks(masks[:, :1], size, size)[:, 0].sigmoid()
