"""The access log: its lines, rotation, disks that are full, readers that are slow."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from pathlib import Path

import pytest

from l7lb.core.record import AccessRecord
from l7lb.core.snapshot import AccessLog
from l7lb.proxy.accesslog import FLUSH_BYTES, MAX_PENDING, AccessLogWriter, formatter, timestamp


class Later:
    """A loop of which only the calls for later are used; the test makes them."""

    def __init__(self) -> None:
        self.calls: list[asyncio.TimerHandle] = []

    def call_later(self, delay: float, call: object) -> Later:
        self.calls.append(call)
        return self

    def cancel(self) -> None:
        self.calls.clear()


def record(path: str = "/", **fields: object) -> AccessRecord:
    return AccessRecord(time="", listener="web", protocol="http", client="192.0.2.1", path=path, **fields)


def writer(path: object, pattern: str = "{path}") -> AccessLogWriter:
    return AccessLogWriter(Later(), AccessLog(str(path), pattern))


def test_time() -> None:
    assert timestamp(0.0) == "1970-01-01T00:00:00.000Z"
    assert timestamp(1_700_000_000.9999) == "2023-11-14T22:13:20.999Z"


def test_json_lines(tmp_path: Path) -> None:
    log = writer(tmp_path / "log", "json")
    log.write(record('/"\x85', status=200))
    log.close()
    line = json.loads((tmp_path / "log").read_text())
    assert (line["path"], line["status"], line["client"]) == ('/"\x85', 200, "192.0.2.1")
    assert line["time"].endswith("Z")


def test_a_format() -> None:
    line = formatter('{client} "{path}" {status:3d} {total_ms:.1f}')(record("/a", status=99, total_ms=1.25))
    assert line == b'192.0.2.1 "/a"  99 1.2\n'


@pytest.mark.parametrize(
    ("text", "shown"),
    [('"', b"\\x22"), ("\\", b"\\x5c"), ("a\tb", b"a\\x09b"), ("\x85", b"\\x85"), ("\x9b31m", b"\\x9b31m"), ("ä", "ä".encode())],
)  # fmt: skip
def test_a_client_can_not_forge_a_line(text: str, shown: bytes) -> None:
    assert formatter("{user_agent}")(record(user_agent=text)) == shown + b"\n"


def test_lines_are_gathered(tmp_path: Path) -> None:
    log = writer(tmp_path / "log")
    log.write(record("/a"))
    log.write(record("/b"))
    assert (tmp_path / "log").read_text() == ""
    assert len(log._loop.calls) == 1
    log._loop.calls[0]()
    assert (tmp_path / "log").read_text() == "/a\n/b\n"
    log.write(record("x" * FLUSH_BYTES))
    assert (tmp_path / "log").stat().st_size > FLUSH_BYTES
    log.close()


def test_rotation(tmp_path: Path) -> None:
    log = writer(tmp_path / "sub" / "log")
    log.write(record("/old"))
    (tmp_path / "sub" / "log").rename(tmp_path / "log.1")
    log.reopen()
    log.write(record("/new"))
    log.close()
    assert ((tmp_path / "log.1").read_text(), (tmp_path / "sub" / "log").read_text()) == ("/old\n", "/new\n")


def test_a_rotation_that_fails_keeps_the_open_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = writer(tmp_path / "log")
    (tmp_path / "log").rename(tmp_path / "log.1")
    (tmp_path / "log").mkdir()
    log.reopen()
    log.write(record("/a"))
    log.close()
    assert (tmp_path / "log.1").read_text() == "/a\n"
    assert "the open one goes on" in caplog.text


def test_the_first_time_it_must_open(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        writer(tmp_path / "log")


def test_a_full_disk_loses_lines_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    log = writer("/dev/full")
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            log.write(record("/a"))
            log.flush()
    assert log.dropped == 5
    assert log._size == 0
    assert caplog.text.count("No space left on device") == 1
    log.close()


@pytest.fixture
def slow(tmp_path: Path) -> tuple[int, AccessLogWriter]:
    """A named pipe with a reader that is in no hurry."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    log = writer(tmp_path / "pipe")
    yield reader, log
    log.close()
    os.close(reader)


def drained(reader: int, log: AccessLogWriter) -> bytes:
    read = b""
    while True:
        try:
            part = os.read(reader, 1 << 20)
        except BlockingIOError:
            return read
        read += part
        log.flush()


def test_a_slow_reader_makes_nobody_wait(slow: tuple[int, AccessLogWriter]) -> None:
    reader, log = slow
    lines = MAX_PENDING // 1000 * 2
    for number in range(lines):
        log.write(record(f"{number:01000d}"))
    assert log._size < MAX_PENDING + 100_000
    assert 0 < log.dropped < lines
    seen = drained(reader, log).splitlines()
    assert [int(line) for line in seen] == list(range(len(seen)))
    assert len(seen) + log.dropped == lines


def test_half_a_line_does_not_spoil_the_next(
    slow: tuple[int, AccessLogWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, log = slow
    written: list[bytes] = []

    def write(data: bytes) -> int:
        written.append(data[:3])
        return 3

    monkeypatch.setattr(log, "_write", write)
    log.write(record("/first"))
    log.flush()

    def full(data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log, "_write", full)
    log.flush()
    monkeypatch.setattr(log, "_write", lambda data: written.append(bytes(data)) or len(data))
    log.write(record("/next"))
    log.flush()
    assert written == [b"/fi", b"\n/next\n"]


def test_standard_output_stays_as_it_is_for_others(tmp_path: Path) -> None:
    read, write = os.pipe()
    kept = os.dup(1)
    try:
        os.dup2(write, 1)
        log = writer("-")
        for _ in range(200):
            log.write(record("x" * 1000))
            log.flush()  # would block on the full pipe
        assert log._size > 0
        assert os.get_blocking(1)
        os.set_blocking(read, False)
        assert drained(read, log).count(b"\n") == 200
        log.reopen()
        log.close()
        os.fstat(1)
    finally:
        os.dup2(kept, 1)
        for descriptor in (kept, read, write):
            os.close(descriptor)


def test_standard_output_may_be_a_socket() -> None:
    kept = os.dup(1)
    ours, theirs = socket.socketpair()
    try:
        os.dup2(theirs.fileno(), 1)
        log = writer("-")
        log.write(record("/a"))
        log.flush()
        assert ours.recv(100) == b"/a\n"
        for _ in range(2000):
            log.write(record("x" * 1000))
        log.flush()
        assert log._size > 0
        log.close()
        os.fstat(1)
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        ours.close()
        theirs.close()
