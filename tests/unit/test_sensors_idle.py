"""When somebody used this machine last: every way to ask, and everybody who does not answer."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from worker.sensors import idle, local_socket
from worker.sensors.dbus import Bus, BusError, Question, call, first_number
from worker.sensors.idle import IdleTime, typed_ago_s
from worker.sensors.wayland import Wayland
from worker.sensors.x11 import X11

Handler = Callable[[socket.socket], None]


@contextmanager
def served(path: Path, handler: Handler) -> Iterator[Path]:
    """A service at a unix socket; each connection is handled in a thread of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    threads: list[threading.Thread] = []
    open_: list[socket.socket] = []

    def handle(connection: socket.socket) -> None:
        with connection:
            try:
                handler(connection)
            except OSError:
                return  # the test hung up

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            open_.append(connection)
            threads.append(threading.Thread(target=handle, args=(connection,)))
            threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield path
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for connection in open_:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in threads:
            thread.join()


def receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise OSError("hung up")
        data += more
    return data


def silent(connection: socket.socket) -> None:
    """Takes everything and says nothing."""
    while connection.recv(4096):
        pass


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The services of these tests share a processor with them."""
    monkeypatch.setattr(local_socket, "PATIENCE_S", 30.0)


# ---- D-Bus -----------------------------------------------------------------------------


def reply(serial: int, signature: str, body: bytes, kind: int = 2) -> bytes:
    """As dbus-daemon lays it out: reply serial, destination, signature, sender."""
    fields = struct.pack("<B3sI", 5, b"\x01u\0", serial)
    fields += b"\x06\x01s\0" + struct.pack("<I", 4) + b":1.7\0" + bytes(3)
    fields += b"\x08\x01g\0" + bytes([len(signature)]) + signature.encode() + b"\0"
    fields += bytes(-len(fields) % 8)
    fields += b"\x07\x01s\0" + struct.pack("<I", 4) + b":1.2\0"
    header = struct.pack("<cBBBIII", b"l", kind, 1, 1, len(body), 9, len(fields)) + fields
    return header + bytes(-len(header) % 8) + body


SIGNAL = struct.pack("<cBBBIII", b"l", 4, 1, 1, 0, 1, 8) + struct.pack("<B3sI", 9, b"\x01u\0", 0)


class FakeBus:
    """Lets anybody in; answers each member by what it is told to."""

    def __init__(self, answers: dict[str, tuple[str, bytes]]) -> None:
        self.answers = {"Hello": ("s", struct.pack("<I", 4) + b":1.7\0")} | answers
        self.asked: list[bytes] = []

    def __call__(self, connection: socket.socket) -> None:
        line = b""
        while not line.endswith(b"\r\n"):
            line += receive(connection, 1)
        assert line == b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n"
        connection.sendall(b"OK 0123456789abcdef\r\n")
        assert receive(connection, 7) == b"BEGIN\r\n"
        while True:
            start = receive(connection, 16)
            body_bytes, serial, fields_bytes = struct.unpack("<III", start[4:])
            rest = receive(connection, -(-fields_bytes // 8) * 8 + body_bytes)
            self.asked.append(rest)
            connection.sendall(SIGNAL)  # of something else
            connection.sendall(self.answer(serial, rest))

    def answer(self, serial: int, asked: bytes) -> bytes:
        for member, (signature, body) in self.answers.items():
            if member.encode() + b"\0" in asked:
                return reply(serial, signature, body)
        return reply(serial, "s", struct.pack("<I", 3) + b"no!\0", kind=3)


ANY = Question("org.example.Service", "/org/example", "org.example.Interface", "Ask")


def test_a_question_is_laid_out_as_the_specification_says() -> None:
    asked = call(Question("a.b", "/c", "d.e", "F", ("gh", "i")), serial=2)
    assert asked == (
        b"l\x01\x02\x01\x0e\x00\x00\x00\x02\x00\x00\x00\x48\x00\x00\x00"
        b"\x01\x01o\x00\x02\x00\x00\x00/c\x00\x00\x00\x00\x00\x00"
        b"\x02\x01s\x00\x03\x00\x00\x00d.e\x00\x00\x00\x00\x00"
        b"\x03\x01s\x00\x01\x00\x00\x00F\x00\x00\x00\x00\x00\x00\x00"
        b"\x06\x01s\x00\x03\x00\x00\x00a.b\x00\x00\x00\x00\x00"
        b"\x08\x01g\x00\x02ss\x00"
        b"\x02\x00\x00\x00gh\x00\x00\x01\x00\x00\x00i\x00"
    )


@pytest.mark.parametrize(
    ("signature", "body", "number"),
    [
        ("t", struct.pack("<Q", 1 << 40), 1 << 40),
        ("u", struct.pack("<I", 7), 7),
        ("b", struct.pack("<I", 1), 1),
        ("i", struct.pack("<i", -7), -7),
        ("v", b"\x01b\0" + bytes(1) + struct.pack("<I", 1), 1),
        ("v", b"\x01t\0" + bytes(5) + struct.pack("<Q", 1 << 50), 1 << 50),
    ],
)
def test_a_number_is_read_from_a_bus(
    tmp_path: Path, signature: str, body: bytes, number: int
) -> None:
    fake = FakeBus({"Ask": (signature, body)})
    with served(tmp_path / "bus", fake) as path:
        bus = Bus(f"tcp:host=nowhere;unix:path={path},guid=00")
        assert bus.number(ANY) == number
        assert bus.number(ANY) == number
        bus.close()
    assert b"org.example.Interface\0" in fake.asked[-1]


def test_a_service_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with served(tmp_path / "bus", FakeBus({})) as path:
        bus = Bus(f"unix:path={path}")
        with pytest.raises(BusError, match="does not answer"):
            bus.number(ANY)
        bus.close()


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        ("s", b"\x01\0\0\0a\0"),
        ("t", b"\0\0\0\0"),
        ("v", b""),
        ("v", b"\x02ai\0"),
        ("v", b"\x01t\0"),
        ("", b""),
    ],
)
def test_an_answer_that_is_no_number_is_an_error(signature: str, body: bytes) -> None:
    with pytest.raises(BusError):
        first_number(signature, body)


@pytest.mark.parametrize(
    "garbage",
    [
        b"REJECTED EXTERNAL\r\n",
        b"OK 1\r\n" + b"x" * 64,
        b"OK 1\r\n" + struct.pack("<cBBBIII", b"l", 2, 0, 1, 1 << 30, 1, 8) + bytes(8),
        b"OK 1\r\n" + struct.pack("<cBBBIII", b"l", 2, 0, 1, 0, 1, 1 << 31) + bytes(8),
        b"OK 1\r\n" + struct.pack("<cBBBIII", b"l", 2, 0, 1, 0, 1, 8) + b"\x05\x01q\0" + bytes(4),
        b"OK 1\r\n" + struct.pack("<cBBBIII", b"l", 2, 0, 1, 0, 1, 8) + b"\x05\x01s\0\xff\xff\0\0",
        b"OK 1\r\n" + struct.pack("<cBBBIII", b"l", 2, 0, 1, 0, 1, 3) + b"\x05\x01u" + bytes(5),
        b"OK 1\r\n" + SIGNAL * 100,
        b"y" * 5000,
    ],
)
def test_a_bus_that_talks_nonsense_is_an_error(tmp_path: Path, garbage: bytes) -> None:
    def nonsense(connection: socket.socket) -> None:
        connection.sendall(garbage)

    with served(tmp_path / "bus", nonsense) as path, pytest.raises(OSError):
        Bus(f"unix:path={path}")


def test_addresses_that_lead_nowhere_are_an_error(tmp_path: Path) -> None:
    for addresses in ("", "autolaunch:", "unix:tmpdir=/tmp", f"unix:path={tmp_path}/none"):
        with pytest.raises(OSError):
            Bus(addresses)


# ---- X11 -------------------------------------------------------------------------------

COOKIE = bytes(range(16))
ROOT = 0x4F2


class FakeX11:
    """A server with one screen, whose setup is laid out as in appendix B of the protocol."""

    def __init__(self, idle_ms: int = 0, *, cookie: bytes = b"", extension: bool = True) -> None:
        self.idle_ms, self.cookie, self.extension = idle_ms, cookie, extension

    def __call__(self, connection: socket.socket) -> None:
        order, major, name_bytes, cookie_bytes = struct.unpack(
            "<cxHxxHHxx", receive(connection, 12)
        )
        assert (order, major) == (b"l", 11)
        name = receive(connection, -(-name_bytes // 4) * 4)[:name_bytes]
        cookie = receive(connection, -(-cookie_bytes // 4) * 4)[:cookie_bytes]
        if cookie != self.cookie:
            connection.sendall(struct.pack("<BBHHH", 0, 5, 11, 0, 2) + b"wrong\0\0\0")
            return
        assert name == (b"MIT-MAGIC-COOKIE-1" if cookie else b"")
        vendor, formats = b"The Fake X Foundation", 3
        setup = struct.pack(
            "<IIIIHHBBBBBBBB", 1, 2, 3, 4, len(vendor), 65535, 1, formats, *range(6)
        )
        setup += bytes(4) + vendor + bytes(-len(vendor) % 4) + bytes(8 * formats)
        setup += struct.pack("<I", ROOT) + bytes(36)
        connection.sendall(struct.pack("<BBHHH", 1, 0, 11, 0, len(setup) // 4) + setup)
        assert (
            receive(connection, 24) == struct.pack("<BBHHH", 98, 0, 6, 16, 0) + b"MIT-SCREEN-SAVER"
        )
        connection.sendall(
            struct.pack("<BxHIBBBB", 1, 1, 0, self.extension, 144, 92, 0) + bytes(20)
        )
        while True:
            assert receive(connection, 8) == struct.pack("<BBHI", 144, 1, 2, ROOT)
            connection.sendall(bytes([28]) + bytes(31))  # an event that nobody asked for
            answer = struct.pack("<BBHIIIII", 1, 0, 2, 0, 7, 600_000, self.idle_ms, 0)
            connection.sendall(answer + bytes(8))


def authority(path: Path, *entries: tuple[str, bytes]) -> Path:
    data = b""
    for number, cookie in entries:
        parts = (b"host", number.encode(), b"MIT-MAGIC-COOKIE-1", cookie)
        data += struct.pack(">H", 256) + b"".join(struct.pack(">H", len(p)) + p for p in parts)
    path.write_bytes(data)
    return path


def test_an_x11_server_tells_when_it_saw_somebody(tmp_path: Path) -> None:
    with served(tmp_path / "X0", FakeX11(61_500)) as path:
        x11 = X11(path)
        assert x11.idle_s() == 61.5
        assert x11.idle_s() == 61.5
        x11.close()


def test_an_x11_server_is_shown_the_cookie_of_its_display(tmp_path: Path) -> None:
    wrong = authority(tmp_path / "a", ("1", bytes(16)))
    right = authority(tmp_path / "b", ("7", bytes(16)), ("0", COOKIE))
    with served(tmp_path / "X0", FakeX11(1000, cookie=COOKIE)) as path:
        with pytest.raises(OSError, match="no X11 server"):
            X11(path, (wrong, tmp_path / "none"))
        x11 = X11(path, (tmp_path / "none", wrong, right))
        assert x11.idle_s() == 1.0
        x11.close()


def test_an_x11_server_without_the_extension_is_an_error(tmp_path: Path) -> None:
    with served(tmp_path / "X0", FakeX11(extension=False)) as path, pytest.raises(OSError):
        X11(path)


def test_an_authority_that_is_cut_off_ends_nothing(tmp_path: Path) -> None:
    whole = authority(tmp_path / "a", ("0", COOKIE)).read_bytes()
    with served(tmp_path / "X0", FakeX11(5000, cookie=COOKIE)) as path:
        for length in range(0, len(whole), 3):
            (tmp_path / "a").write_bytes(whole[:length])
            with pytest.raises(OSError):
                X11(path, (tmp_path / "a",))


# ---- Wayland ---------------------------------------------------------------------------


class FakeWayland:
    """A compositor with a seat, laid out as in the protocol's description."""

    def __init__(self, *interfaces: str) -> None:
        self.interfaces = interfaces or ("wl_compositor", "wl_seat", "ext_idle_notifier_v1")
        self.subscribed = threading.Event()
        self.connection: socket.socket | None = None

    def __call__(self, connection: socket.socket) -> None:
        self.connection = connection
        assert receive(connection, 24) == struct.pack("=IIIIII", 1, 12 << 16 | 1, 2, 1, 12 << 16, 3)
        for name, interface in enumerate(self.interfaces, start=40):
            text = interface.encode() + b"\0"
            body = struct.pack("=II", name, len(text)) + text + bytes(-len(text) % 4)
            self.send(2, 0, body + struct.pack("=I", 9))
        self.send(3, 0, struct.pack("=I", 0))
        self.send(1, 1, struct.pack("=I", 3))  # delete_id
        self.expect_bind(42, b"ext_idle_notifier_v1\0", 4)
        self.expect_bind(41, b"wl_seat\0", 5)
        self.send(5, 0, struct.pack("=I", 3))  # capabilities of the seat
        assert receive(connection, 20) == struct.pack("=IIIII", 4, 20 << 16 | 1, 6, 1000, 5)
        self.subscribed.set()
        silent(connection)

    def expect_bind(self, name: int, text: bytes, new_id: int) -> None:
        padded = text + bytes(-len(text) % 4)
        size = 8 + 4 + 4 + len(padded) + 8
        assert self.connection is not None
        assert receive(self.connection, size) == (
            struct.pack("=IIII", 2, size << 16, name, len(text))
            + padded
            + struct.pack("=II", 1, new_id)
        )

    def send(self, sender: int, event: int, body: bytes = b"") -> None:
        assert self.connection is not None
        self.connection.sendall(struct.pack("=II", sender, (8 + len(body)) << 16 | event) + body)


