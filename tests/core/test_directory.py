"""Which server a directory means."""

from __future__ import annotations

import msgspec
import pytest

from l7lb.core.directory import Question, named_server
from l7lb.core.snapshot import Address, Server


def server(name: str, host: str, origin: str = "", **ports: int) -> Server:
    return Server(name=name, address=Address(host, next(iter(ports.values()))), ports=ports, origin=origin)


APART = [server("mx1", "10.0.0.1", imap4=143, pop3=110), server("mx2", "10.0.0.2", imap4=143, pop3=110)]
TOGETHER = [server("mx1", "127.0.0.1", imap4=2143, pop3=2110), server("mx2", "127.0.0.1", imap4=3143, pop3=3110)]
BY_DNS = [server("mx1@10.0.0.1", "10.0.0.1", "mx1", imap4=143), server("mx2@10.0.0.2", "10.0.0.2", "mx2", imap4=143)]
NAMED = [msgspec.structs.replace(one, host=f"{one.origin}.internal") for one in BY_DNS]
SIX = [server("mx6", "2001:db8::1", imap4=143)]


@pytest.mark.parametrize(
    ("name", "servers", "meant"),
    [
        ("mx2", APART, "mx2"),
        ("10.0.0.2", APART, "mx2"),
        ("10.0.0.2:993", APART, "mx2"),  # that port is another protocol's: the host says enough
        ("10.0.0.3", APART, None),
        ("127.0.0.1", TOGETHER, None),  # which one?
        ("127.0.0.1:3143", TOGETHER, "mx2"),
        ("127.0.0.1:3110", TOGETHER, "mx2"),
        ("127.0.0.1:9", TOGETHER, None),
        ("MX1", BY_DNS, "mx1@10.0.0.1"),
        ("mx1@10.0.0.1", BY_DNS, "mx1@10.0.0.1"),
        ("mx2.internal", NAMED, "mx2@10.0.0.2"),  # the name that the configuration has, whatever it stands for now
        ("mx2.internal:143", NAMED, "mx2@10.0.0.2"),
        ("mx3.internal", NAMED, None),
        ("2001:db8::1", SIX, "mx6"),
        ("[2001:DB8::1]:143", SIX, "mx6"),
        ("", APART, None),
    ],
)
def test_a_server_is_meant_by_name_or_host(name: str, servers: list[Server], meant: str | None) -> None:
    found = named_server(name, servers, "imap4")
    assert (found.name if found is not None else None) == meant


def test_what_a_question_lacks_is_the_address() -> None:
    question = Question(b"user@example.com")
    assert (question.user, question.login) == (b"user@example.com", b"user@example.com")
