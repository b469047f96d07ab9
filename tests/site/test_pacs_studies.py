"""Which series of a PACS are served."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from baps.errors import BapsError, InputError
from baps.site.pacs_studies import PacsStudies, Worklist, read_pacs_studies
from baps.site.server_command import check_studies


def test_an_address_without_a_query_serves_all() -> None:
    assert read_pacs_studies(" https://pacs:8042/dicom-web/ ") == PacsStudies("https://pacs:8042/dicom-web", {})


def test_a_query_is_separated_from_the_address() -> None:
    result = read_pacs_studies("https://pacs/dicom-web/?Modality=CT&StudyDate=20260101-&StudyDescription=Chest*")
    assert result.address == "https://pacs/dicom-web"
    assert result.filters == {"Modality": "CT", "StudyDate": "20260101-", "StudyDescription": "Chest*"}
    assert result.study_filters == {"StudyDate": "20260101-", "StudyDescription": "Chest*"}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("Modalty=CT", "'Modalty'.*Known attributes: StudyDate, .*Modality"),
        ("PatientID=7", "'PatientID'.*worklist"),
        ("limit=10", "'limit'"),
        ("Modality=CT&Modality=MR", "Modality twice"),
        ("Modality=", "no value for Modality"),
        ("Modality=CT,MR", "Modality in STUDIES must be one modality"),
        ("StudyDate=2026-01-01", "StudyDate in STUDIES must be a day such as 20260131"),
        ("StudyDate=20260231", "StudyDate"),
        ("StudyDate=-", "StudyDate"),
        ("StudyInstanceUID=1.2,1.3", "one UID.*worklist"),
        ("Modality=CT#x", "%23"),
    ],
)
def test_invalid_queries(query: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_studies(f"https://pacs/dicom-web?{query}")


def _answer(**values: str) -> dict[str, object]:
    tags = {"Modality": "00080060", "StudyDate": "00080020", "StudyDescription": "00081030"}
    return {tags[name]: {"vr": "CS", "Value": [value]} for name, value in values.items()}


@pytest.mark.parametrize(
    ("query", "values", "fits"),
    [
        ("Modality=CT", {"Modality": "CT"}, True),
        ("Modality=CT", {"Modality": "MR"}, False),
        ("Modality=CT", {}, True),  # Not every PACS says all that it can search by.
        ("StudyDate=20260101-", {"StudyDate": "20260101"}, True),
        ("StudyDate=20260101-", {"StudyDate": "20251231"}, False),
        ("StudyDate=-20260101", {"StudyDate": "20251231"}, True),
        ("StudyDate=20260101-20260131", {"StudyDate": "20260201"}, False),
        ("StudyDescription=*chest?", {"StudyDescription": "CT Chest."}, True),
        ("StudyDescription=*chest?", {"StudyDescription": "CT Chest"}, False),
    ],
)
def test_series_that_do_not_match_are_not_served(query: str, values: dict[str, str], fits: bool) -> None:
    assert read_pacs_studies(f"https://pacs/dicom-web?{query}").matches(_answer(**values)) == fits


def test_a_worklist_is_read_again_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "worklist.txt"
    file.write_text("\ufeff1.2.3\n\n# done: 1.2.9\n1.2.04  # a leading zero\n1.2.3\n", encoding="utf-8")
    worklist = Worklist(file)
    assert list(worklist.studies()) == ["1.2.3", "1.2.04"]
    file.write_text("1.2.5\n")
    os.utime(file, ns=(1, 1))
    assert list(worklist.studies()) == ["1.2.5"]


@pytest.mark.parametrize(
    ("content", "message"), [(b"1.2.3\nMiller, Anna\n", "Line 2"), (b"\xff\xfe\x00", "not a text file")]
)
def test_errors_of_a_worklist_name_the_line_and_no_patient(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "worklist.txt"
    file.write_bytes(content)
    with pytest.raises(BapsError, match=message) as caught:
        check_studies("https://pacs/dicom-web", file)
    assert "Miller" not in str(caught.value)


def test_a_missing_worklist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BapsError, match="cannot be read"):
        Worklist(tmp_path / "none.txt").studies()
    with pytest.raises(InputError, match="worklist selects studies of a PACS"):
        check_studies(str(tmp_path), tmp_path / "none.txt")
