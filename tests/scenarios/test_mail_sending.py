"""SMTP, submission and LMTP through a node to real Postfixes and Dovecots, with real clients: smtplib, swaks, curl.

A message's way is the one that it has in a cluster: to a Postfix by the recipient, from there by LMTP through the node
again, to the Dovecot that has the mailbox.
"""

from __future__ import annotations

import contextlib
import json
import re
import smtplib
import subprocess
from collections.abc import Iterator
from email.policy import SMTP
from pathlib import Path
from typing import Any

import pytest
from scenario_node import Node, find, free_port, l7lb, wait_for

from l7lb.demo import mailservers, secure
from l7lb.demo.mailclients import Lmtp, Smtp, Target, message
from l7lb.demo.mailcluster import PEOPLE
from l7lb.demo.mailservers import MAIL_PROTOCOLS, MailServer, Site, token

pytestmark = [
    pytest.mark.scenario,
    pytest.mark.timeout(120),
    pytest.mark.skipif(bool(mailservers.missing()), reason=mailservers.missing()),
]
ALICE, BOB, CAROL = PEOPLE[:3]
X = "x@elsewhere.example"
TEXT = """
addresses: {lower_case: true, recipient_delimiter: "+", default_domain: example.com}
directories:
  listed: {file: {path: users.txt, columns: [address, server]}, missing: pool}
x-tls: &tls [{cert: node.pem, key: node.key}]
x-routes: &routes [{directory: [listed], pool: mail}]
listeners:
  - {name: mx, protocol: smtp, bind: ["127.0.0.1:PORT"], tls: {mode: starttls, certificates: *tls}, recipients: split, routes: *routes}
  - {name: first, protocol: smtp, bind: ["127.0.0.1:FIRST"], recipients: first, routes: *routes}
  - {name: out, protocol: submission, bind: ["127.0.0.1:OUT"], tls: {mode: starttls, certificates: *tls}, routes: *routes}
  - {name: outs, protocol: submission, bind: ["127.0.0.1:TLS"], tls: {mode: implicit, certificates: *tls}, routes: *routes}
  - {name: lmtp, protocol: lmtp, bind: ["127.0.0.1:LMTP"], routes: *routes}
  - {name: quiet, protocol: smtp, bind: ["127.0.0.1:QUIET"], tls: {mode: starttls, certificates: *tls}, routes: [{pool: quiet}]}
pools:
  quiet:
    client_address: {smtp: xclient}
    health: {protocol: {}, interval: 1s, timeout: 1s}
    servers:
      - {name: mx1, host: 127.0.0.1, ports: {MX1}, tls: {mode: starttls, ca: servers.pem}}
      - {name: mx2, host: 127.0.0.1, ports: {MX2}}
  mail:
    balance: {hash: mailbox}
    persistence: {mailbox: {expire: 15m}}
    client_address: {smtp: xclient, submission: xclient, lmtp: none}
    servers:
      - {name: mx1, host: 127.0.0.1, ports: {MX1}, tls: {mode: starttls, ca: servers.pem}}
      - {name: mx2, host: 127.0.0.1, ports: {MX2}}
"""


