"""TLS on a raw socket: the layer between an endpoint and its descriptor, and what a listener or a server needs for it.

OpenSSL reads and writes the descriptor itself; there is no second buffer and no transport. :func:`wrap` alone knows
how an ssl object is put on a socket: ``SSLContext._wrap_socket``, which is what ssl.SSLSocket uses inside and a tenth
cheaper than it, or else an SSLSocket on a copy of the descriptor.

Three things to know:

- OpenSSL may hold bytes that it has decrypted and that nobody has read. No event tells of them. A read of RECORD bytes
  takes a whole record, so that this happens only behind smaller reads: :meth:`Tls.pending`.
- A write that had to wait must be repeated with the same bytes, and no fewer. So what is written at once is at most a
  record, and what could not be written stays at the head of the queue.
- close_notify tells a regular end from a truncation. It is sent at every regular end; where it did not come,
  ``truncated`` says so.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

from l7lb.proxy import openssl
from l7lb.proxy.tls_contexts import Terminator

RECORD: Final = 16 * 1024  # bytes of a record at most
DONE: Final = 0  # what a step of a handshake waits for
READ: Final = 1
WRITE: Final = 2


class Tls:
    """TLS on one connection. ``sni`` is the name that a client asked for, as it came; None before and without."""

    __slots__ = (
        "__weakref__",
        "_close",
        "_read",
        "_write",
        "broken",
        "closed",
        "inner",
        "read_blocked",
        "remembered",
        "sni",
        "terminator",
        "truncated",
        "write_blocked",
    )

    def __init__(self) -> None:
        self.inner: Any = None
        self.terminator: Terminator | None = None  # kept, since an OpenSSL context does not keep what it calls
        self.sni: str | None = None
        self.broken = False  # nothing more can be said on it
        self.closed = False  # close_notify was sent
        self.truncated = False  # the peer's end came without close_notify
        self.read_blocked = False  # a read waits until something can be written
        self.write_blocked = False  # the reverse
        self.remembered = False  # its session is kept for the next connection
        self._close: Callable[[], int] | None = None

    @classmethod
    def server(cls, sock: socket.socket, terminator: Terminator, context: ssl.SSLContext) -> Tls:
        """TLS for an accepted socket, which must not block. ``context`` is one of the terminator's bases."""
        tls = cls()
        tls.terminator = terminator
        tls._take(wrap(context, sock, tls, server_side=True))
        return tls

    @classmethod
    def client(cls, sock: socket.socket, dialer: Dialer) -> Tls:
        """TLS for a connected socket, which must not block. Raises OSError or ValueError."""
        tls = cls()
        tls._take(wrap(dialer.context, sock, tls, server_hostname=dialer.name, session=dialer.session))
        return tls

    def _take(self, inner: Any) -> None:
        self.inner = inner
        if not isinstance(inner, ssl.SSLSocket):
            openssl.read_by_record(inner)
        self._read = inner.read
        self._write = inner.write

    def shake(self) -> int:
        """A step of the handshake; returns DONE, READ or WRITE. Raises OSError (ssl.SSLError is one)."""
        try:
            self.inner.do_handshake()
        except ssl.SSLWantReadError:
            return READ
        except ssl.SSLWantWriteError:
            return WRITE
        except OSError:
            self.broken = True
            raise
        return DONE

    def receive(self, limit: int) -> bytes | None:
        """What was sent, b"" at its end; None where nothing has come. Raises OSError."""
        try:
            return self._read(limit)  # type: ignore[no-any-return]
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLWantWriteError:
            self.read_blocked = True
            return None
        except ssl.SSLEOFError:
            self.broken = True
            self.truncated = True
            return b""
        except OSError:
            self.broken = True
            raise

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """How many bytes were taken, from the first on; 0 where it must wait. Raises OSError."""
        size = len(data)
        if size <= RECORD:
            return self._send(data)
        sent = 0
        with memoryview(data) as view:
            while sent < size:
                with view[sent : sent + RECORD] as piece:
                    count = self._send(piece)
                if not count:
                    break
                sent += count
        return sent

    def _send(self, data: bytes | bytearray | memoryview) -> int:
        try:
            return self._write(data)  # type: ignore[no-any-return]
        except ssl.SSLWantWriteError:
            return 0
        except ssl.SSLWantReadError:
            self.write_blocked = True
            return 0
        except OSError:
            self.broken = True
            raise

    def pending(self) -> int:
        """Bytes that were decrypted and not read."""
        return 0 if self.broken else int(self.inner.pending())

    def close_notify(self) -> bool:
        """Say that nothing more will be sent; False where that must wait until the socket takes more."""
        if self.closed or self.broken:
            return True
        self.closed = True
        if self._close is None:
            self._close = openssl.closer(self.inner)
        if self._close is not None:
            if self._close() < 0:
                self.closed = False
                return False
            return True
        try:
            self.inner.shutdown()
        except ssl.SSLWantWriteError:
            self.closed = False
            return False
        except (OSError, ValueError):
            pass  # it was sent; that the other side has not answered yet is no matter
        return True

    def dispose(self) -> None:
        """The connection is over: free what is not the endpoint's."""
        inner = self.inner
        if isinstance(inner, ssl.SSLSocket):
            inner.close()


class Dialer:
    """TLS to one server: its context, the name it must have, and the session of the last connection."""

    __slots__ = ("context", "name", "session")

    def __init__(self, context: ssl.SSLContext, name: str) -> None:
        self.context = context
        self.name: str | None = name or None
        self.session: ssl.SSLSession | None = None

    def remember(self, tls: Tls) -> None:
        """Keep a connection's session, so that the next one resumes it. TLS 1.3 has one only after the first answer."""
        if not tls.remembered and not tls.broken:
            tls.remembered = True
            session = tls.inner.session
            if session is not None and session.has_ticket:
                self.session = session


def wrap(
    context: ssl.SSLContext,
    sock: socket.socket,
    owner: Tls,
    server_side: bool = False,
    server_hostname: str | None = None,
    session: ssl.SSLSession | None = None,
) -> Any:
    """An ssl object on the socket's descriptor. ``owner`` is what the context's SNI callback gets."""
    private = getattr(context, "_wrap_socket", None)
    if private is not None:
        return private(sock, server_side, server_hostname, owner=owner, session=session)
    return wrap_publicly(context, sock, owner, server_side, server_hostname, session)


def wrap_publicly(
    context: ssl.SSLContext,
    sock: socket.socket,
    owner: Tls,
    server_side: bool,
    server_hostname: str | None,
    session: ssl.SSLSession | None,
) -> ssl.SSLSocket:
    """The same by public means, at the price of a second descriptor, which :meth:`Tls.dispose` closes."""
    copy = socket.socket(sock.family, sock.type, sock.proto, os.dup(sock.fileno()))
    copy.setblocking(False)
    wrapped = context.wrap_socket(
        copy,
        server_side=server_side,
        do_handshake_on_connect=False,
        suppress_ragged_eofs=False,
        server_hostname=server_hostname,
        session=session,
    )
    wrapped.l7lb_owner = owner  # type: ignore[attr-defined]  # the SNI callback gets the SSLSocket itself
    return wrapped
