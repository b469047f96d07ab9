"""Explain the options of trainings, for the form of the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from baps.server.train.base import ALL_LABELS


@dataclass(frozen=True)
class Explanation:
    """What an option is called on the page, and what it does.

    Attributes:
        title: Name of the field.
        hint: What the option does, and when to change it.
        is_advanced: Whether the field is among those that are rarely changed.
        choices: Texts of the choices that do not explain themselves.
    """

    title: str
    hint: str
    is_advanced: bool = True
    choices: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Option:
    """A field of the form.

    Attributes:
        name: Name of the option.
        about: Its explanation.
        kind: ``choice``, ``flag``, ``whole`` or ``decimal``.
        value: Value that the form shows.
        choices: Values and texts, if it is a choice.
    """

    name: str
    about: Explanation
    kind: str
    value: str
    choices: tuple[tuple[str, str], ...]


EXPLANATIONS: Mapping[str, Mapping[str, Explanation]] = {
    "baps": {
        "label": Explanation(
            "Organ",
            "What to train. With “all”, each organ gets an adapter, and clicks without an organ share another one.",
            False,
        ),
        "max_images": Explanation(
            "Images to send",
            "At most this many images go to the model. More give a better adapter, and take longer. The training stops "
            "early where more would not help.",
            False,
        ),
        "prompt": Explanation(
            "First prompt",
            "What people place first on a slice. Choose what they use most.",
            choices=(("click", "a click in the organ"), ("box", "a box around the organ")),
        ),
        "zoom": Explanation(
            "Zoom",
            "Enlarges the part around the prompt, so that small organs are resolved.",
            choices=(("chosen", "where the labels show that it helps"), ("none", "never")),
        ),
        "head": Explanation(
            "Output head",
            "Corrects the masks of the model with a small network.",
            choices=(("convolutional", "where the labels show that it helps"), ("none", "never")),
        ),
        "optimiser": Explanation(
            "Optimiser",
            "How the visual prompt is trained.",
            choices=(
                ("prompt_space", "prompt space: fewer images for the same result"),
                ("spsa_gc", "SPSA-GC: as published"),
            ),
        ),
        "visual_prompt": Explanation(
            "Visual prompt",
            "Changes the image before the model sees it.",
            choices=(
                ("tone", "by the grey level at the click, where the labels show that it helps"),
                ("basis", "by the image: every click sees the same image"),
                ("concat", "by image and click, as published"),
                ("none", "never"),
            ),
        ),
        "seed": Explanation("Seed", "Another seed draws other clicks. The same seed repeats a training exactly."),
    },
    "organs": {
        "label": Explanation("Organ", "What to train. With “all”, each organ gets an adapter.", False),
        "method": Explanation(
            "Method",
            "What is trained. If in doubt, choose “landmarks”: it combines the features of the model with the position "
            "among the organs that the model finds.",
            False,
        ),
        "decoder": Explanation(
            "Train the decoder too",
            "Trains the decoder beside a method that changes the encoder (“lora” to “bias”). It takes long without a "
            "GPU.",
        ),
        "epochs": Explanation(
            "Epochs", "At most this many passes over the labels. The training stops early where more would not help."
        ),
        "learning_rate": Explanation("Learning rate", "0 for the one that suits the method."),
        "seed": Explanation("Seed", "Another seed draws other crops. The same seed repeats a training exactly."),
    },
    "volume": {
        "label": Explanation("Organ", "What to train. With “all”, each organ gets an adapter.", False),
        "max_predictions": Explanation(
            "Predictions",
            "The model predicts at most this many masks of whole volumes. More give a better adapter, and take longer. "
            "The training stops early where more would not help.",
            False,
        ),
        "prompt": Explanation(
            "First prompt",
            "What people place first in a volume. Choose what they use most.",
            choices=(("click", "a click in the organ"), ("box", "a 3D box around the organ")),
        ),
        "zoom": Explanation(
            "Cube around the prompt",
            "Shows the model the part around the prompt in place of the whole volume.",
            choices=(
                ("chosen", "as wide as the labels show to be best"),
                ("typical", "about twice as wide as the organ"),
                ("none", "never"),
            ),
        ),
        "head": Explanation(
            "Output head",
            "Corrects the masks of the model with a small 3D network.",
            choices=(("convolutional", "where the labels show that it helps"), ("none", "never")),
        ),
        "optimiser": Explanation(
            "Optimiser",
            "How the tone curve is trained.",
            choices=(
                ("prompt_space", "prompt space: fewer predictions for the same result"),
                ("spsa_gc", "SPSA-GC: as published"),
            ),
        ),
        "visual_prompt": Explanation(
            "Tone curve",
            "Changes the grey values of the cube before the model sees it.",
            choices=(
                ("tone", "by the grey level at the click, where the labels show that it helps"),
                ("none", "never"),
            ),
        ),
        "seed": Explanation("Seed", "Another seed draws other clicks. The same seed repeats a training exactly."),
    },
}
"""Explanations of the options, by the name of the trainer."""


def list_options(
    model: str, config: Mapping[str, Any], chosen: Mapping[str, str], patients: Mapping[str, int]
) -> list[Option]:
    """List the fields of the form of a trainer.

    Args:
        model: Name of the trainer.
        config: Its options, with their choices or defaults, as ``config`` of the trainer returns them.
        chosen: Values that the form was sent with, to show them again.
        patients: Number of labelled patients by organ, as far as it is known.

    Returns:
        The fields.
    """
    options = []
    for name, default in config.items():
        about = EXPLANATIONS.get(model, {}).get(name) or Explanation(name, "")
        choices: tuple[tuple[str, str], ...] = ()
        if isinstance(default, list):
            kind, value, texts = "choice", str(default[0]), dict(about.choices)
            choices = tuple((str(one), texts.get(str(one), str(one))) for one in default)
            if name == "label":
                choices = tuple((organ, _with_patients(organ, patients)) for organ, _ in choices)
        elif isinstance(default, bool):
            kind, value = "flag", str(default).lower()
        else:
            kind, value = ("whole" if isinstance(default, int) else "decimal"), str(default)
        options.append(Option(name, about, kind, chosen.get(name, value), choices))
    return options


def _with_patients(organ: str, patients: Mapping[str, int]) -> str:
    if organ == ALL_LABELS or organ not in patients:
        return organ
    count = patients[organ]
    return f"{organ} ({count} labelled patient{'s' * (count != 1)})"