class Mail:
    """Two servers on one store, and a node in front: it speaks TLS to one of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("servers", "node"):
            secure.make_certificate(folder, name, ["127.0.0.1"])
        self.first, self.out, self.outs, self.lmtp, self.quiet = (free_port() for _ in range(5))
        certificate, key = (folder / f"servers.{kind}" for kind in ("pem", "key"))
        self.site = Site(PEOPLE, f"127.0.0.1:{self.lmtp}", certificate.read_bytes(), key.read_bytes())
        self.servers: dict[str, MailServer] = {}
        text = TEXT
        for name in ("mx1", "mx2"):
            ports = {protocol: free_port() for protocol in MAIL_PROTOCOLS}
            self.servers[name] = MailServer(self.site, name, ports)
            shown = ", ".join(f"{protocol}: {ports[protocol]}" for protocol in ("smtp", "submission", "lmtp"))
            text = text.replace(name.upper() + "}", shown + "}")
        for word, port in {
            "FIRST": self.first,
            "OUT": self.out,
            ":TLS": f":{self.outs}",
            "LMTP": self.lmtp,
            "QUIET": self.quiet,
        }.items():
            text = text.replace(word, str(port))
        (folder / "users.txt").write_text("alice@example.com mx1\nbob@example.com mx2\ncarol@example.com mx2\n")
        self.node = Node(folder, text, workers=2)

    def target(self, port: int = 0, tls: bool = True, **options: Any) -> Target:
        return Target(f"127.0.0.1:{port or self.node.port}", self.folder / "node.pem" if tls else None, **options)

    def arrives(self, person: str, wanted: str) -> bytes:
        """The one message with that text in somebody's mailbox, once it is there."""

        def found() -> list[bytes]:
            return [text for text in self.site.stored(person) if wanted.encode() in text]

        wait_for(lambda: bool(found()), f"{wanted} at {person}", 30)
        assert len(found()) == 1
        return found()[0]


@pytest.fixture(scope="module")
def mail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mail]:
    made = Mail(tmp_path_factory.mktemp("mail"))
    try:
        for server in made.servers.values():
            server.start()
        for server in made.servers.values():
            server.until_listening()
        with made.node:
            yield made
    finally:
        for server in made.servers.values():
            server.terminate()
        made.site.close()


def letter(to: str, subject: str, text: str = "") -> bytes:
    made = message(X, to, subject)
    made.set_content(f"This is {subject}.\n.a dot\n..two\n" + text)
    return made.as_bytes(policy=SMTP)


@pytest.mark.parametrize("tls", [False, True])
def test_a_message_comes_to_its_mailbox_as_it_was_sent(mail: Mail, tls: bool) -> None:
    for person, source, home in ((ALICE, "127.0.0.7", "mx1"), (BOB, "127.0.0.8", "mx2")):
        name = f"straight {tls} {person.name}"
        with Smtp(mail.target(tls=tls, source=source)) as smtp:
            assert smtp.sendmail(X, [person.address], letter(person.address, name)) == {}
        text = mail.arrives(person.name, f"Subject: {name}")
        assert f"This is {name}.\n.a dot\n..two" in text.decode().replace("\r\n", "\n")
        received = text.decode().replace("\r\n", "\n")
        assert re.search(rf"from client\.example\.org \(unknown \[{re.escape(source)}\]\)\s+by {home}\.", received)


def test_recipients_of_another_server_come_again(mail: Mail) -> None:
    with Smtp(mail.target()) as smtp:
        refused = smtp.sendmail(X, [ALICE.address, BOB.address, CAROL.address], letter(ALICE.address, "split one"))
        assert {name: code for name, (code, _) in refused.items()} == {BOB.address: 452, CAROL.address: 452}
        assert smtp.sendmail(X, list(refused), letter(BOB.address, "split two")) == {}
    mail.arrives("alice", "Subject: split one")
    for name in ("bob", "carol"):
        mail.arrives(name, "Subject: split two")


def test_the_first_recipients_server_takes_all_where_it_is_said(mail: Mail) -> None:
    with Smtp(mail.target(mail.first, tls=False)) as smtp:
        assert smtp.sendmail(X, [ALICE.address, BOB.address], letter(ALICE.address, "all at once")) == {}
    mail.arrives("alice", "Subject: all at once")
    mail.arrives("bob", "Subject: all at once")


