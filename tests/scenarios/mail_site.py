"""The mail cluster of tests/config/mail.yaml with real servers, and clients that say where they were led."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scenario_node import l7lb_command

from l7lb.demo.cluster import wait_for
from l7lb.demo.mailclients import Imap, Lmtp, Pop, Sieve, Smtp, Target, quietly
from l7lb.demo.mailcluster import MailCluster
from l7lb.demo.mailservers import Served

FILE = Path(__file__).parents[1] / "config" / "mail.yaml"


class Contract(MailCluster):
    """The contract's file with free ports; listeners are ``imap imaps pop3 sieve submission mx lmtp``."""

    def __init__(self, folder: Path, text: str = "") -> None:
        super().__init__(text or FILE.read_text(), folder)

    def target(self, listener: str, source: str = "127.0.0.1", tls: bool = True) -> Target:
        """That listener, with TLS as it offers it."""
        certificate = self.directory / "certs" / "mail.pem" if tls and listener != "lmtp" else None
        return Target(self.listeners[listener], certificate, listener == "imaps", source)

    def secret(self, person: str) -> str:
        """Somebody's password."""
        return self.people[person].password

    # --- clients --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def imap(self, person: str, login: str = "", listener: str = "imap", source: str = "127.0.0.1") -> Iterator[Imap]:
        """A session of IMAP."""
        client = Imap(self.target(listener, source))
        with quietly(client):
            client.login(login or self.people[person].address, self.secret(person))
            yield client

    @contextlib.contextmanager
    def pop(self, person: str, login: str = "", source: str = "127.0.0.1") -> Iterator[Pop]:
        """A session of POP3."""
        client = Pop(self.target("pop3", source))
        with quietly(client):
            client.user(login or self.people[person].address)
            client.pass_(self.secret(person))
            yield client

    @contextlib.contextmanager
    def sieve(self, person: str, login: str = "", source: str = "127.0.0.1") -> Iterator[Sieve]:
        """A session of ManageSieve."""
        client = Sieve(self.target("sieve", source))
        with quietly(client):
            client.login(login or self.people[person].address, self.secret(person))
            yield client

    @contextlib.contextmanager
    def submission(self, person: str, login: str = "", source: str = "127.0.0.1") -> Iterator[Smtp]:
        """A session of submission."""
        client = Smtp(self.target("submission", source))
        with quietly(client):
            client.login(login or self.people[person].address, self.secret(person))
            yield client

    @contextlib.contextmanager
    def smtp(self, source: str = "127.0.0.1", tls: bool = True) -> Iterator[Smtp]:
        """A session of SMTP, as another mail server has it."""
        client = Smtp(self.target("mx", source, tls))
        with quietly(client):
            yield client

    @contextlib.contextmanager
    def lmtp(self) -> Iterator[Lmtp]:
        """A session of LMTP."""
        client = Lmtp(self.target("lmtp"))
        with quietly(client):
            yield client

    # --- what the servers say ---------------------------------------------------------------------------------------

    def logged(self, user: str, protocol: str, count: int = 1) -> list[tuple[str, Served]]:
        """The sessions of a user in a protocol with the names of their servers, once there are so many."""

        def found() -> list[tuple[str, Served]]:
            every = [(name, one) for name, server in self.mail.items() for one in server.served(user)]
            every = [(name, one) for name, one in every if one.protocol == protocol]
            return every if len(every) >= count else []

        rows: list[tuple[str, Served]] = wait_for(
            found, f"{count} logins of {user} by {protocol} in the servers' logs", 5
        )
        return rows

    def delivered_by(self, message_id: str) -> dict[str, list[str]]:
        """Which servers put that message into whose stores."""
        every = (
            (one.user, name)
            for name, server in self.mail.items()
            for one in server.delivered()
            if one.message_id == message_id
        )
        found: dict[str, list[str]] = {}
        for user, name in every:
            found.setdefault(user, []).append(name)
        return found

    def until_stored(self, message_id: str, people: set[str]) -> None:
        """Wait until that message is in these stores, and check that it is there once."""
        wait_for(
            lambda: people <= set(self.stored([message_id])[message_id]), f"{message_id} in the stores of {people}"
        )
        assert sorted(self.stored([message_id])[message_id]) == sorted(people)

    def command(self, *words: str) -> str:
        """What one of l7lb's commands prints."""
        return l7lb_command(*words, "--config", str(self.config))

    def sessions(self, **wanted: str) -> list[dict[str, Any]]:
        """What `l7lb sessions` shows, with these values."""
        rows: list[dict[str, Any]] = self.admin.get("sessions", limit=10_000)
        return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]

    def other(self, server: str) -> str:
        """The pool's other server."""
        return {"mx1": "mx2", "mx2": "mx1"}[server]

    def node_log(self) -> str:
        """What the node has logged, for failures that have to be explained."""
        return self.log.read_text(errors="replace")


def run(*command: str, timeout: float = 60.0, expected: int = 0) -> str:
    """What a real client prints."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout)
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout + done.stderr
