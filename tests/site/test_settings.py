from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from baps.blackbox import RemoteSettings
from baps.errors import InputError
from baps.site.settings import OLD_NAMES, Settings, check_settings, parse_labels, read_settings
from baps.utils.deprecation import OldNameWarning


def test_defaults() -> None:
    assert read_settings({}, {}) == Settings()
    assert dict(Settings().labels) == {"organ": 1}


def test_order_of_precedence(tmp_path: Path) -> None:
    file = tmp_path / "baps.json"
    file.write_text(json.dumps({"device": "cuda:3", "cache_mb": 1, "black_box": "sam"}))
    environment = {"BAPS_CONFIG": str(file), "BAPS_CACHE_MB": "2", "BAPS_DEVICE": "cuda:2", "PATH": "/bin"}
    settings = read_settings({"device": "cpu"}, environment)
    assert (settings.device, settings.cache_mb, settings.black_box) == ("cpu", 2, "sam")


def test_config_on_the_command_line_wins_over_the_environment(tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text('{"cache_mb": 1}')
    second.write_text('{"cache_mb": 2}')
    assert read_settings({"config": str(second)}, {"BAPS_CONFIG": str(first)}).cache_mb == 2


@pytest.mark.parametrize("where", ["given", "file"])
def test_an_unknown_key_lists_the_known_ones(tmp_path: Path, where: str) -> None:
    given = {"black_bix": "sam"}
    if where == "file":
        file = tmp_path / "baps.json"
        file.write_text(json.dumps(given))
        given = {"config": str(file)}
    with pytest.raises(InputError) as caught:
        read_settings(given, {})
    message = str(caught.value)
    assert "black_bix" in message
    for name in Settings.model_fields:
        assert name in message.split("Known ones:")[1]
    assert "config" in message.split("Known ones:")[1]
    assert "Did you mean black_box" in message
    assert (f"the settings file {tmp_path}" if where == "file" else "the command line") in message


def test_a_value_that_cannot_be_used_names_the_place_that_it_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "baps.json"
    file.write_text('{"cache_mb": "plenty", "audit_keep": 1}')
    with pytest.raises(InputError, match=r"not 'plenty'\. It was set in the settings file .*baps\.json\.$"):
        read_settings({"config": str(file)}, {})
    with pytest.raises(InputError, match=r"not 'lots'\. It was set in the environment, as BAPS_CACHE_MB\.$"):
        read_settings({"config": str(file)}, {"BAPS_CACHE_MB": "lots"})
    with pytest.raises(InputError, match=r"not 'much'\. It was set on the command line\.$"):
        read_settings({"config": str(file), "cache_mb": "much"}, {"BAPS_CACHE_MB": "lots"})


def test_an_empty_option_means_the_default_also_over_a_file(tmp_path: Path) -> None:
    file = tmp_path / "baps.json"
    file.write_text('{"labels": {"spleen": 3}, "cache_mb": 7}')
    settings = read_settings({"config": str(file), "labels": "", "cache_mb": ""}, {"BAPS_CACHE_MB": "8"})
    assert settings == Settings()


def test_settings_are_frozen_and_read_only_their_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAPS_CACHE_MB", "7")
    assert Settings().cache_mb == Settings.model_fields["cache_mb"].default
    with pytest.raises(ValidationError, match="frozen"):
        Settings().cache_mb = 8  # type: ignore[misc]
    with pytest.raises(ValidationError, match="most_volume_mb"):
        Settings(most_volume_mb=8)  # type: ignore[call-arg]


def test_reading_settings_imports_no_heavy_modules() -> None:
    program = "import sys, baps.site.settings; print({'torch', 'monailabel', 'nibabel'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


_OLD_VALUES = {
    "ahead": "3",
    "most_upload_mb": "9",
    "most_volume_mb": "10",
    "organ_cache_gb": "5",
    "pacs_login": "/etc/pacs.json",
    "remote_batch": "6",
    "remote_patience": "7.5",
    "remote_side": "8",
    "whole_labels": "yes",
}
"""Settings by their names in version 0.1."""


@pytest.mark.parametrize("where", ["option", "variable", "file"])
@pytest.mark.parametrize("old", list(_OLD_VALUES))
def test_a_name_of_version_01_is_read_with_one_warning(tmp_path: Path, where: str, old: str) -> None:
    new, value = OLD_NAMES[old], _OLD_VALUES[old]
    expected = read_settings({new: value}, {})
    assert expected != Settings()
    given, environment, words = {old: value}, {}, (old, new, "the command line")
    if where == "variable":
        given, environment = {}, {f"BAPS_{old.upper()}": value}
        words = (f"BAPS_{old.upper()}", f"BAPS_{new.upper()}", "the environment")
    elif where == "file":
        file = tmp_path / "baps.json"
        file.write_text(json.dumps(given))
        given, words = {"config": str(file)}, (old, new, str(file))
    with pytest.warns(OldNameWarning) as warned:
        assert read_settings(given, environment) == expected
    assert len(warned) == 1
    for word in words:
        assert word in str(warned[0].message)


def test_the_new_name_wins_over_the_old_one() -> None:
    with pytest.warns(OldNameWarning):
        assert read_settings({"ahead": "3", "prefetch_slices": "4"}, {}).prefetch_slices == 4
    with pytest.warns(OldNameWarning):  # The order of places stays: the command line wins over the environment.
        assert read_settings({"ahead": "3"}, {"BAPS_PREFETCH_SLICES": "4"}).prefetch_slices == 3


def test_new_names_give_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    read_settings({OLD_NAMES[old]: value for old, value in _OLD_VALUES.items()}, {"BAPS_AHEAD": ""})
    assert not recwarn.list


def test_keys_of_monai_label_are_ignored() -> None:
    assert read_settings({"server_mode": "true", "models": "all", "preload": "true"}, {}) == Settings()


def test_an_empty_value_means_the_default() -> None:
    assert read_settings({"weights": "", "labels": "", "cache_mb": "", "device": ""}, {}) == Settings()


def test_an_empty_variable_does_not_hide_the_file(tmp_path: Path) -> None:
    file = tmp_path / "baps.json"
    file.write_text('{"cache_mb": 7, "device": "cpu"}')
    settings = read_settings({"config": str(file)}, {"BAPS_CACHE_MB": "", "BAPS_DEVICE": "cuda"})
    assert (settings.cache_mb, settings.device) == (7, "cuda")


@pytest.mark.parametrize("name", ["sam", "medsam", "sam_hq", "sam2", "sam3"])
def test_settings_that_can_be_checked_at_start(tmp_path: Path, name: str) -> None:
    check_settings(Settings())
    weights = tmp_path / "sam.pth"
    with pytest.raises(InputError, match="'medsam2'.*bundled, sam, medsam, sam_hq, sam2, sam3, remote"):
        check_settings(Settings(black_box="medsam2"))
    for volumes in ("bundled3d", "nninteractive"):
        with pytest.raises(InputError, match=f"{volumes} answers in 3D.*--volume-black-box {volumes}"):
            check_settings(Settings(black_box=volumes))
    with pytest.raises(InputError, match=f"{name} needs weights"):
        check_settings(Settings(black_box=name))
    with pytest.raises(InputError, match=r"sam\.pth does not exist"):
        check_settings(Settings(black_box=name, weights=weights))
    weights.touch()
    check_settings(Settings(black_box=name, weights=weights))


def test_the_organ_model(tmp_path: Path) -> None:
    weights = tmp_path / "organs.pth"
    given = {"organ_model": "fseft", "organ_weights": str(weights), "feature_cache_gb": "0"}
    settings = read_settings(given, {})
    assert (settings.organ_model, settings.organ_weights, settings.feature_cache_gb) == ("fseft", weights, 0)
    with pytest.raises(InputError, match="organ model fseft needs weights"):
        check_settings(Settings(organ_model="fseft"))
    with pytest.raises(InputError, match=r"organs\.pth do not exist"):
        check_settings(settings)
    weights.touch()
    check_settings(settings)
    check_settings(Settings(organ_model="totalsegmentator", organ_weights=tmp_path))
    assert (Settings().organ_min_dice, read_settings({"organ_min_dice": "0.85"}, {}).organ_min_dice) == (0.7, 0.85)
    for wrong in ("70", "-1", "nan", "good"):
        with pytest.raises(InputError, match="organ_min_dice must be a Dice from 0 to 1"):
            read_settings({"organ_min_dice": wrong}, {})
    with pytest.raises(InputError, match="feature_cache_gb must be a whole number of gigabytes"):
        read_settings({"feature_cache_gb": "2.5"}, {})


def test_a_remote_model() -> None:
    assert Settings().remote_model is None
    with pytest.raises(InputError, match=r"remote needs an address.*REMOTE="):
        check_settings(Settings(black_box="remote"))
    with pytest.raises(InputError, match="is not the address"):
        check_settings(Settings(black_box="remote", remote="model:8000"))
    address = "grpc://model:8001/sam"
    check_settings(Settings(black_box="remote", remote=address))
    assert Settings(remote=address).remote_model == RemoteSettings(address)
    given = {"image_size": "512", "batch_size": "4", "prompts": "boxes", "timeout": "2.5", "retry_seconds": "0"}
    environment = {f"BAPS_REMOTE_{name.upper()}": value for name, value in given.items()}
    settings = read_settings({"remote": address}, {**environment, "BAPS_REMOTE_TOKEN": "hush"})
    assert settings.remote_model == RemoteSettings(address, 512, 4, "boxes", 2.5, 0.0)
    assert "hush" not in str(settings)


@pytest.mark.parametrize(
    ("name", "unit"),
    [("image_size", "pixels"), ("batch_size", "images"), ("timeout", "seconds"), ("retry_seconds", "seconds")],
)
@pytest.mark.parametrize("value", ["-1", "many", "nan"])
def test_numbers_of_a_remote_model(name: str, unit: str, value: str) -> None:
    with pytest.raises(InputError, match=f"remote_{name} must be a .*number of {unit}, not '{value}'"):
        read_settings({f"remote_{name}": value}, {})


def test_paths_and_numbers_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    settings = read_settings({"weights": "~/sam.pth", "adapters": "/data/adapters", "cache_mb": "64"}, {})
    assert settings.weights == Path("/home/someone/sam.pth")
    assert settings.adapters == Path("/data/adapters")
    assert settings.cache_mb == 64


def test_the_form_of_labels_in_a_pacs_is_one_of_three() -> None:
    assert Settings().pacs_label_format == "seg"
    assert read_settings({}, {"BAPS_PACS_LABEL_FORMAT": "both"}).pacs_label_format == "both"
    with pytest.raises(InputError, match="pacs_label_format must be one of seg, rtstruct, both, not 'RT'"):
        read_settings({"pacs_label_format": "RT"}, {})


def test_a_cache_size_must_be_a_number() -> None:
    with pytest.raises(InputError, match="cache_mb"):
        read_settings({"cache_mb": "plenty"}, {})


@pytest.mark.parametrize("content", [None, "{", "[1, 2]", '"labels"'])
def test_invalid_settings_files(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "baps.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=r"baps\.json"):
        read_settings({"config": str(file)}, {})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("spleen", {"spleen": 1}),
        ("spleen,liver", {"spleen": 1, "liver": 2}),
        (" spleen , left kidney ", {"spleen": 1, "left kidney": 2}),
        ("spleen=3,liver=6", {"spleen": 3, "liver": 6}),
        ("spleen=3, liver = 6", {"spleen": 3, "liver": 6}),
        ("liver=6,spleen", {"liver": 6, "spleen": 2}),
        (["spleen", "liver"], {"spleen": 1, "liver": 2}),
        (("spleen=4", "liver=2"), {"spleen": 4, "liver": 2}),
        ({"spleen": 4, "liver": "255"}, {"spleen": 4, "liver": 255}),
    ],
)
def test_forms_of_labels(value: object, expected: dict[str, int]) -> None:
    settings = parse_labels(value)
    assert settings == expected
    assert list(settings) == list(expected)


