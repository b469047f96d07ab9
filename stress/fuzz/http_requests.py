"""Send odd requests: from the OpenAPI description (schemathesis), odd bodies and names (hypothesis), broken files."""

from __future__ import annotations

import json
import time
import unittest
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import requests
from hypothesis import HealthCheck, Phase, given
from hypothesis import seed as hypothesis_seed
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException

from baps.server.access_policy import find_policy
from benchmarks.paths import ROOT
from stress.fuzz.mutations import mutant, seeds
from stress.served_site import CASES, Site, files_of, running_site, strays, write_labels
from stress.tally import Tally

SMALL = "small"
"""Name of an image that the small labels fit."""

_TIMEOUT = 60
_PATH_VALUES = {"model": "baps", "strategy": "first"}
"""Valid values of path parameters, used half of the time; other values are refused at once."""


def fuzz_http(folder: Path, count: int, seed: int, seconds: float) -> dict[str, Any]:
    """Start a server and send it odd requests.

    Args:
        folder: folder for everything that the server writes.
        count: number of requests.
        seed: seed of the requests.
        seconds: maximum duration.

    Returns:
        The tally's figures, ``by_kind``, ``strays`` (unexpected files), ``alive`` (whether the server still answers),
        and ``skipped``: operations of the OpenAPI description for which no example could be drawn.
    """
    before, tally = files_of(ROOT), Tally()
    warnings.simplefilter("ignore")  # Warnings of pydicom about the broken files.
    with running_site(folder, CASES[:3]) as site:
        client = _Client(site, tally, time.monotonic() + seconds)
        _add_studies(site)
        skipped = _send_openapi_requests(client, round(0.4 * count), seed, client.end - 0.6 * seconds)
        _send_odd_bodies(client, round(0.35 * count), seed, client.end - 0.25 * seconds)
        _send_broken_files(client, count - tally.requests, seed)
        session = site.session()
        alive = site.process.is_running() and session.get(f"{site.address}/info/", timeout=_TIMEOUT).ok
        session.delete(f"{site.address}/train/", timeout=_TIMEOUT)
        sample = session.post(f"{site.address}/activelearning/random", timeout=_TIMEOUT)
    return {
        **tally.to_dict(),
        "by_kind": client.by_kind,
        "strays": strays(folder) + sorted(files_of(ROOT) - before),
        "alive": alive and sample.ok,
        "skipped": skipped,
    }


class _Client:
    """Sends requests and counts the outcomes, until the time is up."""

    def __init__(self, site: Site, tally: Tally, end: float) -> None:
        self.site, self.tally, self.end = site, tally, end
        self.session, self.by_kind, self.about = site.session(), dict[str, int](), ""

    def send(self, kind: str, method: str, path: str, until: float | None = None, **sent: Any) -> None:
        """Send one request; the path begins with a slash, or with the server's address."""
        if time.monotonic() > min(self.end, until or self.end):
            return
        address = path if path.startswith("http") else self.site.address + path
        sent = {"timeout": _TIMEOUT, "allow_redirects": False, **sent}

        def request() -> requests.Response:
            return self.session.request(method, address, **sent)

        count = self.tally.requests
        about = {key: value for key, value in sent.items() if key in ("params", "data", "json", "headers")}
        self.tally.send(kind, request, f"{self.about}{method} {path} {about}")
        self.by_kind[kind] = self.by_kind.get(kind, 0) + self.tally.requests - count


def _add_studies(site: Site) -> None:
    """Add a small image, and a label of a large image."""
    session, (suffix, content) = site.session(), seeds()["nifti"]
    address = f"{site.address}/datastore"
    session.put(
        f"{address}/image?image={SMALL}", files={"file": (f"a{suffix}", content)}, timeout=_TIMEOUT
    ).raise_for_status()
    label = write_labels(site.folder / "tmp" / "label.nii.gz", CASES[0])
    session.put(
        f"{address}/label?image={CASES[0]}", files={"label": (label.name, label.read_bytes())}, timeout=_TIMEOUT
    ).raise_for_status()


