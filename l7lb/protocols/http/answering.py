"""A server's answer on its way to the client: its head, its body, and the switch to another protocol.

The second of three parts of the HTTP machine (see :mod:`l7lb.protocols.http.machine`). It is entered in WAITING; 1xx
answers are passed on and change nothing, 101 leads to TUNNEL, any other head to ANSWERING, where the body's reader
says when it is complete.
"""

from __future__ import annotations

from typing import Final

from l7lb.core.actions import SERVER, Action, Learn, Release, Splice, ToClient, ToServer, Tunnel
from l7lb.core.errors import Failure
from l7lb.protocols.http.body import ChunkedReader, CloseReader, LengthReader, chunk, last_chunk
from l7lb.protocols.http.ending import ANSWERING, TUNNEL, WAITING, HttpEnding
from l7lb.protocols.http.forward import interim_head, response_head
from l7lb.protocols.http.message import CHUNKED, UNTIL_CLOSE, Response, read_response
from l7lb.protocols.http.session import Exchange
from l7lb.protocols.http.syntax import SyntaxFault, split_head

SPLICE_BYTES: Final = 64 * 1024  # a body with more than this still to come is spliced
MAX_INTERIM: Final = 32


class HttpAnswering(HttpEnding):
    """What is done with the bytes of a server."""

    __slots__ = ()

    def _response_head(self, exchange: Exchange, data: bytes, now: float) -> list[Action]:
        shared = self.shared
        actions: list[Action] = []
        if exchange.inbox:
            data = exchange.inbox + data
        try:
            while True:
                head, end = split_head(data, shared.header_bytes, exchange.searched)
                if end < 0:
                    exchange.inbox = data
                    exchange.searched = len(data)
                    return actions
                response = read_response(head, shared.headers, exchange.request.method)
                if exchange.link is not None:
                    response.version = 20
                data = data[end + 4 :]
                exchange.searched = 0
                if response.status >= 200:
                    done = self._answer(exchange, response, data, now)
                    return actions + done if actions else done
                exchange.interim += 1
                if exchange.interim > MAX_INTERIM:
                    raise SyntaxFault(502, "too many interim answers")
                if response.status == 101:
                    return actions + self._switch(exchange, response, data, now)
                if exchange.request.version >= 11:
                    passed = interim_head(response)
                    exchange.sent += len(passed)
                    actions += self._write(passed, b"", False)
        except SyntaxFault as fault:
            return actions + self._server_fault(exchange, Failure.SERVER_PROTOCOL, now, fault.reason)

    def _switch(self, exchange: Exchange, response: Response, data: bytes, now: float) -> list[Action]:
        if not exchange.request.upgrade or not exchange.body_done:
            raise SyntaxFault(502, "the server switched protocols unasked")
        if not response.upgrade:
            raise SyntaxFault(502, "the server does not say which protocol it switched to")
        exchange.response = response
        exchange.response_at = now
        exchange.status = 101
        head = interim_head(response)
        exchange.sent += len(head) + len(data)
        self.state = TUNNEL
        self.wants_client = self.wants_server = True
        self.deadline = now + self.shared.tunnel
        actions: list[Action] = [ToClient(head + data)]
        if self.buffer:
            exchange.received += len(self.buffer)
            actions.append(ToServer(self.buffer))
            self.buffer = b""
        actions.append(Tunnel(self.shared.tunnel))
        return actions

    def _answer(self, exchange: Exchange, response: Response, data: bytes, now: float) -> list[Action]:
        assignment = exchange.assignment
        assert assignment is not None
        if response.status >= 500 and exchange.may_retry(Failure.SERVER_ERROR, response.status):
            return self._again(exchange, Failure.SERVER_ERROR)
        exchange.response = response
        exchange.response_at = now
        exchange.status = response.status
        length = response.length
        if (length == CHUNKED and exchange.request.version == 10) or length == UNTIL_CLOSE or not exchange.body_done:
            exchange.request.close = True
        if length == CHUNKED:
            exchange.reader = ChunkedReader(self.shared.headers)
        elif length == UNTIL_CLOSE:
            exchange.reader = CloseReader()
        close = self._must_close(exchange)
        date = b"" if response.dated else self.shared.dates.field(now)[:-2]
        head = response_head(exchange.request, response, assignment, close, self.shared.via, date)
        self.state = ANSWERING
        exchange.sent += len(head)
        if assignment.learns and response.set_cookies is not None:
            return [Learn(response.set_cookies), *self._first_bytes(exchange, response, head, data, now)]
        return self._first_bytes(exchange, response, head, data, now)

    def _first_bytes(
        self, exchange: Exchange, response: Response, head: bytes, data: bytes, now: float
    ) -> list[Action]:
        """Send an answer's head and what of its body came with it."""
        length = response.length
        if length >= 0 and len(data) >= length:
            # Most answers are complete with their head: one send.
            exchange.sent += length
            body = data if len(data) == length else data[:length]
            if len(data) > length:
                response.close = True  # bytes behind the answer: this connection can't be trusted again
            return self._complete(exchange, now, self._write(head, body, True))
        if length >= 0:
            exchange.reader = LengthReader(length)
        try:
            return self._response_body(exchange, data, now, head)
        except SyntaxFault:
            # Nothing of this answer has left yet: the client can be told that it is broken.
            exchange.sent -= len(head)
            exchange.response = None
            exchange.status = 0
            self.state = WAITING
            raise

    def _response_body(self, exchange: Exchange, data: bytes, now: float, head: bytes = b"") -> list[Action]:
        reader = exchange.reader
        response = exchange.response
        assignment = exchange.assignment
        if reader is None or response is None or assignment is None:
            return []
        body = reader.feed(data) if data else b""
        trailers: list[bytes] | None = None
        if isinstance(reader, ChunkedReader):
            trailers = reader.trailers
            if exchange.request.version == 11:
                body = chunk(body)
                if reader.done:
                    body += last_chunk(trailers)
        exchange.sent += len(body)
        actions = self._write(head, body, reader.done, trailers)
        if reader.done:
            if reader.rest:
                response.close = True
            return self._complete(exchange, now, actions)
        self.deadline = now + assignment.pool.response_body
        if not self.splices or exchange.link is not None:
            return actions
        if isinstance(reader, LengthReader) and reader.remaining > SPLICE_BYTES:
            actions.append(Splice(SERVER, reader.remaining))
        elif isinstance(reader, CloseReader):
            actions.append(Splice(SERVER, -1))
        return actions

    def _complete(self, exchange: Exchange, now: float, actions: list[Action]) -> list[Action]:
        """The answer is whole: give the server back, and go on with the next request or close."""
        response = exchange.response
        assert response is not None
        failure = Failure.SERVER_ERROR if response.status >= 500 and response.status != 501 else None
        actions.append(self._finished(exchange, None, "ok", now))
        link = exchange.link
        kept = exchange.body_done and not response.close and (link is None or (link.whole and not link.leaving))
        actions.append(Release(kept, failure, exchange.latency()))
        return self._next(exchange, actions, now)
