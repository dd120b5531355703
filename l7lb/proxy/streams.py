"""A stream of a client's connection, as a connection of its own: with its own server, deadline and fate.

To the dispatcher and to servers a :class:`Stream` is what a :class:`Connection` is. What differs is where its bytes
go: it has no socket, and its session's answers wait in the connection's multiplexer until :meth:`Connection.deliver`
asks for them. A client that takes nothing on one stream holds back that stream's server and no
other; one that reads nothing at all holds back all.
"""

from __future__ import annotations

from l7lb.core.actions import CLIENT, Action, Close, Release, Side
from l7lb.core.contracts import Flow, Session
from l7lb.proxy.connection import GONE, OPEN, Connection
from l7lb.proxy.endpoint import HIGH_WATER, monotonic


class Stream(Connection):
    """One stream. ``parent`` is the connection that carries it."""

    __slots__ = ("flow", "number", "parent")

    def __init__(self, parent: Connection, number: int, session: Session, flow: Flow, now: float) -> None:
        super().__init__(parent.listener, parent.dispatcher, parent.sock, session, parent.peer, now)
        self.parent = parent
        self.number = number
        self.flow = flow
        assert parent.streams is not None
        parent.streams[number] = self

    @property
    def carrier(self) -> Connection:
        return self.parent

    def read_more(self, wanted: bool) -> None:
        self.reading = wanted  # the socket is the connection's

    def write_more(self, wanted: bool) -> None:
        self.writing = wanted

    def _blocked(self) -> tuple[Side | None, float]:
        if self.flow.waiting:
            return CLIENT, self.flow.progress
        return super()._blocked()

    def _rare(self, action: Action, now: float) -> list[Action] | None:
        if isinstance(action, Close):
            self.close()
            return None
        return super()._rare(action, now)

    def settle(self, now: float) -> None:
        parent = self.parent
        if self.phase == OPEN:
            upstream = self.upstream
            session, flow = self.session, self.flow
            flow.taking(session.wants_client and upstream is not None and not upstream.congested)
            if upstream is not None:
                wanted = session.wants_server and flow.waiting < HIGH_WATER and not parent.congested
                if wanted is not upstream.reading:
                    upstream.read_more(wanted)
            self._arm()
        if not parent.busy:
            parent.settle(now)

    def close(self, reset: bool = False) -> None:
        """The stream is over for the proxy; what it answered may still be on its way. ``reset``: by a fault of ours."""
        if self.phase == GONE:
            return
        self.phase = GONE
        parent = self.parent
        if reset and parent.mux is not None:
            parent.mux.failed_stream(self.number)
        if self.ticket is not None:
            self.dispatcher.release(self, Release(False), monotonic())
        for locating in self.locating:
            locating.end()
        self.listener.timers.disarm(self)
        if parent.streams is not None:
            parent.streams.pop(self.number, None)
        if reset and not parent.busy:
            parent.settle(monotonic())
