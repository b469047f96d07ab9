from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from baps.errors import BapsError
from baps.roles import Role
from web.asking import Asked, Asker
from web.audit import Audit
from web.kinds import kind_of_request

ANNA = Asker("anna", Role.ANNOTATOR, "token")


def _asked(image: str = "Doe^Jane") -> Asked:
    return Asked(kind_of_request("POST", "/infer/baps"), ANNA, image, "spleen/v0002")


def test_a_line_says_who_did_what_and_not_to_whom(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.jsonl")
    audit.note(_asked(), 200)
    text = (tmp_path / "audit.jsonl").read_text()
    line = json.loads(text)
    assert re.fullmatch(r"[0-9a-f]{32}", line.pop("image"))
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "user": "anna", "role": "annotator", "by": "token", "what": "segment", "adapter": "spleen/v0002", "status": 200
    }  # fmt: skip
    assert "Doe" not in text
    for name in ("audit.jsonl", "audit.jsonl.key"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_an_image_has_one_hash_for_each_key(tmp_path: Path) -> None:
    one, again = Audit(tmp_path / "a.jsonl"), Audit(tmp_path / "a.jsonl")
    assert one.hashed("x") == again.hashed("x") != one.hashed("y")
    assert Audit(tmp_path / "b.jsonl").hashed("x") != one.hashed("x")


def test_lines_of_many_threads_stay_whole_and_nothing_is_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    audits = [Audit(file) for _ in range(8)]
    threads = [threading.Thread(target=lambda a=a: [a.note(_asked(), 200) for _ in range(100)]) for a in audits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 800
    assert len({line["image"] for line in lines}) == 1  # All made one key.


def test_words_of_others_stay_within_their_line(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.jsonl")
    asked = Asked(None, Asker('x"}\n{"user": "root\u2028', Role.ADMIN, "openid"))
    audit.note(asked, 403)
    (line,) = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert json.loads(line)["user"].startswith('x"}\n')


def test_a_place_that_cannot_be_written_to_is_found_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BapsError, match="audit file"):
        Audit(tmp_path / "file" / "audit.jsonl").check()


def test_an_image_is_found_with_the_key_as_the_guide_says(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.jsonl")
    hashed = audit.hashed("CT 1")
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    key = (tmp_path / "audit.jsonl.key").read_text()
    command = [openssl, "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{key}"]
    said = subprocess.run(command, input=b"CT 1", capture_output=True, check=True).stdout.decode()
    assert said.split()[-1].startswith(hashed)