def _for_examples(strategy: st.SearchStrategy[Any], count: int, seed: int, use: Callable[[Any], None]) -> None:
    """Call a function with examples of a strategy."""

    @hypothesis_seed(seed)
    @hypothesis_settings(
        max_examples=max(1, count), database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def each(example: Any) -> None:
        use(example)

    each()


def _send_openapi_requests(client: _Client, count: int, seed: int, until: float) -> list[str]:
    """Send requests that the OpenAPI description allows or forbids; return operations without examples."""
    try:
        import schemathesis
        from schemathesis import GenerationMode
        from schemathesis.core.result import Ok
    except ImportError:  # It needs a newer Python; more bodies and files are sent instead.
        return ["all: schemathesis is not installed, which needs Python 3.11"]
    openapi = client.session.get(f"{client.site.address}/openapi.json", timeout=_TIMEOUT).json()
    schema = schemathesis.openapi.from_dict(openapi)
    operations = [each.ok() for each in schema.get_all_operations() if isinstance(each, Ok)]
    operations = [operation for operation in operations if find_policy(operation.method.upper(), operation.path)]
    variants = [
        (operation, mode, fixed)
        for operation in operations
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        for fixed in ({}, *({key: value} for key, value in _PATH_VALUES.items() if f"{{{key}}}" in operation.path))
    ]
    skipped = []
    for number, (operation, mode, fixed) in enumerate(variants):

        def use(case: Any) -> None:
            if time.monotonic() > until:
                return
            try:
                sent = case.as_transport_kwargs(base_url=client.site.address, headers=dict(client.session.headers))
            except (ValueError, TypeError, UnicodeError):  # The example cannot be encoded.
                return
            client.send("OpenAPI", sent.pop("method"), sent.pop("url"), **sent)

        try:
            strategy = operation.as_strategy(mode, path_parameters=fixed or None)
            _for_examples(strategy, count // len(variants) + 1, seed + number, use)
        except (HypothesisException, unittest.SkipTest) as error:
            skipped.append(f"{operation.method.upper()} {operation.path}, {mode.value}: {type(error).__name__}")
    return skipped


_ODD_TEXT = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["", ".", "..", "../../x", "/etc/passwd", "\x00", "\ud800", "a" * 300, "ct_01", "spleen", "shared", "%2e%2e",
         "C:\\x", "final", "original", "nan", "ä", "🩻", "ct_01\n", " "]
    ),
)  # fmt: skip
_NUMBERS = st.one_of(
    st.integers(-3, 130),
    st.floats(),
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**63, 10**400, 1e308, -0.0]),
)
_ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), _NUMBERS, _ODD_TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=6), st.dictionaries(_ODD_TEXT, inner, max_size=4)),
    max_leaves=12,
)
_VOXEL = st.tuples(st.integers(0, 15), st.integers(0, 15), st.integers(0, 5)).map(list)
_POINTS = st.one_of(
    st.lists(_VOXEL, min_size=1, max_size=5),
    st.lists(st.one_of(_VOXEL, st.lists(_NUMBERS, max_size=4)), max_size=5),
    _ANYTHING,
)
_BOX = st.one_of(st.lists(st.integers(-2, 20), min_size=6, max_size=6), st.lists(_NUMBERS, max_size=7), _ANYTHING)


def _odd(*likely: Any) -> st.SearchStrategy[Any]:
    """Draw one of the likely values, or anything."""
    return st.one_of(st.sampled_from(list(likely)), st.sampled_from(list(likely)), _ANYTHING)


