"""The keeper's manners: whom it serves, what it refuses, and that nothing it is asked can end it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7lb import __version__
from l7lb.proxy import counts
from l7lb.proxy.workers import channel, keeper, privileges
from l7lb.proxy.workers.children import WORKER, Child, environment, program
from l7lb.proxy.workers.keeper import Keeper, listen, resume
from l7lb.proxy.workers.requests import REQUESTS, Peer


class Asker:
    """A supervisor's end."""

    def __init__(self, ours: socket.socket) -> None:
        self.sock = ours
        self.sock.settimeout(20.0)
        self.number = 0
        self.events: list[dict[str, Any]] = []

    def send(self, op: str, descriptors: tuple[int, ...] = (), **fields: Any) -> int:
        self.number += 1
        channel.send(self.sock, {"id": self.number, "op": op, **fields}, descriptors)
        return self.number

    def receive(self, number: int) -> tuple[dict[str, Any], list[int]]:
        while True:
            packet, descriptors = channel.receive(self.sock)
            if packet.get("id") == number:
                return packet, descriptors
            self.events.append(packet)

    def ask(self, op: str, descriptors: tuple[int, ...] = (), **fields: Any) -> dict[str, Any]:
        packet, received = self.receive(self.send(op, descriptors, **fields))
        channel.close_all(received)
        return packet


class InProcess:
    """A keeper that handles one packet at a time, in this process."""

    def __init__(self, directory: Path) -> None:
        self.keeper = Keeper(directory, "none.yaml", None, listen(directory, None), counts.create())
        self.peers: list[Peer] = []

    def connect(self) -> Asker:
        ours, theirs = channel.pair()
        peer = Peer(theirs, os.getpid(), os.getuid())
        self.peers.append(peer)
        self.keeper.add_peer(peer)
        return Asker(ours)

    def handle(self) -> None:
        for key, _ in self.keeper.selector.select(0):
            key.data()

    def ask(self, asker: Asker, op: str, descriptors: tuple[int, ...] = (), **fields: Any) -> dict[str, Any]:
        number = asker.send(op, descriptors, **fields)
        self.handle()
        packet, received = asker.receive(number)
        channel.close_all(received)
        return packet

    def close(self) -> None:
        for bind in self.keeper.herd.binds.values():
            bind.close(unlink=True)
        for peer in self.peers:
            peer.sock.close()
        self.keeper.listener.close()
        self.keeper.selector.close()
        self.keeper.herd._cells.close()
        os.close(self.keeper.counts)
        if self.keeper.herd.snapshot >= 0:
            os.close(self.keeper.herd.snapshot)


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[InProcess]:
    made = InProcess(tmp_path)
    yield made
    made.close()


OPEN = {
    "key": "127.0.0.1:0",
    "host": "127.0.0.1",
    "port": 0,
    "path": "",
    "backlog": 5,
    "shared": False,
    "count": 2,
    "beside": False,
}


def test_one_supervisor_at_a_time(inside: InProcess) -> None:
    first, second = inside.connect(), inside.connect()
    assert inside.ask(first, "hello", role="supervisor")["version"] == __version__
    refusal = inside.ask(second, "hello", role="supervisor")
    assert f"process {os.getpid()} supervises this node already" in refusal["error"]
    assert "only the supervisor" in inside.ask(second, "want", count=1, generation=0)["error"]
    inside.keeper._lose(inside.peers[0])
    assert "error" not in inside.ask(second, "hello", role="supervisor")
    for asker in (first, second):
        asker.sock.close()


def test_a_candidate_takes_over_when_the_old_one_yields(inside: InProcess) -> None:
    old, new = inside.connect(), inside.connect()
    inside.ask(old, "hello", role="supervisor")
    inside.ask(new, "hello", role="candidate")
    number = new.send("take-over")
    inside.handle()
    assert channel.receive(old.sock)[0]["event"] == "yield"
    inside.ask(old, "yield")
    assert new.receive(number)[0] == {"id": number}
    inside.ask(new, "started")
    assert channel.receive(old.sock)[0] == {"event": "supervises", "pid": os.getpid()}
    for asker in (old, new):
        asker.sock.close()


def test_a_candidate_takes_over_when_the_old_one_dies(inside: InProcess) -> None:
    old, new = inside.connect(), inside.connect()
    inside.ask(old, "hello", role="supervisor")
    inside.ask(new, "hello", role="candidate")
    number = new.send("take-over")
    inside.handle()
    old.sock.close()
    inside.handle()
    assert new.receive(number)[0] == {"id": number}
    new.sock.close()


