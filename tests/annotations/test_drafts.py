from __future__ import annotations

import errno
import io
import re
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from baps.annotations import drafts as module
from baps.annotations.drafts import DamagedDraft, Draft, DraftStore, DraftTakenError, MissingDraftError
from baps.errors import BapsError, StorageError
from baps.imaging.fingerprint import Fingerprint

SHAPE = (7, 6, 5)


def mask(seed: int = 0) -> NDArray[np.bool_]:
    drawn: NDArray[np.bool_] = np.random.default_rng(seed).random(SHAPE) < 0.3
    return drawn


def add(store: DraftStore, user: str = "anna", seed: int = 0) -> str:
    time.sleep(0.002)  # Names have the milliseconds.
    return store.add("spleen", user, Fingerprint.of(mask(seed)), mask(seed), (0.5, 1, 2))[0]


@pytest.fixture
def store(tmp_path: Path) -> DraftStore:
    return DraftStore(tmp_path / "drafts", 3, 1 << 20)


def test_a_draft_is_kept_as_it_was_drawn(store: DraftStore, tmp_path: Path) -> None:
    name = add(store)
    (draft,) = DraftStore(tmp_path / "drafts", 3, 1 << 20).all()  # After a restart.
    assert isinstance(draft, Draft)
    assert (draft.name, draft.label, draft.user, draft.shape) == (name, "spleen", "anna", SHAPE)
    assert draft.image == Fingerprint.of(mask())
    assert (draft.voxels, draft.millilitres) == (mask().sum(), pytest.approx(mask().sum() / 1000))
    assert np.array_equal(store.mask(name), mask())


def test_the_volume_is_unknown_without_a_spacing(store: DraftStore) -> None:
    name, _ = store.add("spleen", "", Fingerprint.of(mask()), mask())
    assert store.get(name).millilitres is None


def test_only_the_users_of_the_server_can_read_drafts(store: DraftStore, tmp_path: Path) -> None:
    name = add(store)
    with store.claim(name):
        files = [tmp_path / "drafts", *(tmp_path / "drafts").iterdir()]
        assert {oct(file.stat().st_mode & 0o077) for file in files} == {"0o0"}


def test_the_oldest_are_removed_when_there_are_too_many(store: DraftStore) -> None:
    names = [add(store, seed=seed) for seed in range(5)]
    assert [draft.name for draft in store.all()] == names[:1:-1]


