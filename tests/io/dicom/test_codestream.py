from __future__ import annotations

import io
import struct
from collections.abc import Callable

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydicom.encaps import encapsulate

from baps.errors import InputError
from baps.io.dicom.codestream import check_frames, codestream_size

_BASELINE, _RLE = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.5"


def _pillow(kind: str, **options: object) -> Callable[[NDArray[np.uint8]], bytes]:
    def encode(pixels: NDArray[np.uint8]) -> bytes:
        target = io.BytesIO()
        Image.fromarray(pixels).save(target, kind, **options)
        return target.getvalue()

    return encode


ENCODERS: dict[str, Callable[[NDArray[np.uint8]], bytes]] = {
    "jpeg": imagecodecs.jpeg8_encode,
    "jpeg by Pillow": _pillow("JPEG"),
    "with much before the size": _pillow("JPEG", exif=b"Exif\0\0" + bytes(4000), comment=b"\xff\xc0" * 99),
    "jpeg-ls": imagecodecs.jpegls_encode,
    "jpeg 2000": lambda pixels: imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True),
    "jp2": lambda pixels: imagecodecs.jpeg2k_encode(pixels, codecformat="jp2", reversible=True),
    "jp2 by Pillow": _pillow("JPEG2000"),
    "tiles": _pillow("JPEG2000", tile_size=(16, 16), no_jp2=True),
}


@given(
    kind=st.sampled_from(sorted(ENCODERS)),
    rows=st.integers(16, 90),
    columns=st.integers(16, 90),
    samples=st.sampled_from([1, 3]),
)
def test_size_of_the_encoded_image_is_read(kind: str, rows: int, columns: int, samples: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 4, (rows, columns, samples)[: 2 if samples == 1 else 3], np.uint8)
    stream = bytes(ENCODERS[kind](pixels))
    assert codestream_size(stream) == (rows, columns, samples)
    check_frames("a.dcm", encapsulate([stream] * 2)[:-8], _BASELINE, 2, (rows, columns, samples))
    with pytest.raises(InputError, match=f"{rows + 1} rows, .* frame 1 of its compressed pixels has {rows} rows"):
        check_frames("a.dcm", encapsulate([stream] * 2), _BASELINE, 2, (rows + 1, columns, samples))


def test_lossless_jpeg_of_16_bits() -> None:
    assert codestream_size(imagecodecs.ljpeg_encode(np.zeros((20, 30), np.uint16))) == (20, 30, 1)


@given(st.binary(max_size=400), st.sampled_from([b"", b"\xff\xd8", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  "]))
def test_bytes_that_are_not_a_codestream_are_refused(content: bytes, begin: bytes) -> None:
    try:
        rows, columns, samples = codestream_size(begin + content)
    except ValueError:
        return
    assert all(isinstance(size, int) for size in (rows, columns, samples))


def test_a_frame_may_be_split_into_fragments() -> None:
    stream = imagecodecs.jpeg8_encode(np.zeros((64, 64), np.uint8))
    pixels = encapsulate([stream, stream], fragments_per_frame=3)
    check_frames("a.dcm", pixels, _BASELINE, 2, (64, 64, 1))
    for count in (1, 3, 6):
        with pytest.raises(InputError, match=rf"{count} frames \(NumberOfFrames\), but its compressed pixels hold 2"):
            check_frames("a.dcm", pixels, _BASELINE, count, (64, 64, 1))


def test_rle_has_one_fragment_per_frame() -> None:
    check_frames("a.dcm", encapsulate([bytes(64)] * 2), _RLE, 2, (64, 64, 1))
    with pytest.raises(InputError, match="compressed pixels hold 3"):
        check_frames("a.dcm", encapsulate([bytes(64)] * 3), _RLE, 2, (64, 64, 1))


def test_several_sizes_and_palettes_are_refused() -> None:
    first, second = (imagecodecs.jpeg8_encode(np.zeros((size, size), np.uint8)) for size in (8, 9))
    header = first[first.index(b"\xff\xc0") :][:13]
    offset = second.index(b"\xff\xc0")
    with pytest.raises(ValueError, match="has 2 sizes"):
        codestream_size(second[:offset] + header + second[offset:])
    stream = imagecodecs.jpeg2k_encode(np.zeros((8, 8), np.uint8), codecformat="jp2", reversible=True)
    at = stream.index(b"jp2h") - 4
    box = struct.pack(">I4s", 16, b"pclr") + bytes(8)
    longer = struct.pack(">I", int.from_bytes(stream[at : at + 4], "big") + len(box))
    with pytest.raises(ValueError, match="palette"):
        codestream_size(stream[:at] + longer + b"jp2h" + box + stream[at + 8 :])
