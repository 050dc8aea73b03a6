"""What a machine and an environment say of a worker that nobody sets up by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.config import RunFolder
from protocol.errors import TransientError, UsageError
from protocol.identity import Identity
from protocol.link import JoinLink
from worker import headless
from worker.config import Home, WorkerConfig
from worker.environment import Environment
from worker.headless import settle
from worker.join import Offer
from worker.limit_texts import in_words, limit_from_text, limit_text
from worker.limits import Limits
from worker.machine import Kind, Machine, look_at_machine

ROOT_KEY = Identity.generate().peer_id
LINK = str(JoinLink("host", 7443, b"r" * 32, ROOT_KEY))
SERVER = Machine(Kind.SERVER, 16_384, 100_000)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.prepare()
    return made


def file(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


# ---- the machine ---------------------------------------------------------------------------


def supply(root: Path, name: str, kind: str, scope: str = "") -> None:
    file(root / "sys/class/power_supply" / name / "type", kind)
    if scope:
        file(root / "sys/class/power_supply" / name / "scope", scope)


@pytest.mark.parametrize(
    ("supplies", "variables", "sockets", "kind"),
    [
        ([("AC", "Mains"), ("BAT0", "Battery")], {"DISPLAY": ":0"}, [], Kind.LAPTOP),
        ([("BAT1", "Battery", "System")], {}, [], Kind.LAPTOP),
        ([("mouse", "Battery", "Device")], {"WAYLAND_DISPLAY": "wayland-0"}, [], Kind.DESKTOP),
        ([("mouse", "Battery", "Device")], {}, [], Kind.SERVER),
        ([("ups", "UPS")], {}, [], Kind.SERVER),
        ([], {}, ["X0"], Kind.DESKTOP),  # asked over ssh
        ([], {"DISPLAY": ""}, [], Kind.SERVER),
    ],
)
def test_what_kind_of_machine_this_is(
    tmp_path: Path,
    supplies: list[tuple[str, ...]],
    variables: dict[str, str],
    sockets: list[str],
    kind: Kind,
) -> None:
    for one in supplies:
        supply(tmp_path, *one)
    for name in sockets:
        file(tmp_path / "tmp/.X11-unix" / name, "")
    found = look_at_machine(tmp_path / "not" / "there", variables, tmp_path)
    assert found.kind is kind
    assert found.memory_mib > 0
    assert found.free_disk_mib > 0


def test_limits_that_suit_the_machine_are_proposed() -> None:
    assert SERVER.proposal() == Limits(nice=10)
    for kind in (Kind.LAPTOP, Kind.DESKTOP):
        limits = Machine(kind, 16_384, 40_000).proposal()
        assert limits.memory_mib == 8192
        assert limits.busy_cpu_percent == 25
        assert not limits.on_battery
        assert limits.free_disk_mib == 4000
    assert Machine(Kind.DESKTOP, 4096, 100).proposal().free_disk_mib == 1024
    assert Machine(Kind.DESKTOP, 4096, 10**6).proposal().free_disk_mib == 10_240


def test_limits_are_told_in_words() -> None:
    words = dict(in_words(Machine(Kind.LAPTOP, 16_384, 40_000).proposal()))
    assert words["memory"] == "at most 8.0 GiB"
    assert words["network"] == "no limit"
    assert words["works"] == (
        "at any time, not on battery, not while other programs use over 25 % of the CPU"
    )
    assert "GPU" not in words
    strict = Limits(
        gpu_memory_percent=50,
        gpu_power_w=120,
        gpu_temperature_c=70,
        upload_kbit_s=8,
        download_kbit_s=9,
        daily_mib=700,
        schedule=("sat 10:00-12:00",),
        on_battery=True,
        battery_percent=60,
        idle_minutes=5,
    )
    words = dict(in_words(strict))
    assert words["GPU"] == "at most 50 % of its memory, at most 120 W, at most 70 °C"
    assert words["network"] == "at most 8 kbit/s up, 9 kbit/s down, 700 MiB a day"
    assert words["works"].startswith("sat 10:00-12:00, on battery with at least 60 %, after 5 min")


# ---- texts of limits -----------------------------------------------------------------------


def examples() -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = [("schedule", ()), ("on_battery", True), ("on_battery", False)]
    found.append(("schedule", ("mon-fri 22:00-07:00", "sat 00:00-24:00")))
    for one in fields(Limits):
        if one.type == "int":
            found += [(one.name, one.metadata[end]) for end in ("least", "most")]
    return found


@pytest.mark.parametrize(("name", "value"), examples())
def test_a_limit_survives_being_written_as_text(name: str, value: Any) -> None:
    assert limit_from_text(name, limit_text(value)) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("threads", text) for text in ("", "-1", "1.5", "1_0", "٣", "lots", "1e3", "9" * 30)),
        ("nice", "20"),
        ("on_battery", "maybe"),
        ("on_battery", "2"),
        ("schedule", "whenever"),
        ("schedule", "mon 25:00-26:00"),
        ("schedule", ",".join(["mon 01:00-02:00"] * 65)),
    ],
)
def test_what_is_no_value_of_a_limit_says_so(name: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"HERE|limits: {name}"):
        limit_from_text(name, text, "HERE")


# ---- the environment -----------------------------------------------------------------------


def test_everything_can_be_said_by_variables() -> None:
    found = Environment.read(
        {
            "BARNRAISE_LINK": LINK,
            "BARNRAISE_NAME": "Ada",
            "BARNRAISE_ACCEPT": "yes",
            "BARNRAISE_INVITE": "token",
            "BARNRAISE_DEVICE": "cpu",
            "BARNRAISE_CLIENT_MODE": "no",
            "BARNRAISE_LISTEN": "/ip4/0.0.0.0/tcp/1, /ip6/::/tcp/1",
            "BARNRAISE_JSON_LOGS": "1",
            "BARNRAISE_LOG_LEVEL": "warning",
            "BARNRAISE_LIMITS_THREADS": "2",
            "BARNRAISE_LIMITS_SCHEDULE": "mon-fri 22:00-07:00; sun 00:00-24:00",
            "BARNRAISE_LIMITS_ON_BATTERY": "true",
            "BARNRAISE_LIMITS_NICE": "",  # as good as unset
            "PATH": "/bin",
        }
    )
    config = found.join_config()
    assert config == WorkerConfig(
        link=LINK,
        name="Ada",
        invite="token",
        device="cpu",
        client_mode=False,
        listen=("/ip4/0.0.0.0/tcp/1", "/ip6/::/tcp/1"),
        limits=Limits(
            threads=2,
            schedule=("mon-fri 22:00-07:00", "sun 00:00-24:00"),
            on_battery=True,
        ),
    )
    assert (found.json_logs, found.log_level) == (True, "warning")
    assert Environment.read({}) == Environment()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("BARNRAISE_ACCEPT", "perhaps"),
        ("BARNRAISE_JSON_LOGS", "json"),
        ("BARNRAISE_LOG_LEVEL", "loud"),
        ("BARNRAISE_DEVICE", "tpu"),
        ("BARNRAISE_CLIENT_MODE", "auto"),
        ("BARNRAISE_LINK", "https://example.org"),
        ("BARNRAISE_NAME", "x" * 65),
        ("BARNRAISE_INVITE", "x" * 65),
        ("BARNRAISE_LISTEN", "0.0.0.0:31337"),
        ("BARNRAISE_LIMITS_THREADS", "all"),
        ("BARNRAISE_LIMITS_THREADS", "4096"),
        ("BARNRAISE_LIMITS_SCHEDULE", "at night"),
        ("BARNRAISE_LIMITS_ON_BATTERY", "sometimes"),
        ("BARNRAISE_LIMITS_THREAD", "2"),
        ("BARNRAISE_LIMITS_", "2"),
    ],
)
def test_a_wrong_value_names_its_variable(variable: str, value: str) -> None:
    with pytest.raises(UsageError, match=variable.rpartition("_")[2] or variable) as caught:
        Environment.read({"BARNRAISE_LINK": LINK, variable: value}).join_config()
    assert "BARNRAISE_" in str(caught.value)


def never(config: WorkerConfig) -> Offer:
    raise AssertionError("nothing was to be joined")


@pytest.fixture
def joining(home: Home, made_run: Path) -> Callable[[WorkerConfig], Offer]:
    """Joins without a coordinator."""
    manifest = RunFolder(made_run).read_manifest()

    def enter(config: WorkerConfig) -> Offer:
        config.save(home.config)
        return Offer(manifest, "12D3", config, 0.0, "")

    return enter


def test_nothing_joined_and_nothing_said_says_how_to_join(home: Home) -> None:
    with pytest.raises(UsageError, match="barnraise worker join"):
        settle(home, Environment(), never)


@pytest.mark.parametrize(("accept", "confirmed"), [("yes", True), ("no", False), ("", False)])
def test_a_link_joins_and_only_a_yes_agrees(
    home: Home, joining: Callable[[WorkerConfig], Offer], accept: str, confirmed: bool
) -> None:
    said = Environment.read({"BARNRAISE_LINK": LINK, "BARNRAISE_ACCEPT": accept})
    config = settle(home, said, joining)
    assert (config.link, config.confirmed) == (LINK, confirmed)
    assert WorkerConfig.load(home.config) == config


def test_the_environment_holds_at_every_start_and_is_written_down(home: Home) -> None:
    WorkerConfig(link=LINK, name="Ada", confirmed=False, limits=Limits(nice=3)).save(home.config)
    said = {"BARNRAISE_LIMITS_THREADS": "2", "BARNRAISE_ACCEPT": "yes"}
    config = settle(home, Environment.read(said), never)
    assert WorkerConfig.load(home.config) == config
    assert (config.name, config.confirmed, config.limits) == ("Ada", True, Limits(2, nice=3))
    before = home.config.stat().st_mtime_ns
    settle(home, Environment(), never)  # says nothing: changes nothing
    assert home.config.stat().st_mtime_ns == before


def test_another_address_is_followed_and_another_run_refused(home: Home) -> None:
    WorkerConfig(link=LINK).save(home.config)
    moved = str(JoinLink("elsewhere", 7443, b"r" * 32, ROOT_KEY))
    assert settle(home, Environment(link=moved), never).link == moved
    other_root = Identity.generate().peer_id
    for link in (
        JoinLink("host", 7443, b"s" * 32, ROOT_KEY),
        JoinLink("host", 7443, b"r" * 32, other_root),
    ):
        with pytest.raises(UsageError, match="BARNRAISE_LINK is of another run"):
            settle(home, Environment(link=str(link)), never)
    with pytest.raises(UsageError, match="BARNRAISE_LINK: "):
        settle(home, Environment(link="nonsense"), never)
    assert WorkerConfig.load(home.config).link == moved


def test_a_machine_that_is_up_before_its_network_joins_later(
    home: Home, joining: Callable[[WorkerConfig], Offer], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(headless.time, "sleep", waits.append)
    tries: list[WorkerConfig] = []

    def enter(config: WorkerConfig) -> Offer:
        tries.append(config)
        if len(tries) < 4:
            raise UsageError("it does not answer") from TransientError("no route")
        return joining(replace(config, name="in"))

    said = Environment(link=LINK, accepts=True)
    assert settle(home, said, enter).name == "in"
    assert len(waits) == 3

    home.config.unlink()
    with pytest.raises(UsageError, match="refused"):
        settle(home, said, lambda _config: _refuse())


def _refuse() -> Offer:
    raise UsageError("refused")
