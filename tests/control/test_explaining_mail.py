"""Explanations of mail: the rule, the directory's word, the server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from l7lb.config import load
from l7lb.control.explaining import Explained, Question, asked, explain, explain_rules, explain_server
from l7lb.control.explaining_mail import Heard
from l7lb.control.explaining_mail import ask as ask_here
from l7lb.core.errors import L7lbError, UnknownName
from l7lb.core.snapshot import Snapshot
from l7lb.persistence.mailbox_messages import MailboxRow

CONFIGURATION = """\
node: lb1
addresses: {recipient_delimiter: "+", default_domain: example.com}
directories:
  people: {file: {path: people.txt, columns: [address, mailbox, server]}}
  strict: {file: {path: people.txt, columns: [address, mailbox, server]}, missing: refuse, unknown_server: pool}
  broken: {file: {path: broken.txt, columns: [address, mailbox, server]}}
x-login: &login {cleartext: always}
listeners:
  - name: imap
    protocol: imap4
    bind: ["127.0.0.1:0"]
    login: *login
    routes: &rules
      - {match: {address: "*@vip.example.com"}, pool: vip}
      - {match: {address: "*@strict.example"}, directory: strict, pool: mail}
      - {match: {address: "*@broken.example"}, directory: broken, pool: mail}
      - {directory: people, pool: mail}
  - {name: imaps, protocol: imap4, bind: ["127.0.0.1:0"], login: *login, routes: *rules}
  - {name: pop, protocol: pop3, bind: ["127.0.0.1:0"], login: *login, routes: *rules}
  - {name: other, protocol: pop3, bind: ["127.0.0.1:0"], login: *login, routes: [{pool: vip}]}
  - {name: web, protocol: http, bind: ["127.0.0.1:0"], mailbox: {header: x-user}, routes: *rules}
  - {name: lmtp, protocol: lmtp, bind: ["127.0.0.1:0"], routes: *rules}
pools:
  mail:
    balance: {hash: mailbox}
    persistence: {mailbox: {}}
    servers:
      - {name: mx1, host: 127.0.0.1, ports: {imap4: 2143, pop3: 2110, lmtp: 2024, http: 2080}}
      - {name: mx2, host: 127.0.0.2, ports: {imap4: 3143, pop3: 3110, lmtp: 3024, http: 3080}}
  vip:
    servers: [{name: vip1, host: 127.0.0.3, ports: {imap4: 4143, pop3: 4110, lmtp: 4024, http: 4080}}]
