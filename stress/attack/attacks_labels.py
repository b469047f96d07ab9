"""Attacks by annotators on the labels, images and DICOM objects of others."""

from __future__ import annotations

import io
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from typing import Any

import numpy as np
import requests
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from baps.annotations.history import LIST
from baps.imaging.volume import Volume
from baps.io import read_label_map, read_volume, write_nifti
from baps.server.datastores.folder import StudiesDatastore
from baps.server.training_cases import labelled_cases
from benchmarks.paths import ROOT
from stress.attack import small_pacs
from stress.attack.attacks import Site, Target, attack

LABELS = {"spleen": 2, "liver": 1}
GHOST = "GHOST^WRITER"
_LABEL_INFO = json.dumps([{"name": name, "idx": idx} for name, idx in LABELS.items()])


def _blocks(target: Target, image: str, **blocks: tuple[slice, slice, slice]) -> bytes:
    """Build a label file of an image, with one block per organ, as NIfTI."""
    volume = read_volume(target.folder / "studies" / f"{image}.nii.gz")
    voxels = np.zeros(volume.shape, np.uint8)
    for name, block in blocks.items():
        voxels[block] = LABELS[name]
    return _nifti_bytes(target, Volume(voxels, volume.affine))


def _nifti_bytes(target: Target, volume: Volume) -> bytes:
    file = target.folder / f"{secrets.token_hex(8)}.nii.gz"
    write_nifti(file, volume)
    content = file.read_bytes()
    file.unlink()
    return content


def _save(
    target: Target, user: str, content: bytes, image: str = "", query: dict[str, str] | None = None, **params: object
) -> requests.Response:
    params = {"label_info": json.loads(_LABEL_INFO), **params}
    return target.request(
        "PUT",
        "/datastore/label",
        {"image": image or target.image, **(query or {})},
        data={"params": json.dumps(params)},
        files={"label": ("label.nii.gz", content)},
        token=target.users[user],
    )


def _block(i: int, j: int, k: int, size: int = 8) -> tuple[slice, slice, slice]:
    return slice(i, i + size), slice(j, j + size), slice(k, k + 4)


_LIVER, _SPLEEN, _ELSEWHERE = _block(20, 20, 4), _block(60, 60, 4), _block(90, 90, 12)


def _liver_seen_by_training(target: Target) -> NDArray[np.bool_] | None:
    """Return the liver's mask on the slices that a training would use now, or None if it would use none."""
    studies = StudiesDatastore(str(target.folder / "studies"), False, False)
    for case in labelled_cases(studies, LABELS, {})[0]["liver"]:
        if case.image.name.startswith(f"{target.image}."):
            mask = read_label_map(case.labels, read_volume(case.image)).mask(case.value)
            covered = range(mask.shape[2]) if case.annotated_slices is None else case.annotated_slices
            mask[:, :, [k for k in range(mask.shape[2]) if k not in covered]] = False
            return mask
    return None


def _draw_others_liver(target: Target) -> None:
    """Save a liver by another annotator, after a trainer has saved the same label."""
    content = _blocks(target, target.image, liver=_LIVER)
    for user in ("trainer", "other"):
        _save(target, user, content)


def _liver_is_damaged(target: Target, *replies: requests.Response) -> bool:
    """Check whether trainings lose the other annotator's liver, or whether no note reports the change."""
    mask = _liver_seen_by_training(target)
    lost = mask is None or mask[_LIVER].mean() < 0.5 or mask.sum() > 2 * mask[_LIVER].sum()
    silent = all(not reply.json().get("notes") for reply in replies if reply.ok)
    return any(reply.ok for reply in replies) and (lost or silent)


@attack(Site.USERS)
def others_organ_erased_by_slices(target: Target) -> bool:
    """Save another organ, and claim that all slices are completely annotated, so that the first organ is absent."""
    _draw_others_liver(target)
    reply = _save(target, "annotator", _blocks(target, target.image, spleen=_SPLEEN), slices=list(range(24)))
    return _liver_is_damaged(target, reply)


