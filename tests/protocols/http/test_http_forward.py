"""The heads that l7lb writes: who the client is, what a rule changes, what belongs to one connection only."""

from __future__ import annotations

import pytest

from l7lb.core.contracts import Assignment, Choice, Peer
from l7lb.core.servers import PoolState, ServerState
from l7lb.core.snapshot import Address, Pool, Route, Server, ToPool
from l7lb.protocols.http.forward import (
    Origin,
    allowed_upgrade,
    believe_identity,
    interim_head,
    new_request_id,
    request_head,
    response_head,
)
from l7lb.protocols.http.message import read_request, read_response
from l7lb.protocols.http.settings import FORWARDING

SERVER = Server(name="web1", address=Address("127.0.0.1", 1))


def route(**changes: object) -> Route:
    return Route(number=1, where="here", match=None, action=ToPool("web"), **changes)


def sent(
    *lines: str,
    start: str = "GET /p?q HTTP/1.1",
    host: str = "Host: a:80",
    trusted: bool = False,
    peer: Peer = Peer("192.0.2.1", 4711, "127.0.0.1", 8080),  # noqa: B008
    path: bytes = b"",
    new_host: bytes = b"",
    upgrade: bytes = b"",
    send: tuple[str, ...] = FORWARDING,
    **changes: object,
) -> list[str]:
    """The lines that a server gets."""
    request = read_request("\r\n".join([start, *([host] if host else []), *lines]).encode("latin-1"), 100)
    request.upgrade = upgrade
    if trusted:
        believe_identity(request)
    choice = Choice(route(**changes), "web")
    choice.path, choice.host = path, new_host
    head = request_head(request, choice, Origin(peer, send), trusted)
    assert head.endswith(b"\r\n\r\n")
    return head.decode("latin-1")[:-4].split("\r\n")


def values(lines: list[str], name: str) -> list[str]:
    return [line.partition(": ")[2] for line in lines if line.partition(":")[0].lower() == name.lower()]


def got(
    *lines: str,
    start: str = "HTTP/1.1 200 OK",
    method: str = "GET",
    version: str = "1.1",
    close: bool = False,
    cookie: bytes = b"",
    date: bytes = b"",
    **changes: object,
) -> list[str]:
    """The lines that a client gets."""
    request = read_request(f"{method} / HTTP/{version}\r\nHost: a".encode(), 100)
    response = read_response("\r\n".join([start, *lines]).encode("latin-1"), 100, method.encode())
    state = ServerState("web", SERVER)
    pool = PoolState(Pool(name="web", servers=(SERVER,)), [state])
    assignment = Assignment(Choice(route(**changes), "web"), pool, state)
    assignment.set_cookie = cookie
    head = response_head(request, response, assignment, close, date=date)
    assert head.endswith(b"\r\n\r\n")
    return head.decode("latin-1")[:-4].split("\r\n")


# --- to servers


def test_a_request_as_a_server_gets_it() -> None:
    lines = sent("Accept: x", "Cookie: a=1", "X-A: b", "Keep-Alive: 3", "Connection: keep-alive")
    assert lines[:5] == ["GET /p?q HTTP/1.1", "Host: a:80", "Accept: x", "X-A: b", "Cookie: a=1"]
    assert lines[5:9] == [
        "X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: http", "X-Forwarded-Port: 8080", "X-Forwarded-Host: a:80",
    ]  # fmt: skip
    assert lines[9] == 'Forwarded: for=192.0.2.1;host="a:80";proto=http'
    assert values(lines, "via") == ["1.1 l7lb"]
    assert len(values(lines, "x-request-id")[0]) == 32
    assert not values(lines, "connection") + values(lines, "keep-alive")


FORGED = [
    "X-Forwarded-For: 6.6.6.6", "Forwarded: for=6.6.6.6", "X-Forwarded-Proto: https", "X-Forwarded-Host: evil",
    "X-Forwarded-Port: 443", "X-Forwarded-Prefix: /x", "X-Forwarded-Server: e", "X_Forwarded_For: 6.6.6.6",
    "X-Request-ID: forged",
]  # fmt: skip


def test_a_strangers_word_on_where_it_comes_from_is_replaced() -> None:
    lines = sent(*FORGED)
    assert not values(lines, "x-forwarded-server")
    text = "\n".join(line for line in lines if not line.startswith("X-Request-ID"))  # which is random
    assert values(lines, "x-request-id") != ["forged"]
    for forged in ("6.6.6.6", "evil", "443", "/x", "forged", "https"):
        assert forged not in text


