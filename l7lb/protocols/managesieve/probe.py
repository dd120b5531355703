"""ManageSieve's own health check: the greeting's capabilities, TLS and a login where these are wanted (RFC 5804)."""

from __future__ import annotations

import re
from typing import Any

from l7lb.core.errors import ProbeFailed
from l7lb.core.snapshot import Address
from l7lb.protocols.mail.probing import LINES, Talk, check, shown

LITERAL = re.compile(rb"\{(\d{1,9})\+?\}\Z")
ANSWER = re.compile(rb"(?i)(OK|NO|BYE)(?: |\Z)")
NAME = re.compile(rb'"([^"\\]{1,200})"')


async def probe(address: Address, settings: dict[str, Any], timeout: float) -> str:
    """Ask the server; raises ProbeFailed. ``settings`` may have a ``user`` and a ``password`` to log in with."""
    return await check(address, settings, timeout, _ask)


async def _ask(talk: Talk) -> str:
    capabilities = await _answer(talk)
    if talk.wants_tls:
        if b"STARTTLS" not in capabilities:
            raise ProbeFailed("offers no STARTTLS")
        await _command(talk, b"STARTTLS", "STARTTLS")
        await talk.start_tls()
        capabilities = await _answer(talk)
    if b"SIEVE" not in capabilities:
        raise ProbeFailed("its capabilities have no SIEVE")
    if talk.user:
        await _command(talk, b'AUTHENTICATE "PLAIN" "' + talk.plain() + b'"', "AUTHENTICATE")
    await talk.goodbye(b"LOGOUT")
    return talk.found("OK")


async def _command(talk: Talk, command: bytes, step: str) -> None:
    talk.send(command, step)
    await _answer(talk)


async def _answer(talk: Talk) -> set[bytes]:
    """The names that stand first in the lines before an OK. Raises ProbeFailed for another end."""
    names: set[bytes] = set()
    for _ in range(LINES):
        line = whole = await talk.line()
        while (literal := LITERAL.search(line)) is not None:
            await talk.exactly(int(literal[1]))
            line = await talk.line()
            whole += line
        end = ANSWER.match(whole)
        if end is not None:
            if end[1].upper() != b"OK":
                raise ProbeFailed(f"{talk.step}: {shown(whole)}")
            return names
        name = NAME.match(whole)
        if name is None:
            raise ProbeFailed(f"{talk.step}: {shown(whole)!r}")
        names.add(name[1].upper())
    raise ProbeFailed(f"{talk.step}: more than {LINES} lines")
