"""One stream: the HTTP machine with frames in place of HTTP/1's bytes towards its client.

A stream is one exchange, and everything that happens in an exchange is HTTP/1's (:mod:`l7lb.protocols.http.machine`).
What differs is here: a head leaves as a field list, a body as DATA as far as the client's windows allow, and the end
of an exchange is the end of its stream. What can't leave waits in ``outbox``; its limit is the proxy's, which stops
reading the server while ``waiting`` is large.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from l7lb.core.actions import Action, Close
from l7lb.core.contracts import Peer
from l7lb.core.errors import Failure, Owner
from l7lb.protocols.http.body import BodyReader, FramedReader, LengthReader
from l7lb.protocols.http.ending import ANSWERING, CLOSED, WAITING, Shared
from l7lb.protocols.http.http2.fields import answer_fields
from l7lb.protocols.http.machine import HttpMachine
from l7lb.protocols.http.message import CHUNKED, Request
from l7lb.protocols.http.session import Exchange

if TYPE_CHECKING:
    from l7lb.protocols.http.http2.connection import Http2Machine

# Error codes (RFC 9113 section 7).
NO_ERROR = 0
PROTOCOL_ERROR = 1
INTERNAL_ERROR = 2
FRAME_SIZE_ERROR = 6
REFUSED_STREAM = 7
CANCEL = 8
ENHANCE_YOUR_CALM = 11


class StreamMachine(HttpMachine):
    """A stream's session; see :class:`l7lb.core.contracts.StreamSession`."""

    __slots__ = (
        "credit",
        "ended_by_client",
        "lingered",
        "lingering",
        "mux",
        "number",
        "outbox",
        "progress",
        "remaining",
        "takes",
        "trailers",
        "whole",
    )

    def __init__(self, mux: Http2Machine, shared: Shared, peer: Peer, number: int, now: float) -> None:
        super().__init__(shared, peer, now)
        self.mux = mux
        self.number = number
        self.splices = False
        self.origin = mux.origin
        self.outbox = bytearray()  # what of the answer's body the client has not allowed yet
        self.trailers: list[bytes] = []
        self.whole = False  # the answer's last byte is in the outbox
        self.ended_by_client = False
        self.lingering = False  # answered, but the client still sends
        self.lingered = 0
        self.remaining = -1  # bytes that Content-Length still promises
        self.credit = 0  # bytes that came and that the client has not been given back as window
        self.takes = True  # the proxy takes more
        self.progress = now

    @property
    def waiting(self) -> int:
        """Bytes of the answer that the client has not allowed yet."""
        return len(self.outbox)

    # --- what the client sends --------------------------------------------------------------------------------

    def begin(self, request: Request, size: int, now: float) -> list[Action]:
        """The request's head is complete."""
        if request.length >= 0 and not self.ended_by_client:
            self.remaining = request.length
        return self._begin(request, size, now)

    def refuse_head(self, status: int, reason: str, now: float) -> list[Action]:
        """The request's head can't be used, but is well formed: it has an answer."""
        failure = Failure.CLIENT_LIMIT if status in (413, 414, 431) else Failure.CLIENT_PROTOCOL
        return self._broken(failure, status, reason, now)

    def end(self, trailers: list[bytes], now: float) -> list[Action]:
        """The client ended its half of the stream."""
        self.ended_by_client = True
        exchange = self.exchange
        reader = exchange.body if exchange is not None else None
        if exchange is None or not isinstance(reader, FramedReader):
            return []
        reader.end(trailers)
        if self.state in (WAITING, ANSWERING):
            return self._upload(exchange, b"", now)
        return []

    def malformed(self, now: float) -> list[Action]:
        """The client broke the protocol inside the stream, which is reset by now."""
        exchange = self.exchange
        return [] if exchange is None else self._abandon(exchange, Failure.CLIENT_PROTOCOL, now)

    def taking(self, wanted: bool) -> None:
        self.takes = wanted
        if wanted and self.credit:
            self.mux.give_credit(self)

    def _reader(self, request: Request) -> BodyReader:
        return FramedReader() if request.length == CHUNKED else LengthReader(request.length)

    # --- what it gets -----------------------------------------------------------------------------------------

    def _write(self, head: bytes, body: bytes, end: bool, trailers: list[bytes] | None = None) -> list[Action]:
        if self.whole:
            return []
        if end:
            self.whole = True
            self.trailers = trailers or []
        last = end and not body and not self.outbox and not self.trailers
        if head:
            self.mux.send_head(self, answer_fields(head), last)
        if body:
            self.outbox += body
        if not (head and last):
            self.mux.queue(self)
        return []

    def _write_own(self, data: bytes) -> list[Action]:
        cut = data.find(b"\r\n\r\n") + 4
        return self._write(data[:cut], data[cut:], True)

    # --- how it ends ------------------------------------------------------------------------------------------

    def _next(self, exchange: Exchange, actions: list[Action], now: float) -> list[Action]:
        self.exchange = None
        self.state = CLOSED
        self.deadline = 0.0
        actions.append(Close())
        return actions

    def _abandon(self, exchange: Exchange, failure: Failure, now: float) -> list[Action]:
        code = CANCEL if failure.owner is Owner.CLIENT else INTERNAL_ERROR
        if exchange.link is not None and exchange.link.reset > 0:
            code = exchange.link.reset  # the server's own word
        actions = super()._abandon(exchange, failure, now)
        self.mux.reset(self, code)
        return actions

    def draining(self, now: float, patient: bool) -> list[Action]:
        return []  # a stream that is there may finish
