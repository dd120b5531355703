"""The story that `l7lb demo mail` and examples/mail tell: every protocol of one mailbox meets on one server, whatever
happens. Each step does something real, shows what came of it, and checks it.
"""

from __future__ import annotations

import imaplib
import json
import poplib
import smtplib
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from l7lb.control import tables
from l7lb.core.errors import L7lbError
from l7lb.demo import mailservers
from l7lb.demo.cluster import Unexpected, expect, wait_for
from l7lb.demo.mailclients import Imap, Lmtp, Pop, Sieve, SieveError, Smtp, Target, message, quietly
from l7lb.demo.mailcluster import MailCluster
from l7lb.demo.mailflow import Flow, Reader
from l7lb.demo.screen import Screen
from l7lb.demo.showing import perform

READERS = ("alice", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan")
RECIPIENTS = tuple(f"{name}@example.com" for name in (*READERS, "bob", "judy"))
BATCH = 40  # messages that are waited for after each event
SENDER = "sender@elsewhere.example"
FAILURES = (Unexpected, L7lbError, OSError, EOFError, imaplib.IMAP4.error, poplib.error_proto, SieveError)


class MailStory:
    """The steps, in their order. The cluster has the pool ``mail``, whose servers alice (mx1) and bob (mx2) are bound
    to by the directory; others go by the hash of their mailbox.
    """

    def __init__(self, screen: Screen, cluster: MailCluster) -> None:
        self.screen = screen
        self.cluster = cluster
        self.flow = Flow(self.target("mx"), RECIPIENTS)
        self.readers = {name: Reader(self.target("imaps"), name, self.secret(name)) for name in READERS}

    def run(self) -> None:
        """All of it. Raises one of `FAILURES`."""
        self.places()
        self.one_mailbox()
        with ExitStack() as stack:
            stack.enter_context(self.flow)
            for reader in self.readers.values():
                stack.enter_context(reader)
            self.begin()
            self.move()
            self.death()
        self.nothing_lost()
        self.records()

    # --- helpers ----------------------------------------------------------------------------------------------------

    def target(self, listener: str) -> Target:
        """A listener as its clients see it."""
        file = self.cluster.directory / "certs" / "mail.pem" if listener != "lmtp" else None
        return Target(self.cluster.listeners[listener], file, implicit=listener == "imaps")

    def secret(self, person: str) -> str:
        """Somebody's password."""
        return self.cluster.people[person].password

    def sessions(self, mailbox: str) -> list[dict[str, Any]]:
        """What `l7lb sessions --mailbox` shows."""
        rows: list[dict[str, Any]] = self.cluster.admin.get("sessions", mailbox=mailbox)
        return rows

    def other(self, server: str) -> str:
        """Another server of the pool."""
        return next(name for name in sorted(self.cluster.mail) if name not in (server, "vip1"))

    def until_sent(self, count: int) -> None:
        """Wait until so many more messages got their 250."""
        goal = len(self.flow.accepted) + count
        wait_for(lambda: self.flow.refused or len(self.flow.accepted) >= goal, f"{count} more messages to be accepted")
        expect(not self.flow.refused, f"a message was refused for good: {self.flow.refused[:1]}")

    # --- the steps --------------------------------------------------------------------------------------------------

    def places(self) -> None:
        """Where mailboxes are."""
        screen = self.screen
        screen.section("Where a mailbox is, and why")
        for number, address in enumerate(("alice@example.com", "AL@Example.com", "bob+lists@example.com", "carol")):
            if number:
                screen.line()
            screen.line(screen.styled(f"  {address}", "1"))
            found: dict[str, Any] = self.cluster.admin.post("explain", protocol="imap4", address=address)
            if found["directory"]:
                screen.item(f"{', '.join(found['directories'])}: {found['directory']}", 4)
            screen.item(f"{found['outcome']}; {found['why']}", 4, "=> ")
            expected = {"alice@example.com": "mx1", "AL@Example.com": "mx1", "bob+lists@example.com": "mx2"}
            expect(
                expected.get(address, found["server"]) == found["server"] != "",
                f"{address} is said to be on {found['server']}",
            )

    def one_mailbox(self) -> None:
        """Six protocols, one server."""
        screen, secret = self.screen, self.secret("carol")
        screen.section("Six protocols of one mailbox, one server")
        with ExitStack() as stack:
            imap = Imap(self.target("imap"))
            stack.enter_context(quietly(imap))
            imap.login("carol", secret)
            server = imap.server()
            screen.good(f"IMAP with STARTTLS as carol: {server}")
            imaps = Imap(self.target("imaps"))
            stack.enter_context(quietly(imaps))
            imaps.login("Carol@Example.COM", secret)
            self.same(server, imaps.server(), "IMAP over TLS as Carol@Example.COM")
            sieve = Sieve(self.target("sieve"))
            stack.enter_context(quietly(sieve))
            sieve.login("carol", secret)
            self.same(server, sieve.server(), "ManageSieve as carol")
            submission = Smtp(self.target("submission"))
            stack.enter_context(quietly(submission))
            submission.login("carol@example.com", secret)
            pop = Pop(self.target("pop3"))
            stack.enter_context(quietly(pop))
            pop.user("carol")
            pop.pass_(secret)
            rows = self.sessions("carol")
            for protocol, what in (("pop3", "POP3 as carol"), ("submission", "submission as carol@example.com")):
                self.same(server, next(str(row["server"]) for row in rows if row["protocol"] == protocol), what)
            self.deliveries(server)
            screen.command("l7lb sessions --mailbox carol")
            screen.table(tables.sessions(rows))
        screen.line()

    def deliveries(self, server: str) -> None:
        """Messages by SMTP and LMTP."""
        by_smtp, by_lmtp = (message(SENDER, "carol@example.com", text) for text in ("by SMTP", "by LMTP"))
        with closing(Smtp(self.target("mx"))) as smtp:
            smtp.send_message(by_smtp)
        with closing(Lmtp(self.target("lmtp"))) as lmtp:
            answers = lmtp.deliver(SENDER, ["carol+folder@example.com"], by_lmtp.as_bytes())
            expect(answers[0][0] == 250, f"LMTP answered {answers}")
        for made, what in ((by_smtp, "SMTP to carol@"), (by_lmtp, "LMTP to carol+folder@")):
            message_id = str(made["Message-ID"])
            who = wait_for(lambda: self.delivered_by(message_id), f"the delivery of {message_id}")  # noqa: B023
            self.same(server, who, f"{what}example.com, delivered")

    def delivered_by(self, message_id: str) -> str:
        """The server that put a message into its store."""
        for name, server in self.cluster.mail.items():
            if any(one.message_id == message_id for one in server.delivered()):
                return name
        return ""

    def same(self, wanted: str, found: str, what: str) -> None:
        """It is the server that the others are on."""
        expect(found == wanted, f"{what}: {found or 'no server'}, while the mailbox is on {wanted}")
        self.screen.good(f"{what}: {found}")

    def begin(self) -> None:
        """Mail flows from here on."""
        screen = self.screen
        screen.section("Mail flows")
        self.until_sent(BATCH)
        for reader in self.readers.values():
            wait_for(lambda: reader.looks, f"{reader.user} to look into the mailbox")  # noqa: B023
        screen.good(
            f"three senders have sent {len(self.flow.accepted)} messages to {len(RECIPIENTS)} mailboxes, and go on"
        )
        where = ", ".join(f"{name} on {reader.servers[-1]}" for name, reader in self.readers.items())
        screen.good(f"open all the time: {where}")

    def move(self) -> None:
        """A mailbox moves."""
        screen, reader = self.screen, self.readers["carol"]
        before = reader.servers[-1]
        target = self.other(before)
        screen.section(f"carol moves to {target}")
        screen.command(f"l7lb move carol {target}")
        screen.item(str(self.cluster.admin.post("move", mailbox="carol", server=target)["done"]))
        wait_for(lambda: reader.servers[-1] == target, f"carol's reader to be on {target}")
        self.until_sent(BATCH)
        screen.good(f"her session on {before} was ended first; she logged in again and is on {target}")

    def death(self) -> None:
        """A server is killed while mail flows."""
        screen, cluster = self.screen, self.cluster
        victim = "mx2"
        screen.section(f"{victim} is killed while mail flows")
        before = {name: reader.servers[-1] for name, reader in self.readers.items()}
        screen.command(f"kill -9 {cluster.kill(victim)}")
        wait_for(lambda: cluster.state("mail", victim) == "down", f"{victim} to be seen as down")
        moved = [name for name, server in before.items() if server == victim]
        for name in moved:
            reader = self.readers[name]
            wait_for(lambda: reader.servers[-1] != victim, f"{name} to be on another server")  # noqa: B023
        self.until_sent(BATCH)
        screen.command("l7lb servers mail")
        screen.table(tables.servers(cluster.rows("mail")))
        screen.line()
        for name, server in before.items():
            expect(server == victim or self.readers[name].servers[-1] == server, f"{name} was moved too")
        screen.good(f"{', '.join(moved) or 'nobody'} went on at another server; nobody else was moved")
        screen.good(f"bob must be on {victim}, as the directory says: what is for him waits, with a 451 to its sender")
        cluster.start_server(victim)
        cluster.until_listening(victim)
        wait_for(lambda: cluster.state("mail", victim) == "up", f"{victim} to be up again")
        sent = sum(recipient == "bob@example.com" for recipient in self.flow.accepted.values())
        wait_for(
            lambda: sum(recipient == "bob@example.com" for recipient in list(self.flow.accepted.values())) > sent,
            "a message to bob to be accepted",
        )
        screen.good(f"{victim} was started again, and bob's mail goes there")

    def nothing_lost(self) -> None:
        """What was accepted is stored, once."""
        screen, cluster, flow = self.screen, self.cluster, self.flow
        screen.section("Nothing was lost, nothing doubled")
        cluster.until_delivered()
        expect(not flow.refused, f"refused for good: {flow.refused[:3]}")
        faults = [fault for reader in self.readers.values() for fault in reader.faults]
        expect(not faults, f"logins were refused for good: {faults[:3]}")
        stored = cluster.stored(flow.accepted)
        lost = [each for each, places in stored.items() if not places]
        expect(not lost, f"{len(lost)} messages were lost, such as {lost[:1]}")
        unsure = cluster.in_doubt()
        doubled = [each for each, places in stored.items() if len(places) > 1 and each not in unsure]
        expect(not doubled, f"{len(doubled)} messages were doubled, such as {doubled[:1]}")
        wrong = [each for each, places in stored.items() if set(places) != {flow.accepted[each].partition("@")[0]}]
        expect(not wrong, f"{len(wrong)} messages are in another store than their recipient's, such as {wrong[:1]}")
        screen.good(f"{len(flow.accepted)} messages got a 250: lost: 0, doubled: 0; tried again {flow.retries} times")
        overlaps = cluster.overlaps()
        expect(not overlaps, f"two servers had one mailbox: {overlaps[:1]}")
        count = sum(len(server.served()) + len(server.delivered()) for server in cluster.mail.values())
        screen.good(f"{count} sessions and deliveries in the servers' logs: no mailbox was on two servers at once")

    def records(self) -> None:
        """The access log."""
        screen = self.screen
        screen.section("What the operator sees of it")
        path = self.cluster.directory / "run" / "access.log"
        wait_for(lambda: path.exists() and b'"mailbox"' in path.read_bytes(), "the access log", 5.0)
        records = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
        screen.say(f"run/access.log has {len(records)} lines, one a session, such as this one:")
        screen.item(json.dumps(next(record for record in records if record.get("mailbox") == "carol")))


def introduce(screen: Screen, cluster: MailCluster) -> None:
    """Start everything, and say so. Raises Unexpected."""
    screen.section("A mail cluster starts")
    cluster.start_servers()
    for number, directory in enumerate(cluster.ldap, 1):
        screen.line(f"  ldap{number}  slapd at 127.0.0.1:{directory.port}: who has a mailbox, and where")
    for name, server in cluster.mail.items():
        ports = ", ".join(f"{protocol} {port}" for protocol, port in server.ports.items())
        screen.item(f"{name:6} Dovecot and Postfix, process {server.pid}: {ports}")
    screen.command("l7lb serve --config l7lb.yaml")
    cluster.start_node()
    cluster.until_ready()
    where = ", ".join(f"{name} {address}" for name, address in cluster.listeners.items())
    screen.item(f"serves {where}")


def end(screen: Screen, cluster: MailCluster) -> None:
    """The node drains and ends. Raises Unexpected."""
    code = cluster.end_node()
    expect(code == 0, f"l7lb ended with {code}: {cluster.last_lines()}")
    left = cluster.alive()
    expect(not left, f"processes are left: {left}")
    screen.good("SIGTERM: all of l7lb's processes have ended, exit code 0")


def run() -> int:
    """The demo; returns the exit code: 0, or 1 where something was not as it should be."""
    screen = Screen()
    if why := mailservers.missing():
        screen.line(f"left out: the mail cluster, for {why}")
        return 0

    def play(text: str, directory: Path) -> None:
        with closing(MailCluster(text, directory)) as cluster:
            introduce(screen, cluster)
            MailStory(screen, cluster).run()
            end(screen, cluster)

    return perform(screen, "mail", (*FAILURES, smtplib.SMTPException), play)