@pytest.mark.parametrize(
    ("op", "fields", "words"),
    [
        ("close", {"key": "nothing"}, "'nothing' is not open"),
        ("sockets", {"key": "nothing"}, "'nothing' is not open"),
        ("want", {"count": 0, "generation": 0}, "count is a whole number from 1 to 64, not 0"),
        ("want", {"count": 65, "generation": 0}, "from 1 to 64, not 65"),
        ("snapshot", {"rows": 5}, "one descriptor"),
        ("drain", {"seconds": -1, "status": 0}, "not -1"),
        ("adopt", {"pid": 1}, "not a state process"),
        ("adopt", {"pid": 0}, "not a state process"),
        ("open", {**OPEN, "port": 70_000}, "port is a whole number from 0 to 65535"),
        ("settings", {"log_level": "loud", "log_format": "text"}, "no log level 'loud'"),
        ("hello", {"role": "king"}, "no role 'king'"),
        ("dance", {}, "unknown request 'dance'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(
    inside: InProcess, op: str, fields: dict[str, Any], words: str
) -> None:
    asker = inside.connect()
    inside.ask(asker, "hello", role="supervisor")
    assert words in inside.ask(asker, op, **fields)["error"]
    asker.sock.close()


def test_an_address_is_opened_once(inside: InProcess) -> None:
    asker = inside.connect()
    inside.ask(asker, "hello", role="supervisor")
    assert inside.ask(asker, "open", **OPEN)["port"] > 0
    assert "is open already" in inside.ask(asker, "open", **OPEN)["error"]
    assert "error" not in inside.ask(asker, "close", key=OPEN["key"])
    asker.sock.close()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = [
    "id",
    "role",
    "key",
    "host",
    "port",
    "path",
    "backlog",
    "shared",
    "count",
    "beside",
    "rows",
    "generation",
    "pid",
    "seconds",
    "status",
    "size",
    "save",
    "log_level",
    "log_format",
    "without_supervisor",
    "drain",
    "retire",
]
HARMLESS = sorted(REQUESTS.keys() - {"start-supervisor", "upgrade", "drain"})


@given(
    packets=st.lists(
        st.tuples(st.sampled_from(HARMLESS), st.dictionaries(st.sampled_from(NAMES), VALUES), st.integers(0, 2)),
        max_size=8,
    )
)
def test_nothing_that_is_asked_ends_it(packets: list[tuple[str, dict[str, Any], int]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        inside = InProcess(Path(directory))
        asker = inside.connect()
        try:
            _ask_all(inside, asker, packets)
        finally:
            inside.close()
            asker.sock.close()


def _ask_all(inside: InProcess, asker: Asker, packets: list[tuple[str, dict[str, Any], int]]) -> None:
    inside.ask(asker, "hello", role="supervisor")
    before = set(os.listdir("/proc/self/fd"))
    for op, fields, passed in packets:
        descriptors = tuple(os.memfd_create("x") for _ in range(passed))
        channel.send(asker.sock, {**OPEN, **fields, "op": op}, descriptors)
        channel.close_all(descriptors)
        inside.handle()
    assert math.isfinite(inside.keeper.without_supervisor)
    asker.sock.setblocking(False)
    with contextlib.suppress(BlockingIOError, channel.BrokenChannel):
        while True:
            channel.close_all(channel.receive(asker.sock)[1])
    held = sum(len(bind.sockets) for bind in inside.keeper.herd.binds.values())
    held += inside.keeper.herd.snapshot >= 0
    assert len(set(os.listdir("/proc/self/fd")) - before) <= held


def test_new_code_goes_on_with_everything(inside: InProcess, tmp_path: Path) -> None:
    asker = inside.connect()
    inside.ask(asker, "hello", role="supervisor")
    inside.ask(asker, "open", **OPEN)
    inside.ask(asker, "want", count=2, generation=7)
    old = inside.keeper
    ours, theirs = channel.pair()
    sleeper = subprocess.Popen(["sleep", "60"])
    old.herd.children.append(
        Child(WORKER, sleeper.pid, 1, 5, 7, 1.0, ready=True, control=ours, served={"b": frozenset({1})})
    )
    memory = old.save(inside.peers[0], 77)
    state = json.loads(channel.content(memory, keeper.MEMORY))
    os.close(memory)
    copies: dict[int, int] = {}

    def copied(descriptor: int) -> int:
        return copies.setdefault(descriptor, os.dup(descriptor))

    state["listener"], state["counts"] = copied(state["listener"]), copied(state["counts"])
    for bind in state["binds"]:
        bind["sockets"] = [copied(descriptor) for descriptor in bind["sockets"]]
    for one in (*state["peers"], state["reply"]):
        one["sock"] = copied(one["sock"])
    state["children"][0]["control"] = copied(state["children"][0]["control"])
    new = resume(state)
    assert asker.receive(77)[0] == {"id": 77}
    assert (new.herd.wanted.count, new.herd.wanted.generation) == (2, 7)
    (child,) = new.herd.children
    assert child.describe() == old.herd.children[0].describe()
    assert child.served == {"b": frozenset({1})}
    assert list(new.herd.binds) == ["127.0.0.1:0"]
    assert len(new.herd.binds["127.0.0.1:0"].sockets) == 2
    assert not any(os.get_inheritable(descriptor) for descriptor in new._held())
    sleeper.kill()
    new.herd.children.clear()
    child.reap()
    sleeper.wait()
    old.herd.children.clear()
    ended = InProcess.__new__(InProcess)
    ended.keeper, ended.peers = new, new.peers
    ended.close()
    for sock in (ours, theirs, asker.sock):
        sock.close()


# --- a real one -----------------------------------------------------------------------------------------------------


@pytest.fixture
def process(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Asker]]:
    ours, theirs = channel.pair()
    command = program(
        "l7lb.proxy.workers.keeper",
        "--directory",
        str(tmp_path),
        "--config",
        "none.yaml",
        "--peer",
        str(theirs.fileno()),
    )
    with theirs:
        running = subprocess.Popen(command, pass_fds=(theirs.fileno(),), env=environment(), stderr=subprocess.DEVNULL)
    asker = Asker(ours)
    yield running, asker
    ours.close()
    running.kill()
    running.wait()


def test_it_needs_the_standard_library_alone() -> None:
    code = (
        "import sys; import l7lb.proxy.workers.keeper; "
        "print(*sorted({n.partition('.')[0] for n in sys.modules} - set(sys.stdlib_module_names) - {'__main__'}))"
    )
    found = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    # The helper of compiled modules bears a digest for a name.
    others = [name for name in found if not name.startswith(("__editable__", "_distutils", "sitecustom"))]
    assert [name for name in others if not name.endswith("__mypyc")] == ["l7lb"]


@pytest.mark.scenario
def test_only_certain_processes_may_speak_to_it(process, tmp_path: Path) -> None:
    running, asker = process
    state = asker.ask("hello", role="supervisor")
    assert (state["pid"], state["uid"], state["children"]) == (running.pid, os.getuid(), [])
    path = tmp_path / "keeper.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.connect(str(path))
        second = Asker(other)
        assert "supervises this node already" in second.ask("hello", role="supervisor")["error"]
    if os.geteuid() == 0:
        path.chmod(0o666)
        tmp_path.chmod(0o755)
        for parent in tmp_path.parents:
            if parent.stat().st_mode & 0o001 == 0:
                parent.chmod(parent.stat().st_mode | 0o011)
        code = (
            f"import os, socket; os.setuid(65534); s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); "
            f"s.connect({str(path)!r}); print(s.recv(100))"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "b''" in found.stdout or "ConnectionReset" in found.stderr, found


@pytest.mark.scenario
def test_it_ignores_a_terminals_signals_and_ends_by_sigterm(process, tmp_path: Path) -> None:
    running, asker = process
    asker.ask("hello", role="supervisor")
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        running.send_signal(number)
    assert asker.ask("hello", role="supervisor")["pid"] == running.pid
    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == 0
    assert not (tmp_path / "keeper.sock").exists()


@pytest.mark.scenario
def test_without_a_supervisor_for_its_time_it_ends(process) -> None:
    running, asker = process
    asker.ask("hello", role="supervisor")
    times = {"without_supervisor": 0.2, "drain": 1.0, "retire": 1.0, "size": 10, "save": ""}
    assert asker.ask("settings", log_level="info", log_format="text", **times) == {"id": 2}
    asker.sock.close()
    assert running.wait(20) == 0


@pytest.mark.scenario
def test_the_directory_process_lives_as_long_as_it_is_wanted(process, tmp_path: Path) -> None:
    running, asker = process
    asker.ask("hello", role="supervisor")
    times = {"without_supervisor": 60.0, "drain": 1.0, "retire": 60.0, "size": 10, "save": ""}
    path = tmp_path / "directories.sock"

    def settle(wanted: bool) -> None:
        assert "error" not in asker.ask("settings", log_level="info", log_format="text", directories=wanted, **times)

    def there() -> int:
        children = asker.ask("hello", role="supervisor")["children"]
        return next((child["pid"] for child in children if child["kind"] == "directories"), 0)

    settle(True)
    first = wait_until(there)
    wait_until(path.exists)
    before = path.stat().st_ino
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: there() not in (0, first) and path.stat().st_ino != before)
    settle(False)
    wait_until(lambda: not there())
    assert not path.exists()
    settle(True)
    last = wait_until(there)
    wait_until(path.exists)
    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)


def wait_until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


@pytest.mark.scenario
def test_it_replaces_its_own_program(process) -> None:
    running, asker = process
    asker.ask("hello", role="supervisor")
    asker.ask("open", **OPEN)
    packet = asker.ask("upgrade")
    assert "error" not in packet
    state = asker.ask("hello", role="supervisor")
    assert state["pid"] == running.pid
    assert [bind["key"] for bind in state["binds"]] == ["127.0.0.1:0"]
    assert b"--resume" in Path(f"/proc/{running.pid}/cmdline").read_bytes()


def test_a_user_is_found_by_name() -> None:
    user = privileges.find("nobody")
    assert privileges.User.parse(str(user)) == user
    with pytest.raises(privileges.UnknownUser, match="no user 'no-such-user'"):
        privileges.find("no-such-user")
    with pytest.raises(privileges.UnknownUser, match="no group 'no-such-group'"):
        privileges.find("nobody", "no-such-group")
    assert privileges.find("nobody", "root").gid == 0


@pytest.mark.scenario
def test_when_its_supervisor_goes_before_it_wanted_anything_it_ends(process) -> None:
    running, asker = process
    asker.ask("hello", role="supervisor")
    asker.sock.close()
    assert running.wait(20) == 0
