"""IMAP4's own health check: a greeting, a revision that l7lb speaks, TLS and a login where these are wanted."""

from __future__ import annotations

from typing import Any

from l7lb.core.errors import ProbeFailed
from l7lb.core.snapshot import Address
from l7lb.protocols.mail.probing import Talk, check, shown

REVISIONS = (b"IMAP4REV1", b"IMAP4REV2")


async def probe(address: Address, settings: dict[str, Any], timeout: float) -> str:
    """Ask the server; raises ProbeFailed. ``settings`` may have a ``user`` and a ``password`` to log in with."""
    return await check(address, settings, timeout, _ask)


async def _ask(talk: Talk) -> str:
    greeting = await talk.line()
    word = greeting[2:].split(b" ", 1)[0].upper()
    if not greeting.startswith(b"* ") or word not in (b"OK", b"PREAUTH"):
        raise ProbeFailed(f"greets with {shown(greeting)!r}")
    if word == b"PREAUTH" and talk.wants_tls:
        raise ProbeFailed("greets with PREAUTH, so that it can't be asked for TLS")
    capabilities = await _capabilities(talk, b"a")
    if talk.wants_tls:
        if b"STARTTLS" not in capabilities:
            raise ProbeFailed("offers no STARTTLS")
        await _command(talk, b"b", b"STARTTLS", "STARTTLS")
        await talk.start_tls()
        capabilities = await _capabilities(talk, b"c")
    revision = next((one for one in REVISIONS if one in capabilities), None)
    if revision is None:
        raise ProbeFailed("its CAPABILITY has no IMAP4rev1")
    if talk.user:
        await _command(talk, b"d", b"LOGIN " + _quoted(talk.user) + b" " + _quoted(talk.password), "LOGIN")
    await talk.goodbye(b"e LOGOUT")
    return talk.found(revision.decode().replace("REV", "rev"))


async def _capabilities(talk: Talk, tag: bytes) -> set[bytes]:
    lines = await _command(talk, tag, b"CAPABILITY", "CAPABILITY")
    return {word for line in lines if line.upper().startswith(b"* CAPABILITY ") for word in line.upper().split()[2:]}


async def _command(talk: Talk, tag: bytes, command: bytes, step: str) -> list[bytes]:
    """Send a command; its untagged answers. Raises ProbeFailed where the tagged one is not OK."""
    talk.send(tag + b" " + command, step)
    lines = await talk.lines(lambda line: line.startswith((tag + b" ", b"* BYE", b"+")))
    answer = lines.pop()
    if not answer.upper().startswith(tag.upper() + b" OK"):
        raise ProbeFailed(f"{step}: {shown(answer.removeprefix(tag + b' '))}")
    return lines


def _quoted(text: str) -> bytes:
    """A quoted string (RFC 3501 section 9)."""
    return b'"' + text.encode().replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
