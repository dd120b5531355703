"""A mail cluster on this machine: a node with a configuration, and for every server that it names a Dovecot with a
Postfix on one shared mail store, with a slapd for every LDAP server.

The configuration is the operator's own; only its ports are others. The files that it names (``certs/mail.pem``,
``certs/ca.pem``, ``secrets/ldap``, ``users.txt``) are made next to it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from l7lb.config import load
from l7lb.core.snapshot import LdapSource
from l7lb.demo import secure
from l7lb.demo.cluster import Cluster, Unexpected, wait_for
from l7lb.demo.mailconf import READER_PASSWORD, VIP_DOMAIN, Person
from l7lb.demo.mailservers import MailServer, Site, Slapd

HOST = "mail.example.com"  # the name that the listeners' certificate is for
PEOPLE = (
    Person("alice", "alice's secret", "mx1", ("al@example.com", "alice.liddell@example.com")),
    Person("bob", "bob's secret", "mx2"),
    *(
        Person(name, f"{name}'s secret")
        for name in ("carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy")
    ),
    Person("lost", "lost's secret", "mx9"),  # LDAP names a server that there isn't
    Person("twin1", "twin's secret", "", ("twin@example.com",)),
    Person("twin2", "twin's secret", "", ("twin@example.com",)),  # an address of two entries
    Person("oldie", "oldie's secret", listed=False),  # in the file alone
    Person("vera", "vera's secret", domain=VIP_DOMAIN, listed=False),
)


def prepare(directory: Path) -> None:
    """Make the files that a mail cluster's configuration names; those of the servers are ``servers.pem`` and
    ``servers.key``.
    """
    certs = directory / "certs"
    (directory / "secrets").mkdir(parents=True, exist_ok=True)
    certs.mkdir(exist_ok=True)
    secure.make_certificate(certs, "mail", [HOST, "localhost", "127.0.0.1"])
    secure.make_certificate(certs, "servers", ["127.0.0.1"])
    shutil.copy(certs / "servers.pem", certs / "ca.pem")  # it is its own authority
    secret = directory / "secrets" / "ldap"
    secret.touch(mode=0o600)
    secret.write_text(f"{READER_PASSWORD}\n")
    (directory / "users.txt").write_text("# address            server\noldie@example.com    mx2\n")


class MailCluster(Cluster):
    """The processes; ``mail`` are the servers by their names, ``ldap`` the directories in their order."""

    def __init__(self, text: str, directory: Path, keep_ports: bool = False, people: Iterable[Person] = PEOPLE) -> None:
        prepare(directory)
        super().__init__(text, directory, keep_ports)
        self.deaths: list[tuple[str, int]] = []  # the servers that were killed, and when
        certs = directory / "certs"
        snapshot = load(self.config).snapshot
        self.people = {one.name: one for one in people}
        self.site = Site(
            self.people.values(),
            self.listeners["lmtp"],
            (certs / "servers.pem").read_bytes(),
            (certs / "servers.key").read_bytes(),
        )
        try:
            self.mail = {
                server.name: MailServer(self.site, server.name, server.ports, trusting=server.tls is None)
                for pool in snapshot.pools
                for server in pool.servers
                if "imap4" in server.ports
            }
            urls = [
                url for one in snapshot.directories if isinstance(one.source, LdapSource) for url in one.source.urls
            ]
            self.ldap = [
                Slapd(self.site, f"ldap{number}", int(url.rpartition(":")[2])) for number, url in enumerate(urls, 1)
            ]
        except BaseException:
            self.site.close()
            raise

    def start(self) -> None:
        """Start everything, and wait until it answers. Raises Unexpected."""
        self.start_servers()
        self.start_node()
        self.until_ready()

    def start_servers(self) -> None:
        """Start the directories and the mail servers, and wait until they answer. Raises Unexpected."""
        for one in self._all():
            one.start()
        for one in self._all():
            one.until_listening()

    def _all(self) -> list[MailServer | Slapd]:
        return [*self.ldap, *self.mail.values()]

    def until_ready(self) -> None:
        """Wait until the node serves, and has found its servers healthy. Raises Unexpected."""
        wait_for(self.serving, "l7lb to serve")
        for row in self.rows():
            wait_for(lambda: self.state(row["pool"], row["name"]) == "up", f"{row['name']} to be up")  # noqa: B023

    def start_server(self, name: str) -> None:
        """Start a server."""
        self.mail[name].start()

    def until_listening(self, name: str) -> None:
        """Wait until that server answers. Raises Unexpected."""
        self.mail[name].until_listening()

    def kill(self, name: str) -> int:
        """Kill a server with -9; returns the number of its Dovecot's process."""
        number = self.mail[name].kill()
        self.deaths.append((name, int(time.time())))
        return number

    def kill_dovecot(self, name: str) -> None:
        """Kill a server's Dovecot with -9, and start it again at once; its Postfix lives on."""
        self.mail[name].kill_dovecot()
        self.deaths.append((name, int(time.time())))

    def until_delivered(self, seconds: float = 60.0) -> None:
        """Wait until the Postfixes have delivered all that they have answered for. Raises Unexpected."""
        flushed = 0.0

        def delivered() -> bool:
            nonlocal flushed
            waiting = [server for server in self.mail.values() if server.queued()]
            if time.monotonic() > flushed + 2.0:
                flushed = time.monotonic()
                for server in waiting:
                    server.flush()
            return not waiting

        wait_for(delivered, "the Postfixes to deliver what they have queued", seconds)

    def overlaps(self) -> list[str]:
        """Where two servers had one mailbox at the same time, by their own logs, in words; it must be empty.

        The logs count whole seconds: what overlaps by less is not seen.
        """
        found = []
        for person in self.people:
            spans = [span for name in self.mail for span in self._spans(name, person)]
            spans.sort()
            for number, (begin, end, name, what) in enumerate(spans):
                for later, _, other, another in spans[number + 1 :]:
                    if later >= end:
                        break
                    if other != name and later > begin:
                        found.append(
                            f"{person}: {what} on {name} from {begin} to {end}, {another} on {other} at {later}"
                        )
        return found

    def _spans(self, name: str, person: str) -> Iterator[tuple[int, int, str, str]]:
        """When that server had the mailbox, as from, to, its name, and what it was."""
        server, now = self.mail[name], int(time.time())
        for one in server.served(person):
            death = min((at for dead, at in self.deaths if dead == name and at >= one.begin), default=now)
            yield one.begin, min(one.end if one.end is not None else now, death), name, one.protocol
        for delivery in server.delivered(person):
            yield delivery.at, delivery.at, name, "a delivery"

    def stored(self, message_ids: Iterable[str]) -> dict[str, list[str]]:
        """In whose stores each of these messages is, as often as it is there."""
        found: dict[str, list[str]] = {each: [] for each in message_ids}
        for person in self.people:
            for each in self.site.message_ids(person):
                if each in found:
                    found[each].append(person)
        return found

    def in_doubt(self) -> set[str]:
        """The Message-IDs that may be stored twice, because a server died with the answer."""
        return {each for server in self.mail.values() for each in server.in_doubt()}

    def close(self) -> None:
        """End everything, whatever it takes."""
        try:
            super().close()
        finally:
            for one in self._all():
                one.ask_to_end()
            for one in self._all():
                one.terminate()
            self.site.close()


__all__ = ["HOST", "PEOPLE", "MailCluster", "Unexpected", "prepare"]
