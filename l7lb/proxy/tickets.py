"""What a request is while it looks for a server: its ticket, and its pool as this worker serves it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from mypy_extensions import mypyc_attr

from l7lb.core.contracts import Assignment, Balancer, Choice, Stickiness
from l7lb.core.facts import Facts
from l7lb.core.servers import PoolState, ServerState
from l7lb.core.snapshot import MailboxKey

if TYPE_CHECKING:
    from l7lb.proxy.connection import Connection
    from l7lb.proxy.mailboxes import Placing
    from l7lb.proxy.upstream import ServerConnection

NEW: Final = 0
QUEUED: Final = 1
CONNECTING: Final = 2
HELD: Final = 3
DONE: Final = 4
SECURING: Final = 5  # held, while the handshake that its session asked for goes on
CLAIMING: Final = 6  # its mailbox is looked up and claimed: it has no server yet


class PoolRuntime:
    """A pool with what serves it in this worker."""

    __slots__ = ("balancer", "expire", "limited", "partial", "queue", "state", "stickiness")

    def __init__(self, state: PoolState, balancer: Balancer, stickiness: Stickiness | None) -> None:
        self.state = state
        self.balancer = balancer
        self.stickiness = stickiness
        self.limited = [server for server in state.servers if server.config.max_connections]
        self.queue: deque[Ticket] = deque()
        # The seconds that a mailbox's pin outlives its sessions; negative: this pool pins none.
        self.expire = next((key.expire for key in state.config.persistence if isinstance(key, MailboxKey)), -1.0)
        self.judged()

    def judged(self) -> None:
        """The servers' health has changed: note those that are down for some protocols and not for others."""
        self.partial = [server for server in self.state.servers if server.down]

    def unfit(self, facts: Facts, tried: list[ServerState]) -> list[ServerState]:
        """Those that were tried, and those that are down for the facts' protocol."""
        if not self.partial:
            return tried
        protocol = facts.protocol
        return [*tried, *(server for server in self.partial if protocol in server.down and server not in tried)]


@mypyc_attr(free_list_len=1)
class Ticket(Assignment):
    """One request on its way to a server. ``deadline`` is for the phase it is in."""

    __slots__ = (
        "began",
        "careful",
        "claim",
        "connection",
        "deadline",
        "facts",
        "fresh",
        "phase",
        "pinned",
        "runtime",
        "tried",
        "upstream",
    )

    def __init__(
        self,
        connection: Connection,
        facts: Facts,
        choice: Choice,
        runtime: PoolRuntime,
        server: ServerState,
        now: float,
    ) -> None:
        super().__init__(choice, runtime.state, server)
        self.connection = connection
        self.facts = facts
        self.runtime = runtime
        self.tried: list[ServerState] = []
        self.upstream: ServerConnection | None = None
        self.phase = NEW
        self.claim: Placing | None = None  # of a mailbox
        self.began = now
        self.deadline = 0.0
        self.fresh = False  # take no kept connection, whichever server it comes to
        self.careful = False  # look at a kept connection before it is used
        self.pinned = False  # queued for exactly this server
