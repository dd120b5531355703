"""The HTTP/1.1 machine: one client connection, sans-io.

Theory of operation. A connection is in one state; a request that is being handled is an Exchange. The request's body
travels beside the answer, so its progress is no state of its own but ``exchange.body_done``.

=========  ==============================================  ====================================================
state      waits for                                       leaves on
=========  ==============================================  ====================================================
IDLE       a request's first byte                          bytes -> HEAD; end, keep-alive time -> CLOSED
HEAD       the rest of the head                            head -> ROUTING; fault, time (408) -> CLOSED
ROUTING    a server (queue and connect are the proxy's)    connected -> WAITING; answered, failed -> IDLE or CLOSED
WAITING    the answer's head, sending the body meanwhile   1xx -> WAITING; 101 -> TUNNEL; head -> ANSWERING;
                                                           loss -> ROUTING (a retry) or IDLE (502, 504)
ANSWERING  the rest of the answer                          its end -> IDLE or CLOSED; loss -> CLOSED (aborted)
TUNNEL     both ends                                       the proxy closes
CLOSED     nothing                                         what still comes is discarded
=========  ==============================================  ====================================================

What a client sends before its answer is complete waits in ``buffer`` (pipelining): requests are handled one after
the other, in order. Every byte of a body is looked at unless its length is known and large: then the proxy is asked
to splice it.

The machine is one class in three steps: :mod:`.ending` holds the state and the ways in which an exchange ends,
:mod:`.answering` reads the server, and this module reads the client and takes what the proxy tells.
"""

from __future__ import annotations

from typing import Final

from l7lb.core.actions import CLIENT, SERVER, Action, Multiplex, NeedServer, Release, Side, Splice, ToServer
from l7lb.core.contracts import Assignment, Choice
from l7lb.core.errors import Failure
from l7lb.core.snapshot import Redirect
from l7lb.protocols.http.answering import SPLICE_BYTES, HttpAnswering
from l7lb.protocols.http.answers import answer
from l7lb.protocols.http.body import BodyReader, ChunkedReader, LengthReader, chunk, last_chunk
from l7lb.protocols.http.ending import ANSWERING, CLOSED, HEAD, IDLE, PHASES, ROUTING, TUNNEL, WAITING, Shared
from l7lb.protocols.http.facts import HttpFacts, client_scheme, client_source
from l7lb.protocols.http.forward import Origin, allowed_upgrade, believe_identity, new_request_id, request_head
from l7lb.protocols.http.http2.server import ServerLink
from l7lb.protocols.http.message import CHUNKED, IDEMPOTENT, UNTIL_CLOSE, Request, read_request
from l7lb.protocols.http.session import Exchange
from l7lb.protocols.http.syntax import LINE_END, TOKEN, SyntaxFault, split_head

__all__ = ["HttpMachine", "Shared"]

ALLOW: Final = (("Allow", "GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH"),)
NO_REQUEST: Final = "this is no HTTP request"
INCOMPLETE: Final = "the request ended before it was complete"
PATIENCE: Final = 5.0  # seconds that an idle client is waited for while another process has taken over
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\n"