_ODD_PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "foreground": _POINTS, "background": _POINTS, "spleen": _POINTS, "roi": _BOX, "slice": _odd(0, 3, -1, 99),
        "plane": _odd("axial", "coronal", ["sagittal"], "as stored"), "label": _odd("spleen", "liver", ["spleen"]),
        "adapter": _odd("spleen", "as clicked"), "save_as": _odd("do not save", "spleen"), "seconds": _odd(1, "2"),
        "result_compress": _odd(True, False), "result_extension": _odd(".nrrd", ".nii.gz"),
        "result_dtype": _odd("uint8", "float64"), "client_id": _ODD_TEXT, "timeout": _odd(1), "device": _odd("cpu"),
        "label_info": _odd([{"name": "foreground_scribbles", "id": 1}], [{"name": "spleen", "id": 1}]),
        "selected_label_name": _odd("spleen"),
    },
)  # fmt: skip
_PARAMS = st.one_of(
    _ODD_PARAMS,
    st.builds(
        lambda voxel, odd, begin: {"foreground": [voxel], "label": "spleen", **dict([*odd.items()][begin : begin + 2])},
        _VOXEL, _ODD_PARAMS, st.integers(0, 15),
    ),
)  # fmt: skip
"""Params of a click: all fields odd, or a valid click with two odd fields."""

_LABEL_PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "label_info": _odd([{"name": "spleen", "idx": 1}], [{"name": "a", "idx": 0}, {"name": "a", "idx": 1}]),
        "author": _odd("anna"), "model": _odd("baps", ""), "confirmed": _odd(True, False), "slices": _odd([0, 1], [99]),
        "authors": _ANYTHING, "annotated_slices": _ANYTHING, "ts": _ANYTHING, "version": _ANYTHING, "name": _ANYTHING,
        "comment": _ANYTHING,
    },
)  # fmt: skip
_TRAINING = st.fixed_dictionaries(
    {},
    optional={
        "label": _odd("spleen", "all"), "max_images": _odd(-1, 0, 10, "many"), "seed": _odd(0, -1),
        "zoom": _odd("none", "chosen"), "head": _odd("none"), "baps": _odd({}, {"seed": 1}), "model": _ANYTHING,
        "optimiser": _odd("spsa_gc"), "condition": _odd("click"), "prompt": _odd("box"), "learning_rate": _NUMBERS,
    },
)  # fmt: skip
_ROUTES_WITH_NAMES = st.sampled_from(
    [
        ("GET", "/datastore/image?image={}"), ("HEAD", "/datastore/image?image=ct_01&check_sum={}"),
        ("GET", "/datastore/image/info?image={}"), ("GET", "/datastore/label?label=ct_01&tag={}"),
        ("GET", "/datastore/label?label={}&tag=final"), ("GET", "/datastore/label/info?label={}&tag=final"),
        ("GET", "/datastore/label/info?label=ct_01&tag={}"), ("GET", "/session/{}"), ("GET", "/session/{}?image=true"),
        ("DELETE", "/session/{}"), ("DELETE", "/progress/{}"), ("GET", "/ohif/{}"), ("GET", "/static/{}"),
        ("GET", "/static/ohif/{}"), ("GET", "/proxy/dicom/wado/studies/{}"), ("GET", "/login?next={}"),
        ("POST", "/infer/{}?image=ct_01"), ("POST", "/infer/baps?image={}"), ("POST", "/infer/baps?session_id={}"),
        ("POST", "/activelearning/{}"), ("POST", "/train/{}"), ("GET", "/datastore/?output={}"),
        ("GET", "/train/?all={}"),
        ("GET", "/login/openid/return?code={}&state=x"), ("GET", "/datastore/dataset?limit_cases={}"), ("GET", "/{}"),
    ]
)  # fmt: skip

_MODELS = st.sampled_from([*["baps"] * 6, *["zero_shot"] * 4, *["scribbles"] * 2, "whole_organ", "nothing"])


