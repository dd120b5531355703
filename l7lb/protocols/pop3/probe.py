"""POP3's own health check: a greeting, TLS and a login where these are wanted."""

from __future__ import annotations

from typing import Any

from l7lb.core.errors import ProbeFailed
from l7lb.core.snapshot import Address
from l7lb.protocols.mail.probing import Talk, check, shown


async def probe(address: Address, settings: dict[str, Any], timeout: float) -> str:
    """Ask the server; raises ProbeFailed. ``settings`` may have a ``user`` and a ``password`` to log in with."""
    return await check(address, settings, timeout, _ask)


async def _ask(talk: Talk) -> str:
    greeting = await talk.line()
    if not _good(greeting):
        raise ProbeFailed(f"greets with {shown(greeting)!r}")
    talk.send(b"CAPA", "CAPA")  # RFC 2449; a server without it says -ERR, and is well
    if _good(await talk.line()):
        capabilities = await talk.lines(lambda line: line == b".")
        if talk.wants_tls and b"STLS" not in [line.upper().strip() for line in capabilities]:
            raise ProbeFailed("offers no STLS")
    if talk.wants_tls:
        await _command(talk, b"STLS", "STLS")
        await talk.start_tls()
    if talk.user:
        await _command(talk, b"USER " + talk.user.encode(), "USER")
        await _command(talk, b"PASS " + talk.password.encode(), "PASS")
    await talk.goodbye(b"QUIT")
    return talk.found("+OK")


async def _command(talk: Talk, command: bytes, step: str) -> None:
    talk.send(command, step)
    answer = await talk.line()
    if not _good(answer):
        raise ProbeFailed(f"{step}: {shown(answer)}")


def _good(line: bytes) -> bool:
    return line == b"+OK" or line.startswith(b"+OK ")