OWN = {
    "x-forwarded-for": "X-Forwarded-For: 192.0.2.1",
    "x-forwarded-proto": "X-Forwarded-Proto: http",
    "x-forwarded-port": "X-Forwarded-Port: 8080",
    "x-forwarded-host": "X-Forwarded-Host: a:80",
    "forwarded": 'Forwarded: for=192.0.2.1;host="a:80";proto=http',
    "via": "Via: 1.1 l7lb",
}


@pytest.mark.parametrize("name", OWN)
def test_only_what_is_chosen_is_sent(name: str) -> None:
    assert sent(send=(name,))[2:] == [OWN[name]]
    assert OWN[name] not in sent(send=tuple(other for other in FORWARDING if other != name))


def test_without_a_request_id() -> None:
    assert sent(send=())[2:] == []
    assert len(values(sent(send=("x-request-id",)), "x-request-id")[0]) == 32


@pytest.mark.parametrize("send", [(), ("via",), ("x-forwarded-for",), ("forwarded", "x-forwarded-proto")])
def test_a_strangers_word_is_taken_out_even_where_nothing_takes_its_place(send: tuple[str, ...]) -> None:
    assert sent(*FORGED, send=send) == sent(send=send)


def test_what_is_not_sent_passes_from_a_trusted_peer_as_it_came() -> None:
    given = [
        "X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https", "Forwarded: for=203.0.113.9", "X-Request-ID: abc",
    ]  # fmt: skip
    assert sent(*given, trusted=True, send=())[2:] == given
    lines = sent(*given, trusted=True, send=("x-forwarded-for", "x-forwarded-port"))
    assert lines[2:] == [
        "X-Forwarded-For: 203.0.113.9, 192.0.2.1", given[1], given[2], "X-Forwarded-Port: 8080", given[3],
    ]  # fmt: skip


def test_the_host_of_each_request_is_told() -> None:
    origin = Origin(Peer("192.0.2.1", 4711, "127.0.0.1", 8080))
    for host in (b"a", b"b", b"a"):
        request = read_request(b"GET / HTTP/1.1\r\nHost: " + host, 100)
        fields = origin.fields(request, False).decode().split("\r\n")
        assert values(fields, "x-forwarded-host") == [host.decode()]
        assert values(fields, "forwarded") == [f'for=192.0.2.1;host="{host.decode()}";proto=http']


def test_a_trusted_peers_chain_goes_on() -> None:
    lines = sent(
        "X-Forwarded-For: 203.0.113.9", "X-Forwarded-For: 10.0.0.1", "X-Forwarded-Proto: https",
        'Forwarded: for=203.0.113.9;proto=https', "X-Request-ID: abc", "X_Forwarded_For: 6.6.6.6", trusted=True,
    )  # fmt: skip
    assert values(lines, "x-forwarded-for") == ["203.0.113.9, 10.0.0.1, 192.0.2.1"]
    assert values(lines, "x-forwarded-proto") == ["https"]
    assert values(lines, "x-forwarded-port") == ["8080"]
    assert values(lines, "x-forwarded-host") == ["a:80"]
    assert values(lines, "forwarded") == ['for=203.0.113.9;proto=https, for=192.0.2.1;host="a:80";proto=http']
    assert values(lines, "x-request-id") == ["abc"]
    assert "6.6.6.6" not in "\n".join(lines)


def test_nothing_is_said_twice_in_different_words() -> None:
    lines = sent("X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https", trusted=True)
    assert values(lines, "x-forwarded-for") == ["203.0.113.9, 192.0.2.1"]
    assert values(lines, "x-forwarded-proto") == ["https"]
    assert not values(lines, "forwarded")


@pytest.mark.parametrize("identity", ["", "x" * 129])
def test_an_unfit_request_id_is_replaced_even_from_a_trusted_peer(identity: str) -> None:
    assert len(values(sent(f"X-Request-ID: {identity}", trusted=True), "x-request-id")[0]) == 32


def test_request_ids_differ() -> None:
    assert len({new_request_id() for _ in range(1000)}) == 1000


def test_other_addresses() -> None:
    lines = sent(peer=Peer("2001:db8::1", 1, "::1", 443, tls=True), host="", start="GET / HTTP/1.0")
    assert values(lines, "x-forwarded-for") == ["2001:db8::1"]
    assert values(lines, "forwarded") == ['for="[2001:db8::1]";host="[::1]:443";proto=https']
    assert values(lines, "host") == ["[::1]:443"]
    assert values(lines, "via") == ["1.0 l7lb"]
    lines = sent(peer=Peer("unix:", 0, "unix:", 0), host="", start="GET / HTTP/1.0")
    assert values(lines, "x-forwarded-for") == ["unknown"]
    assert values(lines, "forwarded") == ['for=unknown;host="localhost";proto=http']
    assert values(lines, "host") == ["localhost"]


