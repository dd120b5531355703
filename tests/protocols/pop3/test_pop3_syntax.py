"""POP3's lines."""

from __future__ import annotations

import pytest

from l7lb.protocols.pop3.syntax import command, fits, reply


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"pass  two spaces ", (b"PASS", b" two spaces ")),
        (b"USER anna@example.com", (b"USER", b"anna@example.com")),
        (b"Quit", (b"QUIT", b"")),
        (b"QUIT ", (b"QUIT", b"")),
        (b"", (b"", b"")),
    ],
)
def test_commands(line: bytes, expected: tuple[bytes, bytes]) -> None:
    assert command(line) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"+OK", (True, False, b"", b"")),
        (b"+OK ready <1896.697170952@x>", (True, False, b"", b"ready <1896.697170952@x>")),
        (b"-ERR [AUTH] wrong", (False, False, b"AUTH", b"wrong")),
        (b"-err [sys/temp]", (False, False, b"SYS/TEMP", b"")),
        (b"-ERR [LOGIN-DELAY] later", (False, False, b"LOGIN-DELAY", b"later")),
        (b"-ERR [unclosed", (False, False, b"", b"[unclosed")),
        (b"-ERR not [AUTH]", (False, False, b"", b"not [AUTH]")),
        (b"+ dGV4dA==", (True, True, b"", b"dGV4dA==")),
        (b"+", (True, True, b"", b"")),
    ],
)
def test_replies(line: bytes, expected: tuple[bool, bool, bytes, bytes]) -> None:
    found = reply(line)
    assert found is not None
    assert (found.ok, found.more, found.code, found.text) == expected


@pytest.mark.parametrize("line", [b"", b"OK", b"+OKAY", b"220 mail.example.com ESMTP", b"* OK", b" +OK"])
def test_what_is_no_reply(line: bytes) -> None:
    assert reply(line) is None


def test_what_user_and_pass_can_say() -> None:
    assert fits(b"anna", b" spaces inside ")
    assert fits(b"anna", b"")
    for user, password in [
        (b"", b"x"),
        (b"an na", b"x"),
        (b"anna\r\nDELE 1", b"x"),
        (b"anna", b"x\ny"),
        (b"a\0", b"x"),
    ]:
        assert not fits(user, password)
