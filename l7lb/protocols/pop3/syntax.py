"""POP3's lines: a client's commands and a server's replies (RFC 1939 section 3, RFC 2449 section 8)."""

from __future__ import annotations

import re
from typing import Final

PLACE_IN_LINE: Final = 255  # with CRLF: what a server takes for sure (RFC 2449 section 4)
CODE = re.compile(rb"\[([A-Za-z0-9/ -]{1,64})\] ?")
UNSENDABLE = re.compile(rb"[\r\n\0]")
UNSENDABLE_NAME = re.compile(rb"[\x00-\x20\x7f]")


def command(line: bytes) -> tuple[bytes, bytes]:
    """A command's word in upper case, and all that stands behind one space: a password may begin or end with one."""
    word, _, argument = line.partition(b" ")
    return word.upper(), argument


class Reply:
    """A server's reply. ``code`` is its response code in upper case, such as ``SYS/TEMP``, empty where there is none.

    ``more``: it is a challenge of AUTH (``+ ``), and ``text`` its base64.
    """

    __slots__ = ("code", "more", "ok", "text")

    def __init__(self, ok: bool, text: bytes, more: bool = False) -> None:
        self.ok = ok
        self.more = more
        self.code = b""
        found = None if more else CODE.match(text)
        if found is not None:
            self.code = found[1].upper()
            text = text[found.end() :]
        self.text = text


def reply(line: bytes) -> Reply | None:
    """The reply that a line is; None for what is none."""
    word, _, text = line.partition(b" ")
    if word == b"+":
        return Reply(True, text, more=True)
    word = word.upper()
    return Reply(word == b"+OK", text) if word in (b"+OK", b"-ERR") else None


def fits(user: bytes, password: bytes) -> bool:
    """Whether USER and PASS can say these: neither ends the line early, and no server takes a part for the name."""
    return bool(user) and not UNSENDABLE_NAME.search(user) and not UNSENDABLE.search(password)
