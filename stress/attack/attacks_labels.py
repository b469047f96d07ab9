"""Attacks with labels, images and what viewers store: by somebody who may annotate, on the work of others."""

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
from stress.attack import little_pacs
from stress.attack.attacks import Site, Target, attack

LABELS = {"spleen": 2, "liver": 1}
GHOST = "GHOST^WRITER"
_TOLD = json.dumps([{"name": name, "idx": idx} for name, idx in LABELS.items()])


def _blocks(target: Target, image: str, **blocks: tuple[slice, slice, slice]) -> bytes:
    """A label file of an image, an organ a block, as NIfTI."""
    volume = read_volume(target.folder / "studies" / f"{image}.nii.gz")
    voxels = np.zeros(volume.shape, np.uint8)
    for name, block in blocks.items():
        voxels[block] = LABELS[name]
    return _packed(target, Volume(voxels, volume.affine))


def _packed(target: Target, volume: Volume) -> bytes:
    file = target.folder / f"{secrets.token_hex(8)}.nii.gz"
    write_nifti(file, volume)
    content = file.read_bytes()
    file.unlink()
    return content


def _save(
    target: Target, user: str, content: bytes, image: str = "", query: dict[str, str] | None = None, **said: object
) -> requests.Response:
    params = {"label_info": json.loads(_TOLD), **said}
    return target.ask(
        "PUT",
        "/datastore/label",
        {"image": image or target.image, **(query or {})},
        data={"params": json.dumps(params)},
        files={"label": ("label.nii.gz", content)},
        token=target.users[user],
    )


def _at(i: int, j: int, k: int, size: int = 8) -> tuple[slice, slice, slice]:
    return slice(i, i + size), slice(j, j + size), slice(k, k + 4)


_LIVER, _SPLEEN, _ELSEWHERE = _at(20, 20, 4), _at(60, 60, 4), _at(90, 90, 12)


def _trained_liver(target: Target) -> NDArray[np.bool_] | None:
    """Where a training that began now would find the liver, on the slices that it would look at; None for nowhere."""
    studies = StudiesDatastore(str(target.folder / "studies"), False, False)
    for case in labelled_cases(studies, LABELS, {})[0]["liver"]:
        if case.image.name.startswith(f"{target.image}."):
            found = read_label_map(case.labels, read_volume(case.image)).mask(case.value)
            covered = range(found.shape[2]) if case.annotated_slices is None else case.annotated_slices
            found[:, :, [k for k in range(found.shape[2]) if k not in covered]] = False
            return found
    return None


def _draw_others_liver(target: Target) -> None:
    """Have another annotator's liver be the label, which a trainer has seen."""
    content = _blocks(target, target.image, liver=_LIVER)
    for user in ("trainer", "other"):
        _save(target, user, content)


def _liver_is_hurt(target: Target, *replies: requests.Response) -> bool:
    """Whether trainings lost the other's liver, or its voxels are taken for background; or it went in silence."""
    found = _trained_liver(target)
    lost = found is None or found[_LIVER].mean() < 0.5 or found.sum() > 2 * found[_LIVER].sum()
    silent = all(not reply.json().get("notes") for reply in replies if reply.ok)
    return any(reply.ok for reply in replies) and (lost or silent)


@attack(Site.USERS)
def others_organ_erased_by_slices(target: Target) -> bool:
    """Save another organ, and say that another annotator's was looked for on all slices."""
    _draw_others_liver(target)
    reply = _save(target, "annotator", _blocks(target, target.image, spleen=_SPLEEN), slices=list(range(24)))
    return _liver_is_hurt(target, reply)


@attack(Site.USERS)
def others_organ_replaced(target: Target) -> bool:
    """Save an organ of another annotator's somewhere else."""
    _draw_others_liver(target)
    return _liver_is_hurt(target, _save(target, "annotator", _blocks(target, target.image, liver=_ELSEWHERE)))


@attack(Site.USERS)
def others_organ_painted_over(target: Target) -> bool:
    """Paint another organ over one of another annotator's."""
    _draw_others_liver(target)
    return _liver_is_hurt(target, _save(target, "annotator", _blocks(target, target.image, spleen=_LIVER)))


@attack(Site.USERS)
def others_organ_erased_in_steps(target: Target) -> bool:
    """Correct an organ of another annotator's a little, to be its author, and go on until nothing is left."""
    _draw_others_liver(target)
    replies = []
    for size in (7, 6, 5, 4, 3, 2):
        replies.append(_save(target, "annotator", _blocks(target, target.image, liver=_at(20, 20, 4, size))))
    replies.append(_save(target, "annotator", _blocks(target, target.image, spleen=_SPLEEN), slices=list(range(24))))
    return _liver_is_hurt(target, *replies)


