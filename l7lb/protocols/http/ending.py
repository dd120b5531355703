"""How an exchange ends: well, with an answer of our own, with another try, or by cutting it off.

The first of three parts of the HTTP machine (see :mod:`l7lb.protocols.http.machine`). What it holds to: each request
leaves one Finished behind; an answer that has begun and can't be completed ends in a reset, so that nobody takes it for
a whole one; after an answer that did not wait for its request's end, the connection closes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from l7lb.core.actions import Action, Close, Finished, NeedServer, Release, ToClient, ToServer
from l7lb.core.contracts import Multiplexer, Peer, Session
from l7lb.core.dates import Dates
from l7lb.core.errors import Failure, Owner
from l7lb.core.facts import Facts
from l7lb.protocols.http.answers import STATUS, refusal
from l7lb.protocols.http.facts import Networks, trusted
from l7lb.protocols.http.forward import Origin, named, new_request_id
from l7lb.protocols.http.session import Exchange, Unread
from l7lb.protocols.http.settings import HttpSettings

IDLE: Final = 0
HEAD: Final = 1
ROUTING: Final = 2
WAITING: Final = 3
ANSWERING: Final = 4
TUNNEL: Final = 5
CLOSED: Final = 6
PHASES = ("idle", "request-header", "queue", "response-header", "response-body", "tunnel", "closed")
MAX_TRUST: Final = 4096


class Shared:
    """What all connections of one listener have in common, for one snapshot."""

    def __init__(
        self,
        name: str,
        settings: HttpSettings,
        dates: Dates | None = None,
        webmail: Callable[[Facts], None] | None = None,
    ) -> None:
        self.name = name
        self.dates = dates or Dates()
        self.settings = settings
        self.webmail = webmail  # finds the mailbox that a request is about
        # What every request asks for is kept at hand; the times are in seconds.
        self.header_bytes = settings.header_bytes
        self.headers = settings.headers
        self.body_bytes = settings.body_bytes
        self.request_header = settings.timeouts.request_header
        self.request_body = settings.timeouts.request_body
        self.keep_alive = settings.timeouts.keep_alive
        self.tunnel = settings.timeouts.tunnel
        self.networks: Networks = settings.networks()
        self.via = "via" in settings.send
        self.multiplex: Callable[[Peer, float], Multiplexer] | None = None  # makes HTTP/2 of a connection
        self._trusted: dict[str, bool] = {}

    def trusts(self, address: str) -> bool:
        """Whether a peer may say who the client is."""
        if not self.networks:
            return False
        known = self._trusted.get(address)
        if known is None:
            if len(self._trusted) >= MAX_TRUST:
                self._trusted.clear()
            known = self._trusted[address] = trusted(address, self.networks)
        return known


class HttpEnding(Session):
    """A client connection's state, and the ways in which its exchanges end."""

    __slots__ = (
        "began",
        "blanks",
        "buffer",
        "closing",
        "exchange",
        "first",
        "origin",
        "peer",
        "shared",
        "splices",
        "state",
        "trust",
    )

    def __init__(self, shared: Shared, peer: Peer, now: float) -> None:
        super().__init__()
        self.shared = shared
        self.peer = peer
        self.trust = shared.trusts(peer.client)
        self.origin: Origin | None = None
        self.exchange: Exchange | None = None
        self.buffer = b""
        self.blanks = 0
        self.first = True  # nothing was asked yet
        self.began = now
        self.state = IDLE
        self.closing = False
        self.splices = True  # the bytes of a body are the same on both sides
        self.deadline = now + shared.request_header

    def _head(self, data: bytes, now: float) -> list[Action]:
        """Read a request's head; what is left of it waits."""
        raise NotImplementedError

    # --- what the client gets: HTTP/1 here, frames in l7lb.protocols.http.http2.stream -------------------------

    def _write(self, head: bytes, body: bytes, end: bool, trailers: list[bytes] | None = None) -> list[Action]:
        """Send a head, if there is one, and a part of the body in the framing that the head says. ``end``: the answer
        is whole with this; ``trailers`` stand in the framing of HTTP/1 already.
        """
        return [ToClient(head + body)] if head or body else []

    def _write_own(self, data: bytes) -> list[Action]:
        """Send a whole answer of our own, as HTTP/1 words it."""
        return [ToClient(data)]

    # --- the regular end --------------------------------------------------------------------------------------

    def _next(self, exchange: Exchange, actions: list[Action], now: float) -> list[Action]:
        self.exchange = None
        if self._must_close(exchange) or not exchange.body_done:
            self.state = CLOSED
            self.deadline = 0.0
            actions.append(Close(linger=not exchange.body_done))
            return actions
        self.state = IDLE
        self.first = False
        self.deadline = now + self.shared.keep_alive
        self.wants_client = True
        if self.buffer:
            data, self.buffer = self.buffer, b""
            actions += self._head(data, now)
        return actions

    # --- failures ---------------------------------------------------------------------------------------------

    def _again(self, exchange: Exchange, failure: Failure) -> list[Action]:
        assignment = exchange.assignment
        assert assignment is not None
        stale = failure is Failure.SERVER_CLOSED and assignment.reused
        if not stale:
            exchange.retries += 1
        exchange.sent_at = 0.0
        exchange.link = None
        self.state = ROUTING
        self.deadline = 0.0
        if not exchange.body_done:
            self.wants_client = False
        return [NeedServer(exchange.facts, again=failure, fresh=stale)]

    def _server_fault(self, exchange: Exchange, failure: Failure, now: float, reason: str = "") -> list[Action]:
        """The server failed: another one, or an error, or, once the answer has begun, an abort."""
        if self.state == ANSWERING:
            return self._abandon(exchange, failure, now)
        if exchange.may_retry(failure):
            return self._again(exchange, failure)
        return [Release(False, failure), *self._refuse(exchange, failure, now, 0, reason)]

    def _refuse(
        self, exchange: Exchange, failure: Failure, now: float, status: int = 0, reason: str = ""
    ) -> list[Action]:
        """Answer with an error of our own."""
        status = status or STATUS[failure]
        close = self._must_close(exchange) or not exchange.body_done or failure.owner is Owner.CLIENT
        head_only = exchange.request.method == b"HEAD"
        data = refusal(
            failure,
            self.shared.dates.field(now),
            named(exchange.request),
            status=status,
            reason=reason,
            close=close,
            keep=exchange.request.version == 10,
            head_only=head_only,
            wait=exchange.facts.wait if failure is Failure.RATE_LIMITED else 1.0,
        )
        return self._answer_here(exchange, data, status, failure, close, now)

    def _answer_here(
        self, exchange: Exchange, data: bytes, status: int, failure: Failure | None, close: bool, now: float
    ) -> list[Action]:
        ended = "ok" if failure is None else f"{failure.label}@{self._phase(exchange, failure)}"
        exchange.status = status
        exchange.sent += len(data)
        actions = self._write_own(data)
        actions.append(self._finished(exchange, failure, ended, now))
        if close:
            self.exchange = None
            self.state = CLOSED
            self.deadline = 0.0
            self.wants_client = True
            actions.append(Close(linger=True))
            return actions
        if not exchange.body_done:
            exchange.request.close = True
        return self._next(exchange, actions, now)

    def _abandon(self, exchange: Exchange, failure: Failure, now: float) -> list[Action]:
        """End an exchange that can't be brought to a clean end; nobody may take what was sent for a whole answer."""
        blame = failure if failure.owner is Owner.SERVER else None
        ended = f"{failure.label}@{self._phase(exchange, failure)}"
        if not exchange.status:
            exchange.status = STATUS[failure]
        self.exchange = None
        self.state = CLOSED
        self.deadline = 0.0
        actions: list[Action] = [self._finished(exchange, failure, ended, now)]
        link = exchange.link
        if link is not None:
            actions.append(ToServer(link.cancel()))
        # A stream that was cancelled leaves its connection as it was.
        kept = link is not None and blame is None and not link.leaving
        return [*actions, Release(kept, blame), Close(abort=True)]

    def _broken(self, failure: Failure, status: int, reason: str, now: float) -> list[Action]:
        """The client's head can't be read: say so and close."""
        identity = new_request_id()
        data = refusal(failure, self.shared.dates.field(now), identity, status=status, reason=reason, close=True)
        finished = self._unread(failure, status, identity, now, len(data))
        self.buffer = b""
        self.state = CLOSED
        self.deadline = 0.0
        return [*self._write_own(data), finished, Close(linger=True)]

    def _unread(self, failure: Failure, status: int, identity: bytes, now: float, sent: int = 0) -> Finished:
        ended = f"{failure.label}@request-header"
        unread = Unread(self.shared.name, self.peer.client, identity, status)
        return Finished(unread, status, failure, ended, len(self.buffer), sent, now - self.began)

    def _phase(self, exchange: Exchange, failure: Failure) -> str:
        """Where an exchange ended, in the record's words."""
        if self.state == ROUTING and failure in (Failure.CONNECT_REFUSED, Failure.CONNECT_TIMEOUT, Failure.CONNECT_TLS):
            return "connect"
        if self.state == WAITING and failure.owner is Owner.CLIENT and not exchange.body_done:
            return "request-body"
        return PHASES[self.state]

    def _quit(self) -> list[Action]:
        self.state = CLOSED
        self.deadline = 0.0
        return [Close()]

    def _must_close(self, exchange: Exchange) -> bool:
        return self.closing or exchange.request.close

    def _finished(self, exchange: Exchange, failure: Failure | None, ended: str, now: float) -> Finished:
        return Finished(
            exchange, exchange.status, failure, ended, exchange.received, exchange.sent, now - exchange.began
        )
