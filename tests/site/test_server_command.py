from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from baps.errors import BapsError, InputError, MissingExtraError
from baps.site import app_folder, server_command
from baps.site.app_folder import PACKAGES
from baps.site.server_command import check_listening, check_port, check_studies, serving_command
from baps.utils.deprecation import OldNameWarning


def test_the_protected_server_and_the_stock_one() -> None:
    command, _ = serving_command("/data", "0.0.0.0", 8123, {"labels": "spleen", "cache_mb": "8"})  # noqa: S104
    assert command[:3] == [sys.executable, str(PACKAGES / "baps" / "server" / "launch.py"), "start_server"]
    assert " ".join(command).endswith("--uvicorn_app baps.server.asgi:app --conf labels spleen --conf cache_mb 8")
    assert "--studies /data --host 0.0.0.0 --port 8123" in " ".join(command)
    stock, _ = serving_command("/data", "127.0.0.1", 8123, {}, stock=True)
    assert "--uvicorn_app" not in stock
    assert stock[:4] == [sys.executable, "-m", "monailabel.main", "start_server"]


def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BAPS_WEIGHTS", "w.pt")
    monkeypatch.setenv("MONAI_LABEL_SESSION_PATH", "sessions")
    monkeypatch.setenv("BAPS_CONFIG", "site.json")
    Path("site.json").write_text('{"users": "users.json", "audit": "/var/audit.jsonl"}')
    Path("encoder").mkdir()
    given = {"adapters": "a", "labels": "spleen", "encoder_source": "encoder"}
    command, environment = serving_command(".", "127.0.0.1", 8123, given)
    assert command[command.index("--studies") + 1] == str(tmp_path)
    reply = dict(
        zip(command[command.index("--conf") + 1 :: 3], command[command.index("--conf") + 2 :: 3], strict=False)
    )
    assert reply == {
        "adapters": str(tmp_path / "a"),
        "labels": "spleen",
        "weights": str(tmp_path / "w.pt"),
        "users": str(tmp_path / "users.json"),
        "encoder_source": str(tmp_path / "encoder"),
    }
    assert environment["MONAI_LABEL_SESSION_PATH"] == str(tmp_path / "sessions")
    assert environment["BAPS_CONFIG"] == str(tmp_path / "site.json")
    assert "sessions" not in str(serving_command("https://pacs/dicom-web", "127.0.0.1", 8123, {})[0])


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_USERNAME", "somebody")
    _, environment = serving_command("/data", "127.0.0.1", 8123, {})
    assert environment["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/bin"]
    assert environment["PYTHONPATH"] == str(PACKAGES)
    assert (PACKAGES / "baps" / "server" / "asgi.py").is_file()
    assert environment["MONAI_LABEL_DICOMWEB_USERNAME"] == "somebody"
    assert environment["MONAI_LABEL_TRACKING_ENABLED"] == environment["MONAI_LABEL_AUTO_UPDATE_SCORING"] == "false"


def test_a_stock_server_does_not_pass_for_a_protected_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is started from a protected one's process, which sets the variable for its trainings."""
    for name, value in server_command.PROTECTED.items():
        monkeypatch.setenv(name, value)
    _, environment = serving_command("/data", "127.0.0.1", 8123, {}, stock=True)
    assert not environment.keys() & server_command.PROTECTED.keys()


def test_the_server_does_not_repeat_warnings_of_old_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAPS_AHEAD", "3")
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    program = "from baps.site.settings import read_settings; print(read_settings({}).prefetch_slices)"

    def read_in(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)

    with pytest.warns(OldNameWarning, match="BAPS_AHEAD"):
        _, environment = serving_command("/data", "127.0.0.1", 8123, {})
    assert "BAPS_AHEAD" in read_in({**environment, "PYTHONWARNINGS": "default"}).stderr
    reply = read_in(environment)
    assert (reply.stdout, reply.stderr) == ("3\n", "")
    monkeypatch.delenv("PYTHONWARNINGS")
    stock = serving_command("/data", "127.0.0.1", 8123, {}, stock=True)[1]  # Nothing has read the settings yet.
    assert "BAPS_AHEAD" in read_in(stock).stderr


