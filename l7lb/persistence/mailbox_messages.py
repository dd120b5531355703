"""What workers, operators and the state process tell one another about mailboxes; see :mod:`l7lb.persistence.messages`.

A worker that has joined says which sessions it has open, before anything else::

    worker                          state process
    Opened (some of them) ->
    Opened (last=True)      ->
    Claim                   ->
                            <-      Granted, Denied, or nothing while the mailbox moves
    Ended                   ->
    Refusals                ->      (of logins)
                            <-      Dismiss; Ended is the answer

A session's ``number`` is its worker's own. A claim that has been answered by Denied is no more; one that is said again
under the same number replaces the one before.
"""

from __future__ import annotations

import msgspec

MAILBOX_LIMIT = 512  # bytes of a mailbox's name
SESSIONS = 256  # in one message
MOVED = "the mailbox moves to another server"
KICKED = "an operator ended the session"


class Held(msgspec.Struct, array_like=True):
    """A session that a worker has open. ``expire`` is how long its pin outlives it; negative: it has none.

    ``per_mailbox`` and ``per_address`` are the limits that its claim named; 0: it does not count.
    """

    number: int
    pool: str
    mailbox: bytes
    server: str
    protocol: str
    address: str
    expire: float
    per_mailbox: int = 0
    per_address: int = 0


class Opened(msgspec.Struct, tag="opened"):
    """Sessions that a worker has had open before it joined; with the last of these messages it has told all."""

    sessions: list[Held]
    last: bool = False


class Claim(msgspec.Struct, tag="claim"):
    """A session asks for its mailbox. ``held.server`` is where it would go if the mailbox is on no server; empty:
    nowhere.

    ``fixed``: a directory says this server, so that a mailbox that is on another one moves. ``lost`` is a server that
    does not serve the session: ``down``, as the worker was told, so that the mailbox leaves it; else only this session
    could not connect, and the mailbox leaves it where nobody else has it open. ``failures`` of logins in ``window``
    seconds are free for the address (0: any number).
    """

    held: Held
    fixed: bool = False
    lost: str = ""
    down: bool = False
    failures: int = 0
    window: float = 60.0


class Granted(msgspec.Struct, tag="granted"):
    """The session has the mailbox on that server until it says Ended."""

    number: int
    server: str


class Denied(msgspec.Struct, tag="denied"):
    """The claim is refused: the label of a :class:`~l7lb.core.errors.Failure`, or empty where the mailbox stays on the
    server that is lost to this session.
    """

    number: int
    why: str


class Ended(msgspec.Struct, tag="ended"):
    """These sessions have ended, their servers' connections are closed; or their claims are given up."""

    numbers: list[int]


class Dismiss(msgspec.Struct, tag="dismiss"):
    """End these sessions and say so. ``moving``: their mailboxes move, so that whoever has no server's connection yet
    may claim again.
    """

    numbers: list[int]
    why: str
    moving: bool


class Refusal(msgspec.Struct, tag="refusal"):
    """A login from this address was refused; so many in so many seconds are free."""

    address: str
    failures: int
    window: float


class AskMailboxes(msgspec.Struct, tag="ask-mailboxes"):
    """Instead of Join: an operator's question, or change. ``what`` is one of

    find: the mailbox, and its sessions; with ``server`` alone the mailboxes with sessions there;
    kick: end its sessions; move: block it, end its sessions, and answer when all have ended;
    switch: what was moved is on ``server`` now (empty: on none, the next login decides); abort: it stays where it was;
    forget: those of ``server`` without a session are on none.

    An empty pool stands for all; ``wait`` is the seconds that the operator has for what comes between move and switch,
    ``expire`` how long the pin outlives the mailbox's sessions.
    """

    protocol: int
    what: str
    pool: str = ""
    mailboxes: list[bytes] = []  # names that it may have; the first that is known counts
    server: str = ""
    wait: float = 30.0
    expire: float = 900.0
    limit: int = 1000


class MailboxRow(msgspec.Struct):
    """One mailbox as an operator sees it; ``moving``: logins wait. ``fixed``: a directory named its server."""

    pool: str
    mailbox: bytes
    server: str
    sessions: int
    moving: bool
    fixed: bool


class ToldMailboxes(msgspec.Struct, tag="told-mailboxes"):
    """The answer; ``count`` sessions were ended, or mailboxes forgotten."""

    problem: str = ""
    rows: list[MailboxRow] = []
    count: int = 0


MailboxFromWorker = Opened | Claim | Ended | Refusal
MailboxToWorker = Granted | Denied | Dismiss
