"""Whatever happens to workers, connections and the state process, in whatever order: no mailbox is on two servers."""

from __future__ import annotations

import os
from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from test_mailboxes import Remembered

from l7lb.persistence.mailbox_messages import (
    Claim,
    Denied,
    Dismiss,
    Ended,
    Granted,
    Held,
    MailboxFromWorker,
    MailboxToWorker,
    Opened,
)
from l7lb.persistence.mailboxes import Mailboxes

WORKERS = (1, 2, 3)
SERVERS = ("a", "b", "c")
MAILBOXES = (b"anna", b"ben")


class FakeWorker:
    """A worker as it is: what it has open to servers, and the messages on the way to it and from it."""

    def __init__(self) -> None:
        self.open: dict[int, Held] = {}
        self.asked: dict[int, Claim] = {}
        self.dismissed: set[int] = set()
        self.connected = True
        self.inbox: deque[MailboxToWorker] = deque()
        self.outbox: deque[MailboxFromWorker] = deque()

    def say(self, message: MailboxFromWorker) -> None:
        if self.connected:
            self.outbox.append(message)

    def hear(self, message: MailboxToWorker) -> None:
        match message:
            case Granted():
                claim = self.asked.pop(message.number, None)
                if claim is None:
                    self.say(Ended([message.number]))
                else:
                    held = claim.held
                    self.open[message.number] = Held(
                        held.number, held.pool, held.mailbox, message.server, held.protocol, held.address, held.expire
                    )
            case Denied():
                self.asked.pop(message.number, None)
            case Dismiss():
                self.dismissed.update(set(message.numbers) & self.open.keys())

    def end(self, number: int) -> None:
        self.open.pop(number, None)
        self.asked.pop(number, None)
        self.dismissed.discard(number)
        self.say(Ended([number]))

    def cut(self) -> None:
        self.connected = False
        self.inbox.clear()
        self.outbox.clear()


