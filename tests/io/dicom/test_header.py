"""Headers that violate the standard."""

from __future__ import annotations

from io import BytesIO

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from baps.io.dicom.header import keep_well_formed, read_json_header

_ODD = {
    "00200011": {"vr": "IS", "Value": ["1.5"]},
    "00180050": {"vr": "DS", "Value": ["thick"]},
    "00091001": {"vr": "UN", "InlineBinary": "A"},
    "00280010": {"vr": "US", "Value": ["many"]},
    "0009100x": {"vr": "LO", "Value": ["no tag"]},
    "00091002": {"Value": ["no vr"]},
}
_GOOD = {
    "00100020": {"vr": "LO", "Value": ["0042"]},
    "0020000D": {"vr": "UI", "Value": ["1.2.007.1"]},
    "00280030": {"vr": "DS", "Value": [0.7031250000000001, 0.7031250000000001]},
}


def test_unreadable_json_element_is_dropped() -> None:
    nested = {"52009229": {"vr": "SQ", "Value": [{**_GOOD, **_ODD}]}}
    header = read_json_header({**_ODD, **_GOOD, **nested})
    for result in (header, header[0x5200, 0x9229].value[0]):
        assert (result.PatientID, result.StudyInstanceUID) == ("0042", "1.2.007.1")
        assert list(map(float, result.PixelSpacing)) == [0.7031250000000001] * 2
        assert "SeriesNumber" not in result
        assert "Rows" not in result


def test_malformed_and_private_elements_are_dropped_and_identity_is_kept() -> None:
    header = read_json_header(_GOOD)
    header.PatientID = "x" * 80
    header.PatientBirthDate, header.StudyDate, header.StudyTime = "1.1.1950", "2026-01-01", "120000"
    header.AccessionNumber, header.StudyID = "y" * 40, "7"
    header.add_new(0x00091001, "UN", b"vendor")
    header[0x00200011] = RawDataElement(Tag(0x00200011), "IS", 4, b"1.50", 0, False, True)
    result = keep_well_formed(header)
    assert {element.keyword for element in result} == {
        "PatientID", "StudyInstanceUID", "PixelSpacing", "StudyTime", "StudyID"
    }  # fmt: skip
    assert (result.PatientID, result.StudyInstanceUID) == ("x" * 80, "1.2.007.1")


def test_a_copy_can_be_written() -> None:
    header = read_json_header({**_GOOD, **_ODD})
    header.is_little_endian, header.is_implicit_VR = True, False
    copy = keep_well_formed(header)
    copy.is_little_endian, copy.is_implicit_VR = True, False
    buffer = BytesIO()
    copy.save_as(buffer)
    assert pydicom.dcmread(BytesIO(buffer.getvalue()), force=True).PatientID == "0042"
