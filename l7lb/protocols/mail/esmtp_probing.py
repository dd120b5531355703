"""What the health checks of SMTP, submission and LMTP have in common: replies, and the dialogue up to QUIT."""

from __future__ import annotations

from l7lb.core.errors import ProbeFailed
from l7lb.core.finding import Finding
from l7lb.protocols.mail.probing import Talk, shown


async def ask(talk: Talk, hello: bytes) -> str:
    """Greet with that command, as far as TLS and a login are wanted. Raises ProbeFailed."""
    greeting = await _reply(talk)
    if not greeting[-1].startswith(b"220"):
        raise ProbeFailed(f"greets with {shown(greeting[-1])!r}")
    offers = await _greet(talk, hello)
    if talk.wants_tls:
        if not any(words.upper() == "STARTTLS" for words in offers):
            raise ProbeFailed("offers no STARTTLS")
        await _command(talk, b"STARTTLS", "STARTTLS", b"220")
        await talk.start_tls()
        offers = await _greet(talk, hello)
    if talk.user:
        await _command(talk, b"AUTH PLAIN " + talk.plain(), "AUTH", b"235")
    await talk.goodbye(b"QUIT")
    return Finding(talk.found("220"), offers)


async def _greet(talk: Talk, hello: bytes) -> tuple[str, ...]:
    """The extensions, with what stands behind their names (RFC 5321 section 4.1.1.1)."""
    lines = await _command(talk, hello + b" " + talk.host.encode(), hello.decode(), b"250")
    return tuple(text for line in lines[1:] if (text := line[4:].decode("latin-1").strip()))


async def _command(talk: Talk, command: bytes, step: str, wanted: bytes) -> list[bytes]:
    talk.send(command, step)
    lines = await _reply(talk)
    if not lines[-1].startswith(wanted):
        raise ProbeFailed(f"{step}: {shown(lines[-1])}")
    return lines


async def _reply(talk: Talk) -> list[bytes]:
    """The lines of a reply, all with the same code (RFC 5321 section 4.2.1). Raises ProbeFailed."""
    lines = await talk.lines(lambda line: line[3:4] != b"-")
    if any(not line[:3].isdigit() or line[:3] != lines[0][:3] or line[3:4] not in (b"", b" ", b"-") for line in lines):
        raise ProbeFailed(f"{talk.step}: no reply of SMTP: {shown(lines[-1])!r}")
    return lines