def test_lmtp_brings_each_to_its_own_server(mail: Mail) -> None:
    with contextlib.closing(Lmtp(mail.target(mail.lmtp, tls=False))) as lmtp:
        for number in range(3):
            people = [BOB.address, "nobody@example.com", ALICE.address, CAROL.address]
            answers = lmtp.deliver(X, people, letter(BOB.address, f"fan-out {number}"))
            assert [code for code, _ in answers] == [250, 550, 250, 250]
        lmtp.quit()
    for number in range(3):
        for name in ("alice", "bob", "carol"):
            mail.arrives(name, f"Subject: fan-out {number}")
    assert len(mail.servers["mx1"].delivered("alice")) >= 3
    assert not mail.servers["mx1"].delivered("bob")


def test_a_large_message_in_both_directions_of_patience(mail: Mail) -> None:
    text = ("x" * 72 + "\n.dots\n") * 100_000
    with Smtp(mail.target()) as smtp:
        smtp.sendmail(X, [ALICE.address], letter(ALICE.address, "large", text))
    assert mail.arrives("alice", "Subject: large").replace(b"\r\n", b"\n").count(b"\n.dots\n") == 100_000


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_submission_by_login(mail: Mail, mechanism: str) -> None:
    for port, implicit in ((mail.out, False), (mail.outs, True)):
        name = f"sent {mechanism} {implicit}"
        with Smtp(mail.target(port, implicit=implicit, source="127.0.0.9")) as smtp:
            smtp.ehlo()
            assert smtp.esmtp_features["auth"].split() == ["PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"]
            with pytest.raises(smtplib.SMTPSenderRefused, match="530"):
                smtp.sendmail(ALICE.address, [BOB.address], letter(BOB.address, "never"))
            with pytest.raises(smtplib.SMTPAuthenticationError):
                smtp.login("alice", "wrong")
            smtp.user, smtp.password = "alice", ALICE.password
            assert smtp.auth(mechanism, getattr(smtp, f"auth_{mechanism.lower()}"))[0] == 235
            for number in range(2):
                smtp.sendmail(ALICE.address, [BOB.address], letter(BOB.address, f"{name} {number}"))
        for number in range(2):
            mail.arrives("bob", f"Subject: {name} {number}")
    wait_for(lambda: mail.servers["mx1"].served("alice")[-1].client == "127.0.0.9", "the address in the log")
    assert not any(one.protocol == "submission" for one in mail.servers["mx2"].served("alice"))


def test_submission_by_token(mail: Mail) -> None:
    with Smtp(mail.target(mail.out)) as smtp:
        smtp.ehlo()
        response = f"n,a=alice,\1auth=Bearer {token('alice')}\1\1"
        assert smtp.auth("OAUTHBEARER", lambda challenge=None: response)[0] == 235  # type: ignore[arg-type]
        smtp.sendmail(ALICE.address, [BOB.address], letter(BOB.address, "by token"))
    mail.arrives("bob", "Subject: by token")


def test_submission_wants_tls(mail: Mail) -> None:
    with Smtp(mail.target(mail.out, tls=False)) as smtp:
        smtp.ehlo()
        assert "auth" not in smtp.esmtp_features
        assert smtp.docmd("AUTH PLAIN AGEAYg==")[0] == 538


def test_what_all_servers_can_do_is_offered(mail: Mail) -> None:
    """Checks have found it out, so that no mail has to go first."""

    def offered(port: int = 0) -> set[str]:
        with contextlib.closing(Smtp(mail.target(port))) as smtp:
            smtp.ehlo()
            return set(smtp.esmtp_features)

    wait_for(
        lambda: all("chunking" in offered(mail.quiet) for _ in range(8)), "what the servers offer, in both workers"
    )
    assert {"size", "8bitmime", "smtputf8", "dsn", "pipelining"} <= offered(mail.quiet)
    assert {"xclient", "vrfy", "etrn"}.isdisjoint(offered(mail.quiet))