@attack(Site.USERS)
def others_organ_replaced(target: Target) -> bool:
    """Save another annotator's organ at another position."""
    _draw_others_liver(target)
    return _liver_is_damaged(target, _save(target, "annotator", _blocks(target, target.image, liver=_ELSEWHERE)))


@attack(Site.USERS)
def others_organ_painted_over(target: Target) -> bool:
    """Paint another organ over another annotator's organ."""
    _draw_others_liver(target)
    return _liver_is_damaged(target, _save(target, "annotator", _blocks(target, target.image, spleen=_LIVER)))


@attack(Site.USERS)
def others_organ_erased_in_steps(target: Target) -> bool:
    """Shrink another annotator's organ in small corrections, to become its author, until nothing is left."""
    _draw_others_liver(target)
    replies = []
    for size in (7, 6, 5, 4, 3, 2):
        replies.append(_save(target, "annotator", _blocks(target, target.image, liver=_block(20, 20, 4, size))))
    replies.append(_save(target, "annotator", _blocks(target, target.image, spleen=_SPLEEN), slices=list(range(24))))
    return _liver_is_damaged(target, *replies)


@attack(Site.USERS)
def others_organ_taken_for_ones_own(target: Target) -> bool:
    """Submit another annotator's organ unchanged, to become its author, and then erase it as one's own."""
    _draw_others_liver(target)
    _save(target, "annotator", _blocks(target, target.image, liver=_LIVER))
    reply = _save(target, "annotator", _blocks(target, target.image, spleen=_SPLEEN), slices=list(range(24)))
    return _liver_is_damaged(target, reply)


@attack(Site.USERS)
def others_organ_erased_by_a_shown_mask(target: Target) -> bool:
    """Have masks at another position saved over another annotator's organ, slice by slice."""
    _draw_others_liver(target)
    replies = []
    for k in range(4, 8):
        click = {"foreground": [[100, 100, k]], "label": "liver", "save_as": "liver", "client_id": "other"}
        replies.append(
            target.request(
                "POST",
                f"/infer/{target.model}",
                {"image": target.image, "output": "json"},
                data={"params": json.dumps(click)},
                token=target.users["annotator"],
            )
        )
    return _liver_is_damaged(target, *replies)


@attack(Site.USERS)
def role_claimed_in_params(target: Target) -> bool:
    """Claim in the params of a label that a trainer made and confirmed it."""
    _draw_others_liver(target)
    claims = dict.fromkeys(("trusted", "confirms", "confirmed_by", "role"), True)
    params: dict[str, Any] = {**claims, "author": "other", "authors": {"liver": "trainer"}, "disputed": {}, "basis": {}}
    content = _blocks(target, target.image, spleen=_SPLEEN)
    return _liver_is_damaged(target, _save(target, "annotator", content, slices=list(range(24)), **params))


@attack(Site.USERS)
def thousands_of_names(target: Target) -> bool:
    """Save a label with 6,000 segment names, so that another user's save of another image waits for it."""
    volume = Volume(np.zeros((256, 256, 256), np.int16), np.eye(4))
    large = _upload(target, volume)
    voxels = np.zeros(volume.shape, np.uint8)
    voxels[_SPLEEN] = 2
    content, label_info = (
        _nifti_bytes(target, Volume(voxels, volume.affine)),
        [{"name": f"n{n}", "idx": n} for n in range(1, 6001)],
    )
    with ThreadPoolExecutor(1) as pool:
        start = time.monotonic()
        slow = pool.submit(_save, target, "annotator", content, large, label_info=label_info)
        time.sleep(1)
        _save(target, "other", _blocks(target, target.other_image, spleen=_SPLEEN), target.other_image)
        waited = time.monotonic() - start
        slow.result()
    return waited > 10