@attack(Site.USERS)
def others_organ_taken_for_ones_own(target: Target) -> bool:
    """Submit an organ of another annotator's as it is, to be its author, and erase it then as one's own."""
    _draw_others_liver(target)
    _save(target, "annotator", _blocks(target, target.image, liver=_LIVER))
    reply = _save(target, "annotator", _blocks(target, target.image, spleen=_SPLEEN), slices=list(range(24)))
    return _liver_is_hurt(target, reply)


@attack(Site.USERS)
def others_organ_erased_by_a_shown_mask(target: Target) -> bool:
    """Have a mask that lies elsewhere saved over an organ of another annotator's, slice by slice."""
    _draw_others_liver(target)
    replies = []
    for k in range(4, 8):
        said = {"foreground": [[100, 100, k]], "label": "liver", "save_as": "liver", "client_id": "other"}
        replies.append(
            target.ask(
                "POST",
                f"/infer/{target.model}",
                {"image": target.image, "output": "json"},
                data={"params": json.dumps(said)},
                token=target.users["annotator"],
            )
        )
    return _liver_is_hurt(target, *replies)


@attack(Site.USERS)
def role_claimed_in_params(target: Target) -> bool:
    """Say in the params of a label that a trainer made it and confirms it."""
    _draw_others_liver(target)
    claims = dict.fromkeys(("trusted", "confirms", "confirmed_by", "role"), True)
    said: dict[str, Any] = {**claims, "author": "other", "authors": {"liver": "trainer"}, "disputed": {}, "basis": {}}
    content = _blocks(target, target.image, spleen=_SPLEEN)
    return _liver_is_hurt(target, _save(target, "annotator", content, slices=list(range(24)), **said))


@attack(Site.USERS)
def thousands_of_names(target: Target) -> bool:
    """Save a label that names 6,000 segments, and see whether another user's save of another image waits for it."""
    volume = Volume(np.zeros((256, 256, 256), np.int16), np.eye(4))
    large = _upload(target, volume)
    voxels = np.zeros(volume.shape, np.uint8)
    voxels[_SPLEEN] = 2
    content, named = (
        _packed(target, Volume(voxels, volume.affine)),
        [{"name": f"n{n}", "idx": n} for n in range(1, 6001)],
    )
    with ThreadPoolExecutor(1) as pool:
        begun = time.monotonic()
        slow = pool.submit(_save, target, "annotator", content, large, label_info=named)
        time.sleep(1)
        _save(target, "other", _blocks(target, target.other_image, spleen=_SPLEEN), target.other_image)
        waited = time.monotonic() - begun
        slow.result()
    return waited > 10


def _upload(target: Target, volume: Volume) -> str:
    """Add an image as one who annotates; its name."""
    name, sent = f"image-{secrets.token_hex(4)}", {"file": ("x.nii.gz", _packed(target, volume))}
    target.ask("PUT", "/datastore/image", {"image": name}, files=sent, token=target.users["other"])
    return name


@attack(Site.USERS)
def one_name_uploaded_twice(target: Target) -> bool:
    """Upload two images of one name at once, so that one takes the place of the other."""
    affine = np.eye(4)
    contents = [_packed(target, Volume(np.full((16, 16, 8), n, np.int16), affine)) for n in range(4)]
    for _ in range(4):
        name = f"twice-{secrets.token_hex(4)}"

        def upload(content: bytes, name: str = name) -> bool:
            sent = {"file": ("x.nii.gz", content)}
            return target.ask("PUT", "/datastore/image", {"image": name}, files=sent, token=target.users["other"]).ok

        with ThreadPoolExecutor(4) as pool:
            if sum(pool.map(upload, contents)) > 1:
                return True
    return False


@attack(Site.USERS)
def image_of_nearly_the_same_name(target: Target) -> bool:
    """Upload an image whose name another file system takes for that of one that is there, or that takes its labels."""
    content = _packed(target, Volume(np.zeros((16, 16, 8), np.int16), np.eye(4)))
    names = (target.image.upper(), f"{target.image}.seg", f".{target.image}")
    for name in names:
        sent = {"file": ("x.nii.gz", content)}
        target.ask("PUT", "/datastore/image", {"image": name}, files=sent, token=target.users["other"])
    found = [file for name in names for file in (target.folder / "studies").glob(f"{name}.nii.gz")]
    for file in found:
        file.unlink()
    return bool(found)


