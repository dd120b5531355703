from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from l7lb.control import tables
from l7lb.control.top import Rates, picture

SERVERS: list[dict[str, Any]] = [
    {
        "pool": "web",
        "name": "web1",
        "address": "127.0.0.1:9001",
        "state": "up",
        "weight": 1,
        "sessions": 12,
        "requests": 100,
        "errors": 0,
        "why": "status 200 in 3 ms",
        "backup": False,
    },
    {
        "pool": "web",
        "name": "web2",
        "address": "[2001:db8::2]:9002",
        "state": "draining",
        "weight": 10,
        "sessions": 3,
        "requests": 50,
        "errors": 5,
        "why": "draining by operator since 2026-01-01 00:00:00Z; status 200 in 2 ms",
        "backup": True,
    },
    {
        "pool": "api",
        "name": "api1",
        "address": "127.0.0.1:9003",
        "state": "down",
        "weight": 1,
        "sessions": 0,
        "requests": 0,
        "errors": 0,
        "why": "connect refused (3 of 3 checks)",
        "backup": False,
    },
]
STATUS: dict[str, Any] = {
    "node": "lb1",
    "version": "0.1.0",
    "state": "serving",
    "supervisor": {"pid": 100},
    "workers": [
        {"pid": 101, "index": 0, "connections": 7, "snapshot": 3},
        {"pid": 102, "index": 1, "connections": 1234, "snapshot": 3, "ready": True, "leaving": True},
    ],
    "listeners": [{"name": "web", "protocol": "http", "bind": ["127.0.0.1:8080", "[::1]:8080"]}],
    "reload": {"ok": True, "problems": []},
}


def test_servers_at_80_columns() -> None:
    assert tables.rendered(tables.servers(SERVERS), 80, colour=False) == (
        "POOL  SERVER  ADDRESS             STATE     WEIGHT  SESSIONS  WHY\n"
        "web   web1    127.0.0.1:9001      up             1        12  status 200 in 3 ms\n"
        "web   web2    [2001:db8::2]:9002  draining      10         3  draining by\n"
        "                                                              operator since\n"
        "                                                              2026-01-01\n"
        "                                                              00:00:00Z; status\n"
        "                                                              200 in 2 ms;\n"
        "                                                              backup\n"
        "api   api1    127.0.0.1:9003      down           1         0  connect refused (3\n"
        "                                                              of 3 checks)\n"
    )


def test_servers_in_a_pipe_are_whole_and_plain() -> None:
    lines = tables.rendered(tables.servers(SERVERS), tables.WIDE, colour=False).splitlines()
    assert len(lines) == 4
    assert lines[2].endswith("draining by operator since 2026-01-01 00:00:00Z; status 200 in 2 ms; backup")
    assert "\x1b" not in "".join(lines)
    assert "\x1b" in tables.rendered(tables.servers(SERVERS), 80, colour=True)


def test_status() -> None:
    assert tables.rendered(tables.status(STATUS), 80, colour=False) == (
        "lb1: serving, l7lb 0.1.0, supervisor 100\n"
        "\n"
        "LISTENER  PROTOCOL  BIND\n"
        "web       http      127.0.0.1:8080, [::1]:8080\n"
        "\n"
        "WORKER  PID  CONNECTIONS  SNAPSHOT  STATE\n"
        "     0  101            7         3  ready\n"
        "     1  102         1234         3  leaving\n"
    )


def test_status_tells_of_a_refused_reload() -> None:
    refused = STATUS | {"reload": {"ok": False, "problems": ["l7lb.yaml:3:5: pools: x"]}}
    text = tables.rendered(tables.status(refused), 80, colour=False)
    assert "the last reload was refused, the configuration before it is in force:\n  l7lb.yaml:3:5: pools: x\n" in text


def test_sessions() -> None:
    row = {
        "protocol": "http",
        "client": "192.0.2.7:40000",
        "pool": "web",
        "server": "web1",
        "since": "2026-01-01T00:00:00Z",
        "mailbox": "",
        "detail": "GET /\x1b[31m",
    }
    text = tables.rendered(tables.sessions([row]), 80, colour=False)
    assert text == (
        "PROTOCOL  CLIENT           POOL  SERVER  SINCE                 WHAT\n"
        "http      192.0.2.7:40000  web   web1    2026-01-01T00:00:00Z  GET /\ufffd[31m\n"
    )


