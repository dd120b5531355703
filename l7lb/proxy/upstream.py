"""Connections to servers: opening them, keeping them for the next request, and noticing that they closed.

An idle connection stays in the event loop, so that a server that closes it is noticed before it is used again.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from typing import TYPE_CHECKING, Final

from l7lb.core.actions import SERVER
from l7lb.core.errors import Failure
from l7lb.core.servers import ServerState
from l7lb.proxy.endpoint import DONT_WAIT, Endpoint, Sender, monotonic
from l7lb.proxy.tls import DONE, READ, WRITE, Dialer, Tls

if TYPE_CHECKING:
    from l7lb.proxy.connection import Connection
    from l7lb.proxy.tickets import Ticket

READ_BYTES: Final = 16 * 1024
READ_BULK: Final = 256 * 1024
GREETING_SECONDS: Final = 1.0  # how long a server in TLS mode ``auto`` may take to greet in the clear
RECORDS: Final = 16  # without data that an idle server may have sent; more is not worth the search


class ServerConnection(Endpoint):
    """A connection to a server: connecting for a ticket, then owned by a client's connection, or idle.

    ``announce`` is the version of the PROXY header that it is still to begin with, ``tls_first`` how TLS begins before
    its session has it: ``implicit``, ``auto``, ``greeting`` while its greeting is waited for, "" not at all.
    """

    __slots__ = (
        "announce", "client", "closed", "idle_since", "memory", "owner", "read_bytes", "server", "ticket", "tls_first",
    )  # fmt: skip

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sender: Sender, sock: socket.socket, server: ServerState
    ) -> None:
        super().__init__(loop, sender, sock)
        self.server = server
        self.owner: Connection | None = None
        self.client: Connection | None = None  # whose PROXY header it began with: it serves no other
        self.ticket: Ticket | None = None  # while it connects, and in the handshake that its session asked for
        self.announce = ""
        self.tls_first = ""
        self.memory: object | None = None  # the protocol's (see Assignment.kept), from one request to the next
        self.closed = False
        self.idle_since = 0.0
        self.read_bytes = READ_BYTES

    def on_readable(self) -> None:
        if self.pump_in is not None:
            self.pump_in.readable()
            return
        if self.ticket is not None:
            if self.tls is None:
                self._greeted(self.ticket)
            else:
                self._shake(self.ticket)
            return
        owner = self.owner
        try:
            if self.tls is None:
                data = self.sock.recv(self.read_bytes, DONT_WAIT)
            else:
                came = self.receive(READ_BYTES)
                if came is None:
                    return  # a part of a record, or something that concerns TLS alone
                data = came
                if self.tls.truncated:
                    self.was_reset = True
        except BlockingIOError:
            return
        except OSError as problem:
            data = b""
            self.was_reset = True
            if owner is not None and isinstance(problem, ssl.SSLError):
                # In TLS 1.3 a server refuses a client's certificate, or misses it, only now.
                owner.dispatcher.tls_failed(self.server, explain(problem), monotonic())
        if owner is None:
            # An idle server has nothing to say: it closed, or it breaks the protocol.
            self.retire()
            return
        if data:
            size = len(data)
            if size == self.read_bytes:
                self.read_bytes = READ_BULK
            owner.server_bytes(data)
            if self.owner is owner and self.reading:
                self.look_for_reset()  # its answer is not complete yet
        else:
            self.read_more(False)
            owner.server_ended(self.was_reset)

    def on_writable(self) -> None:
        ticket = self.ticket
        if ticket is not None:
            if self.tls is not None:
                self._shake(ticket)
                return
            code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code and self.tls_first:
                self.write_more(False)
                if self.tls_first == "auto":
                    self._listen(ticket)
                else:
                    self.start_tls(ticket)
            else:
                if not code:
                    self.read_more(True)  # first, so that the loop keeps its handle: a new one takes eight system calls
                self.write_more(False)
                ticket.connection.dispatcher.connect_ended(ticket, code)
            return
        if (self.tls is not None and self.resume_reading()) or not self.flush():
            return
        if self.pump_out is not None:
            self.pump_out.writable()
        if self.owner is not None:
            self.owner.written(SERVER)

    def _listen(self, ticket: Ticket) -> None:
        """See whether the server greets in the clear: then its session asks it for TLS, else the handshake begins."""
        try:
            self._announce(ticket)
        except OSError as problem:
            ticket.connection.dispatcher.connect_ended(ticket, problem.errno or errno.ECONNRESET)
            return
        self.tls_first = "greeting"
        now = monotonic()
        ticket.deadline = min(ticket.deadline, now + GREETING_SECONDS)
        self.read_more(True)
        ticket.connection.settle(now)

    def _greeted(self, ticket: Ticket) -> None:
        """It said something, which stays for its session to read, or went away."""
        code = 0
        try:
            if self.sock.recv(1, DONT_WAIT | socket.MSG_PEEK):
                self.server.learned[ticket.facts.protocol] = "starttls"
            else:
                code = errno.ECONNRESET
        except BlockingIOError:
            return
        except OSError as problem:
            code = problem.errno or errno.ECONNRESET
        self.tls_first = ""
        if code:
            self.read_more(False)
        ticket.connection.dispatcher.connect_ended(ticket, code)

    def start_tls(self, ticket: Ticket) -> None:
        """Begin the handshake; it has until the ticket's deadline."""
        dialer = self.server.dialer
        assert isinstance(dialer, Dialer)
        try:
            self._announce(ticket)
            self.tls = Tls.client(self.sock, dialer)
        except (OSError, ValueError) as problem:
            ticket.connection.dispatcher.handshake_ended(ticket, str(problem))
            return
        self._shake(ticket)

    def _announce(self, ticket: Ticket) -> None:
        """The PROXY header stands before TLS, in the clear. A new connection takes it whole. Raises OSError."""
        version, self.announce = self.announce, ""
        if version:
            self.client = ticket.connection.carrier
            self.sock.sendall(ticket.connection.proxy_header(version))

    def _shake(self, ticket: Ticket) -> None:
        tls = self.tls
        assert tls is not None
        try:
            wanted = tls.shake()
        except OSError as problem:
            self.read_more(False)
            self.write_more(False)
            ticket.connection.dispatcher.handshake_ended(ticket, explain(problem))
            return
        self.read_more(wanted == READ)
        self.write_more(wanted == WRITE)
        if wanted == DONE:
            ticket.connection.dispatcher.handshake_ended(ticket, "")

    def on_broken(self) -> None:
        self.renew()  # it may have answered before it went: that is read first

    def retire(self) -> None:
        """Close an idle connection and take it off the shelf."""
        self.unshelve()
        self.close()

    def shelve(self, now: float) -> None:
        """Wait for the next request: of any client, or of the one whose PROXY header it began with."""
        self.idle_since = now
        self.read_bytes = READ_BYTES
        self.read_more(True)
        self.remember_session()
        client = self.client
        if client is None:
            self.server.idle.append(self)
        else:
            self.server.kept.append(self)
            client.keep(self)

    def unshelve(self) -> None:
        """Wait no more."""
        client = self.client
        try:
            if client is None:
                self.server.idle.remove(self)
            else:
                self.server.kept.remove(self)
                client.kept.remove(self)
        except ValueError:
            pass  # it was just taken

    def close(self, reset: bool = False) -> None:
        """Close it, once."""
        if not self.closed:
            self.closed = True
            self.remember_session()
            self.client = None
            self.owner = None
            self.ticket = None
            self.leave(reset)

    def remember_session(self) -> None:
        """Have the next connection to the server resume this one's TLS session."""
        dialer = self.server.dialer
        if self.tls is not None and isinstance(dialer, Dialer) and self.ticket is None:
            dialer.remember(self.tls)

    def readable_now(self) -> bool:
        """Whether bytes or an end are waiting on a connection that should be silent."""
        try:
            if self.tls is None:
                self.sock.recv(1, DONT_WAIT | socket.MSG_PEEK)
                return True
            for _ in range(RECORDS):
                if self.receive(1) is not None:
                    return True
                self.sock.recv(1, DONT_WAIT | socket.MSG_PEEK)  # behind a ticket: the next one, or the end
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True


