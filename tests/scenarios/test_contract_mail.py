"""The mail cluster as its operator would write it (tests/config/mail.yaml): each listener does what the file says, with
real servers and clients. Only the ports are others.
"""

from __future__ import annotations

import contextlib
import imaplib
import poplib
import smtplib

import pytest
from mail_site import Contract
from scenario_node import l7lb_command

from l7lb.demo.cluster import wait_for
from l7lb.demo.mailclients import Imap, Pop, Sieve, SieveError, Smtp, message
from l7lb.demo.mailservers import token

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(120)]
ELSEWHERE = "sender@elsewhere.example"


def test_the_file_is_accepted_as_it_stands(contract: Contract) -> None:
    assert "error" not in l7lb_command("check", "--config", str(contract.config)).lower()


# --- each protocol, with TLS in each form -------------------------------------------------------------------------


@pytest.mark.parametrize("listener", ["imap", "imaps"])
@pytest.mark.parametrize(("person", "server"), [("alice", "mx1"), ("bob", "mx2")])
def test_imap_goes_where_the_directory_says(contract: Contract, listener: str, person: str, server: str) -> None:
    with contract.imap(person, listener=listener) as client:
        assert client.server() == server
        assert client.select()[0] == "OK"


@pytest.mark.parametrize(("person", "server"), [("alice", "mx1"), ("bob", "mx2")])
def test_pop3_goes_where_the_directory_says(contract: Contract, person: str, server: str) -> None:
    before = len(contract.mail[server].served(person))
    with contract.pop(person) as client:
        assert client.stat()
    wait_for(lambda: len(contract.mail[server].served(person)) > before, "the login in the server's log", 5)


@pytest.mark.parametrize(("person", "server"), [("alice", "mx1"), ("bob", "mx2")])
def test_managesieve_goes_where_the_directory_says(contract: Contract, person: str, server: str) -> None:
    with contract.sieve(person) as client:
        assert client.server() == server
        client.put("keep", "keep;\n")
        assert client.command("LISTSCRIPTS") == ['"keep" ACTIVE']


@pytest.mark.parametrize(("person", "server"), [("alice", "mx1"), ("bob", "mx2")])
def test_submission_goes_where_the_directory_says(contract: Contract, person: str, server: str) -> None:
    made = message(f"{person}@example.com", "carol@example.com", "by submission")
    with contract.submission(person) as client:
        assert client.send_message(made) == {}
        assert [row["server"] for row in contract.sessions(mailbox=person, protocol="submission")] == [server]
    contract.until_stored(str(made["Message-ID"]), {"carol"})


@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize(("person", "server"), [("alice", "mx1"), ("bob", "mx2")])
def test_smtp_goes_where_the_directory_says(contract: Contract, person: str, server: str, tls: bool) -> None:
    made = message(ELSEWHERE, f"{person}@example.com", "by smtp")
    before = contract.mail[server].relay_log().count(f"to=<{person}@example.com>")
    with contract.smtp(tls=tls) as client:
        assert client.send_message(made) == {}
    contract.until_stored(str(made["Message-ID"]), {person})
    wait_for(lambda: contract.mail[server].relay_log().count(f"to=<{person}@example.com>") > before, "Postfix' log", 5)
    assert contract.delivered_by(str(made["Message-ID"])) == {person: [server]}


def test_lmtp_goes_to_the_server_of_each_recipient(contract: Contract) -> None:
    made = message(ELSEWHERE, "all@example.com", "by lmtp")
    people = ["alice@example.com", "bob@example.com", "nobody@example.com", "vera@vip.example.com", "al@example.com"]
    with contract.lmtp() as client:
        codes = [code for code, _ in client.deliver(ELSEWHERE, people, made.as_bytes())]
    assert codes == [250, 250, 550, 250, 250]
    found = contract.delivered_by(str(made["Message-ID"]))
    assert (set(found["alice"]), found["bob"], found["vera"]) == ({"mx1"}, ["mx2"], ["vip1"])


# --- TLS before a password ----------------------------------------------------------------------------------------