def test_a_request_is_framed_anew() -> None:
    assert values(sent("Content-Length: 007", start="POST / HTTP/1.1"), "content-length") == ["7"]
    assert values(sent("Transfer-Encoding: Chunked", start="POST / HTTP/1.1"), "transfer-encoding") == ["chunked"]
    assert values(sent(start="POST / HTTP/1.1"), "content-length") == ["0"]
    assert not values(sent(), "content-length")
    assert values(sent("Expect: 100-Continue", "Content-Length: 1", start="PUT / HTTP/1.1"), "expect") == [
        "100-continue"
    ]
    assert not values(sent("Expect: 100-continue"), "expect")


def test_a_rule_sets_and_removes_headers() -> None:
    lines = sent("X-A: 1", "X-B: 2", "x-c: 3", set_headers=(("X-a", "new"), ("x-d", "ä")), remove_headers=("X-C",))
    assert values(lines, "x-a") == ["new"]
    assert values(lines, "x-b") == ["2"]
    assert not values(lines, "x-c")
    assert values(lines, "x-d") == ["ä"]


def test_a_rule_also_changes_what_is_written_anew() -> None:
    lines = sent(
        "Cookie: a=1", "X-Forwarded-For: 6.6.6.6",
        set_headers=(("x-forwarded-proto", "https"), ("cookie", "b=2")), remove_headers=("forwarded", "via"),
    )  # fmt: skip
    assert values(lines, "x-forwarded-proto") == ["https"]
    assert values(lines, "cookie") == ["b=2"]
    assert not values(lines, "forwarded") + values(lines, "via")
    assert values(lines, "x-forwarded-for") == ["192.0.2.1"]
    assert not values(sent("Cookie: a=1", remove_headers=("cookie",)), "cookie")


def test_a_rewritten_request() -> None:
    assert sent(path=b"/new", new_host=b"inner")[:2] == ["GET /new?q HTTP/1.1", "Host: inner"]
    assert sent(path=b"/new?x=1")[0] == "GET /new?x=1&q HTTP/1.1"
    assert sent(path=b"/new?x=1", start="GET /p HTTP/1.1")[0] == "GET /new?x=1 HTTP/1.1"
    assert values(sent(new_host=b"inner"), "x-forwarded-host") == ["a:80"]


def test_an_upgrade_is_written_anew() -> None:
    lines = sent("Upgrade: websocket", "Connection: upgrade, x-a", "X-A: 1", upgrade=b"websocket")
    assert (values(lines, "connection"), values(lines, "upgrade")) == (["Upgrade"], ["websocket"])
    assert not values(lines, "x-a")
    assert not values(sent("Upgrade: websocket", "Connection: upgrade"), "upgrade")


@pytest.mark.parametrize(
    ("offered", "allowed", "passed"),
    [
        (b"websocket", "any", b"websocket"),
        (b"WebSocket, h2c", "any", b"websocket"),
        (b"h2c", "any", b""),
        (b"TLS/1.2, HTTP/3.0, h2, http/1.1", "any", b""),
        (b"websocket", "none", b""),
        (b"websocket, irc/6.9", ("irc",), b"irc/6.9"),
        (b"websocket", ("irc",), b""),
        (b"", "any", b""),
    ],
)
def test_which_upgrades_pass(offered: bytes, allowed: str | tuple[str, ...], passed: bytes) -> None:
    assert allowed_upgrade(offered, allowed) == passed


# --- to clients


def test_an_answer_as_a_client_gets_it() -> None:
    lines = got("Content-Length: 3", "X-A: b", "Set-Cookie: a", "Set-Cookie: b", "Keep-Alive: 3", "Via: 1.1 x")
    assert lines == [
        "HTTP/1.1 200 OK", "X-A: b", "Set-Cookie: a", "Set-Cookie: b", "Via: 1.1 x", "Content-Length: 3", "Via: 1.1 l7lb",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "options", "framing"),
    [
        (["Content-Length: 0"], {}, ["Content-Length: 0"]),
        (["Transfer-Encoding: chunked"], {}, ["Transfer-Encoding: chunked"]),
        (["Transfer-Encoding: chunked"], {"version": "1.0", "close": True}, ["Connection: close"]),
        (["Content-Length: 3"], {"version": "1.0"}, ["Content-Length: 3", "Connection: keep-alive"]),
        ([], {"close": True}, ["Connection: close"]),
        (["Content-Length: 3"], {"method": "HEAD"}, ["Content-Length: 3"]),
        ([], {"method": "HEAD"}, []),
        (["Content-Length: 3"], {"start": "HTTP/1.1 304 X"}, ["Content-Length: 3"]),
        ([], {"start": "HTTP/1.1 204 X"}, []),
    ],
)
def test_an_answers_framing_for_the_client(lines: list[str], options: dict[str, object], framing: list[str]) -> None:
    assert [line for line in got(*lines, **options)[1:] if not line.startswith("Via")] == framing


