"""A client's connection: it reads, lets the session decide, and does what the session asks.

Everything that happens (bytes, ends, deadlines, a server that is there) becomes one call of the session, whose actions
:meth:`Connection.run` carries out; :meth:`settle` then brings read interest and deadline into line.
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Final

from l7lb.core.actions import (
    CLIENT,
    SERVER,
    Action,
    Close,
    Continue,
    Finished,
    Forget,
    Learn,
    LearnSessions,
    Locate,
    LoginFailed,
    Multiplex,
    NeedServer,
    OnStream,
    OpenStream,
    Refused,
    Release,
    Side,
    Splice,
    StartServerTls,
    StartTls,
    ToClient,
    ToServer,
    Tunnel,
)
from l7lb.core.contracts import Multiplexer, Peer, Session
from l7lb.core.proxy_protocol.writing import write
from l7lb.core.servers import ServerState
from l7lb.proxy.endpoint import DONT_WAIT, HIGH_WATER, Endpoint, monotonic
from l7lb.proxy.relay import Pump
from l7lb.proxy.timers import TICK

if TYPE_CHECKING:
    from l7lb.proxy.dispatch import Dispatcher
    from l7lb.proxy.listener import ListenerState
    from l7lb.proxy.mailboxes import Locating
    from l7lb.proxy.opening import Opening
    from l7lb.proxy.streams import Stream
    from l7lb.proxy.tickets import Ticket
    from l7lb.proxy.upstream import ServerConnection

READ_BYTES: Final = 16 * 1024
LINGER_SECONDS: Final = 2.0  # how long a client that still sends is listened to after its last answer
LINGER_BYTES: Final = 4 * 1024 * 1024
FLUSH_SECONDS: Final = 30.0  # how long the last answer may take to leave without progress
QUIET_SECONDS: Final = 1.0  # without a byte for the client, behind which a tunnel is taken to be between answers
KEPT: Final = 16  # connections without work to servers that were told who the client is
NONE_KEPT: Final[list[ServerConnection]] = []  # of the many who never have one
NONE_LOCATED: Final[list[Locating]] = []
ANY: Final = ("0.0.0.0", "::")  # what a socket is bound to that takes connections to every address

OPEN: Final = 0
FLUSHING: Final = 1
LINGERING: Final = 2
GONE: Final = 3
OPENING: Final = 4  # it has no session yet
RECEIVED: Final = 0
ENDED: Final = 1
MOVED: Final = 2
EXPIRED: Final = 3
DRAINING: Final = 4

log = logging.getLogger("l7lb.connection")


class Connection(Endpoint):
    """One client. ``ticket`` is its way to a server, ``upstream`` the server's connection while it has one."""

    __slots__ = (
        "busy", "discarded", "dispatcher", "kept", "linger", "listener", "locating", "mux", "opening", "peer", "phase",
        "postponed", "pumps", "session", "since", "streams", "ticket", "tunnel", "upstream",
    )  # fmt: skip

    def __init__(
        self,
        listener: ListenerState,
        dispatcher: Dispatcher,
        sock: socket.socket,
        session: Session | None,
        peer: Peer,
        now: float,
    ) -> None:
        super().__init__(dispatcher.loop, dispatcher.sender, sock)
        self.listener = listener
        self.dispatcher = dispatcher
        if session is not None:  # else it comes when the opening is over
            self.session = session
        self.opening: Opening | None = None
        self.peer = peer
        self.since = now
        self.ticket: Ticket | None = None
        self.upstream: ServerConnection | None = None
        self.kept: list[ServerConnection] = NONE_KEPT
        self.locating: list[Locating] = NONE_LOCATED  # mailboxes that it has or looks for, beside its ticket's
        self.mux: Multiplexer | None = None  # the session, where it carries streams
        self.streams: dict[int, Stream] | None = None  # and those, by their numbers
        self.busy = False  # with one of them: what it has to send leaves afterwards
        self.pumps: list[Pump] | None = None
        self.postponed: NeedServer | None = None  # a request that waits until the client has read its answers
        self.tunnel = False
        self.phase = OPEN
        self.linger = False
        self.discarded = 0

    @property
    def carrier(self) -> Connection:
        """The connection that this client's PROXY headers speak of."""
        return self

    @property
    def client(self) -> str:
        """The client's address as logs and tables show it."""
        host, port = self.peer.client, self.peer.client_port
        if host == "unix:":
            return host
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def open(self, now: float) -> None:
        """Begin. Most clients have sent their request by now: it is read at once, and a client that asks for one
        answer and no more never enters the event loop, which takes half of the system calls of a connection.
        """
        actions = self.session.start(now)
        if actions:
            self.run(actions, now)
        if self.phase == OPEN and not self.reading:
            self.on_readable()
            self.settle(now)

    # --- servers that were told who this client is ---------------------------------------------------------------

    def proxy_header(self, version: str) -> bytes:
        """What the connection of a server with ``send_proxy`` begins with. It serves this client alone from then on."""
        peer = self.peer
        if peer.local in ANY:
            try:
                name = self.sock.getsockname()
                peer.local = name[0].removeprefix("::ffff:")
            except OSError:
                pass  # the client is gone, which will be noticed soon
        return write(version, peer)

    def keep(self, upstream: ServerConnection) -> None:
        """Keep such a connection for this client's next request."""
        if self.kept is NONE_KEPT:
            self.kept = []
        self.kept.append(upstream)
        if self.phase == GONE:
            upstream.retire()
        elif len(self.kept) > KEPT:
            self.kept[0].retire()

    def take_kept(self, server: ServerState) -> list[object]:
        """The newest of those to this server, if there is one."""
        for upstream in reversed(self.kept):
            if upstream.server is server:
                upstream.unshelve()
                return [upstream]
        return []

    # --- events -----------------------------------------------------------------------------------------------

    def on_readable(self) -> None:
        if self.pump_in is not None:
            self.pump_in.readable()
            return
        try:
            if self.tls is None or self.phase == LINGERING:
                data = self.sock.recv(READ_BYTES, DONT_WAIT)
            else:
                came = self.receive(READ_BYTES)
                if came is None:
                    return
                data = came
        except BlockingIOError:
            return
        except OSError:
            self.on_broken()
            return
        if self.phase != OPEN:
            self._discard(data)
        elif data:
            before = self.ticket
            self._tell(RECEIVED, CLIENT, monotonic(), data)
            if self.reading and self.ticket is before and self.queued is None:
                self.look_for_reset()  # behind a part of a head or body; who has asked for an answer meets it there
        else:
            self.read_more(False)
            self._tell(ENDED, CLIENT, monotonic())

    def on_writable(self) -> None:
        if (self.tls is not None and self.resume_reading()) or not self.flush():
            return
        if self.pump_out is not None:
            self.pump_out.writable()
        self.written(CLIENT)

    def on_broken(self) -> None:
        if self.phase == OPEN:
            self.read_more(False)
            self._tell(ENDED, CLIENT, monotonic(), error=True)
        else:
            self.close()

    def server_bytes(self, data: bytes) -> None:
        """The server sent something."""
        self._tell(RECEIVED, SERVER, monotonic(), data)

    def server_ended(self, error: bool) -> None:
        """The server will send nothing more."""
        self._tell(ENDED, SERVER, monotonic(), error=error)

    def written(self, side: Side) -> None:
        """What waited for that side has left: read the other again, or go on closing."""
        if side is CLIENT and self.phase == FLUSHING:
            self._closing()
            return
        if side is CLIENT and self.phase == OPENING and self.opening is not None:
            self.opening.flushed()
            return
        if self.phase == OPEN:
            now = monotonic()
            postponed = self.postponed
            if postponed is not None and self.out is None:
                self.postponed = None
                self.run([postponed], now)
            else:
                self.settle(now)

    def due(self, now: float) -> float:
        """A deadline may have come; returns the next."""
        if self.phase != OPEN:
            if self.opening is not None:
                return self.opening.due(now)
            if self.phase == FLUSHING and self.progress + FLUSH_SECONDS > now:
                return self.progress + FLUSH_SECONDS
            self.close(reset=self.phase == FLUSHING)
            return 0.0
        deadline = self._deadline()
        if not deadline or deadline > now:
            return deadline
        ticket = self.ticket
        if ticket is not None and ticket.deadline and ticket.deadline <= now:
            self.run(self.dispatcher.expired(ticket, now) or [], now)
        elif self.postponed is not None:
            self._tell(ENDED, CLIENT, now, error=True)  # it doesn't read what it asked for
        else:
            self._tell(EXPIRED, CLIENT, now)
        return 0.0 if self.armed or self.phase != OPEN else self._deadline()

    def _blocked(self) -> tuple[Side | None, float]:
        """A side that does not take what waits for it, and when it last did."""
        if self.out is not None or (self.pump_out is not None and self.pump_out.waiting):
            return CLIENT, self.progress
        upstream = self.upstream
        if upstream is not None and (
            upstream.out is not None or (upstream.pump_out is not None and upstream.pump_out.waiting)
        ):
            return SERVER, upstream.progress
        return None, 0.0

    # --- actions ----------------------------------------------------------------------------------------------

    def run(self, actions: list[Action], now: float) -> None:
        """Carry out a session's actions, and those that follow from them."""
        try:
            more: list[Action] | None = actions
            while more:
                more = self._carry_out(more, now)
        except Exception:
            log.exception("connection from %s ended by a fault", self.client)
            self.close(reset=True)
            return
        self.settle(now)

    def _tell(self, event: int, side: Side, now: float, data: bytes = b"", count: int = 0, error: bool = False) -> None:
        """Tell the session what happened, and do what it asks. A fault of ours ends this connection and no other."""
        try:
            if event == RECEIVED:
                more: list[Action] | None = self.session.received(side, data, now)
            elif event == ENDED:
                more = self.session.ended(side, now, error)
            elif event == MOVED:
                more = self.session.moved(side, count, now)
            elif event == EXPIRED:
                blocked, progress = self._blocked()
                more = self.session.expired(now, blocked, progress)
            else:
                more = self.session.draining(now, patient=bool(count))
            while more:
                more = self._carry_out(more, now)
        except Exception:
            log.exception("connection from %s ended by a fault", self.client)
            self.close(reset=True)
            return
        self.settle(now)

    def _carry_out(self, actions: list[Action], now: float) -> list[Action] | None:
        for action in actions:
            if isinstance(action, ToClient):
                self.send(action.data)
            elif isinstance(action, ToServer):
                self._to_server(action.data)
            elif isinstance(action, Release):
                if self.pumps is not None:
                    self._stop_pumps()
                self.dispatcher.release(self, action, now)
            elif isinstance(action, Finished):
                self.listener.finished(action, self.ticket, self.peer.handshake)
            elif isinstance(action, NeedServer):
                if (self.out is not None or self.queued is not None) and self._postpone(action):
                    return None
                return self.dispatcher.need(self, action, now)
            else:
                more = self._rare(action, now)
                if more is not None or self.phase == GONE:
                    return more
        return None

    def _postpone(self, need: NeedServer) -> bool:
        """Whether the client must read first: else who sends requests and reads no answers would fill the memory."""
        if self.queued is not None and len(self.queued) >= HIGH_WATER:
            self.send_queued()
        if self.phase != OPEN:
            return True
        if need.again is not None or not self.congested:
            return False
        self.postponed = need
        return True

    def _rare(self, action: Action, now: float) -> list[Action] | None:
        """The less frequent actions; returns what follows from one that ends its list."""
        if isinstance(action, Close):
            self.linger = action.linger
            if action.abort:
                self.close(reset=True)
            elif self.phase == OPEN:
                self.phase = FLUSHING
                self.progress = now
                self.send_queued()
                if self.phase == FLUSHING and self.out is None:
                    self._closing()
                elif self.phase == FLUSHING:
                    self.read_more(False)
                    self.listener.timers.arm(self, now + FLUSH_SECONDS)
        elif isinstance(action, Learn):
            self.dispatcher.learn(self, action.set_cookies, now)
        elif isinstance(action, LearnSessions):
            self.dispatcher.issued(self, action.sessions, now)
        elif isinstance(action, Refused):
            self.listener.refused(action, self)
        elif isinstance(action, Locate):
            return self.dispatcher.mailboxes.locate(self, action.facts, now)
        elif isinstance(action, Forget):
            self.dispatcher.mailboxes.forget(self, action.facts)
        elif isinstance(action, LoginFailed):
            self.dispatcher.mailboxes.login_failed(self, action.client)
        elif isinstance(action, Splice):
            self._pump(action.source, action.count, bulk=True)
        elif isinstance(action, Tunnel):
            self.tunnel = True
            self._pump(CLIENT, -1, bulk=False)
            self._pump(SERVER, -1, bulk=False)
        else:
            return self._multiplexed(action, now)
        return None

    def _multiplexed(self, action: Action, now: float) -> list[Action] | None:
        """What a session asks for that carries streams."""
        if isinstance(action, OnStream):
            stream = self.streams.get(action.number) if self.streams is not None else None
            if stream is not None:
                busy, self.busy = self.busy, True
                stream.run(action.actions, now)
                self.busy = busy
        elif isinstance(action, OpenStream):
            busy, self.busy = self.busy, True
            self.listener.begin_stream(self, action, now)
            self.busy = busy
        elif isinstance(action, Continue):
            return self.session.received(CLIENT, b"", now)
        elif isinstance(action, Multiplex):
            self.session = self.mux = action.session
            self.streams = {}
            return self.session.received(CLIENT, action.data, now)
        elif isinstance(action, StartTls):
            self.listener.secure(self, now)
        elif isinstance(action, StartServerTls):
            self.dispatcher.secure(self, now)
        return None

    def deliver(self, now: float) -> None:
        """Send what the streams have for the client, as much as the socket can be expected to take."""
        mux = self.mux
        if mux is None or self.phase != OPEN or self.busy:
            return
        while True:
            held = len(self.out) if self.out is not None else len(self.queued) if self.queued is not None else 0
            actions = mux.output(HIGH_WATER - held, now)
            if not actions:
                return
            more: list[Action] | None = actions
            while more:
                more = self._carry_out(more, now)
            if self.phase != OPEN:
                return
            if self.queued is None or len(self.queued) < HIGH_WATER:
                if len(actions) == 1 and isinstance(actions[0], ToClient):
                    return  # all of it, or as much as the windows allow
                continue  # what was done to streams may have told the session something
            self.send_queued()
            if self.phase != OPEN or self.out is not None:
                return  # the rest follows as the socket takes more

    def _to_server(self, data: bytes) -> None:
        upstream = self.upstream
        if upstream is None:
            return
        upstream.send(data)
        # A broken server connection is noticed by reading it: an answer may still be waiting there.
        upstream.broken = False

    def _pump(self, side: Side, count: int, *, bulk: bool) -> None:
        upstream = self.upstream
        if upstream is None:
            return
        source, destination = (self, upstream) if side is CLIENT else (upstream, self)
        destination.send_queued()
        if self.phase != OPEN or self.upstream is not upstream:
            return
        pump = Pump(side, source, destination, count, self._moved, self._pump_over)
        if self.pumps is None:
            self.pumps = []
        self.pumps.append(pump)
        pump.start(bulk)

    def _moved(self, side: Side, count: int) -> None:
        if self.pumps is not None:
            self.pumps = [pump for pump in self.pumps if pump.remaining] or None
        self._tell(MOVED, side, monotonic(), count=count)

    def _pump_over(self, pump: Pump, side: Side, error: bool) -> None:
        """A pump has come to an end: that side ended or failed."""
        if side is not pump.side and side is SERVER:
            # The server takes no more of the request; it may have answered all the same, which reading it will tell.
            # Until then the client is not read: part of what it sent is lost, so the rest has no meaning.
            self.pump_in = pump
            pump.destination.renew()
            return
        if self.tunnel and not error:
            # Half of a tunnel goes on until it ends as well.
            if not all(each.ended for each in self.pumps or ()):
                pump.destination.end_writing()
                now = monotonic()
                self.session.half_ended(pump.side, now)
                self.settle(now)
                return
            side = SERVER if pump.side is CLIENT else CLIENT  # that ended first
        if error or self.tunnel:
            self._stop_pumps()
        self._tell(ENDED, side, monotonic(), error=error)

    def _stop_pumps(self) -> None:
        for pump in self.pumps or ():
            pump.detach()
        self.pumps = None

    # --- interest, deadlines, the end -------------------------------------------------------------------------

    def _deadline(self) -> float:
        ticket = self.ticket
        if ticket is not None and ticket.deadline:
            return ticket.deadline
        if self.postponed is not None:
            return self.progress + FLUSH_SECONDS
        return self.session.deadline

    def settle(self, now: float) -> None:
        """Bring read interest and the deadline into line with what the session wants and the buffers hold."""
        if self.phase != OPEN:
            return
        if self.mux is not None:
            self._settle_streams(now)
            return
        upstream = self.upstream
        session = self.session
        if self.pump_in is None and not self.tunnel:
            wanted = session.wants_client and (upstream is None or upstream.out is None or not upstream.congested)
            if wanted is not self.reading:
                self.read_more(wanted)
        if upstream is not None and upstream.pump_in is None and not self.tunnel:
            wanted = session.wants_server and (self.out is None or not self.congested)
            if wanted is not upstream.reading:
                upstream.read_more(wanted)
        self._arm()

    def _settle_streams(self, now: float) -> None:
        """The same for a connection of streams: who does not read what was sent is not read either."""
        try:
            self.deliver(now)
        except Exception:
            log.exception("connection from %s ended by a fault", self.client)
            self.close(reset=True)
        if self.phase == OPEN:
            wanted = self.session.wants_client and (self.out is None or not self.congested)
            if wanted is not self.reading:
                self.read_more(wanted)
            self._arm()

    def _arm(self) -> None:
        deadline = self._deadline()
        if deadline:
            armed = self.armed
            if not armed or deadline < (armed - 1) * TICK:
                self.listener.timers.arm(self, deadline)

    def drain(self, now: float, patient: bool) -> None:
        """This process is ending (see :meth:`Session.draining`). A request that has arrived is not left unread."""
        if self.phase == OPEN and self.reading and self.pump_in is None:
            self.on_readable()
        if self.phase == OPEN:
            self._tell(DRAINING, CLIENT, now, count=int(patient))
        elif self.opening is not None:
            self.opening.patient = True
            if not patient:
                self.close()

    def dismiss(self, why: str, now: float) -> None:
        """The node ends this session; ``why`` is text for the client (see :meth:`Session.dismissed`)."""
        self.listener.dismiss(self, why, now)

    def halt(self) -> bool:
        """Stop copying. Whether the client was between two answers as far as can be seen: all that the server sent has
        left, and some time ago. Otherwise what is said now could be taken for a part of an answer.
        """
        waiting = any(pump.waiting for pump in self.pumps or ())
        self._stop_pumps()
        return not waiting and (not self.tunnel or monotonic() - self.progress > QUIET_SECONDS)

    def _closing(self) -> None:
        """Everything has been written: close, or listen for a moment to a client that still sends."""
        if self.tls is not None and not self.broken and not self.tls.close_notify():
            self.write_more(True)
            self.listener.timers.arm(self, monotonic() + FLUSH_SECONDS)
            return
        if not self.linger or self.broken:
            self.close()
            return
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self.phase = LINGERING
        self.listener.timers.disarm(self)
        self.listener.timers.arm(self, monotonic() + LINGER_SECONDS)
        self.read_more(True)

    def _discard(self, data: bytes) -> None:
        self.discarded += len(data)
        if not data or self.phase != LINGERING or self.discarded > LINGER_BYTES:
            self.close()

    def close(self, reset: bool = False) -> None:
        """Close both sides at once, and give the server back as closed."""
        if self.phase == GONE:
            return
        self.phase = GONE
        for stream in list((self.streams or {}).values()):
            stream.close()
        if self.opening is not None:
            self.opening.stop()
        self.postponed = None
        self._stop_pumps()
        if self.ticket is not None:
            self.dispatcher.release(self, Release(False), monotonic())
        for locating in self.locating:
            locating.end()
        if self.kept:
            for upstream in list(self.kept):
                upstream.retire()
        self.listener.timers.disarm(self)
        self.leave(reset)
        self.listener.closed(self)
