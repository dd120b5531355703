"""What a client's connection goes through before its session is made: a PROXY header, a TLS handshake.

A listener has the makers of its stages, in their order (none: then nothing of this is there, and a connection costs
what it cost). Each stage works on the raw socket and leaves what it found in the :class:`Peer`, or fails. When the last
is over the listener's factory makes the session for the peer that they found, and the connection begins.

=======  =================================================  ==================================================
stage    waits for                                          leaves on
=======  =================================================  ==================================================
begun    its first step, which is taken at once             DONE -> the next stage, or the session
READ     the socket to be readable                          readable -> a step
WRITE    the socket to be writable                          writable -> a step
failed   nothing                                            its last words are sent, the connection is closed
=======  =================================================  ==================================================

All stages together have the listener's ``timeouts: handshake``. Failures are counted by stage and reason, and at most
one line a second and listener tells of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, ClassVar, Final

from l7lb.core.actions import Action, Close, ToClient
from l7lb.core.contracts import Peer
from l7lb.proxy import counts as columns
from l7lb.proxy.connection import OPEN, OPENING, Connection

if TYPE_CHECKING:
    from l7lb.proxy.listener import ListenerState

DONE: Final = 0
READ: Final = 1
WRITE: Final = 2

LOG_SECONDS = 1.0

log = logging.getLogger("l7lb.opening")


class OpeningFailed(Exception):
    """A stage gives the connection up.

    ``reason`` is one of :data:`l7lb.proxy.counts.REASONS`, ``detail`` what an operator should read, ``answer`` the last
    words that the client gets, as they go over the socket. ``told``: the stage has sent its own last words, and what
    the client still sends must not make the kernel throw them away.
    """

    def __init__(self, reason: str, detail: str, answer: bytes = b"", told: bool = False) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.answer = answer
        self.told = told


class Stage:
    """One step of an opening; made anew for each connection."""

    __slots__ = ()

    name: ClassVar[str]  # one of l7lb.proxy.counts.STAGES

    def step(self, opening: Opening) -> int:
        """Go on as far as ``opening.sock`` allows without waiting (MSG_DONTWAIT: the socket itself is a blocking one).

        Returns DONE, or READ or WRITE for what it waits for, and is called again when that is there. It sets
        ``opening.heard`` once the client has said something. What was found goes into ``opening.peer``, what the
        connection needs later to ``opening.connection``. Raises OpeningFailed; an OSError stands for a client that
        went away.
        """
        raise NotImplementedError

    def patience(self) -> float:
        """How many seconds it waits for a silent client before :meth:`silent`; 0.0: as long as the opening may take."""
        return 0.0

    def silent(self, opening: Opening) -> int:
        """Its patience is over; returns and raises what :meth:`step` does."""
        raise NotImplementedError


# Makes a stage for a peer as the stages before have found it; None: it has none to go through.
StageMaker = Callable[[Peer], Stage | None]


class Opening:
    """One connection on its way through its listener's stages. Enters the event loop only when a stage must wait."""

    __slots__ = (
        "_entered", "_limit", "_next", "_reading", "_stage", "_writing", "connection", "deadline", "heard", "patient",
        "sock",
    )  # fmt: skip

    def __init__(self, connection: Connection, now: float) -> None:
        self.connection = connection
        self.sock = connection.sock
        self.deadline = now + connection.listener.config.handshake
        self.heard = False  # whether the stage has seen a byte: who leaves before that, as checks do, did no wrong
        self.patient = False  # this process is ending, but waits for who is here
        self._limit = 0.0  # of the stage's patience
        self._next = 0
        self._stage: Stage | None = None
        self._entered = False
        self._reading = False
        self._writing = False

    @property
    def peer(self) -> Peer:
        """The client as the stages so far have found it."""
        return self.connection.peer

    @peer.setter
    def peer(self, peer: Peer) -> None:
        self.connection.peer = peer

    def begin(self) -> None:
        """Most clients have sent something by now: the first steps are taken at once."""
        connection = self.connection
        connection.phase = OPENING
        connection.opening = self
        connection.listener.opening(1)
        self.step()
        if connection.opening is self:
            connection.listener.timers.arm(connection, self._due())

    def step(self) -> None:
        """Go on; called when the socket is ready."""
        self._run(silent=False)

    def flushed(self) -> None:
        """What was sent before has left; of concern where there was something."""

    def due(self, now: float) -> float:
        """A deadline may have come; returns the next, 0.0 where the opening is over."""
        if self.deadline <= now:
            self._fail(OpeningFailed("timeout", "it took too long"))
        elif self._limit and self._limit <= now:
            self._limit = 0.0
            self._run(silent=True)
        return self._due() if self.connection.opening is self else 0.0

    def stop(self) -> None:
        """It is over, one way or another: leave the event loop. The socket stays open."""
        connection = self.connection
        if connection.opening is self:
            self._wait(False, False)
            connection.opening = None
            connection.listener.opening(-1)
            connection.listener.timers.disarm(connection)

    def _due(self) -> float:
        return min(self.deadline, self._limit) if self._limit else self.deadline

    def _run(self, silent: bool) -> None:
        connection = self.connection
        try:
            while (stage := self._stage or self._following()) is not None:
                wanted = stage.silent(self) if silent else stage.step(self)
                silent = False
                if wanted != DONE:
                    self._wait(wanted == READ, wanted == WRITE)
                    return
                self._stage = None
                self._limit = 0.0
            self._finish()
        except OpeningFailed as failure:
            self._fail(failure)
        except OSError as problem:
            self._fail(OpeningFailed("closed", problem.strerror or "the client went away"))
        except Exception:
            log.exception("connection from %s ended by a fault while it was opened", connection.client)
            connection.close(reset=True)

    def makers(self) -> tuple[StageMaker, ...]:
        """What makes its stages, in their order."""
        return self.connection.listener.stages

    def _following(self) -> Stage | None:
        """The next stage that this peer has to go through."""
        makers = self.makers()
        while self._next < len(makers):
            stage = makers[self._next](self.peer)
            self._next += 1
            if stage is not None:
                self._stage = stage
                self.heard = False
                patience = stage.patience()
                self._limit = monotonic() + patience if patience else 0.0
                return stage
        return None

    def _wait(self, reading: bool, writing: bool) -> None:
        loop, fd = self.connection.loop, self.connection.fd
        if not self._entered and (reading or writing):
            self._entered = True
            loop.remove_reader(fd)  # see Endpoint._enter
        if reading is not self._reading:
            self._reading = reading
            if reading:
                loop.add_reader(fd, self.step)
            else:
                loop.remove_reader(fd)
        if writing is not self._writing:
            self._writing = writing
            if writing:
                loop.add_writer(fd, self.step)
            else:
                loop.remove_writer(fd)

    def _finish(self) -> None:
        """All stages are over: make the session for the peer that they found, and begin with it."""
        self.stop()
        connection = self.connection
        now = monotonic()
        listener = connection.listener
        if listener.config.proxy_protocol is not None and connection.dispatcher.refuses(listener, self.peer, now):
            connection.close()
            return
        connection.session = connection.listener.factory(self.peer, now)
        connection.phase = OPEN
        connection.open(now)
        if self.patient:
            connection.drain(now, patient=True)

    def _fail(self, failure: OpeningFailed) -> None:
        """Count it, and close, behind the last words if there are any."""
        assert self._stage is not None
        connection = self.connection
        if self.heard or failure.reason != "closed":
            connection.listener.failures.count(self._stage.name, failure, connection)
        self.stop()
        if failure.answer or failure.told:
            connection.phase = OPEN
            words: list[Action] = [ToClient(failure.answer)] if failure.answer else []
            connection.run([*words, Close(linger=True)], monotonic())
        else:
            connection.close()


class Failures:
    """A listener's openings that failed: counted, and told of once a second at most."""

    __slots__ = ("_last", "_listener", "_more", "_since", "_timer")

    def __init__(self, listener: ListenerState) -> None:
        self._listener = listener
        self._since = -LOG_SECONDS
        self._more = 0  # since the last line
        self._last = ""
        self._timer: asyncio.TimerHandle | None = None

    def count(self, stage: str, failure: OpeningFailed, connection: Connection) -> None:
        """One more."""
        listener = self._listener
        listener.cells[listener.row + columns.opening_failure(stage, failure.reason)] += 1
        self._last = f"{connection.client}: {stage} {failure.reason}: {failure.detail}"
        if self._timer is not None:
            self._more += 1
            return
        log.warning("listener %s refused %s", listener.name, self._last)
        self._timer = connection.loop.call_later(LOG_SECONDS, self._tell_more)

    def _tell_more(self) -> None:
        self._timer = None
        if self._more:
            text = "listener %s refused %s (and %d more within a second)"
            log.warning(text, self._listener.name, self._last, self._more - 1)
            self._more = 0