def test_an_answer_of_an_old_server() -> None:
    lines = got("Content-Length: 1", start="HTTP/1.0 200 Fine")
    assert (lines[0], lines[-1]) == ("HTTP/1.1 200 Fine", "Via: 1.0 l7lb")


def test_a_rule_changes_an_answers_headers() -> None:
    lines = got(
        "Content-Length: 0", "Server: x", "X-A: 1",
        set_response_headers=(("X-A", "2"), ("X-N", "3")), remove_response_headers=("server",),
    )  # fmt: skip
    assert (values(lines, "x-a"), values(lines, "x-n"), values(lines, "server")) == (["2"], ["3"], [])


@pytest.mark.parametrize(
    ("lines", "added"),
    [
        ([], True),
        (["Cache-Control: public, max-age=60"], True),
        (["Cache-Control: max-age=60, private"], False),
        (["cache-control: no-store"], False),
        (['Cache-Control: private="x-a"'], True),
        (["X-Cache-Control: private"], True),
    ],
)
def test_no_shared_cache_keeps_a_users_cookie(lines: list[str], added: bool) -> None:
    head = got("Content-Length: 0", *lines, cookie=b"L7LB=x; Path=/")
    assert values(head, "set-cookie") == ["L7LB=x; Path=/"]
    assert ("Cache-Control: private" in head) is added


def test_interim_answers() -> None:
    read = read_response(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\nConnection: x-a\r\nX-A: 1", 100, b"GET")
    assert interim_head(read) == b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    read = read_response(b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: upgrade\r\nX-A: 1", 100, b"GET")
    assert interim_head(read) == b"HTTP/1.1 101 S\r\nX-A: 1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


# --- names that gateways can't tell apart


@pytest.mark.parametrize("name", ["X_User", "x_user", "X.User", "x-USER", "X~User"])
def test_what_a_rule_sets_or_removes_can_not_be_forged(name: str) -> None:
    assert "mallory" not in str(sent(f"{name}: mallory", set_headers=(("X-User", "anna"),)))
    assert "mallory" not in str(sent(f"{name}: mallory", remove_headers=("x-user",)))
    assert "mallory" in str(sent(f"{name}: mallory"))  # where no rule speaks of it


@pytest.mark.parametrize("trusted", [False, True])
def test_no_other_spelling_of_a_forwarding_field_passes(trusted: bool) -> None:
    names = [
        "X_Forwarded_For",
        "X-Forwarded_For",
        "X.Forwarded.For",
        "X_FORWARDED_PROTO",
        "x_request_id",
        "X.Request.ID",
    ]
    assert "forged" not in str(sent(*(f"{name}: forged" for name in names), trusted=trusted))


def test_nobody_sets_a_programs_proxy() -> None:
    assert not values(sent("Proxy: http://evil/"), "proxy")


def test_the_upgrade_that_an_answer_asks_for_is_passed_on() -> None:
    asked = ("Upgrade: websocket", "Connection: Upgrade", "Content-Length: 0")
    lines = got(*asked, start="HTTP/1.1 426 Upgrade Required")
    assert (values(lines, "upgrade"), values(lines, "connection")) == (["websocket"], ["Upgrade"])
    assert not values(got(*asked), "upgrade")


# --- Date


TODAY = b"Date: Tue, 24 Nov 2026 12:00:00 GMT\r\n"


def test_an_answer_without_a_date_gets_one() -> None:
    assert values(got("X-A: b", date=TODAY), "date") == ["Tue, 24 Nov 2026 12:00:00 GMT"]
    assert values(got("date: old", date=TODAY), "date") == ["old"]
    assert not values(got("X-A: b"), "date")  # where nobody knows it


def test_a_rule_may_say_the_date() -> None:
    assert values(got(date=TODAY, set_response_headers=(("DATE", "new"),)), "date") == ["new"]
    assert not values(got("Date: old", date=TODAY, remove_response_headers=("Date",)), "date")
    assert not values(got(date=TODAY, remove_response_headers=("date",)), "date")