"""
PEOPLE = """\
one@example.com box-1 mx1
two@example.com box-2 127.0.0.2
lost@example.com box-3 mx9
lost@strict.example box-3 mx9
"""


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    (tmp_path / "people.txt").write_text(PEOPLE)
    (tmp_path / "broken.txt").write_text("a b c d e\n")
    loaded = load(tmp_path / "l7lb.yaml", text=CONFIGURATION).snapshot
    (tmp_path / "broken.txt").unlink()
    return loaded


def ask(snapshot: Snapshot, address: str, protocol: str = "imap4", **fields: Any) -> Explained:
    return explain(snapshot, Question(protocol, address=address, **fields))


def test_the_address_is_canonical_and_the_rule_sees_it(snapshot: Snapshot) -> None:
    found = ask(snapshot, "Boss+cc@VIP.Example.com")
    assert found.facts == {
        "source": "127.0.0.1",
        "address": "boss@vip.example.com",
        "mailbox": "boss@vip.example.com",
    }
    assert [(rule.number, rule.matched) for rule in found.rules] == [(1, True)]
    assert found.outcome == "to pool vip, server vip1 at 127.0.0.3:4143"
    assert found.directory == ""


def test_a_rule_that_does_not_match_says_why(snapshot: Snapshot) -> None:
    found = ask(snapshot, "one")
    assert found.rules[0].why == ('address "*@vip.example.com" is wanted, but the address is "one@example.com"')
    assert "asks people" in found.rules[-1].details


@pytest.mark.parametrize(
    ("protocol", "address", "server", "place"),
    [
        ("imap4", "one", "mx1", "127.0.0.1:2143"),
        ("pop3", "ONE+x@example.com", "mx1", "127.0.0.1:2110"),
        ("lmtp", "two@example.com", "mx2", "127.0.0.2:3024"),  # named by its host
    ],
)
def test_the_directory_names_mailbox_and_server(
    snapshot: Snapshot, protocol: str, address: str, server: str, place: str
) -> None:
    found = ask(snapshot, address, protocol, listener={"pop3": "pop"}.get(protocol, ""))
    assert (found.server, found.address) == (server, place)
    assert found.facts["mailbox"] == f"box-{server[-1]}"
    assert found.directory.startswith(f"directory people: mailbox box-{server[-1]}, server ")
    assert found.why == f"{server}: the directory says so"


def test_without_an_entry_the_address_decides(snapshot: Snapshot) -> None:
    found = ask(snapshot, "stranger")
    assert found.directory == "directory people has no entry for it"
    assert found.outcome.startswith("to pool mail, server mx")
    assert found.why.endswith('the hash of mailbox "stranger@example.com" belongs to it')


@pytest.mark.parametrize(
    ("address", "protocol", "outcome", "directory"),
    [
        ("x@strict.example", "imap4", "refused: NO [AUTHENTICATIONFAILED]; ", "has no entry for it, which is refused"),
        ("x@strict.example", "lmtp", "refused: 550; ", "has no entry for it, which is refused"),
        ("lost@example.com", "imap4", "refused: NO [UNAVAILABLE]; ", "server mx9, which is none of pool mail, and"),
        ("lost@example.com", "lmtp", "refused: 451; ", "server mx9, which is none of pool mail, and refused"),
        ("lost@strict.example", "imap4", "to pool mail, server mx", "server mx9, which is none of pool mail"),
        ("x@broken.example", "lmtp", "refused: 451; without the directory, to pool mail", "can't answer: "),
    ],
)
def test_what_a_directory_can_not_place(
    snapshot: Snapshot, address: str, protocol: str, outcome: str, directory: str
) -> None:
    found = ask(snapshot, address, protocol)
    assert found.outcome.startswith(outcome)
    assert directory in found.directory
    assert found.pool == "mail"


@pytest.mark.parametrize(
    ("address", "server", "why"),
    [
        ("one", "mx1", "the mailbox is on mx2, with 3 sessions, and moves from there; mx1: the directory says so"),
        ("two", "mx2", "the mailbox is on mx2, with 3 sessions; mx2: the directory says so"),
    ],
)
def test_a_directory_names_another_server_than_the_mailbox_is_on(
    snapshot: Snapshot, address: str, server: str, why: str
) -> None:
    explained, pool, facts = explain_rules(snapshot, Question("imap4", address=address))
    assert pool is not None
    listener, directories = asked(snapshot, explained)
    answer = asyncio.run(ask_here(directories, listener, facts))
    heard = Heard(answer, MailboxRow("mail", b"box", "mx2", 3, moving=False, fixed=False))
    explain_server(explained, pool, facts, None, None, heard)
    assert (explained.server, explained.why) == (server, why)


@pytest.mark.parametrize(
    ("user", "outcome"),
    [
        ("Two", "to pool mail, server mx2 at 127.0.0.2:3080"),
        ("boss@vip.example.com", "to pool vip, server vip1 at 127.0.0.3:4080"),
        ("x@strict.example", "refused: 404; "),
        ("x@broken.example", "refused: 503; "),
    ],
)
def test_a_request_of_web_mail_goes_where_its_mailbox_is(snapshot: Snapshot, user: str, outcome: str) -> None:
    found = explain(snapshot, Question("http", url="http://mail.example/", headers=[("X-User", user)]))
    assert found.outcome.startswith(outcome)


def test_what_no_rule_matches(snapshot: Snapshot) -> None:
    listeners = tuple(msgspec.structs.replace(one, routes=one.routes[:1]) for one in snapshot.listeners)
    rest = msgspec.structs.replace(snapshot, listeners=listeners)
    for protocol, told in (("imap4", "NO [UNAVAILABLE]"), ("lmtp", "550")):
        assert ask(rest, "one@example.com", protocol).outcome == f"no rule matches: {told}"


def test_listeners_of_the_same_rules_need_no_name(snapshot: Snapshot) -> None:
    assert ask(snapshot, "one").listener == "imap"
    assert ask(snapshot, "one", listener="imaps").listener == "imaps"
    with pytest.raises(UnknownName, match="say which listener: pop, other"):
        ask(snapshot, "one", "pop3")


@pytest.mark.parametrize("address", ["", "a\nb", "a" * 600])
def test_what_is_no_address(snapshot: Snapshot, address: str) -> None:
    with pytest.raises(L7lbError, match="needs an address or a login"):
        ask(snapshot, address)