def test_a_package_without_monai_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_command, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'baps-monailabel\[server\]'"):
        serving_command("/data", "127.0.0.1", 8123, {})


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As where pip installed the package; the state folder."""
    monkeypatch.setattr(app_folder, "IN_CHECKOUT", False)
    monkeypatch.setattr(server_command.sysconfig, "get_path", lambda name: str(PACKAGES))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "baps"


def test_an_installed_package_serves_from_the_state_folder(installed: Path) -> None:
    command, environment = serving_command("/data", "127.0.0.1", 8123, {})
    assert command[command.index("--app") + 1] == str(installed)
    assert command[1] == str(PACKAGES / "baps" / "server" / "launch.py")
    assert environment["PYTHONPATH"] == str(installed)  # Must not contain site-packages.
    assert installed.stat().st_mode & 0o777 == 0o700
    main = installed / "main.py"
    assert main.read_text().endswith('from baps.server.app import BapsApp\n\n__all__ = ["BapsApp"]\n')
    assert main.stat().st_mode & 0o077 == 0
    main.write_text("raise RuntimeError")
    serving_command("/data", "127.0.0.1", 8123, {})
    assert "RuntimeError" not in main.read_text()


def test_a_state_folder_that_others_can_change_is_refused(installed: Path) -> None:
    installed.mkdir(parents=True)
    installed.chmod(0o777)
    with pytest.raises(BapsError, match=f"chmod 700 {installed}"):
        serving_command("/data", "127.0.0.1", 8123, {})
    assert not (installed / "main.py").exists()


def test_a_state_folder_that_cannot_be_made(installed: Path) -> None:
    installed.parent.touch()
    with pytest.raises(BapsError, match="XDG_STATE_HOME"):
        serving_command("/data", "127.0.0.1", 8123, {})


def test_studies(tmp_path: Path) -> None:
    check_studies(str(tmp_path))
    check_studies("https://pacs.example:8042/dicom-web")
    (tmp_path / "file").touch()
    for studies, message in (
        (str(tmp_path / "absent"), "absent"),
        (str(tmp_path / "file"), "There is no folder"),
        ("ftp://pacs/", "ftp"),
        ("http://", "no host"),
        ("http:///dicom-web", "no host"),
    ):
        with pytest.raises(InputError, match=message):
            check_studies(studies)


@pytest.mark.parametrize("who", ["doctor:geheim@", "doctor@", ":geheim@"])
def test_a_password_in_the_address_is_refused_and_not_repeated(who: str) -> None:
    with pytest.raises(InputError, match="MONAI_LABEL_DICOMWEB_PASSWORD") as caught:
        check_studies(f"https://{who}pacs/dicom-web")
    assert "geheim" not in str(caught.value)


def test_a_busy_port_and_a_free_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        for host in ("127.0.0.1", "localhost", "0.0.0.0"):  # noqa: S104
            with pytest.raises(InputError, match=rf"{port} .*--port"):
                check_port(host, port)
    check_port("127.0.0.1", port)


def test_an_ipv6_address_is_printed_in_brackets() -> None:
    with pytest.raises(InputError, match=r"The server would listen on \[::\],"):
        check_listening("::", requires_login=False)
    with (
        socket.create_server(("::1", 0), family=socket.AF_INET6) as busy,
        pytest.raises(InputError, match=r"of \[::1\] cannot be used"),
    ):
        check_port("::1", busy.getsockname()[1])


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "a" * 70])
def test_a_host_that_is_not_this_machine(host: str) -> None:
    with pytest.raises(InputError, match="--host"):
        check_port(host, 0)
