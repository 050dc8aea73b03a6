"""The demonstration from beginning to end: text, dataset, run, swarm, record, release, checks."""

from __future__ import annotations

import json
import shutil
import socket
import time
from pathlib import Path

import click

from coordinator.database import Database
from coordinator.demo import checks
from coordinator.demo.config import DemoScale
from coordinator.demo.display import Display
from coordinator.demo.observer import Snapshot, unigram_entropy
from coordinator.demo.processes import Child, ChildError, Children
from coordinator.demo.story import Story
from protocol.dataset import open_folder
from protocol.errors import UsageError
from protocol.link import JoinLink

_MARKER = ".barnraise-demo"
_START_TIMEOUT_S = 120.0
_TRAINING_TIMEOUT_S = 540.0


def play(folder: Path, *, rounds: int | None, codec: str, stay: bool, as_json: bool) -> int:
    """Run the whole demonstration.

    Returns:
        Exit code: 0 only if every check held.
    """
    scale = DemoScale(codec=codec, **({"rounds": rounds} if rounds else {}))
    display = Display(scale.rounds)
    _prepare(folder)
    with Children(folder) as children:
        results, text, notes = _raise_a_model(children, scale, display)
        if stay:
            display.say(f"the leaderboard stays up at {notes['leaderboard']}; Ctrl-C ends it")
            _wait_for_interrupt(children)
    results.append(checks.check_nothing_left(children))
    display.verdict(results, text, notes)
    held = all(check.held for check in results)
    if as_json:
        outcome = {"held": held, "checks": [check.as_dict() for check in results], **notes}
        click.echo(json.dumps(outcome | {"text": text}, indent=2))
    return 0 if held else 1


def _raise_a_model(
    children: Children, scale: DemoScale, display: Display
) -> tuple[list[checks.Check], str, dict[str, str]]:
    folder = children.folder
    data, run = folder / "data", folder / "run"
    display.say("text -> dataset: Shakespeare's plays, tokenizer, shuffled and packed shards")
    _build_data(children, scale, data)
    entropy = unigram_entropy(open_folder(data))
    display.say(f"unigram entropy of the held-out text: {entropy:.3f} nats a token")

    port, page_port = _free_ports(2)
    link = _init_run(children, scale, data, run, port, page_port)
    display.say(f"dataset -> run {link.run_id.hex()[:12]}: keys, manifest, certificate, join link")
    page = f"http://127.0.0.1:{page_port}"
    coordinator = children.start(
        "coordinator",
        *("coordinator", "serve", "--run-dir", str(run), "--leaderboard", f"127.0.0.1:{page_port}"),
    )
    display.say(f"coordinator and anchor are starting; leaderboard at {page}")
    _wait_until_serving(coordinator, port)

    database = Database(_database_url(run))
    with display.training():
        story = Story(children, scale, str(link), database, display.say, display.show, coordinator)
        snapshot = story.run(_TRAINING_TIMEOUT_S)
    results, text = _judge(children, story, snapshot, entropy, run, link, page, display)
    database.close()
    return results, text, _notes(folder, run, page)


def _judge(
    children: Children,
    story: Story,
    snapshot: Snapshot,
    entropy: float,
    run: Path,
    link: JoinLink,
    page: str,
    display: Display,
) -> tuple[list[checks.Check], str]:
    release = children.folder / "release"
    display.say("run -> released model; checking everything")
    children.call("release", "coordinator", "release", "--run-dir", str(run), "--out", str(release))
    written, text = checks.check_release(release)
    results = [
        checks.check_rounds(snapshot),
        checks.check_loss(snapshot, entropy),
        checks.check_agreement(story.database),
        checks.check_killed(story),
        checks.check_late(story, snapshot),
        checks.check_audits(snapshot),
        checks.check_ledger(children, _database_url(run), link.root),
        checks.check_page(page),
        written,
    ]
    return results, text


def _build_data(children: Children, scale: DemoScale, data: Path) -> None:
    children.call(
        "data",
        *("data", "build", "--embedded", "shakespeare", "--out", str(data), "--quiet"),
        *("--tokenizer", f"train:{scale.vocabulary}", "--seed", "1"),
        *("--sequence-length", str(scale.sequence_length)),
    )


def _init_run(
    children: Children, scale: DemoScale, data: Path, run: Path, port: int, page_port: int
) -> JoinLink:
    config = children.folder / "run.toml"
    config.write_text(
        scale.run_toml(name="little-bard", port=port, public_url=f"http://127.0.0.1:{page_port}")
    )
    children.call(
        "init",
        *("coordinator", "init", "--config", str(config), "--data", str(data)),
        *("--run-dir", str(run)),
    )
    return JoinLink.parse((run / "join-link.txt").read_text())


def _notes(folder: Path, run: Path, page: str) -> dict[str, str]:
    return {
        "leaderboard": page,
        "model": str(folder / "release"),
        "record": f"barnraise ledger verify --db {_database_url(run)}",
        "look again": f"barnraise ledger serve --db {_database_url(run)}",
        "logs": str(folder / "logs"),
    }


def _database_url(run: Path) -> str:
    return f"sqlite:///{(run / 'coordinator.db').resolve()}"


def _prepare(folder: Path) -> None:
    """Take the folder over, but only from an earlier demonstration."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARKER).exists():
            raise UsageError(f"{folder} holds something else; choose another folder with --dir")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).touch()


def _free_ports(count: int) -> list[int]:
    """Loopback ports that are free now; bound all at once so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def _wait_until_serving(coordinator: Child, port: int) -> None:
    """Until the coordinator accepts connections.

    Raises:
        ChildError: it ended, or did not within ``_START_TIMEOUT_S``.
    """
    end_s = time.monotonic() + _START_TIMEOUT_S
    while coordinator.running and time.monotonic() < end_s:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise ChildError(f"the coordinator did not start:\n{coordinator.last_lines()}")


def _wait_for_interrupt(children: Children) -> None:
    coordinator: Child = next(c for c in children.children if c.name == "coordinator")
    try:
        coordinator.process.wait()
    except KeyboardInterrupt:
        return
