"""The descriptions that systemd and launchd get, and what is said to them."""

from __future__ import annotations

import configparser
import os
import plistlib
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from barnraise import cli
from protocol.errors import UsageError
from protocol.identity import Identity
from protocol.link import JoinLink
from worker.config import Home, WorkerConfig
from worker.control import home_lock
from worker.limits import Limits
from worker.service import Launchd, Systemd, manager, program, service_name

LINK = str(JoinLink("host", 7443, b"r" * 32, Identity.generate().peer_id))
UNIT = "barnraise-worker.service"
# Writes down what it was told; fails at the word that it was told to fail at.
RECORDER = """\
#!/bin/sh
echo "$(basename "$0") $*" >> {log}
case "$*" in *"$FAIL_AT"*) [ -n "$FAIL_AT" ] && {{ echo "no such luck" >&2; exit 1; }};; esac
exit 0
"""


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short one: a control socket lies far down in it, and pytest's own are long."""
    with tempfile.TemporaryDirectory(prefix="unit-") as folder:
        yield Path(folder)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """The usual folder of an account that is the test's own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("BARNRAISE_HOME", raising=False)
    made = Home(tmp_path / "data" / "barnraise" / "worker")
    made.prepare()
    WorkerConfig(link=LINK, limits=Limits(nice=3)).save(made.config)
    return made


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which a ``systemctl`` of ours writes what it was told."""
    log, folder = tmp_path / "told", tmp_path / "bin"
    folder.mkdir()
    (folder / "systemctl").write_text(RECORDER.format(log=shlex.quote(str(log))))
    (folder / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("FAIL_AT", "")
    return log


def say(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["worker", *arguments])


def unit_of(home: Home) -> configparser.SectionProxy:
    service = manager(home, WorkerConfig.load(home.config), os.environ)
    assert isinstance(service, Systemd)
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(service.text())
    assert parser["Install"]["WantedBy"] == "default.target"
    return parser["Service"]


def test_the_unit_runs_this_installation_and_ends_it_in_order(home: Home) -> None:
    unit = unit_of(home)
    words = shlex.split(unit["ExecStart"])
    assert words == [*program(), "worker", "run", "--home", str(home.path), "--json-logs"]
    assert Path(words[0]).is_absolute()
    assert os.access(words[0], os.X_OK)
    assert unit["Restart"] == "on-failure"
    assert unit["RestartPreventExitStatus"] == "2"
    assert (unit["KillSignal"], unit["KillMode"]) == ("SIGTERM", "mixed")
    assert int(unit["TimeoutStopSec"]) >= 30
    assert unit["Nice"] == "3"
    assert unit["NoNewPrivileges"] == "yes"
    assert "PrivateTmp" not in unit  # would hide the screen's socket from the idle sensor


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("plain", "plain"),
        ("my worker", '"{}my worker"'),
        ("100%", '"{}100%%"'),
        ("$HOME", '"{}$$HOME"'),
        ('a"b', '"{}a\\"b"'),
        ("back\\slash", '"{}back\\\\slash"'),
        ("it's", '"{}it\'s"'),
        ("Löwe", "Löwe"),
    ],
)
def test_any_folder_is_written_so_that_systemd_reads_it(
    home: Home, tmp_path: Path, name: str, written: str
) -> None:
    service = manager(Home(tmp_path / name), WorkerConfig.load(home.config), os.environ)
    assert isinstance(service, Systemd)
    (line,) = [one for one in service.text().splitlines() if one.startswith("ExecStart=")]
    assert written.format(f"{tmp_path}/") in line
    assert service.text().count("\n[") == 2


@pytest.mark.parametrize("name", ["two\nlines", "bell\x07"])
def test_a_folder_that_no_unit_can_name_is_refused(home: Home, tmp_path: Path, name: str) -> None:
    service = manager(Home(tmp_path / name), WorkerConfig.load(home.config), os.environ)
    with pytest.raises(UsageError, match="another folder"):
        service.text()


def test_each_folder_has_a_service_of_its_own(home: Home, tmp_path: Path) -> None:
    names = {service_name(Home(tmp_path / one), os.environ) for one in ("a", "b")}
    assert len(names) == 2
    assert service_name(home, os.environ) == "barnraise-worker"
    assert service_name(home, {**os.environ, "BARNRAISE_HOME": "/x"}) == "barnraise-worker"


def test_print_changes_nothing(home: Home, tmp_path: Path) -> None:
    shown = say("install-service", "--print")
    assert shown.exit_code == 0
    assert shown.stdout.rstrip().endswith("WantedBy=default.target")
    assert not (tmp_path / "config").exists()


def test_it_is_installed_started_and_removed(home: Home, tmp_path: Path, told: Path) -> None:
    result = say("install-service")
    assert result.exit_code == 0, result.exception
    file = tmp_path / "config" / "systemd" / "user" / UNIT
    assert "ExecStart=" in file.read_text()
    assert "enable-linger" in result.stdout
    assert told.read_text().splitlines() == [
        "systemctl --user show-environment",
        "systemctl --user daemon-reload",
        f"systemctl --user enable {UNIT}",
        f"systemctl --user restart {UNIT}",
    ]
    told.unlink()
    result = say("uninstall", "--keep-home")
    assert result.exit_code == 0, result.exception
    assert not file.exists()
    assert "Its service is removed." in result.stdout
    assert told.read_text().splitlines() == [
        f"systemctl --user disable --now {UNIT}",
        "systemctl --user daemon-reload",
    ]


def test_where_systemd_refuses_nothing_is_left(
    home: Home, tmp_path: Path, told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for word, advice in (("enable", "no such luck"), ("show-environment", "/etc/wsl.conf")):
        monkeypatch.setenv("FAIL_AT", word)
        assert advice in str(say("install-service").exception)
        assert not list((tmp_path / "config").rglob("*.service*"))


def test_without_systemd_it_says_what_to_do_instead(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    sentence = str(say("install-service").exception)
    assert "@reboot" in sentence
    assert f"worker run --home {home.path}" in sentence
    assert say("uninstall", "--keep-home").exit_code == 0


def test_nobody_installs_what_nobody_agreed_to(home: Home, told: Path) -> None:
    WorkerConfig(link=LINK, confirmed=False).save(home.config)
    assert "barnraise worker resume" in str(say("install-service").exception)
    assert not told.exists()


def test_a_worker_that_runs_by_hand_ends_first(home: Home, told: Path) -> None:
    with home_lock(home):
        assert "finish --wait" in str(say("install-service").exception)
    assert not told.exists()


def test_launchd_gets_an_agent(home: Home, tmp_path: Path) -> None:
    agent = Launchd(home, (*program(), "worker", "run"), 5, tmp_path / "Library")
    read = plistlib.loads(agent.text().encode())
    assert read["Label"] == "org.barnraise.worker"
    assert read["ProgramArguments"][-2:] == ["worker", "run"]
    assert read["KeepAlive"] == {"SuccessfulExit": False}
    assert read["ExitTimeOut"] >= 30
    assert agent.file == tmp_path / "Library" / "LaunchAgents" / "org.barnraise.worker.plist"


def test_the_program_is_the_one_that_runs() -> None:
    words = program()
    assert words[0] in (str(Path(sys.executable).with_name("barnraise")), sys.executable)