def _upload(target: Target, volume: Volume) -> str:
    """Add an image as an annotator; return its name."""
    name, sent = f"image-{secrets.token_hex(4)}", {"file": ("x.nii.gz", _nifti_bytes(target, volume))}
    target.request("PUT", "/datastore/image", {"image": name}, files=sent, token=target.users["other"])
    return name


@attack(Site.USERS)
def one_name_uploaded_twice(target: Target) -> bool:
    """Upload images of one name at the same time, so that one replaces the other."""
    affine = np.eye(4)
    contents = [_nifti_bytes(target, Volume(np.full((16, 16, 8), n, np.int16), affine)) for n in range(4)]
    for _ in range(4):
        name = f"twice-{secrets.token_hex(4)}"

        def upload(content: bytes, name: str = name) -> bool:
            sent = {"file": ("x.nii.gz", content)}
            return target.request(
                "PUT", "/datastore/image", {"image": name}, files=sent, token=target.users["other"]
            ).ok

        with ThreadPoolExecutor(4) as pool:
            if sum(pool.map(upload, contents)) > 1:
                return True
    return False


@attack(Site.USERS)
def image_of_nearly_the_same_name(target: Target) -> bool:
    """Upload an image whose name a file system confuses with an existing image's, or that takes over its labels."""
    content = _nifti_bytes(target, Volume(np.zeros((16, 16, 8), np.int16), np.eye(4)))
    names = (target.image.upper(), f"{target.image}.seg", f".{target.image}")
    for name in names:
        sent = {"file": ("x.nii.gz", content)}
        target.request("PUT", "/datastore/image", {"image": name}, files=sent, token=target.users["other"])
    paths = [file for name in names for file in (target.folder / "studies").glob(f"{name}.nii.gz")]
    for file in paths:
        file.unlink()
    return bool(paths)


@attack(Site.USERS)
def tags_without_end(target: Target) -> bool:
    """Save a label under tags of one's own, each of which would add a folder and an entry to the list."""
    content = _blocks(target, target.image, spleen=_SPLEEN)
    tags = [f"tag-{secrets.token_hex(4)}" for _ in range(3)]
    for tag in tags:
        _save(target, "annotator", content, query={"tag": tag})
    return any((target.folder / "studies" / "labels" / tag).exists() for tag in tags)


@attack(Site.USERS)
def fields_without_end(target: Target) -> bool:
    """Send large params with a label and an image, so that the list of the studies grows."""
    list_file = target.folder / "studies" / LIST
    before = list_file.stat().st_size if list_file.exists() else 0
    junk: dict[str, Any] = {f"field-{n}": "x" * 1000 for n in range(400)}
    _save(target, "annotator", _blocks(target, target.image, spleen=_SPLEEN), query={"tag": "draft"}, **junk)
    deep: dict[str, Any] = {"deep": json.loads("[" * 200 + "]" * 200)}
    _save(target, "annotator", _blocks(target, target.image, spleen=_SPLEEN), query={"tag": "draft"}, **deep)
    many: dict[str, Any] = {
        "slices": list(range(24)),
        "label_info": [{"name": f"n{n}", "idx": n} for n in range(1, 2001)],
    }
    _save(target, "annotator", _blocks(target, target.image, spleen=_SPLEEN), query={"tag": "draft"}, **many)
    content = _nifti_bytes(target, Volume(np.zeros((16, 16, 8), np.int16), np.eye(4)))
    query, sent = {"image": f"junk-{secrets.token_hex(4)}"}, {"file": ("x.nii.gz", content)}
    data = {"params": json.dumps(junk)}
    target.request("PUT", "/datastore/image", query, files=sent, data=data, token=target.users["other"])
    return list_file.stat().st_size - before > 100_000 or '"deep"' in list_file.read_text()


