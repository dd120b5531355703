"""Submission: nothing before the login, one server by it, and what becomes of both."""

from __future__ import annotations

import base64

import pytest
from esmtp_bench import AUTH, LOSE, XCLIENT, Bench

from l7lb.core.contracts import ClientCertificate, Entry, Handshake, Peer
from l7lb.core.errors import Failure
from l7lb.protocols.mail.sasl import INVALID_TOKEN

HELLO = b"EHLO client.example\r\n"
MAIL = b"MAIL FROM:<anna@example.com>\r\n"
TO_B = b"RCPT TO:<bert@example.com>\r\n"
MESSAGE = b"Subject: one\r\n\r\nbody\r\n.\r\n"
SERVER = {b"EHLO": AUTH}


def b64(text: bytes) -> bytes:
    """Base64, as it goes over the wire."""
    return base64.b64encode(text)


PLAIN = b"AUTH PLAIN " + b64(b"\0Anna\0secret") + b"\r\n"


def logged_in(**settings: object) -> Bench:
    """A client that has logged in."""
    bench = Bench("submission", scripts={"a": SERVER}, **settings)  # type: ignore[arg-type]
    bench.send(HELLO)
    assert bench.send(PLAIN) == b"235 2.7.0 You are logged in\r\n"
    return bench


def test_nothing_goes_before_the_login() -> None:
    bench = Bench("submission")
    assert b"250 AUTH PLAIN LOGIN XOAUTH2 OAUTHBEARER\r\n" in bench.send(HELLO)
    for command in (MAIL, TO_B, b"DATA\r\n"):
        assert bench.send(command).startswith(b"530 5.7.0")
    assert bench.codes(bench.send(b"BDAT 3\r\nabcNOOP\r\n")) == [b"503", b"250"]
    assert bench.servers == []


def test_the_login_decides_the_server() -> None:
    bench = logged_in()
    server = bench.servers[0]
    assert server.commands == [b"EHLO proxy.example", PLAIN[:-2]]
    said = bench.send(MAIL + TO_B + b"DATA\r\n" + MESSAGE + MAIL + TO_B + b"BDAT 3 LAST\r\nabc")
    assert bench.codes(said) == [b"250", b"250", b"354", b"250", b"250", b"250", b"502"]
    assert server.messages == [MESSAGE[:-3]]
    assert len(bench.servers) == 1
    said = bench.send(b"RSET\r\nNOOP\r\nQUIT\r\n")
    assert bench.codes(said) == [b"250", b"250", b"221"]
    assert server.commands[-2:] == [b"RSET", b"QUIT"]
    assert bench.closed
    assert bench.records[-1].ended == "ok"
    record = bench.records[-1].subject.record("ok", 1.0)
    assert (record.user, record.mailbox, record.mechanism) == ("Anna", "anna@example.com", "plain")


def test_any_split_of_a_login_gives_the_same() -> None:
    whole = (
        HELLO
        + b"AUTH LOGIN\r\n"
        + b64(b"anna")
        + b"\r\n"
        + b64(b"secret")
        + b"\r\n"
        + MAIL
        + TO_B
        + b"DATA\r\n"
        + MESSAGE
    )
    usual = Bench("submission", scripts={"a": SERVER})
    said = usual.send(whole)
    assert usual.codes(said) == [b"250", b"334", b"334", b"235", b"250", b"250", b"354", b"250"]
    for at in range(1, len(whole)):
        bench = Bench("submission", scripts={"a": SERVER})
        assert bench.split(whole, (at, len(whole))) == said
        assert bench.servers[0].commands == usual.servers[0].commands


@pytest.mark.parametrize("mechanism", [b"XOAUTH2", b"OAUTHBEARER"])
def test_tokens_are_passed_on(mechanism: bytes) -> None:
    script = {b"EHLO": AUTH.replace(b"XOAUTH2", b"XOAUTH2 OAUTHBEARER")}
    response = (
        b"user=anna\x01auth=Bearer t0k\x01\x01" if mechanism == b"XOAUTH2" else b"n,a=anna,\x01auth=Bearer t0k\x01\x01"
    )
    bench = Bench("submission", scripts={"a": script})
    bench.send(HELLO)
    assert bench.send(b"AUTH " + mechanism + b" " + b64(response) + b"\r\n").startswith(b"235")
    assert bench.servers[0].commands[-1] == b"AUTH " + mechanism + b" " + b64(response)


