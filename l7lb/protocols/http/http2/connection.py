"""A client's HTTP/2 connection: frames in, streams out (RFC 9113), sans-io.

The h2 library keeps the states of connection and streams, both flow-control windows and the header compression. Here
are what it leaves open: the limits, the order in which answers leave, and the way to the exchanges.

=========  ==========================================  =========================================================
state      waits for                                   leaves on
=========  ==========================================  =========================================================
PREFACE    the client's 24 bytes                       they are right -> OPEN; fault, time -> CLOSED
OPEN       frames                                      fault -> CLOSED; drain, idle time -> LEAVING
LEAVING    its streams to end; new ones are refused    the last has ended -> CLOSED
CLOSED     nothing                                     what still comes is discarded
=========  ==========================================  =========================================================

Frames are handled one at a time, each with what it asks for carried out before the next, so that any split of the bytes
gives the same actions. Flow control is joined to back-pressure: the connection's window is given back as bytes come,
since what they can hold is bounded by the streams' windows; a stream's window only as its server takes the bytes. What
servers answer waits in the streams' outboxes, and leaves a frame of each in turn as the socket and the windows allow.
"""

from __future__ import annotations

from typing import Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame

from l7lb.core.actions import CLIENT, Action, Close, Continue, Finished, Multiplex, OnStream, OpenStream, Side, ToClient
from l7lb.core.contracts import Multiplexer, Peer, Session
from l7lb.core.errors import Failure
from l7lb.protocols.http.ending import Shared
from l7lb.protocols.http.forward import Origin, new_request_id
from l7lb.protocols.http.http2.fields import Malformed, read_fields, read_trailers, size_of, trailer_fields
from l7lb.protocols.http.http2.guard import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    Cutter,
    Frame,
    Guard,
)
from l7lb.protocols.http.http2.stream import (
    CANCEL,
    ENHANCE_YOUR_CALM,
    FRAME_SIZE_ERROR,
    INTERNAL_ERROR,
    NO_ERROR,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    StreamMachine,
)
from l7lb.protocols.http.machine import HttpMachine
from l7lb.protocols.http.session import Unread
from l7lb.protocols.http.syntax import SyntaxFault

PREFACE: Final = 0
OPEN: Final = 1
LEAVING: Final = 2
CLOSED: Final = 3
PHASES = ("preface", "open", "leaving", "closed")
MAGIC = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LAST_STREAM = 2**31 - 1
ENCODER_TABLE = 4096  # bytes of the table that our own header compression may fill, whatever the client allows
LINGER_SECONDS = 2.0  # how long a client that still sends is listened to after its answer
LINGER_BYTES = 4 * 1024 * 1024
PATIENCE = 5.0  # seconds between the first GOAWAY, which refuses nothing yet, and the final one


class Library(H2Connection):
    """The library, less what would end a whole connection for one stream too many, and with less to remember."""

    MAX_CLOSED_STREAMS = 1024

    @property
    def open_inbound_streams(self) -> int:
        """Streams beyond the limit are refused one by one here (RFC 9113 section 5.1.2), so the library sees none."""
        super().open_inbound_streams  # noqa: B018 - it forgets closed streams as it counts
        return 0