@attack(Site.USERS)
def terminal_taken(target: Target) -> bool:
    """Put escape sequences and bidirectional controls into a segment's name, so that a terminal executes them."""
    label_info: list[dict[str, Any]] = [{"name": "spleen\x1b[2J\x9b31m\u202e", "idx": 2}, {"name": "liver", "idx": 1}]
    extra: dict[str, Any] = {"note": "\x1b]0;pwned\x07", "client_id": "\x1b[31m"}
    content = _blocks(target, target.image, spleen=_SPLEEN)
    _save(target, "annotator", content, label_info=label_info, query={"tag": "draft"}, **extra)
    printed = _labels_list(target)
    return any(letter in printed for letter in ("\x1b[2J", "\x9b", "\u202e", "\x1b]0"))


@attack(Site.USERS)
def remarks_forged(target: Target) -> bool:
    """Claim in the params of a label that it was restored or found in the folder, or what its version is."""
    params: dict[str, Any] = {
        "restored": "20200101T000000.000000Z",
        "found": True,
        "version": "x",
        "ts": 1,
        "erased": {"a": "b"},
    }
    _save(target, "annotator", _blocks(target, target.image, spleen=_SPLEEN), query={"tag": "original"}, **params)
    printed = _labels_list(target)
    return "20200101T000000" in printed or "found in the folder" in printed


def _labels_list(target: Target) -> str:
    program = "from baps.cli import main; main()"
    completed = subprocess.run(
        [sys.executable, "-c", program, "labels", "list", str(target.folder / "studies"), "--image", target.image],
        capture_output=True,
        check=True,
        cwd=ROOT / "apps" / "baps_app",
        env={**os.environ, "COLUMNS": "400"},
    )
    return completed.stdout.decode()


@attack(Site.USERS)
def layers_without_end(target: Target) -> bool:
    """Save a label file of 8,000 layers, which are compared with each other, so that the request takes long."""
    import nrrd

    folder = target.folder / f"layers-{secrets.token_hex(4)}"
    folder.mkdir()
    name = _upload(target, Volume(np.zeros((4, 4, 4), np.int16), np.eye(4)))
    directions = np.vstack([np.full((1, 3), np.nan), np.eye(3)])
    header = {"space": "right-anterior-superior", "space directions": directions, "space origin": [0, 0, 0]}
    header["kinds"] = ["list", "domain", "domain", "domain"]
    voxels = np.zeros((8000, 4, 4, 4), np.uint8)
    voxels[:, 0, 0, 0] = 1
    nrrd.write(str(folder / "x.nrrd"), voxels, header)
    start = time.monotonic()
    target.request(
        "PUT",
        "/datastore/label",
        {"image": name, "tag": "draft"},
        files={"label": ("x.nrrd", (folder / "x.nrrd").read_bytes())},
        token=target.users["annotator"],
    )
    return time.monotonic() - start > 10


# Attacks with DICOM objects that a viewer stores in the PACS.


def _report(**changes: object) -> FileDataset:
    """Build a structured report on the study of the minimal PACS, as OHIF stores one."""
    meta = FileMetaDataset()
    dataset = FileDataset("", {}, preamble=b"\0" * 128, file_meta=meta)
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    series = Dataset()
    series.SeriesInstanceUID = small_pacs.SERIES
    series.ReferencedSOPSequence = []
    study = Dataset()
    study.StudyInstanceUID, study.ReferencedSeriesSequence = small_pacs.STUDY, [series]
    today = date.today()
    params = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.22",
        "SOPInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "StudyInstanceUID": small_pacs.STUDY,
        "PatientName": small_pacs.PATIENT,
        "PatientID": small_pacs.PATIENT_ID,
        "Modality": "SR",
        "ContentDate": today.strftime("%Y%m%d"),
        "ContentTime": "000000",
        "SeriesDate": today.strftime("%Y%m%d"),
        "SeriesTime": "000000",
        "CurrentRequestedProcedureEvidenceSequence": [study],
        **changes,
    }
    for keyword, value in params.items():
        setattr(dataset, keyword, value)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def _to_bytes(dataset: FileDataset) -> bytes:
    content = io.BytesIO()
    dataset.save_as(content, write_like_original=False)
    return content.getvalue()


