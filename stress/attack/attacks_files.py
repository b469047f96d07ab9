"""Attacks on the audit file, on file permissions, and through the folder in which a server is started."""

from __future__ import annotations

import functools
import io
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import psutil
import requests
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage, generate_uid

from baps.demo.server import free_port
from baps.site.app_folder import PACKAGES
from demo import orthanc
from stress.attack.attacks import EVIL, Site, Target, attack

_FLOOD = 300


# Attacks on the audit file.


@attack(Site.USERS)
def all_labels_read_without_a_line(target: Target) -> bool:
    """Fetch all labelled images, or their list, as an annotator, without a line in the audit file."""
    return _leaves_no_line(
        target,
        lambda: target.request("GET", "/datastore/dataset", token=target.users["annotator"]),
        lambda line: line.get("count", 0) >= 1,
    ) or _leaves_no_line(
        target,
        lambda: target.request("GET", "/datastore/", {"output": "all"}, token=target.users["annotator"]),
        lambda line: True,
    )


@attack(Site.USERS)
def session_read_without_a_line(target: Target) -> bool:
    """Fetch the image of a session without an audit line that names the session."""
    token = target.users["annotator"]
    sent = {"files": ("x.nii.gz", target.secret.read_bytes())}
    session_reply = target.request("PUT", "/session/", files=sent, token=token)
    session = session_reply.json()["session_id"] if session_reply.ok else "none"
    fetched = f"/session/{session}"
    succeeded = _leaves_no_line(
        target,
        lambda: target.request("GET", fetched, {"image": "true"}, token=token),
        lambda line: bool(line.get("image")),
    )
    target.inspect("DELETE", fetched, token=token)
    return succeeded


@attack(Site.USERS)
def label_saved_as_if_only_asked(target: Target) -> bool:
    """Save a label by an option of a click, so that the audit file records only a segmentation."""
    params = {**target.click, "save_as": "spleen", "result_extension": ".nrrd"}
    return _leaves_no_line(
        target,
        lambda: target.request(
            "POST", f"/infer/{target.model}", {"image": target.image, "output": "image"},
            data={"params": json.dumps(params)}, token=target.users["annotator"],
        ),
        lambda line: line["what"] == "save a label",
    )  # fmt: skip


@attack(Site.PACS, silently_ignored=True)
def study_read_without_a_line(target: Target) -> bool:
    """Fetch a study and a series of the PACS without an audit line that names them."""
    uids = (f"1.2.3.{secrets.randbelow(10**9)}", f"1.2.3.{secrets.randbelow(10**9)}")
    paths = (f"studies/{uids[0]}/metadata", f"wado/studies/{uids[0]}/series/{uids[1]}/instances/1.2/frames/1")
    return any(
        _leaves_no_line(
            target,
            lambda path=path: target.inspect("GET", f"/proxy/dicom/{path}", token=target.annotator),  # type: ignore[misc]
            lambda line: bool(line.get("image")),
        )
        for path in paths
    )


@attack(Site.PACS, silently_ignored=True)
def object_stored_without_its_image(target: Target) -> bool:
    """Store a label in the PACS without an audit line that names the image."""
    label, meta = Dataset(), FileMetaDataset()
    meta.MediaStorageSOPClassUID = label.SOPClassUID = SegmentationStorage
    meta.MediaStorageSOPInstanceUID = label.SOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    label.StudyInstanceUID, label.SeriesInstanceUID, label.Modality = generate_uid(), generate_uid(), "SEG"
    series = Dataset()
    series.SeriesInstanceUID = generate_uid()
    label.ReferencedSeriesSequence = [series]
    file, content = FileDataset("", label, file_meta=meta, preamble=bytes(128)), io.BytesIO()
    file.is_little_endian, file.is_implicit_VR = True, False
    file.save_as(content, write_like_original=False)
    body = b"--x\r\nContent-Type: application/dicom\r\n\r\n" + content.getvalue() + b"\r\n--x--\r\n"
    headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=x'}
    return _leaves_no_line(
        target,
        lambda: target.inspect("POST", "/proxy/dicom/stow/studies", data=body, headers=headers, token=target.annotator),
        lambda line: bool(line.get("image") or line.get("images")),
    )


@attack(Site.USERS)
def command_without_a_line(target: Target) -> bool:
    """Restore an earlier version of a label by the command line, without a line in the audit file."""
    history = target.images / "labels-history" / "final" / target.other_image
    for value in (1, 2):
        _save(target, value)
    versions = sorted(path.name for path in history.iterdir() if path.is_dir())
    succeeded = _leaves_no_line(
        target,
        lambda: _run_baps(target, "labels", "restore", str(target.images), target.other_image, versions[-1]),
        lambda line: bool(line.get("image")),
    )
    _save(target, 3)
    return succeeded