def test_no_password_without_tls(contract: Contract) -> None:
    imap = Imap(contract.target("imap", tls=False))
    assert "LOGINDISABLED" in imap.capabilities
    assert not [word for word in imap.capabilities if word.startswith("AUTH=")]
    with pytest.raises(imaplib.IMAP4.error, match="PRIVACYREQUIRED"):
        imap.login("alice", contract.secret("alice"))
    imap.logout()
    with contextlib.closing(Pop(contract.target("pop3", tls=False))) as pop:
        with pytest.raises(poplib.error_proto):
            pop.user("alice")
        with pytest.raises(poplib.error_proto):
            pop.pass_(contract.secret("alice"))
    with Sieve(contract.target("sieve", tls=False)) as sieve, pytest.raises(SieveError, match="NO"):
        sieve.login("alice", contract.secret("alice"))
    with contextlib.closing(Smtp(contract.target("submission", tls=False))) as smtp:
        smtp.ehlo()
        assert not smtp.has_extn("auth")
        assert smtp.docmd("AUTH", "PLAIN AGFsaWNlAHNlY3JldA==")[0] in (530, 538)
        assert smtp.mail("alice@example.com")[0] == 530


# --- names, directories and pools ---------------------------------------------------------------------------------


@pytest.mark.parametrize("typed", ["alice", "ALICE", "Alice@Example.COM", "al@example.com", "alice.liddell"])
def test_whatever_is_typed_is_one_mailbox(contract: Contract, typed: str) -> None:
    with contract.imap("alice", typed) as client:
        assert client.server() == "mx1"
        (row,) = contract.sessions(mailbox="alice", protocol="imap4")
        assert (row["pool"], row["server"]) == ("mail", "mx1")


def test_the_vip_pool_has_tls_to_its_server(contract: Contract) -> None:
    with contract.imap("vera") as client:
        assert client.server() == "vip1"
    with contract.pop("vera") as pop:
        assert pop.stat()
    with contract.sieve("vera") as sieve:
        assert sieve.server() == "vip1"
    made = message("vera@vip.example.com", "vera@vip.example.com", "to herself")
    with contract.submission("vera") as submission:
        submission.send_message(made)
    contract.until_stored(str(made["Message-ID"]), {"vera"})
    logins = [line for line in contract.mail["vip1"].log().splitlines() if " Login: user=<vera>" in line]
    assert len(logins) >= 4
    assert all(", TLS, " in line for line in logins)
    made = message(ELSEWHERE, "vera@vip.example.com", "by smtp")
    with contract.smtp() as smtp:
        smtp.send_message(made)
    contract.until_stored(str(made["Message-ID"]), {"vera"})
    assert "TLS connection established" in contract.mail["vip1"].relay_log()


def test_the_file_is_asked_after_ldap(contract: Contract) -> None:
    with contract.imap("oldie") as client:
        assert client.server() == "mx2"


def test_who_is_in_no_directory_goes_by_the_hash(contract: Contract) -> None:
    client = Imap(contract.target("imap"))
    with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
        client.login("stranger@example.com", "guess")
    client.logout()
    assert sum("user=<stranger>" in server.log() for server in contract.mail.values()) == 1


