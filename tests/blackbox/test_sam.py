from __future__ import annotations

import numpy as np
import pytest
import torch

from baps.blackbox.bundled_model import build_bundled_model
from baps.blackbox.sam import SamBlackBox
from baps.errors import BapsError, InputError
from baps.prompts import Prompt

IMAGE = np.zeros((64, 64, 3), np.uint8)
CLICK = Prompt(((9.0, 9.0),))


def test_out_of_memory_is_a_sentence_and_the_next_call_may_succeed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_bundled_model(64)
    black_box = SamBlackBox(model, "small")
    encoding = black_box.encode(IMAGE)

    def full(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    with monkeypatch.context() as patched:
        patched.setattr(model.image_encoder, "forward", full)
        for call in (lambda: black_box.encode(IMAGE), lambda: black_box.segment(IMAGE[None], [CLICK])):
            with pytest.raises(BapsError, match="GPU has not enough memory.*device=cpu") as caught:
                call()
            assert not isinstance(caught.value, InputError)  # The operator must fix it, so 503 and not 400.
        assert black_box.decode(encoding, CLICK).shape == (64, 64)
    assert black_box.segment(IMAGE[None], [CLICK]).shape == (1, 64, 64)


def test_cached_encodings_are_in_main_memory_and_counted() -> None:
    encoding = SamBlackBox(build_bundled_model(64), "small").encode(IMAGE)
    assert encoding.nbytes == 128 * 8 * 8 * 4
    assert encoding._content.tensors[0].device.type == "cpu"  # type: ignore[attr-defined]