@pytest.mark.parametrize(
    "value",
    [
        "spleen,,liver",
        "=3",
        "spleen,spleen",
        "spleen, spleen ",
        "spleen=0",
        "spleen=-1",
        "spleen=256",
        "spleen=1.5",
        "spleen=one",
        "spleen=",
        {"spleen": None},
        {"spleen": 1.5},
        "spleen=1,liver=1",
        "spleen=2,liver",
    ],
)
def test_invalid_labels(value: object) -> None:
    with pytest.raises(InputError):
        parse_labels(value)


def test_who_may_use_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    settings = read_settings(
        {"users": "~/users.json", "audit": "/log/audit.jsonl"}, {"BAPS_OPENID": "/etc/openid.json"}
    )
    assert (settings.users, settings.openid) == (Path("/home/someone/users.json"), Path("/etc/openid.json"))
    assert settings.audit_file == Path("/log/audit.jsonl")
    assert Settings(adapters=Path("/data")).audit_file == Path("/data/audit.jsonl")
    assert not Settings().requires_login
    assert Settings(users=Path("u")).requires_login
    assert Settings(openid=Path("o")).requires_login


@pytest.mark.parametrize("name", ["users", "openid"])
@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (None, 0, "No such file"),
        ("{}", 0o644, "chmod 600"),
        ("{}", 0o600, "cannot be used|not a file of users"),
        ("{", 0o600, "cannot be used|not a file of users"),
    ],
)
def test_invalid_files_of_users(tmp_path: Path, name: str, content: str | None, mode: int, message: str) -> None:
    file = tmp_path / "it.json"
    if content is not None:
        file.write_text(content)
        file.chmod(mode)
    with pytest.raises(InputError, match=message) as caught:
        check_settings(read_settings({name: str(file)}, {}))
    assert str(file) in str(caught.value)
    assert str(caught.value).endswith((".", str(file)))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("https://viewer.hospital", ("https://viewer.hospital",)),
        ("https://a.hospital, http://b.hospital:8080", ("https://a.hospital", "http://b.hospital:8080")),
        (["http://[::1]:8000"], ("http://[::1]:8000",)),
        ("*", ("*",)),
        ("", ()),
    ],
)
def test_other_origins(value: str, expected: tuple[str, ...]) -> None:
    assert read_settings({"cors_origins": value}, {}).cors_origins == expected