@attack(Site.USERS)
def tags_without_end(target: Target) -> bool:
    """Save a label under tags of one's own, each a folder and a line of the list."""
    content = _blocks(target, target.image, spleen=_SPLEEN)
    tags = [f"tag-{secrets.token_hex(4)}" for _ in range(3)]
    for tag in tags:
        _save(target, "annotator", content, query={"tag": tag})
    return any((target.folder / "studies" / "labels" / tag).exists() for tag in tags)


@attack(Site.USERS)
def fields_without_end(target: Target) -> bool:
    """Send much beside a label and an image, so that the list of the studies grows."""
    listed = target.folder / "studies" / LIST
    before = listed.stat().st_size if listed.exists() else 0
    junk: dict[str, Any] = {f"field-{n}": "x" * 1000 for n in range(400)}
    _save(target, "annotator", _blocks(target, target.image, spleen=_SPLEEN), query={"tag": "draft"}, **junk)
    deep: dict[str, Any] = {"deep": json.loads("[" * 200 + "]" * 200)}
    _save(target, "annotator", _blocks(target, target.image, spleen=_SPLEEN), query={"tag": "draft"}, **deep)
    many: dict[str, Any] = {
        "slices": list(range(24)),
        "label_info": [{"name": f"n{n}", "idx": n} for n in range(1, 2001)],
    }
    _save(target, "annotator", _blocks(target, target.image, spleen=_SPLEEN), query={"tag": "draft"}, **many)
    content = _packed(target, Volume(np.zeros((16, 16, 8), np.int16), np.eye(4)))
    query, sent = {"image": f"junk-{secrets.token_hex(4)}"}, {"file": ("x.nii.gz", content)}
    data = {"params": json.dumps(junk)}
    target.ask("PUT", "/datastore/image", query, files=sent, data=data, token=target.users["other"])
    return listed.stat().st_size - before > 100_000 or '"deep"' in listed.read_text()


@attack(Site.USERS)
def terminal_taken(target: Target) -> bool:
    """Put escape sequences and characters that turn a line round into the name of a segment, for a terminal to obey."""
    named: list[dict[str, Any]] = [{"name": "spleen\x1b[2J\x9b31m\u202e", "idx": 2}, {"name": "liver", "idx": 1}]
    extra: dict[str, Any] = {"note": "\x1b]0;pwned\x07", "client_id": "\x1b[31m"}
    content = _blocks(target, target.image, spleen=_SPLEEN)
    _save(target, "annotator", content, label_info=named, query={"tag": "draft"}, **extra)
    shown = _labels_list(target)
    return any(letter in shown for letter in ("\x1b[2J", "\x9b", "\u202e", "\x1b]0"))


@attack(Site.USERS)
def remarks_forged(target: Target) -> bool:
    """Say in the params of a label that it is a restored one, or was found in the folder, or what its version is."""
    said: dict[str, Any] = {
        "restored": "20200101T000000.000000Z",
        "found": True,
        "version": "x",
        "ts": 1,
        "erased": {"a": "b"},
    }
    _save(target, "annotator", _blocks(target, target.image, spleen=_SPLEEN), query={"tag": "original"}, **said)
    shown = _labels_list(target)
    return "20200101T000000" in shown or "found in the folder" in shown


def _labels_list(target: Target) -> str:
    program = "from baps.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "labels", "list", str(target.folder / "studies"), "--image", target.image],
        capture_output=True,
        check=True,
        cwd=ROOT / "apps" / "baps_app",
        env={**os.environ, "COLUMNS": "400"},
    )
    return done.stdout.decode()


@attack(Site.USERS)
def layers_without_end(target: Target) -> bool:
    """Save a label file of 8,000 layers, which are compared with each other, and see whether that takes long."""
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
    begun = time.monotonic()
    target.ask(
        "PUT",
        "/datastore/label",
        {"image": name, "tag": "draft"},
        files={"label": ("x.nrrd", (folder / "x.nrrd").read_bytes())},
        token=target.users["annotator"],
    )
    return time.monotonic() - begun > 10


# What a viewer stores in the PACS.