def test_a_refused_token_has_one_step_more() -> None:
    bench = Bench("submission", scripts={"a": {b"EHLO": AUTH, b"AUTH": b"334 e30=\r\n", b"AQ==": b"535 no\r\n"}})
    bench.send(HELLO)
    response = b64(b"user=anna\x01auth=Bearer t0k\x01\x01")
    assert bench.send(b"AUTH XOAUTH2 " + response + b"\r\n") == b"334 " + b64(INVALID_TOKEN) + b"\r\n"
    assert bench.send(b"\r\n") == b"535 5.7.8 The credentials are not accepted\r\n"
    assert bench.failed_logins == 1
    assert bench.servers[0].commands[-1] == b"AQ=="


def test_a_server_that_only_knows_login() -> None:
    script = {
        b"EHLO": AUTH.replace(b"PLAIN LOGIN XOAUTH2", b"LOGIN"),
        b"AUTH": b"334 UGFzc3dvcmQ6\r\n",
        b64(b"secret").upper(): b"235 in\r\n",
    }
    bench = Bench("submission", scripts={"a": script})
    bench.send(HELLO)
    assert bench.send(PLAIN).startswith(b"235")
    assert bench.servers[0].commands[1:] == [b"AUTH LOGIN " + b64(b"Anna"), b64(b"secret")]


def test_wrong_credentials_can_be_tried_three_times() -> None:
    bench = Bench(
        "submission", scripts={"a": {b"EHLO": AUTH, b"AUTH": b"535 5.7.8 wrong, and more that is secret\r\n"}}
    )
    bench.send(HELLO)
    for _ in range(2):
        assert bench.send(PLAIN) == b"535 5.7.8 The credentials are not accepted\r\n"
    assert bench.codes(bench.send(PLAIN)) == [b"535"]
    assert bench.closed
    assert bench.failed_logins == 3
    assert len(bench.servers) == 3


@pytest.mark.parametrize(
    ("failure", "code"), [(Failure.NO_MAILBOX, b"535"), (Failure.DIRECTORY, b"454"), (Failure.MAILBOX_MOVING, b"454")]
)
def test_a_login_without_a_server(failure: Failure, code: bytes) -> None:
    bench = Bench("submission", where=lambda mailbox: failure)
    bench.send(HELLO)
    assert bench.codes(bench.send(PLAIN)) == [code]
    assert bench.failed_logins == 0


@pytest.mark.parametrize("fault", [LOSE, b"421 4.3.2 full\r\n", b"454 4.7.0 not now\r\n", b"what is this\r\n"])
@pytest.mark.parametrize("step", [b"", b"EHLO", b"AUTH"])
def test_a_fault_before_the_login_is_temporary(step: bytes, fault: bytes) -> None:
    bench = Bench("submission", scripts={"a": {b"EHLO": AUTH, step: fault}})
    bench.send(HELLO)
    assert bench.codes(bench.send(PLAIN)) == [b"454"]
    assert bench.send(MAIL).startswith(b"530")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"AUTH", b"504"),
        (b"AUTH FOO", b"504"),
        (b"AUTH EXTERNAL =", b"504"),
        (b"AUTH PLAIN %", b"501"),
        (b"AUTH PLAIN =", b"501"),
        (b"AUTH PLAIN " + b64(b"\0anna\0"), b"501"),
        (b"AUTH PLAIN " + b64(b"\0an\r\nna\0x"), b"501"),
        (b"AUTH PLAIN " + b"A" * 13_000, b"500"),
        (b"AUTH PLAIN\r\n*", b"501"),
    ],
)
def test_rubbish_is_no_login(line: bytes, code: bytes) -> None:
    bench = Bench("submission")
    bench.send(HELLO)
    assert bench.codes(bench.send(line + b"\r\nNOOP\r\n"))[-2:] == [code, b"250"]
    assert bench.servers == []


def test_a_password_needs_tls() -> None:
    bench = Bench("submission", starttls=True, peer=Peer("198.51.100.7", 1, "192.0.2.80", 587))
    said = bench.send(HELLO)
    assert b"STARTTLS" in said
    assert b"AUTH" not in said
    assert bench.send(PLAIN).startswith(b"538 5.7.11")


def test_a_second_login_is_none() -> None:
    assert logged_in().send(PLAIN).startswith(b"503 5.5.1")


def test_a_server_lost_between_messages_ends_the_session() -> None:
    bench = logged_in()
    bench.lose(0)
    assert bench.said.endswith(b"421 4.4.2 The connection to the server was lost, try again later\r\n")
    assert bench.closed


