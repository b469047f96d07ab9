"""Identify a model that tells neither its weights nor their hash: by what it declares, and by its answer to a probe.

A GPU may choose other algorithms after each start, whose rounding changes single voxels of an answer. So an answer is
compared with those that are known, and a model whose answer is nearly the same keeps its identity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from baps.prompts.volume_prompts import Mask
from baps.utils.atomic_write import atomic_write

_SAME = 0.99
"""Dice from which on two answers to the probe are those of one model."""


def is_same_answer(first: Mask, second: Mask) -> bool:
    """Return whether two answers to the probe differ by rounding only.

    Args:
        first: an answer.
        second: another answer, of the same shape.

    Returns:
        Whether they are those of one model.
    """
    total = int(first.sum()) + int(second.sum())
    return total == 0 or 2 * int((first & second).sum()) >= _SAME * total


def identify(declared: Mapping[str, Any], answer: Mask, known: Path | None) -> str:
    """Return the identity of a model, a SHA-256.

    Args:
        declared: what it declares about itself.
        answer: its answer to the probe.
        known: file of the models that are known, which is extended, or None.

    Returns:
        The identity of the known model with this declaration and nearly this answer; otherwise the hash of both.
    """
    packed = np.packbits(answer).tobytes().hex()
    text = json.dumps({**declared, "probe": answer.shape}, sort_keys=True)
    identity = hashlib.sha256(f"{text} {packed}".encode()).hexdigest()
    if known is None:
        return identity
    with suppress(OSError):  # Without a file that can be written to, single voxels may change the identity.
        known.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{known}.lock"):
            models = _read(known)
            for one, record in models.items():
                if record["declared"] == text and is_same_answer(_unpack(record["answer"], answer.shape), answer):
                    return one
            models[identity] = {"declared": text, "answer": packed}
            with atomic_write(known) as partial:
                partial.write_text(json.dumps(models, indent=1))
    return identity


def _read(known: Path) -> dict[str, dict[str, str]]:
    """Read the known models, without those that cannot be read."""
    try:
        content = json.loads(known.read_text())
        return {
            str(identity): {"declared": str(record["declared"]), "answer": bytes.fromhex(record["answer"]).hex()}
            for identity, record in content.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _unpack(packed: str, shape: tuple[int, ...]) -> Mask:
    bits = np.frombuffer(bytes.fromhex(packed), np.uint8)
    if bits.size * 8 < np.prod(shape):  # Of another probe: no answer to this one.
        return ~np.zeros(shape, bool)
    return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).view(bool)
