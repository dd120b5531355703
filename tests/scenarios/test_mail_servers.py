"""The real mail servers by themselves: what the scenarios of mail say of l7lb rests on this."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from l7lb.core.contracts import ProbeTls
from l7lb.core.snapshot import Address
from l7lb.demo import mailconf, mailservers, secure
from l7lb.demo.cluster import PORTS, is_free, wait_for
from l7lb.demo.mailclients import Imap, Lmtp, Pop, Sieve, SieveError, Smtp, Target, message
from l7lb.demo.mailcluster import PEOPLE
from l7lb.demo.mailservers import MAIL_PROTOCOLS, MailServer, Site, Slapd, token

pytestmark = [
    pytest.mark.scenario,
    pytest.mark.timeout(120),
    pytest.mark.skipif(bool(mailservers.missing()), reason=mailservers.missing()),
]
ALICE = PEOPLE[0]


class Alone:
    """One server, and one directory."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        secure.make_certificate(folder, "servers", ["127.0.0.1"])
        self.certificate = folder / "servers.pem"
        self.ports = dict(zip(MAIL_PROTOCOLS, ports, strict=False))
        deliver = f"127.0.0.1:{self.ports['lmtp']}"
        self.site = Site(PEOPLE, deliver, self.certificate.read_bytes(), (folder / "servers.key").read_bytes())
        self.server = MailServer(self.site, "mx1", self.ports)
        self.directory = Slapd(self.site, "ldap1", ports[-1])

    def target(self, protocol: str, tls: bool = False) -> Target:
        return Target(f"127.0.0.1:{self.ports[protocol]}", self.certificate if tls else None)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alone]:
    ports = [port for port in PORTS[::7] if is_free(port)][:7]
    made = Alone(tmp_path_factory.mktemp("alone"), ports)
    try:
        for one in (made.server, made.directory):
            one.start()
        for one in (made.server, made.directory):
            one.until_listening()
        yield made
    finally:
        made.server.terminate()
        made.directory.terminate()
        made.site.close()


@pytest.mark.parametrize("tls", [False, True])
def test_every_protocol_says_who_it_is(alone: Alone, tls: bool) -> None:
    with Imap(alone.target("imap4", tls)) as imap:
        imap.login("al@example.com", ALICE.password)
        assert imap.server() == "mx1"
    with contextlib.closing(Pop(alone.target("pop3", tls))) as pop:
        pop.user("alice")
        pop.pass_(ALICE.password)
        pop.quit()
    with Sieve(alone.target("managesieve", tls)) as sieve:
        sieve.login("alice@example.com", ALICE.password)
        assert sieve.server() == "mx1"
    with Smtp(alone.target("submission", tls)) as smtp:
        smtp.login("alice", ALICE.password)
        assert smtp.ehlo()[1].startswith(b"mx1.example.com")
    wait_for(lambda: {one.protocol for one in alone.server.served("alice") if one.end is not None}
             >= {"imap4", "pop3", "managesieve", "submission"}, "the sessions' ends in the log")  # fmt: skip


# Nobody logs in to relay or LMTP, and these servers' LMTP has no TLS.
CHECKS = [
    (protocol, mode, user)
    for protocol in MAIL_PROTOCOLS
    for mode in ("", "starttls", "auto")
    for user in ("", "alice")
    if not (user and protocol in ("smtp", "lmtp")) and not (mode and protocol == "lmtp")
]


@pytest.mark.parametrize(("protocol", "mode", "user"), CHECKS)
def test_their_health_checks_find_them_well(alone: Alone, protocol: str, mode: str, user: str) -> None:
    settings: dict[str, Any] = {"user": user, "password": ALICE.password} if user else {}
    if mode:
        context = ssl.create_default_context(cafile=str(alone.certificate))
        settings["tls"] = ProbeTls(context, "127.0.0.1", mode)
    name = "smtp" if protocol == "submission" else protocol
    probe = importlib.import_module(f"l7lb.protocols.{name}.probe").probe
    words = asyncio.run(probe(Address(host="127.0.0.1", port=alone.ports[protocol]), settings, 20.0))
    assert ("TLSv1.3" in words) is bool(mode)
    assert ("logged in" in words) is bool(user)


def test_tokens(alone: Alone) -> None:
    for mechanism, begin in (("XOAUTH2", "user=alice"), ("OAUTHBEARER", "n,a=alice,")):
        text = f"{begin}\1auth=Bearer {token('alice')}\1\1"
        with Imap(alone.target("imap4")) as imap:
            assert imap.authenticate(mechanism, lambda _, text=text: text.encode())[0] == "OK"
    with Imap(alone.target("imap4")) as imap, pytest.raises(imap.error):
        imap.authenticate("XOAUTH2", lambda _: f"user=alice\1auth=Bearer {token('alice', -60)}\1\1".encode())


def test_a_wrong_password(alone: Alone) -> None:
    with Sieve(alone.target("managesieve")) as sieve, pytest.raises(SieveError):
        sieve.login("alice", "wrong")


def test_what_is_sent_arrives(alone: Alone) -> None:
    first, second, third = (message("x@elsewhere.example", ALICE.address, str(number)) for number in range(3))
    with Smtp(alone.target("smtp")) as smtp:
        smtp.send_message(first, "x@elsewhere.example", ["alice.liddell@example.com", "vera@vip.example.com"])
    with Smtp(alone.target("submission")) as smtp:
        smtp.login("alice", ALICE.password)
        smtp.send_message(second, "alice@example.com", ["al@example.com"])
    with contextlib.closing(Lmtp(alone.target("lmtp"))) as lmtp:
        replies = lmtp.deliver(
            "x@elsewhere.example", ["al+box@example.com", "nobody@example.com", "vera"], third.as_bytes()
        )
        assert [code for code, _ in replies] == [250, 550, 250]
    wanted = sorted(str(one["Message-ID"]) for one in (first, second, third))
    wait_for(lambda: len(alone.site.message_ids("alice")) == 3, "three messages in the store")
    assert sorted(alone.site.message_ids("alice")) == wanted
    assert sorted(alone.site.message_ids("vera")) == sorted(str(one["Message-ID"]) for one in (first, third))
    wait_for(lambda: sorted(one.message_id for one in alone.server.delivered("alice")) == wanted, "the log")
    wait_for(lambda: alone.server.queued() == 0, "Postfix to have nothing left")


def test_the_directory(alone: Alone) -> None:
    command = ["ldapsearch", "-x", "-LLL", "-H", f"ldap://127.0.0.1:{alone.directory.port}", "-D", mailconf.READER]
    command += [
        "-w",
        mailconf.READER_PASSWORD,
        "-b",
        f"ou=people,{mailconf.SUFFIX}",
        "mailAlternateAddress=al@example.com",
    ]
    done = subprocess.run([*command, "uid", "mailHost"], capture_output=True, text=True, timeout=30)
    assert "uid: alice\nmailHost: mx1\n" in done.stdout, done.stderr


def test_a_server_that_was_killed_starts_again(alone: Alone) -> None:
    assert alone.server.kill()
    alone.server.start()
    alone.server.until_listening()
    with Imap(alone.target("imap4")) as imap:
        imap.login("alice", ALICE.password)