class Cluster(RuleBasedStateMachine):
    """Workers that claim, and everything that can go wrong between them and the state process."""

    @initialize()
    def begin(self) -> None:
        self.now = 1000.0
        self.number = 0
        self.pins = Remembered()
        self.workers = {worker: FakeWorker() for worker in WORKERS}
        self.moved: list[tuple[str, bytes]] = []
        self.engine = self.new_engine()
        self.engine.open(self.now)
        self.untold: set[int] = set()

    def new_engine(self) -> Mailboxes:
        return Mailboxes(self.pins, self.send)

    def send(self, worker: int, message: MailboxToWorker) -> None:
        if worker in self.workers and self.workers[worker].connected:
            self.workers[worker].inbox.append(message)

    workers_ = st.sampled_from(WORKERS)
    mailboxes_ = st.sampled_from(MAILBOXES)
    servers_ = st.sampled_from(SERVERS)

    @rule(
        worker=workers_,
        mailbox=mailboxes_,
        server=st.sampled_from((*SERVERS, "")),
        fixed=st.booleans(),
        lost=st.sampled_from(("", "", "", *SERVERS)),
        down=st.booleans(),
        pinned=st.sampled_from((True, True, True, True)),
    )
    def login(self, worker: int, mailbox: bytes, server: str, fixed: bool, lost: str, down: bool, pinned: bool) -> None:
        if lost == server:
            return
        self.number += 1
        held = Held(self.number, "mail", mailbox, server, "imap4", "192.0.2.1", 900.0 if pinned else -1.0)
        claim = Claim(held, fixed=fixed and bool(server), lost=lost, down=down)
        self.workers[worker].asked[self.number] = claim
        self.workers[worker].say(claim)

    @rule(worker=workers_, server=servers_)
    def can_not_connect(self, worker: int, server: str) -> None:
        fake = self.workers[worker]
        for number, held in list(fake.open.items())[-1:]:
            if held.server == server or number in fake.dismissed:
                continue
            lost = fake.open.pop(number)  # its connection has failed: it has none to its server
            again = Held(number, lost.pool, lost.mailbox, server, lost.protocol, lost.address, lost.expire)
            fake.asked[number] = Claim(again, lost=lost.server)
            fake.say(fake.asked[number])

    @rule(worker=workers_)
    def logout(self, worker: int) -> None:
        fake = self.workers[worker]
        for number in list(fake.open)[:1]:
            fake.end(number)

    @rule(worker=workers_)
    def give_up(self, worker: int) -> None:
        fake = self.workers[worker]
        for number in list(fake.asked)[:1]:
            fake.end(number)

    @rule(worker=workers_)
    def say_goodbye(self, worker: int) -> None:
        fake = self.workers[worker]
        for number in list(fake.dismissed):
            fake.end(number)

    @rule(worker=workers_, count=st.integers(1, 5))
    def deliver(self, worker: int, count: int) -> None:
        fake = self.workers[worker]
        for _ in range(count):
            if fake.outbox:
                self.hear(worker, fake.outbox.popleft())
            if fake.inbox:
                fake.hear(fake.inbox.popleft())

    def hear(self, worker: int, message: MailboxFromWorker) -> None:
        match message:
            case Claim():
                # A copy, as from the wire.
                held = message.held
                again = Held(
                    held.number, held.pool, held.mailbox, held.server, held.protocol, held.address, held.expire
                )
                self.engine.claim(worker, Claim(again, message.fixed, message.lost, message.down), self.now)
            case Ended():
                self.engine.ended(worker, message.numbers, self.now)
            case Opened():
                self.engine.taught(worker, message.sessions, self.now)
                self.untold.discard(worker)
                self.open_if_all_told()

    def open_if_all_told(self) -> None:
        if not self.untold:
            self.engine.open(self.now)

    @rule(worker=workers_)
    def cut(self, worker: int) -> None:
        fake = self.workers[worker]
        if fake.connected:
            fake.cut()
            self.engine.absent(worker, self.now)

    def join(self, worker: int) -> None:
        fake = self.workers[worker]
        if not fake.connected:
            fake.connected = True
            fake.say(Opened(list(fake.open.values()), True))
            for claim in fake.asked.values():
                fake.say(claim)

    @rule(worker=workers_)
    def come_back(self, worker: int) -> None:
        self.join(worker)

    @rule(worker=workers_)
    def die(self, worker: int) -> None:
        self.workers[worker].cut()
        self.engine.gone(worker, self.now)
        self.untold.discard(worker)
        self.workers[worker] = FakeWorker()
        self.open_if_all_told()

    @rule(forgetful=st.booleans())
    def state_process_dies(self, forgetful: bool) -> None:
        for fake in self.workers.values():
            fake.cut()
        if forgetful:
            self.pins.pins.clear()
        self.moved.clear()
        self.untold = set(WORKERS)
        self.engine = self.new_engine()

    @rule(mailbox=mailboxes_)
    def move(self, mailbox: bytes) -> None:
        key = ("mail", mailbox)
        try:
            self.engine.move(key, 900.0, 10.0, self.now, lambda ready: self.moved.append(key) if ready else None)
        except ValueError:
            pass

    @precondition(lambda self: self.moved)
    @rule(server=st.sampled_from((*SERVERS, "")))
    def switch(self, server: str) -> None:
        self.engine.switch(self.moved.pop(), server, self.now)

    @rule(mailbox=mailboxes_)
    def abort(self, mailbox: bytes) -> None:
        self.engine.abort(("mail", mailbox), self.now)

    @rule(seconds=st.sampled_from((0.0, 0.6, 20.0)))
    def wait(self, seconds: float) -> None:
        for worker in WORKERS:  # nobody stays away for long
            if seconds > 1.0:
                self.join(worker)
        for _ in range(20 if seconds > 1.0 else 0):
            for worker in WORKERS:
                self.deliver(worker, 5)
        self.now += seconds
        self.engine.tick(self.now)

    @invariant()
    def one_server(self) -> None:
        if not hasattr(self, "workers"):
            return
        for mailbox in MAILBOXES:
            servers = {
                held.server for fake in self.workers.values() for held in fake.open.values() if held.mailbox == mailbox
            }
            assert len(servers) <= 1, f"{mailbox!r} is on {servers}"

    def teardown(self) -> None:
        if not hasattr(self, "workers"):
            return
        for _ in range(3):
            for worker in WORKERS:
                self.join(worker)
                for _ in range(200):
                    self.deliver(worker, 5)
                fake = self.workers[worker]
                for number in [*fake.open, *fake.asked]:
                    fake.end(number)
                for _ in range(200):
                    self.deliver(worker, 5)
            self.now += 60.0
            self.engine.tick(self.now)
        assert not self.engine.pools(), "nothing is left behind"


TestCluster = Cluster.TestCase
TestCluster.settings = settings(
    max_examples=int(os.environ.get("L7LB_EXAMPLES", "60")), stateful_step_count=60, deadline=None
)
