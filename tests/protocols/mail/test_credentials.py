"""With which name and proof a server is logged in to."""

from __future__ import annotations

import pytest

from l7lb.core.contracts import Assignment, Choice, Entry
from l7lb.core.servers import PoolState, ServerState
from l7lb.core.snapshot import Address, Pool, Route, Server, ToPool
from l7lb.protocols.mail.credentials import server_credentials
from l7lb.protocols.mail.facts import MailFacts


def facts(mechanism: str = "login", authorization: bytes = b"") -> MailFacts:
    made = MailFacts("imap4", "imap", "192.0.2.1")
    made.user, made.password, made.mechanism, made.authorization = b"Anna+x", b"secret", mechanism, authorization
    made.address = made.mailbox = b"anna@example.com"
    made.token = mechanism in ("xoauth2", "oauthbearer")
    return made


def given_to_server(facts: MailFacts, login_as: str = "typed", entry: Entry | None = None) -> object:
    pool = PoolState(Pool(name="mail", servers=(), login_as=login_as), [])
    route = Route(number=1, where="", match=None, action=ToPool("mail"))
    server = ServerState("mail", Server(name="mx1", address=Address("127.0.0.1", 143)))
    assignment = Assignment(Choice(route, "mail"), pool, server)
    assignment.entry = entry
    made = server_credentials(facts, assignment)
    return made and (made.user, made.password, made.mechanism, made.authorization)


def test_what_was_typed() -> None:
    assert given_to_server(facts()) == (b"Anna+x", b"secret", "plain", b"")
    assert given_to_server(facts(authorization=b"bert")) == (b"Anna+x", b"secret", "plain", b"bert")


def test_the_mailbox_in_its_place() -> None:
    assert given_to_server(facts(), "mailbox") == (b"anna@example.com", b"secret", "plain", b"")
    assert given_to_server(facts(authorization=b"x"), "mailbox") == (b"Anna+x", b"secret", "plain", b"anna@example.com")


def test_a_token_stays_a_token() -> None:
    assert given_to_server(facts("oauthbearer")) == (b"Anna+x", b"secret", "oauthbearer", b"")


def test_a_directorys_words_go_before() -> None:
    entry = Entry()
    entry.user, entry.password, entry.proven = b"u17", b"p17", True
    assert given_to_server(facts("xoauth2"), entry=entry) == (b"u17", b"p17", "plain", b"")


def test_a_master_user() -> None:
    entry = Entry()
    entry.master_user, entry.master_password, entry.proven = b"proxy", b"hush", True
    assert given_to_server(facts(), "mailbox", entry) == (b"proxy", b"hush", "plain", b"anna@example.com")
    without_password = facts("external")
    without_password.password = b""
    entry.proven = False
    assert given_to_server(without_password, entry=entry) == (b"proxy", b"hush", "plain", b"Anna+x")


def test_a_certificate_proves_nothing_to_a_server() -> None:
    proved = facts("external")
    proved.password = b""
    assert given_to_server(proved) is None


@pytest.mark.parametrize("password", [b"a\r\nb LOGOUT", b"a\0b"])
def test_a_directory_can_not_say_a_command(password: bytes) -> None:
    entry = Entry()
    entry.password, entry.proven = password, True
    assert given_to_server(facts(), entry=entry) is None


@pytest.mark.parametrize("mechanism", ["login", "plain", "xoauth2", "oauthbearer"])
def test_nobody_is_let_in_by_a_directorys_password_whose_own_was_not_checked(mechanism: str) -> None:
    entry = Entry()
    entry.user, entry.password = b"u17", b"p17"
    entry.master_user, entry.master_password = b"proxy", b"hush"
    sent = "plain" if mechanism == "login" else mechanism
    assert given_to_server(facts(mechanism), entry=entry) == (b"u17", b"secret", sent, b"")