@pytest.mark.parametrize(
    "value",
    ["viewer.hospital", "https://viewer.hospital/", "https://*.hospital", "null", "ftp://a", "https://", "https://a,",
     "https://a b", "https://a\nb", "javascript:alert(1)", "https://user@a"],
)  # fmt: skip
def test_invalid_origins(value: str) -> None:
    with pytest.raises(InputError, match=r"origins such as https://viewer\.hospital"):
        read_settings({"cors_origins": value}, {})


def test_every_origin_needs_users(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Set users or openid"):
        check_settings(Settings(cors_origins=("https://a", "*")))


@pytest.mark.parametrize("name", ["max_upload_mb", "max_volume_mb"])
def test_maximum_sizes(tmp_path: Path, name: str) -> None:
    assert getattr(read_settings({name: "8"}, {}), name) == 8
    assert getattr(read_settings({name: ""}, {}), name) == getattr(Settings(), name) > 0
    file = tmp_path / "baps.json"
    file.write_text(json.dumps({name: 16}))
    assert getattr(read_settings({"config": str(file)}, {}), name) == 16
    for value in ("-1", "1.5", "plenty", "nan", "1e3", "8 MB"):
        with pytest.raises(InputError, match=f"{name} must be a whole number of megabytes, not '{value}'"):
            read_settings({name: value}, {})


@pytest.mark.parametrize(
    ("value", "expected"),
    [("yes", True), ("TRUE", True), ("1", True), ("no", False), ("False", False), ("0", False), ("", False)],
)
def test_yes_and_no(value: str, expected: bool) -> None:
    assert read_settings({"allow_unprotected": value}, {}).allow_unprotected is expected


@pytest.mark.parametrize("value", ["maybe", "y", "2", " yes"])
def test_other_values_than_yes_and_no(tmp_path: Path, value: str) -> None:
    with pytest.raises(InputError, match="allow_unprotected must be yes or no, not"):
        read_settings({"allow_unprotected": value}, {})


def test_yes_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "baps.json"
    file.write_text('{"allow_unprotected": true, "complete_labels": "yes", "cors_origins": ["https://a.hospital"]}')
    settings = read_settings({"config": str(file)}, {})
    assert (settings.allow_unprotected, settings.complete_labels, settings.cors_origins) == (
        True,
        True,
        ("https://a.hospital",),
    )


def test_labels_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "baps.json"
    file.write_text('{"labels": {"spleen": 3}}')
    assert read_settings({"config": str(file)}, {}).labels == {"spleen": 3}


def test_labels_of_other_types_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "baps.json"
    file.write_text('{"labels": 5}')
    with pytest.raises(InputError, match="[Ll]abels"):
        read_settings({"config": str(file)}, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"volume_black_box": "no-such"}, "no 3D black box named 'no-such'. Known ones: bundled3d, nninteractive"),
        ({"volume_black_box": "nninteractive"}, "needs an address: give --volume-remote"),
        ({"volume_remote": "gpu"}, "is not the address of an nninteractive-server"),
        ({"volume_remote": "http://127.0.0.1:1527", "volume_remote_token_file": "/no/such"}, "cannot be read from"),
    ],
)
def test_a_3d_model_that_cannot_be_used(changes: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        check_settings(Settings(**changes))  # type: ignore[arg-type]


def test_the_key_of_the_3d_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAPS_VOLUME_REMOTE_TOKEN", "of-the-environment")
    site = Settings(volume_remote="http://127.0.0.1:1527", remote_timeout=9)
    assert site.volume_remote_model is not None
    assert (site.volume_remote_model.token, site.volume_remote_model.timeout) == ("of-the-environment", 9)
    file = tmp_path / "key"
    file.write_text("of-the-file\n")
    file.chmod(0o600)
    with_file = site.model_copy(update={"volume_remote_token_file": file})
    assert with_file.volume_remote_model is not None
    assert with_file.volume_remote_model.token == file.read_text().strip()
    file.chmod(0o644)
    with pytest.raises(InputError, match="Other users can read"):
        _ = with_file.volume_remote_model
    assert Settings().volume_remote_model is None
