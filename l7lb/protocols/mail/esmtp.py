"""The words of SMTP's clients: commands, paths and parameters (RFC 5321 section 4.1), for SMTP, submission and LMTP.

Nothing is passed on that was not understood: what a server gets is composed anew from what was parsed here.
"""

from __future__ import annotations

import re
from typing import Final

COMMAND_BYTES: Final = 512  # of a command line with its CRLF (RFC 5321 section 4.5.3.1.4)
MAIL_BYTES: Final = 2048  # of MAIL and RCPT, which every extension makes longer
AUTH_BYTES: Final = 12_288  # of AUTH and its answers (RFC 4954 section 4)
PATH_BYTES: Final = 256
CHUNK_DIGITS: Final = 18

# Verbs of other protocols: what speaks like this is no mail client, and may carry somebody's commands in its body.
FOREIGN: Final = frozenset({b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT", b"DELETE", b"PATCH", b"TRACE"})

_VERB: Final = re.compile(rb"([A-Za-z][A-Za-z0-9]*)(?:[ \t]+(.*))?", re.DOTALL)
_ATOM: Final = re.compile(rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\xff-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\xff-]+)*")
_QUOTED: Final = re.compile(rb'"((?:[\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\x20-\x7e])*)"')
_DOMAIN: Final = re.compile(
    rb"[A-Za-z0-9_\x80-\xff](?:[A-Za-z0-9_\x80-\xff-]*[A-Za-z0-9_\x80-\xff])?"
    rb"(?:\.[A-Za-z0-9_\x80-\xff](?:[A-Za-z0-9_\x80-\xff-]*[A-Za-z0-9_\x80-\xff])?)*\.?"
)
_LITERAL: Final = re.compile(rb"\[[\x21-\x5a\x5e-\x7e]+\]")
_ROUTE: Final = re.compile(rb"@[A-Za-z0-9.-]+(?:,@[A-Za-z0-9.-]+)*:")
_PARAMETER: Final = re.compile(rb"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([\x21-\x3c\x3e-\x7e\x80-\xff]+))?")
_XTEXT: Final = re.compile(rb"(?:[\x21-\x2a\x2c-\x3c\x3e-\x7e]|\+[0-9A-F]{2})*")
_UNQUOTE: Final = re.compile(rb"\\(.)")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class Fault(Exception):
    """A command that can't be taken; ``reply`` is what the client is told, without its CRLF."""

    def __init__(self, reply: bytes) -> None:
        super().__init__(reply.decode("latin-1"))
        self.reply = reply


class Command:
    """A command: ``verb`` in upper case, ``argument`` as it came, without the space around it."""

    __slots__ = ("argument", "verb")

    def __init__(self, verb: bytes, argument: bytes) -> None:
        self.verb = verb
        self.argument = argument


class Path:
    """A path as it is passed on, without its source route, and the ``mailbox`` that it means.

    ``text`` is with its brackets. ``mailbox`` has a quoted local part without its quotes, so that both ways to write an
    address are the same mailbox; it is empty for the null path. ``utf8``: it needs SMTPUTF8 (RFC 6531).
    """

    __slots__ = ("mailbox", "text", "utf8")

    def __init__(self, text: bytes, mailbox: bytes) -> None:
        self.text = text
        self.mailbox = mailbox
        self.utf8 = not text.isascii()


def parse_command(line: bytes) -> Command:
    """A command line without its CRLF. Raises Fault."""
    if _CONTROL.search(line):
        raise Fault(b"500 5.5.2 A control character in a command")
    found = _VERB.fullmatch(line.rstrip(b" \t"))
    if found is None:
        raise Fault(b"500 5.5.2 That is no command")
    verb = found[1].upper()
    if len(line) + 2 > line_limit(verb):
        raise Fault(b"500 5.5.6 The line is too long" if verb == b"AUTH" else b"500 5.5.2 The line is too long")
    return Command(verb, found[2] or b"")


def line_limit(verb: bytes) -> int:
    """How long a command may be, with its CRLF."""
    if verb in (b"MAIL", b"RCPT", b"XCLIENT"):
        return MAIL_BYTES
    return AUTH_BYTES if verb == b"AUTH" else COMMAND_BYTES


def parse_path(argument: bytes, keyword: bytes) -> tuple[Path, dict[bytes, bytes]]:
    """What stands behind MAIL or RCPT: ``keyword`` (``FROM:``, ``TO:``), a path and parameters, by their names in upper
    case; empty where a parameter has no value. Raises Fault.
    """
    if argument[: len(keyword)].upper() != keyword:
        raise Fault(b"501 5.5.4 Expected " + keyword + b"<address>")
    rest = argument[len(keyword) :].lstrip(b" ")  # a space that is not allowed there, and that many send
    path, end = _path(rest, null=keyword == b"FROM:")
    tail = rest[end:]
    if tail and not tail.startswith(b" "):
        raise Fault(b"501 5.1.3 The address is malformed")
    return path, parse_parameters(tail)


def parse_parameters(text: bytes) -> dict[bytes, bytes]:
    """Parameters of MAIL or RCPT. Raises Fault."""
    parameters: dict[bytes, bytes] = {}
    for word in text.split():
        found = _PARAMETER.fullmatch(word)
        if found is None or found[1].upper() in parameters:
            raise Fault(b"501 5.5.4 A parameter is malformed")
        parameters[found[1].upper()] = found[2] or b""
    return parameters


def _path(text: bytes, *, null: bool) -> tuple[Path, int]:
    """The path at the beginning, and where it ends."""
    malformed = Fault(b"501 5.1.7 The address is malformed" if null else b"501 5.1.3 The address is malformed")
    if not text.startswith(b"<"):
        raise malformed
    if text.startswith(b"<>"):
        if not null:
            raise malformed
        return Path(b"<>", b""), 2
    at = 1
    route = _ROUTE.match(text, at)
    if route is not None:
        at = route.end()  # obsolete, and ignored by whoever takes it (RFC 5321 appendix C)
    local = _QUOTED.match(text, at) or _ATOM.match(text, at)
    if local is None:
        raise malformed
    name = _UNQUOTE.sub(rb"\1", local[1]) if local.re is _QUOTED else local[0]
    end = local.end()
    written, mailbox = local[0], name
    if text[end : end + 1] == b"@":
        domain = _LITERAL.match(text, end + 1) or _DOMAIN.match(text, end + 1)
        if domain is None:
            raise malformed
        end = domain.end()
        written, mailbox = written + b"@" + domain[0], mailbox + b"@" + domain[0]
    if text[end : end + 1] != b">" or len(written) + 2 > PATH_BYTES or not name:
        raise malformed
    if not written.isascii():
        try:
            written.decode()
        except UnicodeDecodeError:
            raise malformed from None
    return Path(b"<" + written + b">", mailbox), end + 1


def is_xtext(value: bytes) -> bool:
    """Whether a value is xtext (RFC 3461 section 4)."""
    return _XTEXT.fullmatch(value) is not None


def xtext(value: bytes) -> bytes:
    """A value as xtext."""
    return b"".join(bytes((byte,)) if 0x21 <= byte <= 0x7E and byte not in b"+=" else b"+%02X" % byte for byte in value)


def from_xtext(value: bytes) -> bytes:
    """What an xtext stands for."""
    return re.sub(rb"\+([0-9A-Fa-f]{2})", lambda found: bytes((int(found[1], 16),)), value)


def parse_chunk(argument: bytes) -> tuple[int, bool]:
    """BDAT's size, and whether it is the last (RFC 3030 section 2). Raises Fault."""
    words = argument.split()
    size = words[0] if words else b""
    last = len(words) == 2 and words[1].upper() == b"LAST"
    if not size.isdigit() or len(size) > CHUNK_DIGITS or len(words) > 2 or (len(words) == 2 and not last):
        raise Fault(b"501 5.5.4 Expected BDAT size [LAST]")
    return int(size), last
