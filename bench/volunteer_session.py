"""``python -m bench.volunteer_session [FILE]``: record what a volunteer's terminal shows.

A run of its own on loopback, with coordinator, anchor, auditor and leaderboard; then every command
of docs/quickstart-volunteers.md in a terminal of 80 columns, to the first pending credit and out
again. Takes some minutes. Nothing is written by hand but the sentences between the blocks.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

COLUMNS, ROWS = 80, 50
PATIENCE_S = 300.0
NAME = "a name you like"
_ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[()].)")

RUN_TOML = """\
[run]
name = "my-first-run"
[model]
preset = "tiny"
[training]
max_steps = 10
[round]
duration_s = 30.0
grace_s = 5.0
[server]
listen = "127.0.0.1:{port}"
public_address = "127.0.0.1:{port}"
public_url = "http://127.0.0.1:{web}"
anchor_arguments = ["--listen", "/ip4/127.0.0.1/tcp/0"]
"""


class Terminal:
    """One command in a terminal; what it shows is kept as text."""

    def __init__(self, environment: dict[str, str], *arguments: str) -> None:
        self.shown = f"$ {_typed(arguments)}\n"
        self._screen, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        command = [sys.executable, "-m", "barnraise", *arguments]
        self._process = subprocess.Popen(
            command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)

    def until(self, pattern: str) -> None:
        """Wait until the terminal shows it."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not re.search(pattern, self.shown):
            if time.monotonic() > deadline_s or not self._read():
                raise RuntimeError(f"{pattern!r} was not shown:\n{self.shown}")

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode() + b"\n")

    def end(self) -> str:
        """All that was shown, once the command has ended."""
        while self._read():
            pass
        if self._process.wait():
            raise RuntimeError(f"exit code {self._process.returncode}:\n{self.shown}")
        os.close(self._screen)
        return self.shown.rstrip()

    def close(self) -> None:
        """Leave nothing behind, whatever went wrong."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    def _read(self) -> bool:
        if not select.select([self._screen], [], [], PATIENCE_S)[0]:
            return False
        with suppress(OSError):  # the other side is gone
            data = os.read(self._screen, 1 << 16)
            text = data.decode(errors="replace").replace("\r\n", "\n")
            self.shown += _ESCAPES.sub("", text)
            return bool(data)
        return False


def _typed(arguments: Sequence[str]) -> str:
    return shlex.join(("barnraise", *arguments))


class Volunteer:
    """Somebody who follows the quickstart."""

    def __init__(self, folder: Path, link: str) -> None:
        self.link = link
        kept = ("PATH", "PYTHONPATH", "LANG")
        self.environment = {key: os.environ[key] for key in kept if key in os.environ}
        self.environment |= {"HOME": str(folder), "TERM": "xterm-256color"}
        self.environment |= {"COLUMNS": str(COLUMNS), "PYTHONUTF8": "1"}

    def say(self, *arguments: str) -> str:
        return self.begin(*arguments).end()

    def begin(self, *arguments: str) -> Terminal:
        return Terminal(self.environment, *arguments)

    def join(self) -> str:
        terminal = self.begin("worker", "join", self.link, "--dedicated")
        terminal.until(r"Name for the leaderboard.*: $")
        terminal.type(NAME)
        terminal.until(r"Join this run.*: $")
        terminal.type("y")
        return terminal.end()


def record(volunteer: Volunteer) -> str:
    """The page."""
    joined = volunteer.join()
    with closing(volunteer.begin("worker", "run")) as run:
        return _page(volunteer, joined, run)


def _page(volunteer: Volunteer, joined: str, run: Terminal) -> str:
    run.until(r"training  +assignment")
    status = volunteer.say("worker", "status")
    run.until(r"\breceipt  +microcredits")
    credit = volunteer.say("worker", "receipts")
    paused = "\n".join(
        volunteer.say("worker", *words) for words in (("pause", "--for", "2h"), ("status",))
    )
    run.until(r"\basleep\b")
    limits = "\n".join(
        volunteer.say("worker", *words)
        for words in (("limits", "nice", "15", "upload_kbit_s", "2000"), ("resume",))
    )
    run.until(r"\bawake\b")
    finish = volunteer.say("worker", "finish")
    ran = run.end()
    doctor = volunteer.say("worker", "doctor")
    blocks = {
        "Join": joined,
        "Run": ran,
        "Meanwhile, in another terminal": f"{status}\n{credit}",
        "Not now": f"{paused}\n{limits}",
        "Enough": finish,
        "Does everything work?": doctor,
    }
    return "\n".join(
        [_HEAD, *(f"## {title}\n\n```text\n{text}\n```\n" for title, text in blocks.items())]
    )


_HEAD = f"""\
# A volunteer's session

What a terminal of {COLUMNS} columns shows, recorded by `python -m bench.volunteer_session`
from a run on one machine. Only the name of the home folder is changed. The model is the preset
`tiny`, the text Shakespeare's. Without `--dedicated`, `join` proposes
limits on a machine that has a display or a battery.
"""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A run on loopback; gives its join link."""
    text = RUN_TOML.format(port=_free_port(), web=(web := _free_port()))
    (folder / "run.toml").write_text(text, encoding="utf-8")
    data, run = str(folder / "data"), str(folder / "run")
    _do("data", "build", "--tokenizer", "train:512", "--sequence-length", "64", "--out", data)
    _do(
        *("coordinator", "init", "--config", str(folder / "run.toml"), "--data", data),
        *("--run-dir", run),
    )
    serve = ("coordinator", "serve", "--run-dir", run, "--leaderboard", f"127.0.0.1:{web}")
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "barnraise", *serve], stdout=log, stderr=log
        )
    try:
        deadline_s = time.monotonic() + PATIENCE_S
        while b"validated" not in (folder / "serve.log").read_bytes():
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError((folder / "serve.log").read_text(errors="replace"))
            time.sleep(0.2)
        yield (folder / "run" / "join-link.txt").read_text(encoding="utf-8").strip()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _do(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "barnraise", *arguments], check=True, stdout=subprocess.DEVNULL
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/volunteer-session.md")
    folder = Path(tempfile.mkdtemp(prefix="barn-"))
    try:
        with served(folder) as link:
            page = record(Volunteer(folder, link))
    finally:
        shutil.rmtree(folder)
    lines = (line.rstrip() for line in page.replace(str(folder), "~").splitlines())
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