@pytest.mark.parametrize("address", ["lost@example.com", "twin@example.com"])
def test_what_the_directory_can_t_place_is_refused_for_now(contract: Contract, address: str) -> None:
    imap = Imap(contract.target("imap"))
    with pytest.raises(imaplib.IMAP4.error, match="UNAVAILABLE"):
        imap.login(address, "secret")
    imap.logout()
    with contract.smtp() as smtp:
        smtp.ehlo()
        smtp.mail(ELSEWHERE)
        assert smtp.rcpt(address)[0] // 100 == 4
    with contract.lmtp() as lmtp:
        assert [code // 100 for code, _ in lmtp.deliver(ELSEWHERE, [address], b"")] == [4]


def test_explain_agrees(contract: Contract) -> None:
    found = contract.command("explain", "imap4", "bob@example.com")
    assert "mx2" in found
    assert "directory" in found


# --- one server a mailbox -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("person", ["carol", "dave", "erin"])
def test_every_protocol_of_a_mailbox_meets_on_one_server(contract: Contract, person: str) -> None:
    by_smtp, by_lmtp = (message(ELSEWHERE, f"{person}@example.com", text) for text in ("by smtp", "by lmtp"))
    with (
        contract.imap(person) as imap,
        contract.imap(person, person.upper(), "imaps") as imaps,
        contract.sieve(person) as sieve,
        contract.submission(person),
        contract.pop(person, f"{person}@EXAMPLE.com"),
        contract.smtp() as smtp,
        contract.lmtp() as lmtp,
    ):
        server = imap.server()
        assert {imaps.server(), sieve.server()} == {server}
        assert [row["server"] for row in contract.sessions(mailbox=person)] == [server] * 5
        smtp.send_message(by_smtp)
        assert [code for code, _ in lmtp.deliver(ELSEWHERE, [f"{person}+x@example.com"], by_lmtp.as_bytes())] == [250]
        contract.until_stored(str(by_smtp["Message-ID"]), {person})
        for made in (by_smtp, by_lmtp):
            assert contract.delivered_by(str(made["Message-ID"])) == {person: [server]}
    assert {name for name, _ in contract.logged(person, "pop3")} == {server}


def test_recipients_of_another_server_come_again(contract: Contract) -> None:
    made = message(ELSEWHERE, "both@example.com", "to two servers")
    with contract.smtp() as smtp:
        refused = smtp.send_message(made, ELSEWHERE, ["alice@example.com", "bob@example.com", "al@example.com"])
        assert {address: code for address, (code, _) in refused.items()} == {"bob@example.com": 452}
        assert smtp.send_message(made, ELSEWHERE, ["bob@example.com"]) == {}
    wait_for(lambda: {"alice", "bob"} <= contract.delivered_by(str(made["Message-ID"])).keys(), "both deliveries")
    found = contract.delivered_by(str(made["Message-ID"]))
    assert (set(found["alice"]), found["bob"]) == ({"mx1"}, ["mx2"])


# --- what the servers are told ------------------------------------------------------------------------------------


def test_the_client_s_address_reaches_the_servers(contract: Contract) -> None:
    with contract.imap("alice", source="127.0.0.21") as imap:
        imap.noop()
    with contract.submission("alice", source="127.0.0.22") as submission:
        submission.noop()
    assert ("mx1", "127.0.0.21") in {(name, one.client) for name, one in contract.logged("alice", "imap4")}
    assert ("mx1", "127.0.0.22") in {(name, one.client) for name, one in contract.logged("alice", "submission")}
    made = message(ELSEWHERE, "alice@example.com", "from afar")
    with contract.smtp(source="127.0.0.23") as smtp:
        smtp.send_message(made)
    wait_for(lambda: "[127.0.0.23]" in contract.mail["mx1"].relay_log(), "the client's address in Postfix' log", 5)


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
def test_tokens(contract: Contract, mechanism: str) -> None:
    begin = "user=bob@example.com" if mechanism == "XOAUTH2" else "n,a=bob@example.com,"
    with contextlib.closing(Smtp(contract.target("submission"))) as smtp:
        smtp.ehlo()
        assert mechanism in smtp.esmtp_features["auth"].split()
    for seconds, good in ((600.0, True), (-60.0, False)):
        text = f"{begin}\1auth=Bearer {token('bob', seconds)}\1\1"
        client = Imap(contract.target("imap"))
        if good:
            client.authenticate(mechanism, lambda _, text=text: text.encode())
            assert client.server() == "mx2"
        else:
            answers = iter([text.encode(), b""])
            with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
                client.authenticate(mechanism, lambda _, answers=answers: next(answers))
        client.logout()


# --- wrong passwords ----------------------------------------------------------------------------------------------


def test_a_wrong_password_in_every_protocol(contract: Contract) -> None:
    imap = Imap(contract.target("imap"))
    with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
        imap.login("alice", "wrong")
    imap.login("alice", contract.secret("alice"))  # another try over the same connection
    assert imap.server() == "mx1"
    imap.logout()
    with contextlib.closing(Pop(contract.target("pop3"))) as pop:
        pop.user("alice")
        with pytest.raises(poplib.error_proto, match=r"-ERR \[AUTH\]"):
            pop.pass_("wrong")
        pop.user("alice")
        pop.pass_(contract.secret("alice"))
        pop.quit()
    with Sieve(contract.target("sieve")) as sieve:
        with pytest.raises(SieveError, match="NO"):
            sieve.login("alice", "wrong")
        sieve.login("alice", contract.secret("alice"))
    with contextlib.closing(Smtp(contract.target("submission"))) as smtp:
        with pytest.raises(smtplib.SMTPAuthenticationError) as refused:
            smtp.login("alice", "wrong")
        assert refused.value.smtp_code == 535
        smtp.login("alice", contract.secret("alice"))
        smtp.quit()


# --- what fails ---------------------------------------------------------------------------------------------------


def test_the_second_ldap_server_is_asked_where_the_first_is_dead(contract: Contract) -> None:
    contract.ldap[0].kill()
    try:
        with contract.imap("alice", "alice.liddell@example.com") as client:
            assert client.server() == "mx1"
        with contract.imap("heidi", "heidi@example.com") as client:
            assert client.server() in ("mx1", "mx2")
    finally:
        contract.ldap[0].start()
        contract.ldap[0].until_listening()
