"""Which mailbox a request is about."""

from __future__ import annotations

from typing import Any

import pytest

from l7lb.core.snapshot import Addresses, Listener
from l7lb.protocols.http.facts import HttpFacts, explain_facts

RULES = Addresses(recipient_delimiter="+", default_domain="example.com")


def facts(kind: str, url: str = "/", **headers: str) -> HttpFacts:
    settings: dict[str, Any] = {"mailbox": {"kind": kind, "name": "X-User" if kind == "header" else "user"}}
    listener = Listener(name="web", protocol="http", bind=(), routes=(), settings=settings, addresses=RULES)
    return explain_facts(listener, "GET", url, list(headers.items()))


@pytest.mark.parametrize(
    ("found", "mailbox"),
    [
        (facts("header", **{"x-user": "Anna+lists@Example.com"}), b"anna@example.com"),
        (facts("header", **{"X-USER": " anna "}), b"anna@example.com"),
        (facts("header"), b""),
        (facts("header", **{"x-user": ""}), b""),
        (facts("header", **{"x-user": "a" * 1025}), b""),
        (facts("cookie", cookie="a=b; user=anna%40example.org"), b"anna@example.org"),
        (facts("cookie", cookie="user=anna@example.org"), b"anna@example.org"),
        (facts("cookie", cookie="other=x"), b""),
        (facts("query", "/?a=b&user=Anna%2Bx%40example.com"), b"anna@example.com"),
        (facts("query", "/?user="), b""),
        (facts("query", "/"), b""),
    ],
)
def test_a_request_names_its_mailbox(found: HttpFacts, mailbox: bytes) -> None:
    assert (found.address, found.mailbox) == (mailbox, mailbox)


def test_without_a_place_there_is_no_mailbox() -> None:
    listener = Listener(name="web", protocol="http", bind=(), routes=(), addresses=RULES)
    assert explain_facts(listener, "GET", "/?user=a", [("x-user", "a")]).mailbox == b""