def test_a_kick_ends_a_delivery_and_stores_nothing_of_it(mail: Mail) -> None:
    for person, recipients in ((ALICE, [ALICE.address]), (CAROL, [BOB.address, CAROL.address])):
        with contextlib.closing(Smtp(mail.target())) as smtp:
            smtp.ehlo()
            smtp.mail(X)
            assert [smtp.rcpt(one)[0] for one in recipients] == [250] * len(recipients)
            assert smtp.docmd("DATA")[0] == 354
            smtp.send(b"Subject: kicked\r\n\r\n")
            rows = json.loads(l7lb(mail.node, "sessions", "--mailbox", person.address, "--json"))
            assert "smtp" in {row["protocol"] for row in rows} or person is CAROL
            l7lb(mail.node, "kick", person.address)
            with contextlib.suppress(smtplib.SMTPServerDisconnected, OSError):
                smtp.send(b"body\r\n.\r\n")
                assert smtp.getreply()[0] in (421, 451)
        with Smtp(mail.target()) as smtp:
            assert smtp.sendmail(X, [person.address], letter(person.address, f"after {person.name}")) == {}
        mail.arrives(person.name, f"Subject: after {person.name}")
        assert not [text for text in mail.site.stored(person.name) if b"Subject: kicked" in text]


def test_swaks(mail: Mail) -> None:
    if find("swaks") is None:
        pytest.skip("swaks is not installed")
    command = ["swaks", "--server", "127.0.0.1", "--pipeline", "--from", ALICE.address, "--to", BOB.address]
    for name, more in {
        "swaks mx": ["--port", str(mail.node.port), "--tls"],
        "swaks out": ["--port", str(mail.out), "--tls", "--auth", "PLAIN", "--auth-user", "alice", "--auth-password", ALICE.password],
        "swaks lmtp": ["--port", str(mail.lmtp), "--protocol", "LMTP"],
    }.items():  # fmt: skip
        done = subprocess.run([*command, *more, "--h-Subject", name], capture_output=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        mail.arrives("bob", f"Subject: {name}")


def test_curl(mail: Mail, tmp_path: Path) -> None:
    (tmp_path / "letter").write_bytes(letter(BOB.address, "by curl"))
    command = ["curl", "-sS", "--ssl-reqd", "--cacert", str(mail.folder / "node.pem"), "-u", f"alice:{ALICE.password}"]
    command += [f"smtp://127.0.0.1:{mail.out}", "--mail-from", ALICE.address, "--mail-rcpt", BOB.address]
    done = subprocess.run([*command, "-T", str(tmp_path / "letter")], capture_output=True, timeout=60)
    assert (done.stderr, done.returncode) == (b"", 0)
    mail.arrives("bob", "Subject: by curl")


def test_a_server_that_is_gone_is_a_temporary_error(mail: Mail) -> None:
    with Smtp(mail.target()) as smtp, contextlib.closing(Lmtp(mail.target(mail.lmtp, tls=False))) as lmtp:
        smtp.ehlo()
        smtp.mail(X)
        assert smtp.rcpt(BOB.address)[0] == 250
        assert smtp.docmd("DATA")[0] == 354
        smtp.send(b"Subject: lost\r\n\r\n")
        mail.servers["mx2"].kill()
        try:
            smtp.send(b"body\r\n.\r\n")
            assert smtp.getreply()[0] == 451
            with pytest.raises(smtplib.SMTPRecipientsRefused, match="451"):
                smtp.sendmail(X, [BOB.address], letter(BOB.address, "lost"))
            smtp.sendmail(X, [ALICE.address], letter(ALICE.address, "not lost"))
            lmtp.ehlo()
            answers = lmtp.deliver(X, [ALICE.address, BOB.address], letter(BOB.address, "half"))
            assert [code for code, _ in answers] == [250, 451]
        finally:
            mail.servers["mx2"].start()
            mail.servers["mx2"].until_listening()
    mail.arrives("alice", "Subject: not lost")
    mail.arrives("alice", "Subject: half")
    assert not [text for text in mail.site.stored("bob") if b"Subject: lost" in text]
