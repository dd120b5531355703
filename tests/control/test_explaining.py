from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from l7lb.config import load
from l7lb.control.explaining import Explained, Question, explain
from l7lb.control.node import NodeState
from l7lb.core.errors import L7lbError, UnknownName
from l7lb.core.facts import Facts
from l7lb.core.snapshot import Snapshot
from l7lb.persistence.stickiness import InsertedCookieKey

CONFIGURATION = """\
node: lb1
listeners:
  - name: web
    protocol: http
    bind: ["127.0.0.1:0"]
    routes:
      - match: {host: "*.example.org", path: "/api/*", method: [GET, POST]}
        pool: api
      - match: {cookie: {beta: "yes"}}
        pool: canary
      - match: {path: "/admin/*", not: {source: ["127.0.0.0/8"]}}
        respond: {status: 403}
      - match: {path: "/old/*"}
        redirect: {location: "/new/{path.1}", status: 308}
      - match: {host: "www.example.com"}
        pool: web
  - name: other
    protocol: http
    bind: ["127.0.0.1:0"]
    routes: [{pool: web}]
pools:
  web:
    balance: least-connections
    persistence: {cookie: {name: L7LB}}
    servers: [{name: web1, address: "127.0.0.1:9001"}, {name: web2, address: "127.0.0.1:9002"}]
  api:
    balance: {hash: path}
    servers: [{name: api1, address: "127.0.0.1:9003"}, {name: api2, address: "127.0.0.1:9004"}]
  canary:
    servers: [{name: canary1, address: "127.0.0.1:9006"}]
"""


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    return load(tmp_path / "l7lb.yaml", text=CONFIGURATION).snapshot


def ask(
    snapshot: Snapshot, url: str, *headers: tuple[str, str], node: NodeState | None = None, **fields: Any
) -> Explained:
    return explain(snapshot, Question("http", url=url, headers=list(headers), **({"listener": "web"} | fields)), node)


def test_the_first_rule_that_matches_ends_it(snapshot: Snapshot) -> None:
    found = ask(snapshot, "https://api.example.org/API/../api/x")
    assert found.facts == {"source": "127.0.0.1", "host": "api.example.org", "path": "/api/x", "method": "GET"}
    assert [(rule.number, rule.matched) for rule in found.rules] == [(1, True)]
    assert (found.pool, found.server[:3]) == ("api", "api")
    assert found.outcome == f"to pool api, server {found.server} at {found.address}"


def test_every_rule_before_says_why_not(snapshot: Snapshot) -> None:
    found = ask(snapshot, "http://www.example.com/x")
    assert [rule.matched for rule in found.rules] == [False] * 4 + [True]
    assert all(rule.why for rule in found.rules)
    assert len(found.servers) == 2


@pytest.mark.parametrize(
    ("url", "fields", "outcome"),
    [
        ("/old/a/b", {}, "answered here: 308, go to /new/a/b"),
        ("/admin/x", {"source": "192.0.2.1"}, "answered here: 403"),
        ("/admin/x", {}, "no rule matches: 404"),
        ("/admin/x", {"listener": "other"}, "to pool web, server web1 at 127.0.0.1:9001"),
    ],
)
def test_what_the_node_answers_itself(snapshot: Snapshot, url: str, fields: dict[str, Any], outcome: str) -> None:
    assert ask(snapshot, f"http://example.net{url}", **fields).outcome == outcome


def test_the_limits_that_count_it_are_told(tmp_path: Path) -> None:
    limited = CONFIGURATION.replace(
        "    routes:", "    limit: {key: {header: x-key}, rate: 600/m, burst: 50}\n    routes:", 1
    )
    limited = limited.replace("        pool: api\n", "        pool: api\n        limit: {key: source, rate: 5/s}\n", 1)
    snapshot = load(tmp_path / "l7lb.yaml", text=limited).snapshot
    assert ask(snapshot, "http://a.example.org/api/x", ("x-key", "1")).limits == [
        "limit web/requests-header-x-key: 10/s of requests by header x-key, 50 at once",
        "limit web/rule-1/requests-source: 5/s of requests by source, 5 at once",
    ]
    (line,) = ask(snapshot, "http://www.example.com/").limits
    assert line.endswith("; has no header x-key, so that it is not counted")


