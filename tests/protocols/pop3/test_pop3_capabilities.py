"""What CAPA answers: what all servers can do, as far as they were asked."""

from __future__ import annotations

from l7lb.protocols.pop3.capabilities import ASK_EVERY, REMEMBERED, SERVERS, Capabilities


def told(capabilities: Capabilities) -> list[bytes]:
    """The servers' part of the answer."""
    lines = capabilities.lines([], starttls=False, user=False).split(b"\r\n")
    assert lines[0] == b"+OK Capability list follows"
    assert lines[-3:] == [b"IMPLEMENTATION l7lb", b".", b""]
    return lines[1:-3]


def test_the_usual_ones_until_a_server_has_answered() -> None:
    assert told(Capabilities()) == [b"TOP", b"UIDL", b"RESP-CODES", b"PIPELINING", b"AUTH-RESP-CODE"]


def test_what_all_servers_can_do() -> None:
    capabilities = Capabilities()
    capabilities.learn(
        "one", [b"top", b"UIDL", b"EXPIRE 30", b"STLS", b"SASL PLAIN", b"UTF8", b"IMPLEMENTATION x"], 1.0
    )
    assert told(capabilities) == [b"TOP", b"UIDL", b"EXPIRE 30"]
    capabilities.learn("two", [b"UIDL", b"EXPIRE NEVER", b"TOP"], 2.0)
    assert told(capabilities) == [b"TOP", b"UIDL"]
    capabilities.learn("three", [], 3.0)
    assert told(capabilities) == []


def test_a_server_is_asked_now_and_then_and_forgotten_in_the_end() -> None:
    capabilities = Capabilities()
    assert capabilities.wanted("one", 1.0)
    capabilities.learn("one", [b"TOP"], 1.0)
    assert not capabilities.wanted("one", ASK_EVERY)
    assert capabilities.wanted("one", ASK_EVERY + 2)
    capabilities.learn("two", [b"UIDL", b"TOP"], REMEMBERED)
    assert told(capabilities) == [b"TOP"]
    capabilities.learn("two", [b"UIDL", b"TOP"], REMEMBERED + 2)
    assert told(capabilities) == [b"UIDL", b"TOP"]


def test_servers_are_bounded() -> None:
    capabilities = Capabilities()
    for number in range(SERVERS):
        capabilities.learn(str(number), [b"TOP"], 1.0)
    assert not capabilities.wanted("another", 1.0)


def test_the_listeners_own_stand_for_all() -> None:
    capabilities = Capabilities(["UIDL", "EXPIRE NEVER"])
    assert not capabilities.wanted("one", 1.0)
    assert told(capabilities) == [b"UIDL", b"EXPIRE NEVER"]


def test_a_reload_forgets_nothing() -> None:
    before = Capabilities.of("reloaded", ())
    before.learn("one", [b"TOP"], 1.0)
    assert Capabilities.of("reloaded", ()) is before
    assert told(Capabilities.of("other", ())) != told(before)
    assert Capabilities.of("reloaded", ("UIDL",)) is not before


def test_what_is_l7lbs_own() -> None:
    lines = Capabilities().lines(["PLAIN", "XOAUTH2"], starttls=True, user=True).split(b"\r\n")
    assert {b"SASL PLAIN XOAUTH2", b"STLS", b"USER"} < set(lines)