@pytest.mark.parametrize(("draw", "words"), [(tables.servers, "no servers\n"), (tables.sessions, "no sessions\n")])
def test_nothing_to_show_is_said(draw: Any, words: str) -> None:
    assert tables.rendered(draw([]), 80, colour=False) == words


def test_long_names_are_never_cut() -> None:
    row = SERVERS[0] | {"pool": "p" * 64, "name": "s" * 64, "address": "a" * 80}
    text = tables.rendered(tables.servers([row]), 80, colour=False)
    assert text.count("p") >= 64
    assert "\u2026" not in text
    assert max(map(len, text.splitlines())) <= 80


@given(st.text("p", min_size=1, max_size=40), st.text("s", min_size=1, max_size=40), st.text("w ", max_size=200))
def test_nothing_is_ever_cut(pool: str, name: str, why: str) -> None:
    row = SERVERS[0] | {"pool": pool, "name": name, "why": why}
    text = tables.rendered(tables.servers([row]), 80, colour=False)
    body = text.partition("\n")[2]
    assert max(map(len, text.splitlines())) <= 80
    assert (body.count("p"), body.count("s"), body.count("w")) == (len(pool) + 1, len(name), why.count("w"))


def test_explained() -> None:
    found = {
        "listener": "web",
        "facts": {"source": "127.0.0.1", "host": "example.org", "path": "/x", "method": "GET"},
        "rules": [
            {"where": "l7lb.yaml:9", "number": 1, "matched": False, "why": "host is not a.example", "details": []},
            {"where": "l7lb.yaml:11", "number": 2, "matched": True, "why": "no conditions", "details": ["goes on"]},
        ],
        "outcome": "to pool web, server web1 at 127.0.0.1:9001",
        "why": "web1: round-robin, servers take turns by weight",
        "servers": ["web1 (127.0.0.1:9001): open, weight 1, 0 in progress"],
    }
    assert tables.rendered(tables.explained(found), 80, colour=False) == (
        "listener web: source 127.0.0.1, host example.org, path /x, method GET\n"
        "\n"
        "RULE  WHERE         MATCHES  WHY\n"
        "   1  l7lb.yaml:9   no       host is not a.example\n"
        "   2  l7lb.yaml:11  yes      no conditions; goes on\n"
        "\n"
        "=> to pool web, server web1 at 127.0.0.1:9001\n"
        "   web1: round-robin, servers take turns by weight\n"
        "   - web1 (127.0.0.1:9001): open, weight 1, 0 in progress\n"
    )


# --- top ----------------------------------------------------------------------------------------------------------


def test_rates_are_the_difference_of_two_moments() -> None:
    rates = Rates()
    assert rates.feed(SERVERS, 10.0) == {}
    later = [SERVERS[0] | {"requests": 130, "errors": 2}, SERVERS[1] | {"requests": 0}]
    assert rates.feed(later, 12.0) == {("web", "web1"): (15.0, 1.0), ("web", "web2"): (0.0, 0.0)}


def test_one_picture() -> None:
    rates = {("web", "web1"): (15.0, 1.0)}
    assert tables.rendered(picture(STATUS, SERVERS[:1], rates), 80, colour=False) == (
        "lb1: serving, 2 workers, 1241 connections, 15 requests/s\n"
        "\n"
        "SERVER    STATE  WEIGHT  SESSIONS  REQ/S  ERR/S  WHY\n"
        "web/web1  up          1        12     15      1  status 200 in 3 ms\n"
    )


def test_a_small_terminal_shows_what_fits() -> None:
    text = tables.rendered(picture(STATUS, SERVERS, {}, height=6), 200, colour=False)
    assert text.splitlines()[-1] == "... and 1 more"
    assert len(text.splitlines()) == 6


def test_a_state_has_its_colour() -> None:
    assert tables.state("down") == Text("down", "bold red")
