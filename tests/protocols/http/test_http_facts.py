"""What a request shows to the rules: cookies, query, headers, and who sent it behind trusted proxies."""

from __future__ import annotations

import ipaddress

import pytest

from l7lb.core.snapshot import Listener
from l7lb.protocols.http.facts import (
    HttpFacts,
    client_scheme,
    client_source,
    explain_facts,
    read_forwarded,
    trusted,
)
from l7lb.protocols.http.message import Request, read_request
from l7lb.protocols.http.syntax import SyntaxFault

NETWORKS = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8::/32")]


def request(*lines: str, target: str = "/") -> Request:
    return read_request("\r\n".join([f"GET {target} HTTP/1.1", "Host: A.example:81", *lines]).encode("latin-1"), 100)


def facts(*lines: str, target: str = "/") -> HttpFacts:
    return HttpFacts("web", "192.0.2.1", b"http", request(*lines, target=target))


def test_plain_facts() -> None:
    fact = facts(target="/a/../b?c=d")
    assert (fact.protocol, fact.listener, fact.source, fact.scheme) == ("http", "web", "192.0.2.1", b"http")
    assert (fact.host, fact.path, fact.method) == (b"a.example", b"/b", b"GET")


def test_headers_by_any_name() -> None:
    fact = facts("X-A: 1", "x-a: 2", "Cookie: a=1", "X-Request-ID: i", "X-Forwarded-For: 1.1.1.1", "Forwarded: for=x")
    assert fact.header(b"x-a") == [b"1", b"2"]
    assert list(fact.header(b"host")) == [b"A.example:81"]
    assert list(fact.header(b"cookie")) == [b"a=1"]
    assert list(fact.header(b"x-request-id")) == [b"i"]
    assert list(fact.header(b"x-forwarded-for")) == [b"1.1.1.1"]
    assert list(fact.header(b"forwarded")) == [b"for=x"]
    for name in (b"x-b", b"x-forwarded-host"):
        assert not list(fact.header(name))
    assert not list(facts().header(b"cookie"))
    assert not list(facts().header(b"x-request-id"))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("a=1; b=2", [b"1"]),
        ("b=2;a=1", [b"1"]),
        ("a=1; a=2", [b"1", b"2"]),
        ('a="q"', [b"q"]),
        ('a="', [b'"']),
        ("a=b=c", [b"b=c"]),
        ("aa=1; xa=2; A=3", []),
        ("a", [b""]),
        ("\ta = 1 ", [b"1"]),
        ("x=a; y=a=1", []),
        (";;; ,=a;", []),
    ],
)
def test_cookies(field: str, values: list[bytes]) -> None:
    assert list(facts(f"Cookie: {field}").cookie(b"a")) == values
    assert not list(facts().cookie(b"a"))


@pytest.mark.parametrize(
    ("query", "values"),
    [
        ("?a=1&b=2", [b"1"]),
        ("?a=1&a=2", [b"1", b"2"]),
        ("?%61=x%20y+z", [b"x y z"]),
        ("?a", [b""]),
        ("?a=%zz", [b"%zz"]),
        ("?aa=1&A=2", []),
        ("?", []),
        ("", []),
        ("?a=%00", [b"\x00"]),
    ],
)
def test_query(query: str, values: list[bytes]) -> None:
    assert list(facts(target="/" + query).query(b"a")) == values


def test_only_so_many_parameters_are_looked_at() -> None:
    assert not list(facts(target="/?" + "x=1&" * 200 + "a=1").query(b"a"))


def test_facts_by_name() -> None:
    fact = facts("Cookie: a=1", target="/p?q=v")
    assert fact.text("url", "") == b"/p?q=v"
    assert fact.text("path", "") == b"/p"
    assert fact.text("cookie", "a") == b"1"
    assert fact.text("query", "q") == b"v"
    assert fact.text("header", "Host") == b"A.example:81"
    assert fact.text("header", "X-None") is None
    assert fact.text("source", "") == b"192.0.2.1"


@pytest.mark.parametrize(
    ("address", "inside"),
    [("10.1.2.3", True), ("::ffff:10.1.2.3", True), ("11.1.1.1", False), ("2001:db8::1", True), ("unix:", False)],
)
def test_who_is_trusted(address: str, inside: bool) -> None:
    assert trusted(address, NETWORKS) is inside