def _store(target: Target, parts: Collection[bytes], kind: str = "application/dicom", token: str = "") -> list[bytes]:
    """Store objects through the proxy; return the bodies that the PACS received."""
    del small_pacs.RECEIVED[:]
    body = b"".join(b"\r\n--part\r\nContent-Type: %s\r\n\r\n%s" % (kind.encode(), part) for part in parts)
    headers = {"Content-Type": f'multipart/related; type="{kind}"; boundary=part'}
    path = "/proxy/dicom/stow/studies"
    target.request("POST", path, data=body + b"\r\n--part--\r\n", headers=headers, token=token or target.annotator)
    return list(small_pacs.RECEIVED)


@attack(Site.PACS, silently_ignored=True)
def stored_in_anothers_name(target: Target) -> bool:
    """Store an object in the PACS under another person's name."""
    operator = _report(OperatorsName=GHOST)
    person, author = Dataset(), Dataset()
    person.VerifyingObserverName, author.PersonName = GHOST, GHOST
    author.ObserverType = "PSN"
    verified = _report(VerifyingObserverSequence=[person], AuthorObserverSequence=[author], VerificationFlag="VERIFIED")
    content = Dataset()
    content.RelationshipType, content.ValueType, content.PersonName = "HAS OBS CONTEXT", "PNAME", GHOST
    inside = _report(ContentSequence=[content])
    return any(
        GHOST.encode() in body
        for dataset in (operator, verified, inside)
        for body in _store(target, [_to_bytes(dataset)])
    )


@attack(Site.PACS, silently_ignored=True)
def stored_tomorrow(target: Target) -> bool:
    """Store an object in the PACS with tomorrow's date, so that it stays the newest."""
    tomorrow = (date.today() + timedelta(days=1)).strftime("%Y%m%d")
    dataset = _report(ContentDate=tomorrow, SeriesDate=tomorrow, InstanceCreationDate=tomorrow)
    return any(tomorrow.encode() in body for body in _store(target, [_to_bytes(dataset)]))


def _forbidden_objects() -> Iterator[bytes]:
    image = _report(SOPClassUID="1.2.840.10008.5.1.4.1.1.2", Modality="CT")
    yield _to_bytes(image)
    yield _to_bytes(_report(SOPClassUID="1.2.840.10008.5.1.4.1.1.104.1", Modality="DOC"))
    yield _to_bytes(_report(StudyInstanceUID="1.2.3.4.5"))
    yield _to_bytes(_report(PatientID="ANOTHER"))
    yield _to_bytes(_report(PatientName="ANOTHER^PATIENT"))
    yield _to_bytes(_report(SOPInstanceUID=small_pacs.INSTANCE))
    yield _to_bytes(_report(SeriesInstanceUID=small_pacs.SERIES))
    yield b"no object of DICOM"


@attack(Site.PACS)
def what_no_viewer_stores(target: Target) -> bool:
    """Store an image, an object of another patient, study or series, or an object that replaces an existing one."""
    return any(_store(target, [content]) for content in _forbidden_objects())


@attack(Site.PACS)
def stored_as_json(target: Target) -> bool:
    """Store an object in the PACS as JSON, to evade the checks of DICOM files."""
    content = json.dumps([json.loads(_report(OperatorsName=GHOST).to_json())]).encode()
    return any(_store(target, [content], kind="application/dicom+json"))


@attack(Site.PACS)
def thousands_of_objects(target: Target) -> bool:
    """Store thousands of objects in the PACS with one request."""
    content = _to_bytes(_report())
    return any(_store(target, [content] * 2000))