def _report(**changes: object) -> FileDataset:
    """A report on the study of the little PACS, as OHIF stores one."""
    meta = FileMetaDataset()
    made = FileDataset("", {}, preamble=b"\0" * 128, file_meta=meta)
    made.is_little_endian, made.is_implicit_VR = True, False
    series = Dataset()
    series.SeriesInstanceUID = little_pacs.SERIES
    series.ReferencedSOPSequence = []
    study = Dataset()
    study.StudyInstanceUID, study.ReferencedSeriesSequence = little_pacs.STUDY, [series]
    today = date.today()
    said = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.22",
        "SOPInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "StudyInstanceUID": little_pacs.STUDY,
        "PatientName": little_pacs.PATIENT,
        "PatientID": little_pacs.PATIENT_ID,
        "Modality": "SR",
        "ContentDate": today.strftime("%Y%m%d"),
        "ContentTime": "000000",
        "SeriesDate": today.strftime("%Y%m%d"),
        "SeriesTime": "000000",
        "CurrentRequestedProcedureEvidenceSequence": [study],
        **changes,
    }
    for keyword, value in said.items():
        setattr(made, keyword, value)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = made.SOPClassUID, made.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return made


def _written(made: FileDataset) -> bytes:
    content = io.BytesIO()
    made.save_as(content, write_like_original=False)
    return content.getvalue()


def _stored(target: Target, parts: Collection[bytes], kind: str = "application/dicom", token: str = "") -> list[bytes]:
    """What the PACS got of what was stored through the proxy."""
    del little_pacs.RECEIVED[:]
    body = b"".join(b"\r\n--part\r\nContent-Type: %s\r\n\r\n%s" % (kind.encode(), part) for part in parts)
    headers = {"Content-Type": f'multipart/related; type="{kind}"; boundary=part'}
    path = "/proxy/dicom/stow/studies"
    target.ask("POST", path, data=body + b"\r\n--part--\r\n", headers=headers, token=token or target.annotator)
    return list(little_pacs.RECEIVED)


@attack(Site.PACS, passed_over=True)
def stored_in_anothers_name(target: Target) -> bool:
    """Store an object in the PACS in another's name."""
    operator = _report(OperatorsName=GHOST)
    person, author = Dataset(), Dataset()
    person.VerifyingObserverName, author.PersonName = GHOST, GHOST
    author.ObserverType = "PSN"
    verified = _report(VerifyingObserverSequence=[person], AuthorObserverSequence=[author], VerificationFlag="VERIFIED")
    content = Dataset()
    content.RelationshipType, content.ValueType, content.PersonName = "HAS OBS CONTEXT", "PNAME", GHOST
    inside = _report(ContentSequence=[content])
    return any(
        GHOST.encode() in body for made in (operator, verified, inside) for body in _stored(target, [_written(made)])
    )


@attack(Site.PACS, passed_over=True)
def stored_tomorrow(target: Target) -> bool:
    """Store an object in the PACS that is dated tomorrow, so that it stays the newest."""
    tomorrow = (date.today() + timedelta(days=1)).strftime("%Y%m%d")
    made = _report(ContentDate=tomorrow, SeriesDate=tomorrow, InstanceCreationDate=tomorrow)
    return any(tomorrow.encode() in body for body in _stored(target, [_written(made)]))


def _others() -> Iterator[bytes]:
    image = _report(SOPClassUID="1.2.840.10008.5.1.4.1.1.2", Modality="CT")
    yield _written(image)
    yield _written(_report(SOPClassUID="1.2.840.10008.5.1.4.1.1.104.1", Modality="DOC"))
    yield _written(_report(StudyInstanceUID="1.2.3.4.5"))
    yield _written(_report(PatientID="ANOTHER"))
    yield _written(_report(PatientName="ANOTHER^PATIENT"))
    yield _written(_report(SOPInstanceUID=little_pacs.INSTANCE))
    yield _written(_report(SeriesInstanceUID=little_pacs.SERIES))
    yield b"no object of DICOM"


@attack(Site.PACS)
def what_no_viewer_stores(target: Target) -> bool:
    """Store an image in the PACS, or an object of another patient, study or series, or one that replaces another."""
    return any(_stored(target, [content]) for content in _others())


@attack(Site.PACS)
def stored_as_json(target: Target) -> bool:
    """Store an object in the PACS as JSON, which nobody looks into."""
    content = json.dumps([json.loads(_report(OperatorsName=GHOST).to_json())]).encode()
    return any(_stored(target, [content], kind="application/dicom+json"))


@attack(Site.PACS)
def thousands_of_objects(target: Target) -> bool:
    """Store thousands of objects in the PACS with one request."""
    content = _written(_report())
    return any(_stored(target, [content] * 2000))