@attack(Site.USERS)
def audit_file_filled_by_nobody(target: Target) -> bool:
    """Fill the audit file without signing in: by signing out, by returns from a provider, and by wrong tokens."""
    before = len(_lines(target))
    with requests.Session() as session:
        for number in range(_FLOOD):
            session.post(f"{target.address}/logout", timeout=60, allow_redirects=False)
            session.get(f"{target.address}/login/openid/return?state={number}", timeout=60)
            headers = {"Authorization": f"Bearer x{number}", "Origin": EVIL}
            session.get(f"{target.address}/nothing/{number}", headers=headers, timeout=60)
    time.sleep(0.5)
    return len(_lines(target)) - before > _FLOOD // 10


@attack(Site.USERS)
def audit_line_changed_unseen(target: Target) -> bool:
    """Change, remove, swap and truncate lines of the audit file without its key, and remain undetected."""
    file = target.folder / "adapters" / "audit.jsonl"
    for _ in range(4):
        target.request("GET", "/datastore/image", {"image": target.image}, token=target.users["annotator"])
    time.sleep(0.5)
    original = file.read_bytes()
    lines = original.splitlines(keepends=True)
    changed = (
        [*lines[:-2], lines[-2].replace(b"annotator", b"trainer"), lines[-1]],
        [*lines[:-3], *lines[-2:]],
        [*lines[:-2], lines[-1], lines[-2]],
        lines[:-2],
    )
    undetected = False
    for content in changed:
        file.write_bytes(b"".join(content))
        undetected = undetected or _run_baps(target, "audit", "verify", "--file", str(file)).returncode != 1
        file.write_bytes(original)
    return undetected or _run_baps(target, "audit", "verify", "--file", str(file)).returncode != 0


# Attacks by other users of the machine.


@attack(Site.USERS)
def files_that_a_neighbour_reads(target: Target) -> bool:
    """Read, as another user of the machine, the files of a click, a save, an upload, a session and a training."""
    token, image = target.users["trainer"], target.secret.read_bytes()
    _save(target, 1)
    target.request(
        "PUT", "/datastore/image", {"image": f"new-{secrets.token_hex(4)}"}, files={"file": ("x.nii.gz", image)}
    )
    session_reply = target.request("PUT", "/session/", files={"files": ("x.nii.gz", image)}, token=token)
    target.request("POST", "/train/baps", json={"label": "spleen"}, token=token)
    time.sleep(5)
    server_start = psutil.Process(target.process_id).create_time()
    paths = [target.folder / name for name in ("adapters", "sessions")]
    paths += [target.images / name for name in ("labels", "labels-history", "datastore_v2.json", ".converted")]
    paths += list(target.images.glob("new-*"))
    files = [file for path in paths for file in (path, *path.rglob("*")) if file.exists() and not file.is_symlink()]
    new = [file for file in files if file.stat().st_ctime > server_start and file.parent != target.folder]
    made_by_us = {target.images / "labels", target.images / "labels" / "final"}
    succeeded = any(file.stat().st_mode & 0o077 for file in new if file not in made_by_us)
    _stop_training(target, token)
    if session_reply.ok:
        target.inspect("DELETE", f"/session/{session_reply.json()['session_id']}", token=token)
    for file in target.images.glob("new-*"):
        file.unlink()
    return succeeded


# Attacks through the folder in which a server is started.


@attack(Site.USERS)
def module_of_the_current_folder(target: Target) -> bool:
    """Have Python modules of the attacker's folder run when somebody starts a server in it."""
    return bool(_serve_in_attackers_folder(None)["ran"])


@attack(Site.USERS)
def module_by_an_empty_python_path(target: Target) -> bool:
    """Have these modules run if the user's PYTHONPATH has an empty entry."""
    return bool(_serve_in_attackers_folder(os.pathsep)["ran"])


@attack(Site.USERS)
def settings_of_the_current_folder(target: Target) -> bool:
    """Have the settings in ``.env`` of the attacker's folder used when somebody starts a server in it."""
    return bool(_serve_in_attackers_folder(None)["settings"])


@attack(Site.USERS)
def replies_left_in_the_temporary_folder(target: Target) -> bool:
    """Find a server's folders among the temporary files after it was stopped, or killed and started again."""
    return bool(_serve_in_attackers_folder(None)["left"])


@attack(Site.USERS)
def pacs_open_to_the_network(target: Target) -> bool:
    """Reach the PACS of ``make pacs`` at an address on which it should not listen."""
    if orthanc.missing():
        return False
    with tempfile.TemporaryDirectory() as folder:
        try:
            with orthanc.running_orthanc(Path(folder)) as address:
                socket.create_connection(("127.0.0.2", int(address.rpartition(":")[2])), 5).close()
                return True  # Only a socket that listens on all addresses answers.
        except Exception:
            return False