@pytest.mark.parametrize(
    "sent", [MAIL, MAIL + TO_B, MAIL + TO_B + b"DATA\r\n", MAIL + TO_B + b"DATA\r\nSubject: one\r\n"]
)
def test_a_server_lost_inside_a_transaction(sent: bytes) -> None:
    bench = logged_in()
    bench.send(sent)
    bench.lose(0)
    rest = (MAIL + TO_B + b"DATA\r\n" + MESSAGE)[len(sent) :]
    said = bench.send(rest if b"DATA" in sent else TO_B + b"DATA\r\n")
    assert b"451 4.4.2" in said or b"554" in said
    assert not {b"250"} & set(bench.codes(said))
    if not bench.closed:
        assert bench.codes(bench.send(b"RSET\r\n")) == [b"250", b"421"]
    assert bench.servers[0].messages == []
    assert bench.servers[0].end == ("reset" if b"DATA" in sent else "closed")


def test_a_refused_message_leaves_the_session() -> None:
    bench = Bench("submission", scripts={"a": {b"EHLO": AUTH, b"DATA": [b"451 4.3.0 not now\r\n"]}})
    bench.send(HELLO + PLAIN)
    assert bench.codes(bench.send(MAIL + TO_B + b"DATA\r\n")) == [b"250", b"250", b"451"]
    assert bench.codes(bench.send(MAIL + TO_B + b"DATA\r\n" + MESSAGE)) == [b"250", b"250", b"354", b"250"]


def test_a_directory_may_know_other_credentials() -> None:
    entry = Entry(b"anna", "a")
    entry.master_user, entry.master_password, entry.proven = b"master", b"key", True
    bench = Bench("submission", scripts={"a": SERVER}, entry=entry)
    bench.send(HELLO)
    assert bench.send(PLAIN).startswith(b"235")
    assert bench.servers[0].commands[-1] == b"AUTH PLAIN " + b64(b"Anna\0master\0key")


def test_a_certificate_logs_in_by_xclient() -> None:
    peer = Peer("198.51.100.7", 4711, "192.0.2.80", 587, tls=True)
    peer.handshake = Handshake()
    peer.handshake.certificate = ClientCertificate("anna", "CN=anna", True)
    bench = Bench(
        "submission", scripts={"a": {b"EHLO": XCLIENT}}, client_address="xclient", peer=peer, certificates=True
    )
    assert b"EXTERNAL" in bench.send(HELLO)
    assert bench.send(b"AUTH EXTERNAL =\r\n").startswith(b"235")
    assert bench.servers[0].commands[1].endswith(b"HELO=client.example LOGIN=anna")


@pytest.mark.parametrize("what", ["another", "not taken", "not told"])
def test_a_certificate_logs_in_nobody_else(what: str) -> None:
    peer = Peer("198.51.100.7", 4711, "192.0.2.80", 587, tls=True)
    peer.handshake = Handshake()
    peer.handshake.certificate = ClientCertificate("anna", "CN=anna", True)
    script = {b"EHLO": XCLIENT.replace(b" LOGIN", b"") if what == "not taken" else XCLIENT}
    told = "none" if what == "not told" else "xclient"
    scripts = {"a": script, "b": script}
    bench = Bench("submission", scripts=scripts, client_address=told, peer=peer, certificates=True)
    bench.send(HELLO)
    response = b64(b"bert") if what == "another" else b"="
    assert bench.send(b"AUTH EXTERNAL " + response + b"\r\n").startswith(b"454")
    assert bench.send(MAIL).startswith(b"530")
    assert not any(b"LOGIN=" in command for server in bench.servers for command in server.commands)


def test_a_proven_password_is_nobody_elses() -> None:
    """The directory has judged anna's password; that she may send as bert only the server could say."""
    entry = Entry(b"bert", "b")
    entry.master_user, entry.master_password, entry.proven = b"master", b"key", True
    bench = Bench("submission", scripts={"b": SERVER}, entry=entry)
    bench.send(HELLO)
    bench.send(b"AUTH PLAIN " + b64(b"bert\0anna\0secret") + b"\r\n")
    assert bench.servers[0].commands[-1] == b"AUTH PLAIN " + b64(b"bert\0anna\0secret")


def test_time_to_log_in_is_limited() -> None:
    bench = Bench("submission")
    bench.send(HELLO)
    assert bench.session.deadline == bench.now + 60
    bench = logged_in()
    bench.send(b"NOOP\r\n")
    assert bench.session.deadline == bench.now + 300