def test_a_cookie_keeps_its_user(snapshot: Snapshot) -> None:
    pool = next(pool for pool in snapshot.pools if pool.name == "web")
    key = InsertedCookieKey(pool, pool.persistence[0])  # type: ignore[arg-type]
    for server in ("web1", "web2"):
        value = key.set_cookie(Facts("http", "web", "127.0.0.1"), server).partition(b";")[0].decode()
        found = ask(snapshot, "http://www.example.com/", ("cookie", value))
        assert (found.server, found.why) == (server, f"the cookie keeps this user on {server}")
    node = NodeState(snapshot)
    node.set_health("web", "web2", False, "connect refused")
    found = ask(node.effective(), "http://www.example.com/", ("cookie", value), node=node)
    assert found.server == "web1"
    assert found.why.startswith("the cookie names web2, which is not in use; web1: ")


def test_names_that_are_wrong_or_missing(snapshot: Snapshot) -> None:
    with pytest.raises(UnknownName, match="say which listener: web, other"):
        ask(snapshot, "/", listener="")
    with pytest.raises(UnknownName, match="no http listener wbe: did you mean web"):
        ask(snapshot, "/", listener="wbe")
    with pytest.raises(UnknownName, match="there is no imap4 listener"):
        explain(snapshot, Question("imap4"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": "G T"}, "the listener answers this request itself: 400"),
        ({"headers": [("x", "a\r\nb: c")]}, "can't hold the end of a line"),
        ({"headers": [("x", "1")] * 101}, "101 headers are more than 100"),
        ({"url": "http://a b/"}, "the listener answers this request itself: 400"),
    ],
)
def test_what_the_listener_refuses(snapshot: Snapshot, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(L7lbError, match=words):
        explain(snapshot, Question(**({"protocol": "http", "listener": "web"} | fields)))


STREAMS = """\
listeners:
  - name: secure
    protocol: tls-passthrough
    bind: ["127.0.0.1:0"]
    routes:
      - {match: {sni: "bank.example.com"}, pool: bank}
      - {match: {sni: "*.example.net", alpn: h2}, pool: bank}
  - {name: plain, protocol: tcp, bind: ["127.0.0.1:0"], routes: [{match: {source: "192.0.2.0/24"}, pool: bank}]}
pools:
  bank: {balance: {hash: source}, servers: [{name: bank1, address: "127.0.0.1:9001"}]}
"""


@pytest.mark.parametrize(
    ("question", "matched", "outcome"),
    [
        ({"sni": "Bank.Example.com."}, [True], "to pool bank, server bank1 at 127.0.0.1:9001"),
        ({"sni": "a.example.net", "alpn": ["http/1.1", "h2"]}, [False, True], "to pool bank, server bank1 at "),
        ({"sni": "a.example.net"}, [False, False], "no rule matches: the alert unrecognized_name (112)"),
        ({}, [False, False], "no rule matches: the alert missing_extension (109)"),
    ],
)
def test_tls_that_is_passed_through(
    tmp_path: Path, question: dict[str, Any], matched: list[bool], outcome: str
) -> None:
    snapshot = load(tmp_path / "l7lb.yaml", text=STREAMS).snapshot
    found = explain(snapshot, Question("tls-passthrough", **question))
    assert [rule.matched for rule in found.rules] == matched
    assert found.outcome.startswith(outcome)
    assert set(found.facts) == {"source", "sni", "alpn"}


def test_tcp_and_a_name_that_none_can_be(tmp_path: Path) -> None:
    snapshot = load(tmp_path / "l7lb.yaml", text=STREAMS).snapshot
    assert explain(snapshot, Question("tcp", source="192.0.2.7")).server == "bank1"
    assert explain(snapshot, Question("tcp", source="198.51.100.7")).outcome == "no rule matches: a reset"
    with pytest.raises(L7lbError, match="can't be asked for"):
        explain(snapshot, Question("tls-passthrough", sni="a b"))