class HttpMachine(HttpAnswering):
    """A client connection; see the module's head and :class:`l7lb.core.contracts.Session`."""

    __slots__ = ()

    # --- what the proxy tells ---------------------------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        return []

    def received(self, side: Side, data: bytes, now: float) -> list[Action]:
        if side is CLIENT:
            state = self.state
            if state <= HEAD:
                return self._head(data, now)
            exchange = self.exchange
            if state in (WAITING, ANSWERING) and exchange is not None and not exchange.body_done:
                return self._upload(exchange, data, now)
            if state != CLOSED:
                # The next request, or a body before its server is there: it waits, and the client with it.
                self.buffer += data
                self.wants_client = False
            return []
        exchange = self.exchange
        if exchange is None:
            return []
        link = exchange.link
        return self._from_server(exchange, data, now) if link is None else self._from_link(exchange, link, data, now)

    def ended(self, side: Side, now: float, error: bool) -> list[Action]:
        exchange = self.exchange
        if self.state == TUNNEL and exchange is not None and not error:  # both halves have ended
            self.closing = True
            return self._next(exchange, [self._finished(exchange, None, "ok", now), Release(False)], now)
        if side is CLIENT:
            if self.state == IDLE:
                return self._quit()
            if self.state == HEAD:
                return self._cut_short(now, error)
            self.closing = True
            self.wants_client = False
            if exchange is None or (not error and (exchange.body_done or self.state == ANSWERING)):
                return []  # a half-closed client still gets its answer
            if error:
                return self._abandon(exchange, Failure.CLIENT_CLOSED, now)
            # RFC 9112 section 8: an incomplete request, which the server must not take for a whole one.
            return [Release(False), *self._refuse(exchange, Failure.CLIENT_CLOSED, now, 400, INCOMPLETE)]
        if exchange is None or self.state not in (WAITING, ANSWERING, TUNNEL):
            return []
        if self.state == TUNNEL:
            return self._abandon(exchange, Failure.SERVER_CLOSED_INSIDE, now)
        if self.state == ANSWERING:
            if exchange.response is not None and exchange.response.length == UNTIL_CLOSE and not error:
                return self._complete(exchange, now, self._write(b"", b"", True))
            return self._server_fault(exchange, Failure.SERVER_CLOSED_INSIDE, now)
        return self._server_fault(exchange, Failure.SERVER_CLOSED, now)

    def connected(self, assignment: Assignment, now: float) -> list[Action]:
        exchange = self.exchange
        assert exchange is not None
        exchange.assignment = assignment
        exchange.choice = assignment.choice
        exchange.response = None
        exchange.inbox = b""
        exchange.searched = 0
        if self.origin is None:
            self.origin = Origin(self.peer, self.shared.settings.send)
        head = request_head(exchange.request, assignment.choice, self.origin, self.trust)
        exchange.link = self._link(exchange, assignment) if assignment.pool.http2 else None
        self.state = WAITING
        if exchange.replay:
            head += b"".join(exchange.replay)
        if exchange.body_done:
            exchange.sent_at = now
            self.deadline = now + assignment.pool.response_header
            return [self._to_server(exchange, head)]
        self.deadline = now + self.shared.request_body
        self.wants_client = True
        data, self.buffer = self.buffer, b""
        return self._upload(exchange, data, now, head)

    def answered(self, choice: Choice, now: float) -> list[Action]:
        exchange = self.exchange
        assert exchange is not None
        exchange.choice = choice
        action = choice.answer
        assert action is not None
        request = exchange.request
        close = self._must_close(exchange) or not exchange.body_done
        headers = choice.route.set_response_headers
        if isinstance(action, Redirect):
            location = choice.location
            if request.query and b"?" not in location:
                location += request.query
            status, body = action.status, b""
            headers = (*headers, ("Location", location.decode("latin-1")))
            content_type = ""
        else:
            status, body, content_type = action.status, action.body.encode(), action.content_type
            headers = (*action.headers, *headers)
        data = answer(
            status,
            body,
            self.shared.dates.field(now),
            headers=headers,
            content_type=content_type,
            close=close,
            keep=request.version == 10,
            head_only=request.method == b"HEAD",
        )
        return self._answer_here(exchange, data, status, None, close, now)

    def failed(self, failure: Failure, choice: Choice | None, now: float) -> list[Action]:
        exchange = self.exchange
        assert exchange is not None
        exchange.choice = choice
        return self._refuse(exchange, failure, now)

    def dismissed(self, why: str, now: float) -> list[Action]:
        exchange = self.exchange
        if exchange is None:
            return self._quit()
        if self.state in (ROUTING, WAITING):
            self.closing = True
            return [Release(False), *self._refuse(exchange, Failure.ENDED_HERE, now)]
        return self._abandon(exchange, Failure.ENDED_HERE, now)

    def moved(self, side: Side, count: int, now: float) -> list[Action]:
        exchange = self.exchange
        if self.state == TUNNEL:
            self.deadline = now + self.shared.tunnel
            if exchange is not None:
                if side is CLIENT:
                    exchange.received += count
                else:
                    exchange.sent += count
            return []
        if exchange is None or exchange.assignment is None:
            return []
        if side is CLIENT:
            exchange.received += count
            reader = exchange.body
            assert isinstance(reader, LengthReader)
            reader.remaining -= count
            if reader.remaining:
                self.deadline = now + self.shared.request_body
                return []
            reader.done = True
            return self._uploaded(exchange, now)
        exchange.sent += count
        self.deadline = now + exchange.assignment.pool.response_body
        answer_reader = exchange.reader
        if isinstance(answer_reader, LengthReader):
            answer_reader.remaining -= count
            if not answer_reader.remaining:
                return self._complete(exchange, now, [])
        return []

    def expired(self, now: float, blocked: Side | None, progress: float) -> list[Action]:
        exchange = self.exchange
        if self.state == IDLE:
            return self._quit()
        if self.state == HEAD:
            return self._broken(Failure.CLIENT_TIMEOUT, 408, "the request's header took too long", now)
        if exchange is None or exchange.assignment is None:
            self.deadline = 0.0
            return []
        if self.state == TUNNEL:
            return self._abandon(exchange, Failure.CLIENT_TIMEOUT, now)
        if self.state == WAITING:
            return self._late_request(exchange, blocked, progress, now)
        if blocked is CLIENT:
            # The server may be quick: it is the client that does not read.
            limit = progress + self.shared.request_body
            if limit > now:
                self.deadline = limit
                return []
            return self._abandon(exchange, Failure.CLIENT_TIMEOUT, now)
        if blocked is None and not exchange.body_done:
            # The server may be waiting for the rest of the request: a client must not bring servers into disrepute.
            return self._abandon(exchange, Failure.CLIENT_TIMEOUT, now)
        return self._server_fault(exchange, Failure.SERVER_STALLED, now)

    def draining(self, now: float, patient: bool) -> list[Action]:
        self.closing = True
        if self.state != IDLE:
            return []
        if not patient:
            return self._quit()
        # A request may be on its way: its answer tells the client to go, which loses nothing.
        self.deadline = min(self.deadline or now + PATIENCE, now + PATIENCE)
        return []

    def describe(self) -> dict[str, str]:
        exchange = self.exchange
        if exchange is None:
            return {"detail": PHASES[self.state]}
        request = exchange.request
        text = b"%b %b%b" % (request.method, request.host_field, request.path)
        return {"detail": f"{text[:200].decode('latin-1')} ({PHASES[self.state]})"}

    # --- the request ------------------------------------------------------------------------------------------

    def _head(self, data: bytes, now: float) -> list[Action]:
        searched = len(self.buffer)
        if searched:
            data = self.buffer + data
        if self.state == IDLE:
            self.state = HEAD
            self.began = now
            self.deadline = now + self.shared.request_header
        shared = self.shared
        end = -1
        try:
            while data[:2] == b"\r\n" and self.blanks < 2:
                # RFC 9112 section 2.2: an empty line before a request is ignored.
                self.blanks += 1
                searched = 0
                data = data[2:]
            head, end = split_head(data, shared.header_bytes, searched)
            if end < 0:
                if data and data != b"\r" and not TOKEN.match(data):
                    raise SyntaxFault(400, NO_REQUEST)
                self.buffer = data
                if not data:
                    self.state = IDLE  # nothing but an empty line behind the request before
                return []
            request = read_request(head, shared.headers)
            if request.length > shared.body_bytes:
                raise SyntaxFault(413, "the body is larger than allowed")
        except SyntaxFault as fault:
            if self.first and data[: len(PREFACE)] == PREFACE and self._may_change():
                return self._change_to_http2(data, now)
            status, reason = fault.status, fault.reason
            # What would have been seen first, had it come in pieces.
            if not TOKEN.match(data) and (data[:1] not in (b"\r", b"\n") or data[:2] == b"\r\n"):
                status, reason = 400, NO_REQUEST
            elif end >= 0 and (LINE_END.search(data, 0, end + 1) or data[:1] == b"\n"):
                status, reason = 400, "a line must end in CR LF"
            self.buffer = data
            failure = Failure.CLIENT_LIMIT if status in (413, 414, 431) else Failure.CLIENT_PROTOCOL
            return self._broken(failure, status, reason, now)
        self.buffer = data[end + 4 :] if len(data) > end + 4 else b""
        self.blanks = 0
        return self._begin(request, end + 4, now)

    def _may_change(self) -> bool:
        """Whether a client may go on with HTTP/2."""
        handshake = self.peer.handshake
        return self.shared.settings.http2.prior_knowledge or (handshake is not None and handshake.alpn == b"h2")

    def _change_to_http2(self, data: bytes, now: float) -> list[Action]:
        """The client began with the first line of HTTP/2's preface (RFC 9113 section 3.3)."""
        self.buffer = b""
        self.state = CLOSED
        self.deadline = 0.0
        assert self.shared.multiplex is not None
        session = self.shared.multiplex(self.peer, now)
        return [Multiplex(session, data)]

    def _cut_short(self, now: float, error: bool) -> list[Action]:
        """The client left inside a request's head, or ended its half there and may still read."""
        if not error:
            return self._broken(Failure.CLIENT_CLOSED, 400, INCOMPLETE, now)
        return [self._unread(Failure.CLIENT_CLOSED, 0, new_request_id(), now), *self._quit()]

    def _begin(self, request: Request, size: int, now: float) -> list[Action]:
        shared = self.shared
        source = self.peer.client
        scheme = b"https" if self.peer.tls else b"http"
        if self.trust and request.forwarded is not None:
            source = client_source(source, request, shared.networks)
            if not self.peer.tls:
                scheme = client_scheme(request)
        if request.upgrade:
            request.upgrade = allowed_upgrade(request.upgrade, shared.settings.upgrades)
        if self.trust:
            believe_identity(request)
        facts = HttpFacts(shared.name, source, scheme, request)
        if shared.webmail is not None:
            shared.webmail(facts)
        exchange = self.exchange = Exchange(request, facts, self.began, now, size)
        if request.length:
            exchange.body_done = False
            exchange.body = self._reader(request)
        if self.buffer or (request.close and not request.length):
            self.wants_client = False  # nothing more that this client could send would be looked at before the answer
        self.state = ROUTING
        self.deadline = 0.0
        if not request.hops:
            return self._last_stop(exchange, now)
        return [NeedServer(facts, careful=request.method not in IDEMPOTENT)]

    def _last_stop(self, exchange: Exchange, now: float) -> list[Action]:
        """A TRACE or OPTIONS that may not be passed on is answered here (RFC 9110 section 7.6.2). A TRACE is not sent
        back, since it would show what only l7lb and the servers are meant to see.
        """
        status = 200 if exchange.request.method == b"OPTIONS" else 405
        close = self._must_close(exchange) or not exchange.body_done
        keep = exchange.request.version == 10
        data = answer(status, b"", self.shared.dates.field(now), headers=ALLOW, close=close, keep=keep)
        return self._answer_here(exchange, data, status, None, close, now)

    def _reader(self, request: Request) -> BodyReader:
        """What reads this request's body."""
        return ChunkedReader(self.shared.headers) if request.length == CHUNKED else LengthReader(request.length)

    def _upload(self, exchange: Exchange, data: bytes, now: float, head: bytes = b"") -> list[Action]:
        """Send on a part of the request's body, behind the head where that is still to go."""
        reader = exchange.body
        assert reader is not None
        assert exchange.assignment is not None
        exchange.received += len(data)
        try:
            body = reader.feed(data) if data else b""
        except SyntaxFault as fault:
            return self._bad_body(exchange, fault, now)
        exchange.uploaded += len(body)
        if isinstance(reader, LengthReader):
            framed = body
        else:
            framed = chunk(body)
            if exchange.uploaded > self.shared.body_bytes:
                return self._bad_body(exchange, SyntaxFault(413, "the body is larger than allowed"), now)
            if reader.done and isinstance(reader, ChunkedReader):
                framed += last_chunk(reader.trailers)
        exchange.keep(framed)
        actions: list[Action] = [self._to_server(exchange, head + framed)] if head or framed else []
        if reader.done:
            exchange.received -= len(reader.rest)
            self.buffer = reader.rest
            if reader.rest:
                self.wants_client = False
            return actions + self._uploaded(exchange, now)
        if self.state == WAITING:
            self.deadline = now + self.shared.request_body
        if not self.splices or exchange.link is not None:
            if exchange.link is not None and exchange.link.full:
                self.wants_client = False
            return actions
        if isinstance(reader, LengthReader) and reader.remaining > SPLICE_BYTES and not exchange.request.expects:
            exchange.replay = None
            actions.append(Splice(CLIENT, reader.remaining))
        return actions

    def _link(self, exchange: Exchange, assignment: Assignment) -> ServerLink:
        """The translator for a server that speaks HTTP/2: its connection's, or a new one."""
        link = assignment.kept
        if not isinstance(link, ServerLink):
            link = ServerLink(assignment.server.dialer is not None, self.shared.header_bytes)
            assignment.kept = link
        link.begin(exchange.request.te, exchange.request.method == b"HEAD")
        return link

    def _to_server(self, exchange: Exchange, data: bytes) -> Action:
        link = exchange.link
        return ToServer(data if link is None else link.send(data))

    def _from_link(self, exchange: Exchange, link: ServerLink, data: bytes, now: float) -> list[Action]:
        """Frames have come from the server."""
        try:
            said = link.receive(data, now)
        except SyntaxFault as fault:
            return self._server_fault(exchange, Failure.SERVER_PROTOCOL, now, fault.reason)
        frames = link.flush()
        actions: list[Action] = [ToServer(frames)] if frames else []
        if not exchange.body_done and self.state in (WAITING, ANSWERING) and not link.full:
            self.wants_client = True
        if said:
            actions += self._from_server(exchange, said, now)
        if link.reset >= 0 and not link.whole and self.exchange is exchange and exchange.link is link:
            actions += self.ended(SERVER, now, True)
        return actions

    def _from_server(self, exchange: Exchange, data: bytes, now: float) -> list[Action]:
        if self.state == WAITING:
            return self._response_head(exchange, data, now)
        try:
            return self._response_body(exchange, data, now)
        except SyntaxFault as fault:
            return self._server_fault(exchange, Failure.SERVER_PROTOCOL, now, fault.reason)

    def _uploaded(self, exchange: Exchange, now: float) -> list[Action]:
        exchange.body_done = True
        exchange.body = None
        exchange.sent_at = now
        if self.state == WAITING and exchange.assignment is not None:
            self.deadline = now + exchange.assignment.pool.response_header
        return []

    def _bad_body(self, exchange: Exchange, fault: SyntaxFault, now: float) -> list[Action]:
        failure = Failure.CLIENT_LIMIT if fault.status in (413, 431) else Failure.CLIENT_PROTOCOL
        if self.state == ANSWERING:
            return self._abandon(exchange, failure, now)
        return [Release(False), *self._refuse(exchange, failure, now, fault.status, fault.reason)]

    def _late_request(self, exchange: Exchange, blocked: Side | None, progress: float, now: float) -> list[Action]:
        """The time for the body or for the answer's head is over."""
        assert exchange.assignment is not None
        if exchange.body_done:
            return self._server_fault(exchange, Failure.SERVER_TIMEOUT, now)
        if blocked is SERVER or (exchange.link is not None and exchange.link.waiting):
            limit = progress + exchange.assignment.pool.response_header
            if limit > now:
                self.deadline = limit
                return []
            return self._server_fault(exchange, Failure.SERVER_TIMEOUT, now, "the server does not read the request")
        reason = "the request's body took too long"
        return [Release(False), *self._refuse(exchange, Failure.CLIENT_TIMEOUT, now, 408, reason)]