def open_connection(
    loop: asyncio.AbstractEventLoop, sender: Sender, server: ServerState, protocol: str
) -> tuple[ServerConnection, int]:
    """Begin to connect for that protocol. Returns the connection and 0 when it is there at once, EINPROGRESS, or the
    errno of a refusal.

    Raises OSError where no socket can be made (descriptors used up).
    """
    address = server.config.address_for(protocol) if server.ports else server.config.address
    if address.path:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        target: str | tuple[str, int] = address.path
    else:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        target = (address.host, address.port)
    if server.dialer is not None:
        sock.setblocking(False)  # as Python's ssl wants to see it
    connection = ServerConnection(loop, sender, sock, server)
    if server.dialer is not None:
        mode = server.tls_mode(protocol)
        connection.tls_first = "" if mode == "starttls" else mode
    try:
        code = sock.connect_ex(target)
    except OSError as problem:  # a path that is too long, a host that is no address
        return connection, problem.errno or 22
    return connection, code


def explain(problem: OSError) -> str:
    """Why a handshake with a server failed, as an operator reads it."""
    if isinstance(problem, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {problem.verify_message}"
    if isinstance(problem, ssl.SSLEOFError):
        return "the server closed the connection"
    reason = getattr(problem, "reason", None)
    return reason.lower().replace("_", " ") if reason else problem.strerror or str(problem)


def refusal(code: int) -> Failure:
    """The failure that a connect's errno stands for."""
    return Failure.CONNECT_TIMEOUT if code == errno.ETIMEDOUT else Failure.CONNECT_REFUSED