@pytest.mark.parametrize(
    ("lines", "source"),
    [
        ([], "10.0.0.1"),
        (["X-Forwarded-For: 192.0.2.9"], "192.0.2.9"),
        (["X-Forwarded-For: 1.1.1.1, 192.0.2.9, 10.0.0.2"], "192.0.2.9"),
        (["X-Forwarded-For: 192.0.2.9", "X-Forwarded-For: 10.0.0.2"], "192.0.2.9"),
        (["X-Forwarded-For: 10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        (["X-Forwarded-For: 1.1.1.1, garbage, 10.0.0.2"], "unknown"),
        (["X-Forwarded-For: 1.1.1.1, unknown"], "unknown"),
        (["X-Forwarded-For:"], "10.0.0.1"),
        (["X-Forwarded-For: 192.0.2.9:4711"], "192.0.2.9"),
        (["X-Forwarded-For: [2001:dead::1]:80"], "2001:dead::1"),
        (["X-Forwarded-For: 2001:dead::1"], "2001:dead::1"),
        (["X-Forwarded-For: ::ffff:192.0.2.9"], "192.0.2.9"),
        (["X-Forwarded-For: 192.0.2.9, ::ffff:10.0.0.9"], "192.0.2.9"),
        (["X-Forwarded-For: 192.0.2.9", "Forwarded: for=192.0.2.10"], "192.0.2.9"),
        (["Forwarded: for=192.0.2.9;proto=https, For=10.0.0.2"], "192.0.2.9"),
        (['Forwarded: for="[2001:dead::1]:80"'], "2001:dead::1"),
        (['Forwarded: for=192.0.2.9;host="a,for=6.6.6.6"'], "192.0.2.9"),
        (["Forwarded: for=6.6.6.6, proto=http"], "unknown"),
        (["Forwarded: for=6.6.6.6, ;;;"], "unknown"),
        (["Forwarded: for=_hidden, for=10.0.0.2"], "unknown"),
    ],
)
def test_the_client_behind_trusted_proxies(lines: list[str], source: str) -> None:
    assert client_source("10.0.0.1", request(*lines), NETWORKS) == source


def test_a_long_chain_is_not_walked_to_its_end() -> None:
    line = "X-Forwarded-For: 192.0.2.9" + ", 10.0.0.1" * 1000
    assert client_source("10.0.0.1", request(line), NETWORKS) == "10.0.0.1"


@pytest.mark.parametrize(
    ("lines", "scheme"),
    [
        ([], b"http"),
        (["X-Forwarded-Proto: https"], b"https"),
        (["X-Forwarded-Proto: https, HTTP"], b"http"),
        (["X-Forwarded-Proto: javascript"], b"http"),
        (["Forwarded: for=x;proto=https"], b"https"),
        (["Forwarded: proto=https, for=x"], b"http"),
        (["Forwarded: nonsense"], b"http"),
    ],
)
def test_the_scheme_that_the_client_used(lines: list[str], scheme: bytes) -> None:
    assert client_scheme(request(*lines)) == scheme


def test_forwarded_is_read_as_the_rfc_says() -> None:
    assert read_forwarded(b'for="_gazonk"') == [{b"for": b"_gazonk"}]
    assert read_forwarded(b'For="[2001:db8:cafe::17]:4711"') == [{b"for": b"[2001:db8:cafe::17]:4711"}]
    assert read_forwarded(b"for=192.0.2.60;proto=http;by=203.0.113.43") == [
        {b"for": b"192.0.2.60", b"proto": b"http", b"by": b"203.0.113.43"}
    ]
    assert read_forwarded(b"for=192.0.2.43, for=198.51.100.17") == [{b"for": b"192.0.2.43"}, {b"for": b"198.51.100.17"}]
    assert read_forwarded(rb'for="a\"b,c"') == [{b"for": b'a"b,c'}]
    assert read_forwarded(b'for="open') == []
    assert read_forwarded(b"") == [{}]


LISTENER = Listener(name="web", protocol="http", bind=(), routes=(), settings={"trust": ["127.0.0.0/8"]})


def test_facts_to_explain() -> None:
    fact = explain_facts(LISTENER, "GET", "https://A.example:8443/x/../y?z=1", [("X-Forwarded-For", "192.0.2.9")])
    assert (fact.host, fact.path, fact.scheme, fact.source) == (b"a.example", b"/y", b"https", "192.0.2.9")
    fact = explain_facts(LISTENER, "GET", "/y", [("Host", "b"), ("X-Forwarded-Proto", "https")], "127.0.0.9")
    assert (fact.host, fact.scheme, fact.source) == (b"b", b"https", "127.0.0.9")
    assert explain_facts(LISTENER, "GET", "http://a?q", []).path == b"/"
    untrusted = explain_facts(LISTENER, "GET", "/", [("X-Forwarded-For", "192.0.2.9")], "192.0.2.1")
    assert untrusted.source == "192.0.2.1"
    with pytest.raises(SyntaxFault):
        explain_facts(LISTENER, "GET", "/%00", [])
