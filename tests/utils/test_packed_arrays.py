"""Packed arrays are read as the client packed them, and what lies is refused before room is made for it."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baps.errors import InputError
from baps.utils.limits import MAX_VOLUME_MB_VARIABLE
from baps.utils.packed_arrays import TYPES, read_array, read_header, write_array

blosc2 = pytest.importorskip("blosc2", reason="the extra 'nninteractive' is not installed")
serialization = pytest.importorskip(
    "nnInteractive.inference.remote.serialization", reason="the extra 'nninteractive' is not installed"
)
pack_array, unpack_array = serialization.pack_array, serialization.unpack_array


def read(body: bytes) -> np.ndarray[Any, Any]:
    file = io.BytesIO(body)
    return read_array(file, read_header(file, "The image"), "The image")


def packed(shape: tuple[int, ...] = (1, 6, 7, 8), name: bytes = b"int16") -> bytes:
    """A header with a chunk that does not belong to it."""
    head = struct.pack("<4sBBBB", b"NNIA", 1, 1, len(shape), len(name)) + name
    return head + struct.pack(f"<{len(shape)}q", *shape) + pack_array(np.ones(9, np.uint8))[8 + 5 + 8 :]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("codec", [blosc2.Codec.ZSTD, blosc2.Codec.LZ4])
def test_arrays_are_read_as_they_were_packed(dtype: np.dtype[Any], codec: Any) -> None:
    random = np.random.default_rng(0)
    for array in (random.integers(0, 2, (1, 9, 10, 11)), np.zeros((1, 5, 300, 300)), np.ones((1, 1, 1))):
        body = pack_array(array.astype(dtype), codec=codec)
        assert np.array_equal(read(body), array)
        assert read(body).dtype == dtype


def test_the_client_reads_masks_of_the_server() -> None:
    mask = np.random.default_rng(0).random((5, 6, 7)) > 0.5
    for one in (mask, mask.astype(np.uint8), np.zeros((40, 50, 60), bool)):
        assert np.array_equal(unpack_array(write_array(one)), one)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "missing"),
        (b"NNIA", "missing"),
        (b"PK\3\4" * 9, "not an array in the format"),
        (packed(name=b"object"), "type that is not accepted"),
        (packed(name=b"U1000000"), "type that is not accepted"),
        (packed((1, -4, 7, 8)), "negative size"),
        (packed((1, 0, 7, 8)), "without voxels"),
        (packed((1 << 20, 1 << 20, 1 << 20, 1)), "MB are allowed"),
        (packed((1 << 62, 1 << 62, 1 << 62, 1 << 62)), "MB are allowed"),
        (packed((1, 2, 3, 4, 5)), "declares 5 axes"),
        (packed((1, 6, 7, 8)), "broken"),
        (packed((1, 1, 1, 1)), "broken"),
        (pack_array(np.ones((1, 6, 7, 8)))[:-3], "broken"),
        (pack_array(np.ones((1, 6, 7, 8))) + b"more", "broken"),
        (pack_array(np.ones((1, 6, 7, 8))) + bytes(3 << 20), "larger than the array"),
        (pack_array(np.full((1, 6, 7, 8), np.nan)), "NaN"),
        (pack_array(np.full((1, 6, 7, 8), np.inf, np.float16)), "NaN"),
    ],
)
def test_what_lies_is_refused_with_a_sentence(body: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read(body)
    assert str(error.value).endswith(".")


def test_no_room_is_made_for_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MAX_VOLUME_MB_VARIABLE, "1")
    with pytest.raises(InputError, match="raise max_volume_mb"):
        read_header(io.BytesIO(pack_array(np.zeros((1, 128, 128, 128), np.uint8))), "The image")


def test_chunks_that_need_a_plugin_are_refused() -> None:
    body = bytearray(pack_array(np.arange(3000, dtype=np.int16).reshape(1, 10, 20, 15)))
    frame = 8 + 5 + 32 + 4 + 16
    for offset, value in ((2, 6 << 5 | 5), (21, 32), (21, 160)):  # A codec, and filters, of others.
        changed = body.copy()
        changed[frame + offset] = value
        with pytest.raises(InputError, match="broken"):
            read(bytes(changed))


@given(st.data())
def test_changed_bytes_are_refused_or_change_values_only(data: st.DataObject) -> None:
    array = np.zeros((1, 8, 9, 10), np.int16)
    array[:, 2:5] = np.arange(90).reshape(9, 10)
    body = bytearray(pack_array(array))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        result = read(bytes(body[: data.draw(st.integers(len(body) - 8, len(body)))]))
    except InputError:
        return
    assert result.nbytes <= 8 * array.nbytes
