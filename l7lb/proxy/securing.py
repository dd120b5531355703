"""TLS in the middle of a client's connection, when its protocol asks for it; and the end that the node puts to one.

An :class:`Upgrade` is an opening whose one stage is the handshake, of a connection that has a session already. What the
session sent before must leave in the clear first, and until the handshake is done neither side is read. What the client
sent in the clear behind its request is either still in the session, which closes then, or in the socket, where it is no
handshake: it is never taken for something that came through TLS.

=========  ==========================================  =========================================================
state      waits for                                   leaves on
=========  ==========================================  =========================================================
flushing   the session's answer to leave               gone -> shaking; the deadline -> failed
shaking    the handshake's next step                   done -> the session is told, and the connection goes on
failed     nothing                                     the session ends as if the client had gone
=========  ==========================================  =========================================================
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from l7lb.core.actions import CLIENT, Action, Close, ToClient
from l7lb.proxy.connection import GONE, OPEN, OPENING, Connection
from l7lb.proxy.opening import Opening, OpeningFailed, StageMaker

if TYPE_CHECKING:
    from l7lb.core.contracts import Session


class Upgrade(Opening):
    """The handshake of a client that asked for TLS. It has the listener's ``timeouts: handshake``."""

    __slots__ = ("_makers",)

    def __init__(self, connection: Connection, now: float, maker: StageMaker) -> None:
        super().__init__(connection, now)
        self._makers = (maker,)

    def makers(self) -> tuple[StageMaker, ...]:
        return self._makers

    def begin(self) -> None:
        """Begin when all that was sent before has left."""
        connection = self.connection
        connection.phase = OPENING
        connection.opening = self
        connection.listener.opening(1)
        connection.read_more(False)
        if connection.upstream is not None:
            connection.upstream.read_more(False)
        connection.send_queued()
        if connection.opening is self:  # else it went away
            connection.listener.timers.disarm(connection)
            if connection.out is None:
                self.step()
            if connection.opening is self:
                connection.listener.timers.arm(connection, self._due())

    def flushed(self) -> None:
        self.step()

    def _finish(self) -> None:
        """Tell the session, and go on with what came behind the handshake."""
        self.stop()
        connection = self.connection
        now = monotonic()
        connection.phase = OPEN
        connection.run(connection.session.secured(now), now)
        if connection.phase == OPEN and not connection.reading and connection.session.wants_client:
            connection.on_readable()
            connection.settle(now)
        if self.patient:
            connection.drain(now, patient=True)

    def _fail(self, failure: OpeningFailed) -> None:
        connection = self.connection
        if self.heard or failure.reason != "closed":
            connection.listener.failures.count("tls", failure, connection)
        self.stop()
        tls, connection.tls = connection.tls, None
        if tls is not None:
            tls.dispose()  # nothing more can be said through it
        connection.phase = OPEN
        words: list[Action] = [ToClient(failure.answer)] if failure.answer else []
        now = monotonic()
        end = Close(linger=bool(failure.answer or failure.told))
        connection.run([*words, *silently(connection.session.ended(CLIENT, now, True)), end], now)


def silently(actions: list[Action]) -> list[Action]:
    """A session's last actions for a client that can't be told anything: without words, and without its close."""
    return [action for action in actions if not isinstance(action, (ToClient, Close))]


def dismiss(connection: Connection, why: str, now: float) -> None:
    """End a session by the node's will, with the protocol's goodbye where that can't be taken for something else."""
    if connection.phase == GONE:
        return
    opening = connection.opening
    if connection.phase != OPEN:
        if opening is None or not isinstance(opening, Upgrade):
            connection.close(reset=opening is None)  # it says its last word already, or has no session yet
            return
        opening.stop()
        connection.phase = OPEN
        _cut(connection, connection.session, why, now)
    elif connection.halt():
        connection.run([*connection.session.dismissed(why, now), Close()], now)
    else:
        _cut(connection, connection.session, why, now)


def _cut(connection: Connection, session: Session, why: str, now: float) -> None:
    connection.run([*silently(session.dismissed(why, now)), Close(abort=True)], now)
