"""Which server each mailbox is on: claims of sessions, decided one after the other in the state process. Sans-io.

A mailbox with an open session is *pinned*: all its sessions, in every protocol and worker, are on one server. The pin
outlives the last session by ``expire``; then, and for a mailbox that nobody had open, the claim's own wish counts,
which comes from a hash that all workers share.

A mailbox changes servers in these steps, and no session is on the new server before the last one has left the old::

    state      leaves by                                              meanwhile claims
    settled    a claim that says its server is down, a directory's     are granted
               other word, an operator's move
    emptying   all sessions, which are dismissed, have ended          wait, ``WAIT`` seconds at most
    resting    ``REST`` seconds: the server finishes what it does      wait
    held       (an operator's move) the operator's switch or abort,    wait
               or the time that he named
    settled    on the new server                                       are granted in the order they came

Where sessions don't end in time the move is given up, and the mailbox stays: what it never is, is on two servers.
A worker that has gone with its process has no sessions any more; one that lost its connection here has them still, for
``ABSENT`` seconds, in which it comes back and says which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from itertools import count
from typing import Protocol

from l7lb.core.errors import Failure
from l7lb.persistence.mailbox_messages import (
    KICKED,
    MOVED,
    Claim,
    Denied,
    Dismiss,
    Granted,
    Held,
    MailboxRow,
    MailboxToWorker,
    Refusal,
)
from l7lb.persistence.penalty import Penalties

WAIT = 30.0  # seconds that a login waits for its mailbox
REST = 0.5  # seconds that a server gets after the last dismissed session's end
ABSENT = 30.0  # seconds until a worker that lost its connection but lives is given up

Key = tuple[str, bytes]  # pool and mailbox
Owner = tuple[int, int]  # a worker's number and its session's


class Pins(Protocol):
    """Where the pins of mailboxes without a session are remembered."""

    def get(self, pool: str, mailbox: bytes, now: float) -> str:
        """The server, empty where none is remembered."""
        ...

    def put(self, pool: str, mailbox: bytes, server: str, expire: float, now: float) -> None:
        """Remember it for so long."""
        ...

    def delete(self, pool: str, mailbox: bytes, now: float) -> None:
        """Forget it."""
        ...


class Move:
    """A mailbox on its way to ``target`` (empty: where the first that waits wants to go)."""

    __slots__ = ("dismissed", "held", "ready", "rest", "target", "until")

    def __init__(self, target: str, until: float) -> None:
        self.target = target
        self.until = until
        self.dismissed = False  # whether a session had to be ended
        self.rest = 0.0  # until when the old server rests; 0.0: sessions are still open
        self.held = False  # an operator says when it goes on
        self.ready: Callable[[bool], None] | None = None  # called once: all have ended, or the move is given up


class Mailbox:
    """One with sessions, or claims that wait, or on the move."""

    __slots__ = ("expire", "fixed", "key", "move", "server", "sessions", "waiting")

    def __init__(self, key: Key, server: str) -> None:
        self.key = key
        self.server = server  # of the pin; empty: it has none
        self.expire = -1.0  # seconds that the pin outlives the last session; negative: it has none
        self.fixed = False  # a directory named the server
        self.sessions: dict[Owner, Held] = {}
        self.waiting: dict[Owner, Claim] = {}
        self.move: Move | None = None


class Mailboxes:
    """See the module. ``send`` gets each message and the worker that it is for.

    It begins closed: claims wait until ``open``, so that workers can say first which sessions they have.
    """

    def __init__(self, pins: Pins, send: Callable[[int, MailboxToWorker], None]) -> None:
        self.penalties = Penalties()
        self._pins = pins
        self._send = send
        self._closed = True
        self._early: dict[Owner, Claim] = {}
        self._boxes: dict[Key, Mailbox] = {}
        self._owners: dict[Owner, Mailbox] = {}  # of sessions and of claims that wait for their mailbox
        self._delayed: dict[Owner, Claim] = {}  # of addresses with too many failures
        self._addresses: dict[str, int] = {}  # sessions and claims that count, by the client's address
        self._counted: dict[Owner, str] = {}
        self._workers: dict[int, set[Owner]] = {}
        self._absent: dict[int, float] = {}
        self._timers: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = count()

    # --- workers --------------------------------------------------------------------------------------------------

    def open(self, now: float) -> None:
        """All workers that there were have told what they have: grant what waits."""
        self._closed = False
        early, self._early = self._early, {}
        for (worker, _), claim in early.items():
            self.claim(worker, claim, now)

    def taught(self, worker: int, sessions: Iterable[Held], now: float) -> None:
        """A worker has joined, and has these sessions and no others; what it claimed before, it claims again."""
        self._absent.pop(worker, None)
        known = {held.number: held for held in sessions}
        self._drop([owner for owner in self._workers.get(worker, ()) if owner[1] not in known], now)
        for number, held in known.items():
            self._learn((worker, number), held, now)

    def _learn(self, owner: Owner, held: Held, now: float) -> None:
        """A worker has this session open."""
        box = self._box(held, now)
        old = box.sessions.get(owner)
        if old is None or old.server != held.server:
            self._drop([owner], now)
            box = self._box(held, now)
            if not box.sessions and box.move is None and held.expire >= 0.0:
                self._pin(box, held.server, now)  # what is open counts more than what is remembered
            self._add(box, owner, held)
        if held.expire >= 0.0 and held.server != (box.server if box.move is None else box.move.target):
            self._dismiss(box, {owner: held})  # it may not have heard

    def absent(self, worker: int, now: float) -> None:
        """Its connection is lost, but the process lives: it has its sessions still, and comes back or dies."""
        if worker in self._workers and worker not in self._absent:
            self._absent[worker] = now + ABSENT
            self._at(now + ABSENT, lambda later: self._give_up(worker, later))

    def gone(self, worker: int, now: float) -> None:
        """Its process has ended, and its sessions with it."""
        self._absent.pop(worker, None)
        self._drop(list(self._workers.get(worker, ())), now)

    def _give_up(self, worker: int, now: float) -> None:
        if self._absent.get(worker, now + 1.0) <= now:
            self.gone(worker, now)

    # --- sessions -------------------------------------------------------------------------------------------------

    def claim(self, worker: int, claim: Claim, now: float) -> None:
        """A session asks for its mailbox: Granted or Denied now, or later."""
        held = claim.held
        owner = worker, held.number
        self._drop([owner], now)
        if self._closed:
            self._early[owner] = claim
            self._join(owner)
            self._at(now + WAIT, lambda later: self._too_late(owner, claim, later))
            return
        if held.per_address and self._addresses.get(held.address, 0) >= held.per_address:
            self._deny(owner, Failure.SESSION_LIMIT)
            return
        self._count(owner, held)
        delay = self.penalties.delay(held.address, claim.failures, claim.window, now) if not claim.lost else 0.0
        if delay:
            self._delayed[owner] = claim
            self._at(now + delay, lambda later: self._enough(owner, claim, later))
            return
        self._place(owner, claim, now)

    def ended(self, worker: int, numbers: Iterable[int], now: float) -> None:
        """These sessions are over."""
        self._drop([(worker, number) for number in numbers], now)

    def refused(self, refusal: Refusal, now: float) -> None:
        """A server refused a login."""
        self.penalties.failed(refusal.address, refusal.failures, refusal.window, now)

    def _enough(self, owner: Owner, claim: Claim, now: float) -> None:
        if self._delayed.get(owner) is claim:
            del self._delayed[owner]
            self._place(owner, claim, now)

    def _place(self, owner: Owner, claim: Claim, now: float) -> None:
        """Grant, deny or keep a claim."""
        held = claim.held
        box = self._box(held, now)
        if held.per_mailbox and sum(1 for one in box.sessions.values() if one.per_mailbox) >= held.per_mailbox:
            self._deny(owner, Failure.SESSION_LIMIT)
            self._tidy(box, now)
        elif held.expire < 0.0:
            self._grant(box, owner, held)
        elif box.move is not None:
            self._wait(box, owner, claim, now)
        else:
            box.expire = held.expire
            self._decide(box, owner, claim, now)

    def _decide(self, box: Mailbox, owner: Owner, claim: Claim, now: float) -> None:
        """A claim of a pinned pool, and a mailbox that is not on the move."""
        wish = claim.held.server
        target = box.server
        if not target or claim.fixed:
            target = wish
        elif claim.lost == target:
            if not claim.down and box.sessions:
                self._deny(owner, None)
                return
            target = wish
        if not target:
            self._deny(owner, Failure.MAILBOX_SERVER if box.server else Failure.NO_SERVER)
            self._tidy(box, now)
            return
        if claim.fixed:
            box.fixed = True
        elif target != box.server:
            box.fixed = False
        if self._elsewhere(box, target):
            box.move = Move(target, now + WAIT)
            self._at(now + WAIT, lambda later: self._overdue(box, later))
            self._wait(box, owner, claim, now)
            self._empty(box)
            return
        if target != box.server:
            self._pin(box, target, now)
        claim.held.server = target
        self._grant(box, owner, claim.held)

    def _grant(self, box: Mailbox, owner: Owner, held: Held) -> None:
        self._add(box, owner, held)
        self._send(owner[0], Granted(held.number, held.server))

    def _deny(self, owner: Owner, failure: Failure | None) -> None:
        self._forget(owner)
        self._send(owner[0], Denied(owner[1], failure.label if failure is not None else ""))

    def _wait(self, box: Mailbox, owner: Owner, claim: Claim, now: float) -> None:
        box.waiting[owner] = claim
        self._owners[owner] = box
        self._join(owner)
        self._at(now + WAIT, lambda later: self._too_late(owner, claim, later))

    def _too_late(self, owner: Owner, claim: Claim, now: float) -> None:
        box = self._owners.get(owner)
        if self._early.get(owner) is claim or (box is not None and box.waiting.get(owner) is claim):
            self._drop([owner], now)
            self._deny(owner, Failure.MAILBOX_MOVING)

    # --- moves ----------------------------------------------------------------------------------------------------

    def move(self, key: Key, expire: float, wait: float, now: float, ready: Callable[[bool], None]) -> int:
        """An operator moves a mailbox: it is blocked, its sessions are dismissed, and ``ready`` is called with True
        when all have ended, or with False when they have not in time. Then ``switch`` or ``abort`` within ``wait``.

        Its pin will outlive its sessions by ``expire``. Returns how many sessions there are. Raises ValueError where
        it is being moved already.
        """
        box = self._boxes.get(key)
        if box is None:
            box = self._boxes[key] = Mailbox(key, self._pins.get(*key, now))
        if box.move is not None:
            raise ValueError("it is being moved already")
        box.expire = expire
        move = box.move = Move("", now + WAIT + wait)
        move.held = True
        move.ready = ready
        self._at(now + WAIT, lambda later: self._stuck(box, move, later))
        self._at(move.until, lambda later: self._overdue(box, later))
        sessions = len(box.sessions)
        self._empty(box)
        self._progress(box, now)
        return sessions

    def switch(self, key: Key, target: str, now: float) -> bool:
        """What was moved is on that server now; False where it is not on the move or has sessions."""
        box = self._boxes.get(key)
        if box is None or box.move is None or box.sessions:
            return False
        box.move.target = target
        box.fixed = False
        self._switch(box, now)
        return True

    def abort(self, key: Key, now: float) -> None:
        """A move is given up: the mailbox stays where it was."""
        box = self._boxes.get(key)
        if box is not None and box.move is not None:
            self._stay(box, now)

    def kick(self, key: Key) -> int:
        """End a mailbox's sessions; returns how many there are."""
        box = self._boxes.get(key)
        if box is None:
            return 0
        self._tell(box.sessions, KICKED, moving=False)
        return len(box.sessions)

    def _elsewhere(self, box: Mailbox, server: str) -> bool:
        """Whether a session is on another server."""
        return any(held.server != server for held in box.sessions.values())

    def _empty(self, box: Mailbox) -> None:
        assert box.move is not None
        sessions = {owner: held for owner, held in box.sessions.items() if held.server != box.move.target}
        if sessions:
            self._dismiss(box, sessions)

    def _dismiss(self, box: Mailbox, sessions: dict[Owner, Held]) -> None:
        if box.move is not None:
            box.move.dismissed = True
        self._tell(sessions, MOVED, moving=True)

    def _tell(self, sessions: dict[Owner, Held], why: str, moving: bool) -> None:
        by_worker: dict[int, list[int]] = {}
        for worker, number in sessions:
            by_worker.setdefault(worker, []).append(number)
        for worker, numbers in by_worker.items():
            self._send(worker, Dismiss(numbers, why, moving))

    def _progress(self, box: Mailbox, now: float) -> None:
        """A mailbox on the move may have lost its last session elsewhere, or had its rest."""
        move = box.move
        if move is None or self._elsewhere(box, move.target):
            return
        if not move.rest:
            move.rest = now + (REST if move.dismissed else 0.0)
            if move.rest > now:
                self._at(move.rest, lambda later: self._progress(box, later))
        if move.rest > now:
            return
        if not move.held:
            self._switch(box, now)
        elif move.ready is not None:
            ready, move.ready = move.ready, None
            ready(True)

    def _switch(self, box: Mailbox, now: float) -> None:
        move = box.move
        assert move is not None
        box.move = None
        self._pin(box, move.target, now)
        self._admit(box, now)

    def _stay(self, box: Mailbox, now: float) -> None:
        move = box.move
        assert move is not None
        box.move = None
        if move.ready is not None:
            move.ready(False)
        self._admit(box, now)

    def _admit(self, box: Mailbox, now: float) -> None:
        """Decide on all that waited, in their order. What one of them was told of its server's end is history now."""
        waiting, box.waiting = box.waiting, {}
        for owner in waiting:
            del self._owners[owner]
        for owner, claim in waiting.items():
            self._place(owner, claim, now)
        self._tidy(box, now)

    def _stuck(self, box: Mailbox, move: Move, now: float) -> None:
        if box.move is move and move.ready is not None:
            self._stay(box, now)

    def _overdue(self, box: Mailbox, now: float) -> None:
        if box.move is not None and box.move.until <= now:
            self._stay(box, now)

    # --- bookkeeping ----------------------------------------------------------------------------------------------

    def _box(self, held: Held, now: float) -> Mailbox:
        key = held.pool, held.mailbox
        box = self._boxes.get(key)
        if box is None:
            box = self._boxes[key] = Mailbox(key, self._pins.get(*key, now) if held.expire >= 0.0 else "")
        if held.expire >= 0.0:
            box.expire = held.expire
        return box

    def _pin(self, box: Mailbox, server: str, now: float) -> None:
        box.server = server
        if server and box.expire >= 0.0:
            self._pins.put(*box.key, server, box.expire, now)
        elif not server:
            self._pins.delete(*box.key, now)

    def _join(self, owner: Owner) -> None:
        self._workers.setdefault(owner[0], set()).add(owner)

    def _add(self, box: Mailbox, owner: Owner, held: Held) -> None:
        box.sessions[owner] = held
        self._owners[owner] = box
        self._join(owner)
        self._count(owner, held)

    def _count(self, owner: Owner, held: Held) -> None:
        self._join(owner)
        if held.per_address and owner not in self._counted:
            self._counted[owner] = held.address
            self._addresses[held.address] = self._addresses.get(held.address, 0) + 1

    def _forget(self, owner: Owner) -> None:
        """It has neither a session nor a claim any more."""
        address = self._counted.pop(owner, None)
        if address is not None:
            self._addresses[address] -= 1
            if not self._addresses[address]:
                del self._addresses[address]
        owners = self._workers.get(owner[0])
        if owners is not None:
            owners.discard(owner)
            if not owners:
                del self._workers[owner[0]]

    def _remove(self, owner: Owner, now: float) -> Mailbox | None:
        """Take a session or claim away, if there is one; returns its mailbox."""
        self._early.pop(owner, None)
        self._delayed.pop(owner, None)
        self._forget(owner)
        box = self._owners.pop(owner, None)
        if box is not None:
            box.waiting.pop(owner, None)
            if box.sessions.pop(owner, None) is not None and not box.sessions and box.server and box.expire >= 0.0:
                self._pins.put(*box.key, box.server, box.expire, now)
        return box

    def _drop(self, owners: Iterable[Owner], now: float) -> None:
        for owner in owners:
            box = self._remove(owner, now)
            if box is not None:
                self._progress(box, now)
                self._tidy(box, now)

    def _tidy(self, box: Mailbox, now: float) -> None:
        """A mailbox without sessions and claims is remembered by its pin alone."""
        if not box.sessions and not box.waiting and box.move is None and self._boxes.get(box.key) is box:
            del self._boxes[box.key]

    def _at(self, when: float, what: Callable[[float], None]) -> None:
        heappush(self._timers, (when, next(self._order), what))

    @property
    def next(self) -> float:
        """When ``tick`` has something to do; 0.0: not before something happens."""
        return self._timers[0][0] if self._timers else 0.0

    def tick(self, now: float) -> None:
        """Time has passed."""
        while self._timers and self._timers[0][0] <= now:
            heappop(self._timers)[2](now)

    # --- to see ---------------------------------------------------------------------------------------------------

    def row(self, key: Key, now: float) -> MailboxRow | None:
        """One mailbox, if it has sessions or a pin."""
        box = self._boxes.get(key)
        if box is not None:
            servers = {held.server for held in box.sessions.values()} or {box.server}
            return MailboxRow(*key, ", ".join(sorted(servers)), len(box.sessions), box.move is not None, box.fixed)
        server = self._pins.get(*key, now)
        return MailboxRow(*key, server, 0, False, False) if server else None

    def on_server(self, pool: str, server: str) -> Iterator[Key]:
        """The mailboxes with sessions that are pinned to a server and not on the move."""
        for key, box in self._boxes.items():
            if key[0] == pool and box.server == server and box.sessions and box.move is None:
                yield key

    def has(self, key: Key) -> bool:
        """Whether it has a session, a claim that waits, or is on the move."""
        return key in self._boxes

    def pools(self) -> set[str]:
        """The pools that have sessions."""
        return {key[0] for key in self._boxes}