def _send_odd_bodies(client: _Client, count: int, seed: int, until: float) -> None:
    """Send odd values in params and bodies, and odd names in paths."""
    label = seeds()["nifti_label"]
    outputs = st.sampled_from(["", "&output=json", "&output=image", "&output=all", "&output=dicom_seg"])

    def infer(drawn: tuple[str, str, dict[str, Any]]) -> None:
        model, output, params = drawn
        sent: dict[str, Any] = {"data": {"params": json.dumps(params)}}
        if model == "scribbles":
            sent["files"] = {"label": (f"a{label[0]}", label[1])}
        client.send("params of a click", "POST", f"/infer/{model}?image={SMALL}{output}", until, **sent)

    def save(drawn: tuple[Any, Any]) -> None:
        params, tag = drawn
        named = f"/datastore/label?image={SMALL}&tag={_quoted(tag)}"
        sent = {"files": {"label": (f"a{label[0]}", label[1])}, "data": {"params": json.dumps(params)}}
        client.send("params of a label", "PUT", named, until, **sent)

    def train(params: Any) -> None:
        sent = {"data": json.dumps(params), "headers": {"Content-Type": "application/json"}}
        client.send("options of a training", "POST", "/train/baps", until, **sent)

    def sample(params: Any) -> None:
        sent = {"data": json.dumps(params), "headers": {"Content-Type": "application/json"}}
        client.send("options of next sample", "POST", "/activelearning/first", until, **sent)

    def named(drawn: tuple[tuple[str, str], str]) -> None:
        (method, path), name = drawn
        client.send("names", method, path.format(_quoted(name)), until)

    def raw(content: bytes) -> None:
        for path in ("/train/baps", "/infer/baps?image=ct_01", "/login", "/auth/token"):
            for kind in ("application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"):
                client.send("bytes", "POST", path, until, data=content, headers={"Content-Type": kind})

    _for_examples(st.tuples(_MODELS, outputs, _PARAMS), round(0.5 * count), seed, infer)
    _for_examples(
        st.tuples(st.one_of(_LABEL_PARAMS, _ANYTHING), _odd("final").filter(_is_text)), round(0.12 * count), seed, save
    )
    _for_examples(st.one_of(_TRAINING, _ANYTHING), round(0.08 * count), seed, train)
    _for_examples(_ANYTHING, round(0.04 * count), seed, sample)
    _for_examples(st.tuples(_ROUTES_WITH_NAMES, _ODD_TEXT), round(0.2 * count), seed, named)
    _for_examples(st.binary(max_size=200), round(0.06 * count / 12), seed, raw)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _quoted(name: str) -> str:
    return quote(name.encode(errors="surrogatepass"), safe="")


def _send_broken_files(client: _Client, count: int, seed: int) -> None:
    """Send broken files as images, labels, scribbles and sessions."""
    valid = {kind: seed_file for kind, seed_file in seeds().items() if kind != "safetensors"}
    click = {"params": json.dumps({"foreground": [[8, 8, 3]], "label": "spleen"})}
    strokes = {"params": json.dumps({"label_info": [{"name": "foreground_scribbles", "id": 1}]})}
    for number in range(count):
        random = np.random.default_rng([seed, 1, number])
        kind = str(random.choice(sorted(valid)))
        broken = mutant(kind, valid[kind], random)
        file = (f"a{broken.suffix}", broken.content)
        choice, what = int(random.integers(8)), f"file, {kind}"
        client.about = f"file {number} ({broken.how}) "
        if choice < 3:
            client.send(what, "POST", "/infer/baps?output=image", files={"file": file}, data=click)
        elif choice < 5:
            client.send(what, "PUT", f"/datastore/label?image={SMALL}", files={"label": file})
        elif choice == 5:
            path = f"/infer/scribbles?image={SMALL}&output=image"
            client.send(what, "POST", path, files={"label": file}, data=strokes)
        elif choice == 6:
            client.send(what, "PUT", f"/datastore/image?image=odd_{number}", files={"file": file})
        else:
            _send_session(client, what, file)


def _send_session(client: _Client, what: str, file: tuple[str, bytes]) -> None:
    """Open a session with a file, click on it, and close it."""
    client.send(what, "PUT", "/session/", files={"files": file})
    try:
        opened = client.session.put(f"{client.site.address}/session/", files={"files": file}, timeout=_TIMEOUT).json()
    except (requests.RequestException, ValueError):
        return
    if isinstance(opened, dict) and "session_id" in opened:
        name = opened["session_id"]
        click = {"params": json.dumps({"foreground": [[8, 8, 3]]})}
        client.send(what, "POST", f"/infer/baps?session_id={name}&output=image", data=click)
        client.send(what, "DELETE", f"/session/{name}")