def test_the_oldest_are_removed_when_they_take_too_much(tmp_path: Path) -> None:
    size = (tmp_path / "one" / f"{add(DraftStore(tmp_path / 'one', 9, 1 << 20))}.npz").stat().st_size
    store = DraftStore(tmp_path / "two", 9, 2 * size + size // 2)
    names = [add(store, seed=seed) for seed in range(4)]
    assert [draft.name for draft in store.all()] == [names[3], names[2]]
    _, removed = store.add("spleen", "", Fingerprint.of(mask()), mask())
    assert removed == [names[2]]


def test_none_is_kept_where_there_is_no_room(tmp_path: Path) -> None:
    for limits in ((0, 1 << 20), (9, 100)):
        store = DraftStore(tmp_path / "drafts", *limits)
        assert store.add("spleen", "", Fingerprint.of(mask()), mask()) == ("", [])
        assert store.all() == []


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive", None])
def test_a_damaged_draft_is_a_sentence_and_the_others_are_listed(
    store: DraftStore, tmp_path: Path, content: bytes | None
) -> None:
    broken, good = add(store), add(store, seed=1)
    file = tmp_path / "drafts" / f"{broken}.npz"
    file.write_bytes(file.read_bytes()[:-200] if content is None else content)
    first, second = store.all()
    assert first.name == good
    assert isinstance(second, DamagedDraft)
    assert second.problem.startswith(f"The draft {broken} is damaged")
    with pytest.raises(BapsError, match="damaged"):
        store.mask(broken)
    store.discard(broken)
    assert [one.name for one in store.all()] == [good]


def test_a_mask_that_does_not_fit_its_record_is_damaged(store: DraftStore, tmp_path: Path) -> None:
    name = add(store)
    file = tmp_path / "drafts" / f"{name}.npz"
    with np.load(file) as content:
        np.savez_compressed(file, record=content["record"], mask=content["mask"][:-1])
    with pytest.raises(BapsError, match="damaged"):
        store.mask(name)


def test_no_pickle_is_read(store: DraftStore, tmp_path: Path) -> None:
    name = add(store)
    np.savez(tmp_path / "drafts" / f"{name}.npz", record=np.array([{"a": 1}], object))
    with pytest.raises(BapsError, match="damaged"):
        store.get(name)


@pytest.mark.parametrize(
    "name", ["", "..", "../users", "20261130T120000000-zzzzzz", "20261130T120000000-abcdef", "a\0"]
)
def test_only_names_of_drafts_reach_the_disk(store: DraftStore, name: str) -> None:
    add(store)
    for call in (store.get, store.mask, store.discard, store.delete):
        if call == store.delete and re.fullmatch(r"\d{8}T\d{9}-[0-9a-f]{6}", name):
            continue
        with pytest.raises(MissingDraftError, match="There is no draft"):
            call(name)


def test_two_people_cannot_claim_a_draft_at_once(store: DraftStore, tmp_path: Path) -> None:
    name = add(store)
    other = DraftStore(tmp_path / "drafts", 3, 1 << 20)
    refused: list[BaseException] = []

    def confirm() -> None:
        try:
            with other.claim(name):
                pass
        except BapsError as error:
            refused.append(error)

    with store.claim(name):
        thread = threading.Thread(target=confirm)
        thread.start()
        thread.join()
        with pytest.raises(DraftTakenError):
            other.discard(name)
        store.delete(name)
    confirm()
    assert [type(error) for error in refused] == [DraftTakenError, MissingDraftError]
    assert [file.name for file in (tmp_path / "drafts").iterdir()] == [".lock"]


def test_a_claim_that_fails_leaves_the_draft(store: DraftStore) -> None:
    name = add(store)
    with pytest.raises(ZeroDivisionError), store.claim(name):
        raise ZeroDivisionError
    with store.claim(name) as draft:
        assert draft.name == name


def test_a_file_of_another_user_is_a_sentence(store: DraftStore, monkeypatch: pytest.MonkeyPatch) -> None:
    name = add(store)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(module.np, "load", denied)
    monkeypatch.setattr(Path, "unlink", denied)
    with pytest.raises(BapsError, match=r"cannot be used \(Permission denied\)"):
        store.get(name)
    with pytest.raises(StorageError, match=r"could not be deleted \(Permission denied\)"):
        store.delete(name)
    monkeypatch.setattr(module.FileLock, "acquire", denied)
    with pytest.raises(BapsError, match=r"cannot be used \(Permission denied\)"):
        store.discard(name)


def declared(kind: str) -> bytes:
    """Make a file that declares what it does not hold."""
    content = io.BytesIO()
    if kind == "array":  # No archive at all.
        np.save(content, np.zeros(3))
        return content.getvalue()
    shape = (1 << 50,) if kind == "petabyte" else (3,)
    np.lib.format.write_array_header_1_0(content, {"descr": "|u1", "fortran_order": False, "shape": shape})
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("record.npy", content.getvalue() + b"{}}")
    written = bytearray(archive.getvalue())
    if kind == "password":
        for start, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            written[written.index(start) + offset] |= 1
    return bytes(written)


@pytest.mark.parametrize("kind", ["array", "petabyte", "password"])
def test_a_file_that_declares_what_it_does_not_hold_does_not_hide_the_others(
    store: DraftStore, tmp_path: Path, kind: str
) -> None:
    broken, good = add(store), add(store, seed=1)
    (tmp_path / "drafts" / f"{broken}.npz").write_bytes(declared(kind))
    first, second = store.all()
    assert first.name == good
    assert isinstance(second, DamagedDraft)
    store.discard(broken)