def test_a_compositor_tells_of_idleness_and_of_its_end(tmp_path: Path) -> None:
    now_s, fake = [100.0], FakeWayland()
    with served(tmp_path / "wayland-0", fake) as path:
        wayland = Wayland(path, clock_s=lambda: now_s[0])
        assert fake.subscribed.wait(60)
        now_s[0] += 5
        assert wayland.idle_s() == 0  # it has not said that nobody is there
        fake.send(6, 0)
        wayland_s = until(wayland.idle_s, lambda told_s: told_s > 0)
        assert wayland_s == 1.0  # since the second that it waits
        now_s[0] += 600
        assert wayland.idle_s() == 601.0
        fake.send(6, 1)
        assert until(wayland.idle_s, lambda told_s: told_s < 600) == 0
        now_s[0] += 3
        assert wayland.idle_s() == 0
        fake.send(6, 0)
        assert until(wayland.idle_s, lambda told_s: told_s > 0) == 1.0
        wayland.close()


def until(read: Callable[[], float], done: Callable[[float], bool]) -> float:
    """Read until another thread's message has arrived."""
    deadline_s = time.monotonic() + 60
    while not done(value := read()):
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    return value


def test_a_compositor_that_ends_or_cannot_tell_is_an_error(tmp_path: Path) -> None:
    with (
        served(tmp_path / "wayland-1", FakeWayland("wl_seat")) as path,
        pytest.raises(OSError, match="no compositor that tells"),
    ):
        Wayland(path)
    fake = FakeWayland()
    with served(tmp_path / "wayland-0", fake) as path:
        wayland = Wayland(path)
        assert fake.subscribed.wait(60)
        assert fake.connection is not None
        fake.connection.shutdown(socket.SHUT_RDWR)
        with pytest.raises(OSError):
            wayland.idle_s()
        wayland.close()


