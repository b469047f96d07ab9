from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from baps.evaluation.splits import patient_hash
from baps.fseft.adapter_file import adapter_record
from baps.fseft.adapters import build_adapter
from baps.prompts import Prompt
from baps.registry.evidence import change_evidence
from baps.server.web.adapter_table import PatientEvidence
from baps.server.web.images import ImageName
from baps.server.web.pictures import DrawnCase, chosen_cases, draw_png
from tests.support.organ_weights import small_organ_model
from tests.support.web_site import web_site


def _patient(name: str, gain: float, images: tuple[str, ...] = ()) -> PatientEvidence:
    return PatientEvidence(name, images, 0.4, 0.4 + gain, None, gain, "cross-fitted", (-1, 1), gain)


def test_the_worst_the_median_and_the_best_are_chosen() -> None:
    patients = [_patient(name, gain) for name, gain in zip("abcde", (0.3, -0.2, 0.1, 0.5, 0.0), strict=True)]
    names = {name: ImageName(f"image {name}", "spleen") for name in "abcde"}
    chosen = chosen_cases(patients, names)
    assert [(one.title, one.patient.patient) for one in chosen] == [("Worst", "b"), ("Median", "c"), ("Best", "d")]
    assert [one.name for one in chosen] == [names["b"], names["c"], names["d"]]


@pytest.mark.parametrize(("known", "titles"), [("", []), ("a", ["Worst"]), ("ab", ["Worst", "Median"])])
def test_patients_whose_images_are_gone_are_passed_over(known: str, titles: list[str]) -> None:
    patients = [_patient("a", 0.1), _patient("b", 0.2), _patient("c", 0.3)]
    names = {name: ImageName(name, "spleen") for name in known}
    assert [one.title for one in chosen_cases(patients, names)] == titles


def test_an_image_is_found_by_the_patient_or_by_its_own_hash() -> None:
    patient = _patient("patient", 0.1, ("volume",))
    for key in ("volume", "patient"):
        (chosen,) = chosen_cases([patient], {key: ImageName("ct", "spleen")})
        assert chosen.name == ImageName("ct", "spleen")


def _picture(case: DrawnCase, show: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(draw_png(case, show))).convert("RGB"))


def _case(**masks: NDArray[np.bool_]) -> DrawnCase:
    label = np.zeros((200, 300), bool)
    label[20:60, 240:280] = True
    image = np.full((200, 300, 3), 100, np.uint8)
    return DrawnCase(image, {"label": label, **masks}, {"adapted": 0.5}, Prompt(((260.0, 40.0),)))


def test_a_picture_shows_the_part_around_the_label() -> None:
    plain, label = _picture(_case(), "image"), _picture(_case(), "label")
    assert plain.shape == (320, 320, 3)
    changed = (plain != label).any(-1)
    rows, columns = np.nonzero(changed)
    # The square of 128 pixels is moved to stay within the image: the label is in its upper right part.
    scale = 320 / 128
    assert rows.min() == pytest.approx(20 * scale, abs=3)
    assert rows.max() == pytest.approx(60 * scale, abs=3)
    assert columns.min() == pytest.approx((240 - 172) * scale, abs=3)
    assert columns.max() == pytest.approx((280 - 172) * scale, abs=3)
    red = (plain == (255, 77, 109)).all(-1)
    assert np.argwhere(red).mean(0) == pytest.approx((40.5 * scale, (260.5 - 172) * scale), abs=2)


def test_a_mask_is_outlined_in_its_colour_and_has_its_dice() -> None:
    mask = np.zeros((200, 300), bool)
    mask[25:50, 245:270] = True
    case = _case(adapted=mask, unadapted=~mask)
    adapted, unadapted = _picture(case, "adapted"), _picture(case, "unadapted")
    assert (adapted == (54, 209, 124)).all(-1).any()
    assert (unadapted == (255, 157, 46)).all(-1).any()
    corner = np.s_[296:320, :100]
    assert (adapted[corner] == 255).all(-1).any()  # The text.
    assert not (unadapted[corner] == 255).all(-1).any()  # Its Dice is not known.


def test_an_empty_mask_and_a_small_image_are_drawn() -> None:
    label = np.ones((5, 7), bool)
    case = DrawnCase(np.zeros((5, 7, 3), np.uint8), {"label": label, "adapted": ~label}, {}, None)
    assert _picture(case, "adapted").shape == (320, 320, 3)


def test_pictures_of_the_organ_model(tmp_path: Path) -> None:
    settings = {"organ_weights": str(small_organ_model(tmp_path))}
    with web_site(tmp_path, settings) as site:
        app = site.state.app
        model = app.organs().model
        adapter = build_adapter("linear_probe", model.network, "spleen")
        with torch.no_grad():
            for value, parameter in zip(adapter.trainable_parameters().values(), (0.0, 2.0), strict=True):
                value.fill_(parameter)
        gains = {patient_hash(case): 0.1 for case in ("ct_01", "ct_02")}
        record = {
            "adapter": adapter_record("linear_probe", "spleen", False, 0),
            "black_box": {"name": "small", "weights_sha256": model.sha256},
            "scores": {"differences": gains},
            "verdict": None,
        }
        version = app.organ_store.add("spleen", adapter, record)
        with change_evidence(app.organ_store, "spleen", (model.sha256,)) as evidence:
            evidence.open(app.organ_store, "spleen", version, model.sha256)
        site.state.counts.get(wait=30)
        browser, query = site.browser("theo"), {"model": "organs", "organ": "spleen", "version": version}
        assert "Make the pictures" in browser.get("/web/adapters/version", params=query).text
        assert "no click" in browser.get("/").text
        reply = browser.get(
            "/web/adapters/picture", params={**query, "patient": patient_hash("ct_01"), "show": "adapted"}
        )
        assert reply.status_code == 200, reply.text
        picture = np.asarray(Image.open(io.BytesIO(reply.content)).convert("RGB"), int)
        # An adapter with a positive bias everywhere marks the whole volume.
        assert (picture[..., 1] - picture[..., 0] > 5).mean() > 0.9
