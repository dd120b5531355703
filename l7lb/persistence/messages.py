"""What the node's state process and its workers tell one another about sticky tables and limits, over a unix stream
socket.

Each message is MessagePack behind its length in four bytes, big end first. The worker begins::

    worker                          state process
    Join                    ->
                            <-      Welcome, or Refused and the end
    Follow (for each table) ->
                            <-      Changes ..., then Taught when everything has been told once
    Changes                 ->
                            <-      Seen
    Leave                   ->

    Hold (for each limit)   ->
                            <-      Debts, what is known of its keys
    Spent                   ->
                            <-      Counted; and to all other workers the same Spent
    Debts (to a new state)  ->

                            <-      Mark, when an operator waits for a change
    Marked                  ->

An operator's command says Ask instead of Join, and gets Told. Of mailboxes :mod:`l7lb.persistence.mailbox_messages`
has the messages.

An *incarnation* is one life of the state process; sequence numbers mean something only in one incarnation. A worker
that joins the one it knew goes on where it was; one that meets a new incarnation teaches it all that it holds. Times
in changes are ticks of the monotonic clock, which all processes of a node share.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from l7lb.limits.registry import Spending
from l7lb.persistence.mailbox_messages import (
    AskMailboxes,
    MailboxFromWorker,
    MailboxToWorker,
    ToldMailboxes,
)
from l7lb.persistence.table import KEY_LIMIT, Delta

ALL_ENTRIES = b""  # instead of a key
PROTOCOL = 3  # grows when the messages change, so that versions don't talk past one another
LIMIT = 1 << 20  # bytes of one message
CHUNK = 128  # changes in one message: decoded and merged in half a millisecond
SPENDINGS = 256  # spendings or debts in one message
NAME_LIMIT = 1024  # bytes of a table's or server's name
ALL = -1  # instead of a sequence number: part of a teaching


class Join(msgspec.Struct, tag="join"):
    """A worker introduces itself: its number in versions, and the incarnation it knew (0: none)."""

    protocol: int
    origin: int
    incarnation: int


class Welcome(msgspec.Struct, tag="welcome"):
    """The state process answers."""

    protocol: int
    incarnation: int


class Refused(msgspec.Struct, tag="refused"):
    """The state process won't have this peer; the connection ends."""

    reason: str


class Follow(msgspec.Struct, tag="follow"):
    """The worker holds this table and wants what changes after ``position``, or all of it (``ALL``).

    Said again when ``ttl`` or ``size`` have changed; then ``position`` counts only where nothing is followed yet.
    """

    table: str
    ttl: float
    size: int
    position: int


class Leave(msgspec.Struct, tag="leave"):
    """The worker no longer holds this table."""

    table: str


class Changes(msgspec.Struct, tag="changes"):
    """Changes of a table up to the sender's sequence number ``reaches``, or some in a teaching (``ALL``)."""

    table: str
    reaches: int
    deltas: list[Delta]


class Taught(msgspec.Struct, tag="taught"):
    """The whole table has been told; what comes next changed after the sender's ``reaches``."""

    table: str
    reaches: int


class Seen(msgspec.Struct, tag="seen"):
    """The worker's changes have been merged up to its sequence number ``reaches``."""

    table: str
    reaches: int


class Hold(msgspec.Struct, tag="hold"):
    """The worker has this limit. Said again when it has changed."""

    limit: str
    rate: float
    burst: float
    size: int


class Spent(msgspec.Struct, tag="spent"):
    """What the process ``origin`` admitted since its last one: limits, keys and how many of each.

    Numbers count up by one in each origin. Amounts are added, so one that was heard before (a number that is not
    greater) is passed over; a column for each origin, and nobody overwrites another's.
    """

    origin: int
    number: int
    spendings: list[Spending]


class Counted(msgspec.Struct, tag="counted"):
    """The worker's spendings have been heard up to this number."""

    number: int


class Debts(msgspec.Struct, tag="debts"):
    """What keys of a limit owe now; the greater of what both sides know holds.

    To a worker: its spendings up to ``number`` are in them, those after that come on top.
    """

    limit: str
    debts: list[tuple[bytes, float]]
    number: int = 0


class Mark(msgspec.Struct, tag="mark"):
    """Say when everything that was sent before this has been merged."""

    number: int


