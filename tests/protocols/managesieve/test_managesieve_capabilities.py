"""What clients of ManageSieve are told: what all servers have."""

from __future__ import annotations

from l7lb.protocols.managesieve.capabilities import COMMON, REMEMBERED, SERVERS, Capabilities
from l7lb.protocols.managesieve.syntax import Reader


def told(capabilities: Capabilities, mechanisms: tuple[str, ...] = (), starttls: bool = False) -> dict[bytes, bytes]:
    """The lines, read as a client reads them."""
    buffer = bytearray(capabilities.lines(mechanisms, starttls))
    reader, found = Reader(9999, 9999, marked=False), {}
    while (tokens := reader.take(buffer)) is not None:
        found[tokens[0]] = tokens[1] if len(tokens) > 1 else b""
    assert not buffer
    return found


def test_before_any_login() -> None:
    assert told(Capabilities()) == {b"IMPLEMENTATION": b"l7lb", b"SASL": b""} | COMMON


def test_what_is_l7lbs_own() -> None:
    found = told(Capabilities(), ("PLAIN", "XOAUTH2"), starttls=True)
    assert (found[b"SASL"], found[b"STARTTLS"]) == (b"PLAIN XOAUTH2", b"")


def test_what_all_servers_have() -> None:
    capabilities = Capabilities()
    one = {b"SIEVE": b"fileinto vacation enotify", b"NOTIFY": b"mailto xmpp", b"MAXREDIRECTS": b"4", b"VERSION": b"1.0"}
    hidden = {b"SASL": b"GSSAPI", b"STARTTLS": b"", b"OWNER": b"anna", b"IMPLEMENTATION": b"x", b"XCLIENT": b"ADDR"}
    own = {b"IMPLEMENTATION": b"l7lb", b"SASL": b""}
    capabilities.learn("one", one | hidden | {b"UNAUTHENTICATE": b"", b"LANGUAGE": b"en"}, 1.0)
    assert told(capabilities) == own | one | {b"LANGUAGE": b"en"}
    capabilities.learn(
        "two", {b"SIEVE": b"vacation fileinto", b"NOTIFY": b"", b"MAXREDIRECTS": b"2", b"LANGUAGE": b"de"}, 2.0
    )
    assert told(capabilities) == own | {b"SIEVE": b"fileinto vacation", b"NOTIFY": b"", b"MAXREDIRECTS": b"2"}


def test_a_server_that_is_gone_counts_no_longer() -> None:
    capabilities = Capabilities()
    capabilities.learn("old", {b"SIEVE": b"fileinto"}, 1.0)
    capabilities.learn("new", {b"SIEVE": b"fileinto vacation"}, 2.0)
    capabilities.learn("new", {b"SIEVE": b"fileinto vacation body"}, REMEMBERED + 2)
    assert told(capabilities)[b"SIEVE"] == b"fileinto vacation body"


def test_the_listeners_own_stand_for_what_servers_tell() -> None:
    capabilities = Capabilities(["SIEVE fileinto body", "version 1.0"])
    capabilities.learn("one", {b"SIEVE": b"fileinto", b"NOTIFY": b"mailto"}, 1.0)
    assert told(capabilities)[b"SIEVE"] == b"fileinto body"
    assert told(capabilities)[b"VERSION"] == b"1.0"
    assert told(capabilities)[b"NOTIFY"] == b"mailto"


def test_a_reload_forgets_nothing() -> None:
    before = Capabilities.of("reloaded", ())
    assert Capabilities.of("reloaded", ()) is before
    assert Capabilities.of("reloaded", ("SIEVE fileinto",)) is not before


def test_servers_are_bounded() -> None:
    capabilities = Capabilities()
    for number in range(SERVERS):
        capabilities.learn(str(number), {b"SIEVE": b"fileinto body"}, 1.0)
    capabilities.learn("another", {b"SIEVE": b"fileinto"}, 1.0)
    assert told(capabilities)[b"SIEVE"] == b"fileinto body"