# ---- terminals, and all together -------------------------------------------------------


def terminal(dev: Path, name: str, read_ago_s: float) -> None:
    path = dev / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (time.time() - read_ago_s, time.time()))  # what is written says nothing


def test_the_terminal_that_was_read_last_counts(tmp_path: Path) -> None:
    assert typed_ago_s(tmp_path, time.time()) is None
    terminal(tmp_path, "tty1", 9000)
    terminal(tmp_path, "pts/3", 70)
    terminal(tmp_path, "pts/ptmx", 0)  # is no terminal of anybody
    terminal(tmp_path, "tty", 0)
    ago_s = typed_ago_s(tmp_path, time.time())
    assert ago_s == pytest.approx(70, abs=5)
    assert typed_ago_s(tmp_path, time.time() - 3600) == 0  # a clock that was set back


class Desk:
    """Everything that may tell of somebody, in folders of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stack = ExitStack()
        for folder in ("run", "x11"):
            (root / folder).mkdir()
        (root / "osrelease").write_text("6.1.0-generic\n")
        terminal(root / "dev", "pts/0", 5000)

    def idle_time(self) -> IdleTime:
        made = IdleTime(
            dev=self.root / "dev",
            runtime=self.root / "run",
            displays=self.root / "x11",
            authorities=(),
            session_bus=f"unix:path={self.root}/session",
            system_bus=f"unix:path={self.root}/system",
            kernel_release=self.root / "osrelease",
        )
        self.stack.callback(made.close)
        return made

    def serve(self, name: str, handler: Handler) -> None:
        self.stack.enter_context(served(self.root / name, handler))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    with made.stack:
        yield made


def gnome(idle_ms: int) -> FakeBus:
    return FakeBus({"GetIdletime": ("t", struct.pack("<Q", idle_ms))})


def logind(hint: bool, since_s: float = 0.0) -> FakeBus:
    since_us = struct.pack("<Q", int(since_s * 1e6))
    return FakeBus(
        {
            "IdleSinceHint": ("v", b"\x01t\0" + bytes(5) + since_us),
            "IdleHint": ("v", b"\x01b\0" + bytes(1) + struct.pack("<I", hint)),
        }
    )


def test_without_a_screen_terminals_tell(desk: Desk) -> None:
    assert desk.idle_time().seconds() == pytest.approx(5000, abs=60)


def test_without_anything_nothing_is_known(desk: Desk) -> None:
    (desk.root / "dev/pts/0").unlink()
    assert desk.idle_time().seconds() is None


def test_gnome_tells(desk: Desk) -> None:
    desk.serve("run/wayland-0", FakeWayland("wl_seat"))
    desk.serve("session", gnome(42_000))
    look = desk.idle_time()
    assert [look.seconds(), look.seconds()] == [42.0, 42.0]


def test_another_compositor_tells(desk: Desk) -> None:
    desk.serve("run/wayland-1", FakeWayland())
    assert desk.idle_time().seconds() == 0


def test_an_x11_session_tells(desk: Desk) -> None:
    desk.serve("x11/X0", FakeX11(90_000))
    assert desk.idle_time().seconds() == 90.0


def test_the_most_recent_use_counts(desk: Desk) -> None:
    desk.serve("run/wayland-0", FakeWayland("wl_seat"))
    desk.serve("session", gnome(400_000))
    desk.serve("x11/X0", FakeX11(300_000))
    assert desk.idle_time().seconds() == 300.0
    terminal(desk.root / "dev", "pts/9", 10)
    assert desk.idle_time().seconds() == pytest.approx(10, abs=8)


def test_a_screen_that_tells_nothing_is_not_taken_for_an_idle_one(desk: Desk) -> None:
    """The mouse may be moving: neither terminals nor X11 under Wayland would know."""
    desk.serve("run/wayland-0", FakeWayland("wl_seat"))
    desk.serve("x11/X0", FakeX11(900_000))
    assert desk.idle_time().seconds() is None


@pytest.mark.parametrize(("hint", "expected_s"), [(False, 0.0), (True, 700.0)])
def test_of_such_a_screen_logind_may_know(desk: Desk, hint: bool, expected_s: float) -> None:
    desk.serve("run/wayland-0", FakeWayland("wl_seat"))
    desk.serve("system", logind(hint, time.time() - 700))
    assert desk.idle_time().seconds() == pytest.approx(expected_s, abs=60)


def test_a_socket_that_was_left_behind_is_no_screen(desk: Desk) -> None:
    for name in ("x11/X5", "run/wayland-5"):
        left = socket.socket(socket.AF_UNIX)
        left.bind(str(desk.root / name))
        left.close()
    (desk.root / "run/wayland-5.lock").touch()
    assert desk.idle_time().seconds() == pytest.approx(5000, abs=60)


def test_in_windows_nothing_is_known(desk: Desk) -> None:
    (desk.root / "osrelease").write_text("5.15.153.1-microsoft-standard-WSL2\n")
    assert desk.idle_time().seconds() is None


def test_who_hangs_is_left_alone_for_a_while(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_socket, "PATIENCE_S", 0.05)
    steady_s = [1000.0]
    monkeypatch.setattr(idle, "steady_s", lambda: steady_s[0])
    connections: list[socket.socket] = []

    def hanging(connection: socket.socket) -> None:
        connections.append(connection)
        silent(connection)

    for name in ("run/wayland-0", "x11/X0", "session", "system"):
        desk.serve(name, hanging)
    look = desk.idle_time()
    assert look.seconds() is None
    until(lambda: len(connections), lambda count: count == 4)
    steady_s[0] += 59
    assert look.seconds() is None
    steady_s[0] += 2
    assert look.seconds() is None
    until(lambda: len(connections), lambda count: count == 8)  # not asked in between


def test_who_comes_back_is_heard_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    steady_s = [1000.0]
    monkeypatch.setattr(idle, "steady_s", lambda: steady_s[0])
    look = desk.idle_time()
    with served(desk.root / "x11/X0", FakeX11(90_000)):
        assert look.seconds() == 90.0
    assert look.seconds() is None  # it hung up; is it coming back?
    (desk.root / "x11/X0").unlink()
    with served(desk.root / "x11/X0", FakeX11(3000)):
        steady_s[0] += 61
        assert look.seconds() == 3.0


def test_this_machine_is_asked_in_its_own_places() -> None:
    look = IdleTime()
    told_s = look.seconds()
    look.close()
    assert told_s is None or told_s >= 0
