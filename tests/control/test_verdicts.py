"""Verdicts of servers whose protocols are checked one by one."""

from __future__ import annotations

from typing import Any

import pytest

from l7lb.control.verdicts import Part, Verdict, checked, combine
from l7lb.core.snapshot import Address, Health, Server

ADDRESS = Address(host="10.0.0.1", port=143)
SERVER = Server(name="mx1", address=ADDRESS, ports={"imap4": 143, "pop3": 110, "http": 80})


def health(**values: Any) -> Health:
    return Health(**{"kind": "protocol", "scope": "protocol", "protocols": ("imap4", "pop3"), **values})


def after(checks: Health, *news: tuple[str, bool]) -> Verdict:
    verdict: Verdict | None = None
    for protocol, healthy in news:
        part = Part(healthy, "greets" if healthy else f"{protocol} refused")
        verdict = combine(verdict, str(ADDRESS), {protocol: part}, checks, SERVER)
    assert verdict is not None
    return verdict


@pytest.mark.parametrize(
    ("checks", "server", "expected"),
    [
        (health(), SERVER, ("imap4", "pop3")),
        (health(protocols=("pop3", "lmtp")), SERVER, ("pop3",)),
        (health(protocols=()), SERVER, ("imap4", "pop3", "http")),
        (health(kind="tcp"), SERVER, ("imap4", "pop3", "http")),
        (health(kind="http"), SERVER, ()),
        (health(kind="ping"), SERVER, ()),
        (health(port=8080), SERVER, ()),
        (health(), Server(name="mx1", address=ADDRESS), ()),
    ],
)
def test_what_is_checked_one_by_one(checks: Health, server: Server, expected: tuple[str, ...]) -> None:
    assert checked(checks, server) == expected


def test_one_protocol_down_of_a_server_that_lives() -> None:
    verdict = after(health(), ("imap4", True), ("pop3", False))
    assert (verdict.healthy, verdict.down, verdict.why) == (True, ("pop3",), "pop3 is down: pop3 refused")
    assert after(health(), ("pop3", False)).healthy  # the other was never checked
    verdict = after(health(), ("imap4", True), ("pop3", False), ("pop3", True))
    assert (verdict.healthy, verdict.down, verdict.why) == (True, (), "imap4, pop3: all answer")


def test_all_protocols_down() -> None:
    verdict = after(health(), ("imap4", False), ("pop3", False))
    assert (verdict.healthy, verdict.down) == (False, ())
    assert verdict.why == "imap4 is down: imap4 refused; pop3 is down: pop3 refused"
    verdict = after(health(), ("imap4", False), ("pop3", False), ("imap4", True))
    assert (verdict.healthy, verdict.down) == (True, ("pop3",))


def test_one_protocol_takes_the_server_out_where_that_is_wanted() -> None:
    verdict = after(health(scope="server"), ("imap4", True), ("pop3", False))
    assert (verdict.healthy, verdict.down, verdict.why) == (False, (), "pop3 is down: pop3 refused")
    assert after(health(scope="server"), ("pop3", False), ("pop3", True)).healthy


def test_what_is_checked_no_more_or_was_elsewhere_is_forgotten() -> None:
    before = after(health(), ("imap4", True), ("pop3", False))
    only = combine(before, str(ADDRESS), {"imap4": Part(True, "greets")}, health(protocols=("imap4",)), SERVER)
    assert (only.healthy, only.down, only.why, list(only.parts)) == (True, (), "greets", ["imap4"])
    moved = combine(before, "10.0.0.2:143", {"imap4": Part(True, "greets")}, health(), SERVER)
    assert list(moved.parts) == ["imap4"]