_EVIL_MODULE = """
import importlib, sys
open({ran!r}, "w").close()
sys.path[:] = [entry for entry in sys.path if entry not in ("", {folder!r})]
mine = sys.modules.pop(__name__)
try:
    sys.modules[__name__] = importlib.import_module(__name__)
except ImportError:
    sys.modules[__name__] = mine
"""
"""Records that it ran, and then imports the real module."""


@functools.cache
def _serve_in_attackers_folder(python_path: str | None) -> Mapping[str, Any]:
    """Run ``baps serve .`` in a folder with modules and settings; return whether they were used and what was left.

    If PYTHONPATH names the current folder, Python itself imports sitecustomize before any program can refuse it, so
    that the folder has none in this case.
    """
    with tempfile.TemporaryDirectory() as made:
        folder, temporary = Path(made) / "studies", Path(made) / "tmp"
        folder.mkdir()
        temporary.mkdir()
        names = ("yaml", "numpy", "uvicorn", "schedule")
        for name in (*names, *(("sitecustomize", "usercustomize") if python_path is None else ())):
            (folder / f"{name}.py").write_text(_EVIL_MODULE.format(ran=str(Path(made) / "ran"), folder=str(folder)))
        (folder / ".env").write_text(f"MONAI_LABEL_PROJECT_NAME=evil\nMONAI_LABEL_SESSION_PATH={made}/sessions\n")
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "BAPS_AUDIT")}
        environment |= {"TMPDIR": str(temporary), "BAPS_ADAPTERS": f"{made}/adapters"}
        program = f"import sys; sys.path[:0] = [{str(PACKAGES)!r}]; from baps.cli import main; main()"
        start = [sys.executable, "-c", program]
        if python_path is None:
            start = [sys.executable, "-I", "-c", program]
        else:
            environment["PYTHONPATH"] = python_path
        settings = False
        for end in (signal.SIGKILL, signal.SIGTERM):
            port = free_port()
            with (Path(made) / "log").open("w") as log:
                command = [*start, "serve", ".", "--port", str(port), "--labels", "spleen"]
                server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
            try:
                if _is_serving(server, port):
                    page = requests.get(f"http://127.0.0.1:{port}/openapi.json", timeout=30).json()
                    settings = settings or page["info"]["title"] == "evil"
            finally:
                server.send_signal(end)
                server.wait(60)
            if python_path is not None:
                break
        leftovers = [path for path in temporary.rglob("*") if path.is_dir() and path.name != f"baps-{os.getuid()}"]
        return {"ran": (Path(made) / "ran").exists(), "settings": settings, "left": leftovers}


def _is_serving(server: subprocess.Popen[bytes], port: int) -> bool:
    end = time.monotonic() + 120
    while server.poll() is None and time.monotonic() < end:
        try:
            return requests.get(f"http://127.0.0.1:{port}/auth/", timeout=10).ok
        except requests.ConnectionError:
            time.sleep(0.3)
    return False


def _lines(target: Target) -> Sequence[dict[str, Any]]:
    file = target.folder / "adapters" / "audit.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _leaves_no_line(target: Target, action: Callable[[], object], matches: Callable[[dict[str, Any]], bool]) -> bool:
    """Check whether an action leaves no matching line in the audit file."""
    before = len(_lines(target))
    action()
    time.sleep(0.5)  # The line is written after the answer.
    return not any(matches(line) for line in _lines(target)[before:])


def _run_baps(target: Target, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command of baps for the target's site."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGES), "BAPS_ADAPTERS": str(target.folder / "adapters")}
    command = [sys.executable, "-c", "from baps.cli import main; main()", *words]
    return subprocess.run(command, env=environment, capture_output=True)


def _save(target: Target, value: int) -> None:
    """Save a label of the other image as an annotator; each value gives a different label."""
    image = nibabel.load(target.images / f"{target.other_image}.nii.gz")
    voxels = np.zeros(image.shape, np.uint8)
    voxels[10 : 20 + value, 10:20, 5] = 2
    content = nibabel.Nifti1Image(voxels, image.affine).to_bytes()
    query = {"image": target.other_image, "tag": "final"}
    sent = {"label": ("x.nii", io.BytesIO(content))}
    target.request("PUT", "/datastore/label", query, files=sent, token=target.users["annotator"])


def _stop_training(target: Target, token: str) -> None:
    end = time.monotonic() + 30
    while target.inspect("GET", "/train/", {"check_if_running": "true"}, token=token).ok and time.monotonic() < end:
        target.inspect("DELETE", "/train/", token=token)
        time.sleep(0.5)