class Http2Machine(Multiplexer):
    """A client connection; see the module's head and :class:`l7lb.core.contracts.Multiplexer`."""

    __slots__ = (
        "_cutter",
        "_finishing",
        "_goodbye",
        "_guard",
        "_h2",
        "_idle_since",
        "_in_header",
        "_limits",
        "_notes",
        "_owed",
        "_partial_since",
        "_ready",
        "_state",
        "_streams",
        "origin",
        "peer",
        "shared",
    )

    def __init__(self, shared: Shared, peer: Peer, now: float) -> None:
        super().__init__()
        limits = shared.settings.http2
        self.shared = shared
        self.peer = peer
        self.origin = Origin(peer, shared.settings.send)
        self._limits = limits
        self._state = PREFACE
        self._cutter = Cutter(limits.frame_bytes)
        self._guard = Guard(limits.resets, limits.control_frames, now)
        self._streams: dict[int, StreamMachine] = {}
        self._ready: dict[int, StreamMachine] = {}  # have something to send
        self._notes: dict[int, None] = {}  # streams that the proxy should look at again
        self._owed = 0  # bytes of the connection's window that the client has not been given back
        self._idle_since = now
        self._in_header = False  # inside a header block, whose CONTINUATION is to come
        self._partial_since = 0.0  # since when a frame or a header block is incomplete
        self._finishing = 0.0  # when the final GOAWAY follows the first
        self._goodbye = b""  # GOAWAY frames to be sent behind all else
        self._h2 = self._library(shared)
        self.deadline = now + shared.request_header

    def _library(self, shared: Shared) -> H2Connection:
        limits = self._limits
        config = H2Configuration(
            client_side=False,
            header_encoding=None,
            # Field lists are judged in :mod:`.fields`, where a fault costs its stream and not the connection.
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        library = Library(config)
        library.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: limits.max_concurrent_streams,
                SettingCodes.INITIAL_WINDOW_SIZE: limits.stream_window,
                SettingCodes.MAX_FRAME_SIZE: limits.frame_bytes,
                SettingCodes.MAX_HEADER_LIST_SIZE: shared.header_bytes,
            },
        )
        library.max_inbound_frame_size = limits.frame_bytes
        library.initiate_connection()
        # Somewhat larger ones are answered with 431 instead of ending the connection.
        library.decoder.max_header_list_size = 2 * shared.header_bytes + ENCODER_TABLE
        if limits.connection_window > 65535:
            library.increment_flow_control_window(limits.connection_window - 65535)
        return library

    # --- what the proxy tells ---------------------------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        return [Multiplex(self)]

    def received(self, side: Side, data: bytes, now: float) -> list[Action]:
        if self._state == CLOSED:
            return []
        cutter = self._cutter
        if data:
            cutter.add(data)
            if cutter.kind == DATA:
                self._partial_since = 0.0  # a body may take its time, as long as some of it comes
        if self._state == PREFACE:
            return self._preface(now)
        frame = cutter.frame()
        if frame is None:
            self._settle(now)
            return []
        actions = self._frame(frame, now)
        self._settle(now)
        if cutter.complete and self._state != CLOSED:
            actions.append(Continue())
        return actions

    def ended(self, side: Side, now: float, error: bool) -> list[Action]:
        if self._state == CLOSED:
            return []
        streams = list(self._streams.values())
        actions: list[Action] = [OnStream(stream.number, stream.ended(CLIENT, now, error)) for stream in streams]
        self._state = LEAVING
        self.wants_client = False
        if error or not self._streams:
            return [*actions, *self._close()]
        return actions  # a half-closed client still gets its answers

    def expired(self, now: float, blocked: Side | None, progress: float) -> list[Action]:
        shared = self.shared
        if self._state == PREFACE:
            return self._give_up(PROTOCOL_ERROR, Failure.CLIENT_TIMEOUT, now)
        if self._partial_since and self._partial_since + self._patience() <= now:
            return self._give_up(PROTOCOL_ERROR, Failure.CLIENT_TIMEOUT, now)
        if self._finishing and self._finishing <= now:
            self._goaway(self._h2.highest_inbound_stream_id, NO_ERROR)
        for stream in list(self._streams.values()):
            # Its exchange is over and its server given back, but the client does not take or end the rest.
            if stream.exchange is None and self._limit(stream) <= now:
                self.reset(stream, NO_ERROR if stream.lingering else CANCEL)
        if not self._streams and self._idle_since + shared.keep_alive <= now:
            self._goaway(self._h2.highest_inbound_stream_id, NO_ERROR)
        self._settle(now)
        return self._close() if self._done() else []

    def draining(self, now: float, patient: bool) -> list[Action]:
        if self._state == CLOSED:
            return []
        if patient and not self._finishing:
            # Requests may be on their way: they are still taken, until the final word (RFC 9113 section 6.8).
            self._goaway(LAST_STREAM, NO_ERROR)
            self._finishing = now + PATIENCE
        elif not patient:
            self._goaway(self._h2.highest_inbound_stream_id, NO_ERROR)
        self._settle(now)
        return self._close() if self._done() else []

    def describe(self) -> dict[str, str]:
        return {"detail": f"{len(self._streams)} streams ({PHASES[self._state]})"}

    def failed_stream(self, number: int) -> None:
        stream = self._streams.get(number)
        if stream is not None:
            self.reset(stream, INTERNAL_ERROR)

    # --- frames from the client -------------------------------------------------------------------------------

    def _preface(self, now: float) -> list[Action]:
        taken = self._cutter.take(len(MAGIC))
        held = self._cutter.held
        if taken is None and MAGIC.startswith(held):
            return []
        if taken != MAGIC:
            return self._give_up(PROTOCOL_ERROR, Failure.CLIENT_PROTOCOL, now)
        self._h2.receive_data(taken)
        self._state = OPEN
        self._idle_since = now
        self._settle(now)
        return [Continue()]

    def _frame(self, frame: Frame, now: float) -> list[Action]:
        """One frame, weighed and judged before the library sees it."""
        if frame.size > self._limits.frame_bytes:
            return self._give_up(FRAME_SIZE_ERROR, Failure.CLIENT_LIMIT, now)
        if not self._guard.frame(frame, now):
            return self._give_up(ENHANCE_YOUR_CALM, Failure.CLIENT_LIMIT, now)
        if frame.kind in (HEADERS, CONTINUATION):
            begins = not self._in_header
            self._in_header = not frame.flags & END_HEADERS
            if begins or not self._in_header:
                self._partial_since = 0.0
        else:
            self._partial_since = 0.0
        if frame.kind == GOAWAY and not frame.stream and frame.size >= 8 and not self._in_header:
            # A client that leaves may still read what it asked for. The library would end the connection here.
            self._state = LEAVING
            return [] if self._streams else self._close()
        actions: list[Action] = []
        if frame.kind == DATA:
            stream = self._streams.get(frame.stream)
            if stream is not None and stream.remaining >= 0:
                stream.remaining -= frame.content
                if stream.remaining < 0 or (stream.remaining and frame.flags & END_STREAM):
                    # The library would end the connection for it.
                    actions += self._fault(stream, now)
        try:
            events = self._h2.receive_data(frame.data)
        except ProtocolError as problem:
            failure = Failure.CLIENT_LIMIT if problem.error_code == ENHANCE_YOUR_CALM else Failure.CLIENT_PROTOCOL
            return actions + self._give_up(-1, failure, now)
        for event in events:
            actions += self._event(event, now)
        return actions

    def _event(self, event: Event, now: float) -> list[Action]:
        if isinstance(event, DataReceived):
            return self._data(event, now)
        if isinstance(event, RequestReceived):
            return self._request(event, now)
        if isinstance(event, TrailersReceived):
            stream = self._streams.get(event.stream_id)
            if stream is None:
                return []
            if stream.remaining > 0:
                return self._fault(stream, now)  # the body is shorter than its Content-Length
            try:
                trailers = read_trailers(event.headers or [], self.shared.settings.headers)
            except SyntaxFault:
                return self._fault(stream, now)
            actions = stream.end(trailers, now)
            self._linger(stream, now)
            return [OnStream(stream.number, actions)]
        if isinstance(event, StreamReset):
            stream = self._streams.pop(event.stream_id, None)
            if stream is None:
                return []
            self._ready.pop(stream.number, None)
            return [OnStream(stream.number, stream.ended(CLIENT, now, True))]
        if isinstance(event, RemoteSettingsChanged) and SettingCodes.HEADER_TABLE_SIZE in event.changed_settings:
            encoder = self._h2.encoder
            encoder.header_table_size = min(encoder.header_table_size, ENCODER_TABLE)
        return []

    def _request(self, event: RequestReceived, now: float) -> list[Action]:
        number = event.stream_id
        assert number is not None
        stream = StreamMachine(self, self.shared, self.peer, number, now)
        ended = event.stream_ended is not None
        stream.ended_by_client = ended
        fields = event.headers or []
        size = size_of(fields)
        self._streams[number] = stream
        if len(self._streams) > self._limits.max_concurrent_streams or self._state == LEAVING:
            self.reset(stream, REFUSED_STREAM)
            return self._calm(now)
        settings = self.shared.settings
        try:
            if size > settings.header_bytes:
                raise SyntaxFault(431, "the header is too large")
            request = read_fields(fields, settings.headers, ended)
            if request.length > settings.body_bytes:
                raise SyntaxFault(413, "the body is larger than allowed")
        except Malformed:
            self.reset(stream, PROTOCOL_ERROR)
            return [self._told(Failure.CLIENT_PROTOCOL, 400, "request-header", size, now), *self._calm(now)]
        except SyntaxFault as fault:
            return [OpenStream(number, stream, stream, stream.refuse_head(fault.status, fault.reason, now))]
        return [OpenStream(number, stream, stream, stream.begin(request, size, now))]

    def _data(self, event: DataReceived, now: float) -> list[Action]:
        number = event.stream_id
        size = event.flow_controlled_length or 0
        self._owed += size
        if self._owed * 2 >= self._limits.connection_window:
            self._h2.increment_flow_control_window(self._owed)
            self._owed = 0
        stream = self._streams.get(number) if number is not None else None
        if stream is None:
            return []
        stream.credit += size
        if stream.lingering:
            stream.lingered += size
        actions = stream.received(CLIENT, bytes(event.data or b""), now) if event.data else []
        if event.stream_ended is not None:
            actions += stream.end([], now)
        self._linger(stream, now)
        return [OnStream(stream.number, actions)]

    def _fault(self, stream: StreamMachine, now: float) -> list[Action]:
        """The stream breaks the protocol, and nothing else does."""
        self.reset(stream, PROTOCOL_ERROR)
        return [OnStream(stream.number, stream.malformed(now)), *self._calm(now)]

    def _calm(self, now: float) -> list[Action]:
        """A stream was reset for the client's fault: not too often."""
        if self._guard.reset(now):
            return []
        return self._give_up(ENHANCE_YOUR_CALM, Failure.CLIENT_LIMIT, now)

    # --- frames to the client ---------------------------------------------------------------------------------

    def output(self, room: int, now: float) -> list[Action]:
        if self._ready and room > 0:
            self._schedule(room, now)
        actions: list[Action] = []
        data = self._farewell()
        if data:
            actions.append(ToClient(data))
        if self._notes:
            notes, self._notes = self._notes, {}
            actions += [OnStream(number, []) for number in notes]
        if self._state == LEAVING and self._done():
            actions += self._close()
        return actions

    def _schedule(self, room: int, now: float) -> None:
        """Send what waits: a frame of each stream in turn, as long as windows and ``room`` allow."""
        ready = self._ready
        while ready and room > 0:
            sent = 0
            for stream in list(ready.values()):
                count = self._send_some(stream, room, now)
                if count < 0:
                    continue
                sent += count + 1
                room -= count
                if room <= 0:
                    # The others' turn comes first when there is room again.
                    if stream.number in ready:
                        del ready[stream.number]
                        ready[stream.number] = stream
                    break
            if not sent:
                break
        self._settle(now)

    def _send_some(self, stream: StreamMachine, room: int, now: float) -> int:
        """One frame of a stream's body, or its end; how many bytes, -1 where its window is closed."""
        library, number, outbox = self._h2, stream.number, stream.outbox
        size = 0
        if outbox:
            size = min(library.local_flow_control_window(number), library.max_outbound_frame_size, room, len(outbox))
            if size <= 0:
                return -1
            last = stream.whole and size == len(outbox) and not stream.trailers
            library.send_data(number, bytes(memoryview(outbox)[:size]), end_stream=last)
            del outbox[:size]
            self._guard.paid()
            stream.progress = now
            self._notes[number] = None
            if not last and (outbox or not stream.whole):
                if not outbox:
                    del self._ready[number]
                return size
        elif not stream.whole:
            del self._ready[number]
            return 0
        else:
            last = not stream.trailers
            if last:
                library.end_stream(number)
        if not last:
            library.send_headers(number, trailer_fields(stream.trailers), end_stream=True)
        self._sent_all(stream, now)
        return size

    def _sent_all(self, stream: StreamMachine, now: float) -> None:
        """The answer has left. A client that has not ended its half is listened to for a moment: many take a reset for
        the loss of the answer, though RFC 9113 section 8.1 says that they must not.
        """
        if stream.ended_by_client:
            self._forget(stream, now)
        else:
            stream.lingering = True
            stream.progress = now
            self._ready.pop(stream.number, None)
            self.give_credit(stream)

    def _linger(self, stream: StreamMachine, now: float) -> None:
        """More has come of a request that is answered already."""
        if not stream.lingering:
            return
        if stream.ended_by_client:
            self._forget(stream, now)
        elif stream.lingered > LINGER_BYTES:
            self.reset(stream, NO_ERROR)
        else:
            self.give_credit(stream)

    def send_head(self, stream: StreamMachine, fields: list[tuple[bytes, bytes]], last: bool) -> None:
        """An answer's head, interim or final; ``last``: there is nothing behind it."""
        if stream.number not in self._streams:
            return
        self._h2.send_headers(stream.number, fields, end_stream=last)
        self._guard.paid()
        if last:
            self._sent_all(stream, stream.progress)

    def queue(self, stream: StreamMachine) -> None:
        """The stream has something to send."""
        if stream.number in self._streams:
            self._ready[stream.number] = stream

    def reset(self, stream: StreamMachine, code: int) -> None:
        """End a stream at once; what waits in it is dropped."""
        if stream.number in self._streams:
            self._h2.reset_stream(stream.number, code)
            self._forget(stream, stream.progress)

    def give_credit(self, stream: StreamMachine) -> None:
        """The stream's server has taken what came: the client may send as much again."""
        if stream.ended_by_client or stream.number not in self._streams:
            stream.credit = 0
        elif stream.credit * 2 >= self._limits.stream_window:
            self._h2.increment_flow_control_window(stream.credit, stream.number)
            stream.credit = 0

    def _forget(self, stream: StreamMachine, now: float) -> None:
        self._streams.pop(stream.number, None)
        self._ready.pop(stream.number, None)
        stream.outbox.clear()
        if not self._streams:
            self._idle_since = max(now, self._idle_since)

    # --- deadlines, the end -----------------------------------------------------------------------------------

    def _settle(self, now: float) -> None:
        """The next time at which something is over."""
        shared = self.shared
        if self._state in (PREFACE, CLOSED):
            return
        due = 0.0
        if self._in_header or self._cutter.kind >= 0:
            self._partial_since = self._partial_since or now
            due = self._partial_since + self._patience()
        else:
            self._partial_since = 0.0
        if self._finishing and self._state == OPEN:
            due = min(due or self._finishing, self._finishing)
        if not self._streams:
            idle = self._idle_since + shared.keep_alive
            due = min(due or idle, idle)
        else:
            self._idle_since = now
            for stream in self._streams.values():
                if stream.exchange is None:
                    limit = self._limit(stream)
                    due = min(due or limit, limit)
        self.deadline = due

    def _limit(self, stream: StreamMachine) -> float:
        """Until when a stream without an exchange may stay."""
        return stream.progress + (LINGER_SECONDS if stream.lingering else self.shared.request_body)

    def _patience(self) -> float:
        """How long a frame or a header block may be incomplete."""
        shared = self.shared
        return shared.request_body if self._cutter.kind == DATA and not self._in_header else shared.request_header

    def _done(self) -> bool:
        return self._state == LEAVING and not self._streams

    def _goaway(self, last: int, code: int) -> None:
        """Announce the end. The library would forbid itself every further frame, so this one is made here."""
        frame = GoAwayFrame(0, last_stream_id=last, error_code=code)
        self._goodbye += frame.serialize()
        if last != LAST_STREAM:
            self._state = LEAVING

    def _give_up(self, code: int, failure: Failure, now: float) -> list[Action]:
        """The client breaks the protocol or a limit: GOAWAY (-1: the library has said it), and all streams end."""
        if code >= 0:
            self._goaway(self._h2.highest_inbound_stream_id, code)
        streams = list(self._streams.values())
        self._streams.clear()
        self._ready.clear()
        actions = [OnStream(stream.number, stream.ended(CLIENT, now, True)) for stream in streams]
        return [*actions, self._told(failure, 0, "connection", 0, now), *self._close()]

    def _told(self, failure: Failure, status: int, phase: str, received: int, now: float) -> Action:
        identity = new_request_id()
        unread = Unread(self.shared.name, self.peer.client, identity, status)
        return Finished(unread, status, failure, f"{failure.label}@{phase}", received, 0, 0.0)

    def _close(self) -> list[Action]:
        self._state = CLOSED
        self._streams.clear()
        self._ready.clear()
        self.deadline = 0.0
        data = self._farewell()
        return [ToClient(data), Close(linger=True)] if data else [Close(linger=True)]

    def _farewell(self) -> bytes:
        """What the library wants to send, and behind it what ends the connection."""
        data = self._h2.data_to_send()
        if self._goodbye:
            data += self._goodbye
            self._goodbye = b""
        return data


class Sessions:
    """Makes the sessions of one listener's connections: HTTP/2 where TLS agreed on it, else HTTP/1, which changes to
    HTTP/2 for a client that knows it will be there.
    """

    __slots__ = ("_shared",)

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        shared.multiplex = self._multiplex

    def __call__(self, peer: Peer, now: float) -> Session:
        # What a proxy in front agreed on with its client need not be what it speaks here: the first bytes tell.
        if peer.front is None and peer.tls and peer.handshake is not None and peer.handshake.alpn == b"h2":
            return Http2Machine(self._shared, peer, now)
        return HttpMachine(self._shared, peer, now)

    def _multiplex(self, peer: Peer, now: float) -> Multiplexer:
        return Http2Machine(self._shared, peer, now)
