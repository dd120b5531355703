"""HTTP's own health check against servers of all kinds."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from l7lb.core.errors import ProbeFailed
from l7lb.core.snapshot import Address
from l7lb.protocols.http.probe import probe


async def ask(tmp_path: Path, answer: bytes | None, timeout: float = 5.0, **settings: object) -> tuple[str, bytes]:
    """The verdict on a server that gives this answer; None: it says nothing."""
    asked = b""

    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked = await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        done.set()

    path = str(tmp_path / "s")
    async with await asyncio.start_unix_server(serve, path):
        try:
            return await probe(Address(path=path), dict(settings), timeout), asked
        finally:
            await done.wait()


def verdict(tmp_path: Path, answer: bytes | None, timeout: float = 5.0, **settings: object) -> tuple[str, bytes]:
    return asyncio.run(ask(tmp_path, answer, timeout, **settings))


@pytest.mark.parametrize("status", [b"200 OK", b"404 No", b"501 What"])
def test_any_answer_shows_that_it_speaks_http(tmp_path: Path, status: bytes) -> None:
    said, asked = verdict(tmp_path, b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % status, host="h.example")
    assert said == f"status {int(status[:3])}"
    assert asked.startswith(b"OPTIONS * HTTP/1.1\r\nHost: h.example\r\nConnection: close\r\n")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 503 Busy\r\n\r\n", "status 503"),
        (b"SSH-2.0-x\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\n\n", "not HTTP"),
        (b"", "closed without an answer"),
        (b"HTTP/1.1 2", "closed without an answer"),
        (b"x" * 40_000, "not HTTP"),
    ],
)
def test_other_answers(tmp_path: Path, answer: bytes, reason: str) -> None:
    with pytest.raises(ProbeFailed, match=reason):
        verdict(tmp_path, answer)


def test_no_answer(tmp_path: Path) -> None:
    with pytest.raises(ProbeFailed, match=r"no answer within 0\.05 s"):
        verdict(tmp_path, None, timeout=0.05)


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(ProbeFailed, match="no such file"):
        asyncio.run(probe(Address(path=str(tmp_path / "none")), {}, 1.0))