class Marked(msgspec.Struct, tag="marked"):
    """Everything before that mark has been merged; and how often each table was hit here."""

    number: int
    hits: dict[str, int]


class Ask(msgspec.Struct, tag="ask"):
    """Instead of Join: an operator's question, or change. ``what`` is list, find, delete, pin or limits.

    An empty key or server stands for all of them; ``until`` is seconds of the wall clock, 0.0: for ever.
    """

    protocol: int
    what: str
    table: str = ""
    key: bytes = ALL_ENTRIES
    server: str = ""
    until: float = 0.0
    limit: int = 0


class TableRow(msgspec.Struct):
    """What a table is and holds; ``entries`` include deletions that are remembered."""

    name: str
    entries: int
    size: int
    expire: float
    pins: int
    hits: int
    evicted: int
    expired: int


class EntryRow(msgspec.Struct):
    """One entry: seconds since its last noted use, and until it expires; a pin does so ``until``, 0.0: never."""

    key: bytes
    server: str
    idle: float
    expires: float
    pinned: bool
    until: float


class DebtRow(msgspec.Struct):
    """What a key of a rate limit owes, in tokens."""

    limit: str
    key: bytes
    debt: float
    burst: float
    rate: float


class Told(msgspec.Struct, tag="told"):
    """The answer to Ask. ``late``: workers that have not confirmed a change in time."""

    problem: str = ""
    tables: list[TableRow] = []
    entries: list[EntryRow] = []
    debts: list[DebtRow] = []
    more: bool = False
    count: int = 0
    late: int = 0


FromWorker = (
    Join | Follow | Leave | Changes | Taught | Hold | Spent | Debts | Marked | Ask | MailboxFromWorker | AskMailboxes
)
FromState = (
    Welcome
    | Refused
    | Changes
    | Taught
    | Seen
    | Spent
    | Counted
    | Debts
    | Mark
    | Told
    | MailboxToWorker
    | ToldMailboxes
)

encoder = msgspec.msgpack.Encoder()
from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
from_state: msgspec.msgpack.Decoder[FromState] = msgspec.msgpack.Decoder(FromState)


class BadMessage(Exception):
    """The other side sent what no l7lb sends; the connection must end."""


def frame(message: FromWorker | FromState) -> bytes:
    """A message as it goes over the wire."""
    body = encoder.encode(message)
    if len(body) > LIMIT:
        raise ValueError(f"a message of {len(body)} bytes")
    return len(body).to_bytes(4, "big") + body


def chunks(deltas: list[Delta]) -> Iterator[list[Delta]]:
    """Changes in lists that fit into one message."""
    for start in range(0, len(deltas), CHUNK):
        yield deltas[start : start + CHUNK]


def check_changes(message: Changes) -> None:
    """Raises BadMessage where names or keys are out of bounds; an honest peer's never are."""
    if len(message.deltas) > CHUNK:
        raise BadMessage(f"{len(message.deltas)} changes in a message")
    for key, server, _, origin in message.deltas:
        if not 0 < len(key) <= KEY_LIMIT or len(server) > NAME_LIMIT or not 0 < origin < 1 << 32:
            raise BadMessage("a change with an impossible key, server's name or origin")


def check_spent(message: Spent) -> None:
    """Raises BadMessage where names, keys or amounts are out of bounds."""
    if len(message.spendings) > SPENDINGS:
        raise BadMessage(f"{len(message.spendings)} spendings in a message")
    for name, key, count in message.spendings:
        if not 0 < len(name) <= NAME_LIMIT or not 0 < len(key) <= KEY_LIMIT or not 0 < count < 1 << 32:
            raise BadMessage("a spending with an impossible limit, key or amount")


def check_debts(message: Debts) -> None:
    """Raises BadMessage where keys or amounts are out of bounds."""
    if len(message.debts) > SPENDINGS or not 0 < len(message.limit) <= NAME_LIMIT:
        raise BadMessage(f"{len(message.debts)} debts in a message, or of an impossible limit")
    for key, debt in message.debts:
        if not 0 < len(key) <= KEY_LIMIT or not 0.0 < debt < 1e12:
            raise BadMessage("a debt with an impossible key or amount")
