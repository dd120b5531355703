"""Mail while servers die and mailboxes move: never two servers for one mailbox, nothing accepted is lost or doubled."""

from __future__ import annotations

import contextlib
import imaplib
import poplib
import random
import smtplib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from mail_site import Contract

from l7lb.demo import mailservers
from l7lb.demo.cluster import wait_for
from l7lb.demo.mailclients import SieveError
from l7lb.demo.mailflow import Flow, Reader

pytestmark = [
    pytest.mark.scenario,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(mailservers.missing()), reason=mailservers.missing()),
]
FREE = ("carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy")  # bound to no server
TROUBLE = (OSError, EOFError, imaplib.IMAP4.error, poplib.error_proto, smtplib.SMTPException, SieveError)


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Contract]:
    with contextlib.closing(Contract(tmp_path_factory.mktemp("faults"))) as made:
        made.start()
        yield made


def until(cluster: Contract, server: str, state: str) -> None:
    wait_for(lambda: cluster.state("mail", server) == state, f"{server} to be {state}")


def again(cluster: Contract, server: str) -> None:
    """Start it again, and wait until it is up."""
    cluster.start_server(server)
    cluster.until_listening(server)
    until(cluster, server, "up")


def check_store(cluster: Contract, flow: Flow) -> None:
    """What got a 250 is stored once, and in the right store."""
    assert flow.refused == []
    cluster.until_delivered()
    unsure = cluster.in_doubt()
    stored = cluster.stored(flow.accepted)
    assert [each for each, places in stored.items() if not places] == []
    assert [each for each, places in stored.items() if len(places) > 1 and each not in unsure] == []
    assert all(set(places) == {flow.accepted[each].partition("@")[0]} for each, places in stored.items())
    assert len(unsure) <= len(flow.accepted) // 4  # what this can't judge stays the exception


# --- fifty logins -------------------------------------------------------------------------------------------------


def test_fifty_logins_of_one_mailbox_while_its_server_dies(cluster: Contract) -> None:
    ways: list[Callable[[str], Any]] = [cluster.imap, cluster.pop, cluster.sieve, cluster.submission]
    kill, ending = threading.Event(), threading.Event()
    inside: list[str] = []
    faults: list[str] = []

    def client(way: Callable[[str], Any]) -> None:
        while not ending.is_set():
            try:
                with way("carol") as session:
                    inside.append(way.__name__)
                    while not ending.wait(0.05):
                        if way.__name__ == "pop":
                            session.noop()
                        elif way.__name__ == "sieve":
                            session.command("CAPABILITY")
                        else:
                            session.noop()
                        if kill.is_set() and ending.wait(0.3):
                            break
            except TROUBLE as error:
                if "uthentication" in str(error):
                    faults.append(str(error))
                time.sleep(0.1)

    with cluster.imap("carol") as first:
        server = first.server()
    threads = [threading.Thread(target=client, args=(ways[number % 4],)) for number in range(48)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: len(inside) >= 40, "most of them to be logged in")
        assert {row["server"] for row in cluster.sessions(mailbox="carol")} == {server}
        before = len(inside)
        cluster.kill(server)
        kill.set()
        wait_for(lambda: len(inside) >= before + 30, "them to be logged in again")
        assert {row["server"] for row in cluster.sessions(mailbox="carol")} == {cluster.other(server)}
    finally:
        ending.set()
        for thread in threads:
            thread.join()
    assert faults == []
    assert cluster.overlaps() == []
    assert {one.protocol for one in cluster.mail[cluster.other(server)].served("carol")} == {
        "imap4", "pop3", "managesieve", "submission",
    }  # fmt: skip


# --- an operator's words ------------------------------------------------------------------------------------------


def test_move_kick_and_drain_while_mail_flows(cluster: Contract) -> None:
    recipients = [f"{name}@example.com" for name in FREE]
    flow = Flow(cluster.target("mx"), recipients, senders=2)
    readers = {name: Reader(cluster.target("imaps"), name, cluster.secret(name)) for name in FREE[:4]}
    with ExitStack() as stack:
        stack.enter_context(flow)
        for reader in readers.values():
            stack.enter_context(reader)
        for reader in readers.values():
            wait_for(lambda: reader.looks, f"{reader.user} to log in")  # noqa: B023
        carol = readers["carol"]
        target = cluster.other(carol.servers[-1])
        cluster.command("move", "carol@example.com", target)
        wait_for(lambda: carol.servers[-1] == target, "carol to log in again")
        assert all(len(reader.servers) == 1 for name, reader in readers.items() if name != "carol")

        looks, dave = readers["dave"].looks, readers["dave"]
        cluster.command("kick", "dave")
        wait_for(lambda: len(dave.servers) == 2 and dave.looks > looks, "dave to log in again")
        assert len(set(dave.servers)) == 1

        cluster.command("drain", "mail/mx1", "--rate", "50/s")
        wait_for(lambda: not cluster.sessions(server="mx1"), "everybody to leave mx1")
        wait_for(lambda: {reader.servers[-1] for reader in readers.values()} == {"mx2"}, "everybody to be on mx2")
        cluster.command("undrain", "mail/mx1")
    assert [fault for reader in readers.values() for fault in reader.faults] == []
    check_store(cluster, flow)
    assert cluster.overlaps() == []


# --- nothing lost -------------------------------------------------------------------------------------------------


def random_deaths(cluster: Contract, seed: int, messages: int, deaths: int) -> None:
    """Mail flows to all mailboxes while servers are killed at random and come back."""
    chance = random.Random(seed)
    recipients = [f"{name}@example.com" for name in (*FREE, "alice", "bob")]
    flow = Flow(cluster.target("mx"), recipients, senders=4, pause=0.01)
    reader = Reader(cluster.target("imaps"), "carol", cluster.secret("carol"))
    with flow, reader:
        while len(flow.accepted) < messages or len(cluster.deaths) < deaths:
            victim = chance.choice(["mx1", "mx2"])
            time.sleep(chance.uniform(0.0, 1.0))
            if chance.random() < 0.5:
                cluster.kill_dovecot(victim)  # so short that no check need have seen it
                cluster.until_listening(victim)
            else:
                cluster.kill(victim)
                time.sleep(chance.uniform(0.0, 2.5))
                again(cluster, victim)
            assert flow.refused == []
    assert reader.faults == []
    check_store(cluster, flow)
    assert cluster.overlaps() == []


def test_what_got_a_250_is_stored_once_while_servers_are_killed(cluster: Contract) -> None:
    random_deaths(cluster, 4, 150, 4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(5))
def test_thousands_of_messages_while_servers_are_killed(cluster: Contract, seed: int) -> None:
    random_deaths(cluster, seed, 3000, 30)
