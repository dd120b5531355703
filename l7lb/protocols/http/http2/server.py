"""HTTP/2 towards a server: a translator between what the exchange says to an HTTP/1.1 server and frames, sans-io.

The exchange speaks to every server in HTTP/1.1, and this turns it into a stream: its head into a field list, its body
into DATA, the chunks' trailers into trailers; and the server's frames into an answer of HTTP/1.1. So retries,
rewriting, limits and the strict reading of answers exist once. A connection carries one stream at a time, and is kept
for the next.

What the server's window does not allow yet waits in ``waiting``; the exchange reads no more of its client meanwhile.
"""

from __future__ import annotations

from typing import Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    Event,
    InformationalResponseReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from l7lb.protocols.http import syntax
from l7lb.protocols.http.body import ChunkedReader, LengthReader, chunk, last_chunk
from l7lb.protocols.http.http2.fields import LEFT_OUT, FieldList, trailer_fields
from l7lb.protocols.http.http2.guard import GOAWAY, HEADER, Cutter, Frame, Guard
from l7lb.protocols.http.syntax import OWS, SyntaxFault

REFUSED_STREAM: Final = 7
CANCEL: Final = 8
WINDOW: Final = 1024**2  # bytes of an answer that may be on their way
FRAME_BYTES: Final = 16384  # that a server is told
ENCODER_TABLE: Final = 4096
HIGH_WATER: Final = 64 * 1024
LAST_STREAM: Final = 2**31 - 1
CONTROL_FRAMES: Final = 1000  # that a server may send in ten seconds beyond those that its answers pay for
LAST_NUMBER: Final = 2**30  # far below the end of the numbers, a connection is replaced


class ServerLink:
    """One connection to a server. ``reset`` is the code with which the server ended the stream, -1 while it has not;
    ``whole``: its answer is complete; ``leaving``: the connection takes no further stream.
    """

    __slots__ = (
        "_chunked",
        "_cutter",
        "_guard",
        "_h2",
        "_number",
        "_out",
        "_reader",
        "_scheme",
        "_sent_all",
        "_trailers",
        "head_only",
        "leaving",
        "reset",
        "te",
        "whole",
    )

    def __init__(self, https: bool, header_bytes: int) -> None:
        config = H2Configuration(
            client_side=True,
            header_encoding=None,
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self._h2 = H2Connection(config)
        values = {SettingCodes.ENABLE_PUSH: 0, SettingCodes.INITIAL_WINDOW_SIZE: WINDOW}
        self._h2.local_settings = Settings(client=True, initial_values=values)
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(WINDOW)
        self._h2.decoder.max_header_list_size = 2 * header_bytes + ENCODER_TABLE
        self._scheme = b"https" if https else b"http"
        self._cutter = Cutter(FRAME_BYTES)
        self._guard = Guard(CONTROL_FRAMES, CONTROL_FRAMES, 0.0)
        self._number = 0
        self._out = bytearray()
        self._reader: LengthReader | ChunkedReader | None = None
        self._trailers: list[bytes] = []
        self._sent_all = True
        self._chunked = False
        self.head_only = False
        self.te = False
        self.whole = False
        self.reset = -1
        self.leaving = False

    @property
    def waiting(self) -> int:
        """Bytes of the request that the server does not take yet."""
        return len(self._out)

    @property
    def unprocessed(self) -> bool:
        """Whether the server says that it did nothing with the request (RFC 9113 section 8.7)."""
        return self.reset == REFUSED_STREAM

    @property
    def full(self) -> bool:
        """Whether so much waits that the client must."""
        return len(self._out) >= HIGH_WATER

    # --- to the server ----------------------------------------------------------------------------------------

    def begin(self, te: bool, head_only: bool) -> None:
        """The next :meth:`send` begins a request."""
        self.te = te
        self.head_only = head_only
        self._number = 0
        self._out.clear()
        self._reader = None
        self._sent_all = False
        self.whole = False
        self.reset = -1

    def send(self, data: bytes) -> bytes:
        """Bytes of the request in HTTP/1.1, the head whole; returns frames."""
        if not self._number:
            cut = data.find(b"\r\n\r\n") + 4
            self._head(data[:cut])
            data = data[cut:]
        reader = self._reader
        if reader is not None and data:
            self._out += reader.feed(data)
            if reader.done:
                self._trailers = trailer_lines(reader)
        return self.flush()

    def _head(self, head: bytes) -> None:
        lines = head.split(b"\r\n")[:-2]
        method, target, _ = lines[0].split(b" ")
        authority = b""
        length = b""
        fields: list[tuple[bytes, bytes]] = []
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            name, value = name.lower(), value.strip(OWS)
            if name == b"host":
                authority = value
            elif name == b"transfer-encoding":
                self._reader = ChunkedReader(syntax.MAX_KNOWN)
            elif name not in LEFT_OUT:
                if name == b"content-length":
                    length = value
                fields.append((name, value))
        if length and length != b"0":
            self._reader = LengthReader(int(length))
        if self.te:
            fields.append((b"te", b"trailers"))
        pseudo = [(b":method", method), (b":scheme", self._scheme), (b":authority", authority), (b":path", target)]
        self._number = self._h2.get_next_available_stream_id()
        self._trailers = []
        self._sent_all = self._reader is None
        self.leaving = self.leaving or self._number > LAST_NUMBER
        self._h2.send_headers(self._number, pseudo + fields, end_stream=self._sent_all)

    def flush(self) -> bytes:
        """What may leave now."""
        library, out = self._h2, self._out
        if self.reset < 0 and self._number and not self._sent_all:
            reader = self._reader
            done = reader is None or reader.done
            while out:
                window = min(library.local_flow_control_window(self._number), library.max_outbound_frame_size, len(out))
                if window <= 0:
                    break
                last = done and window == len(out) and not self._trailers
                library.send_data(self._number, bytes(memoryview(out)[:window]), end_stream=last)
                self._guard.paid()  # with its WINDOW_UPDATE
                del out[:window]
                self._sent_all = last
            if done and not out and not self._sent_all:
                if self._trailers:
                    library.send_headers(self._number, trailer_fields(self._trailers), end_stream=True)
                else:
                    library.end_stream(self._number)
                self._sent_all = True
        return library.data_to_send()

    def cancel(self) -> bytes:
        """The exchange is given up: the server need not go on."""
        if self._number and self.reset < 0 and not (self.whole and self._sent_all):
            self._h2.reset_stream(self._number, CANCEL)
            self._out.clear()
            self.reset = CANCEL
        return self._h2.data_to_send()

    # --- from the server --------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> bytes:
        """Frames from the server; returns what they say in HTTP/1.1. Raises SyntaxFault(502)."""
        said: list[bytes] = []
        self._cutter.add(data)
        try:
            while (frame := self._cutter.frame()) is not None:
                if frame.size > FRAME_BYTES:
                    raise SyntaxFault(502, "the server's frame is too large, if it speaks HTTP/2 at all")
                if not self._guard.frame(frame, now):
                    raise SyntaxFault(502, "the server floods its connection with frames that carry no answer")
                if frame.kind == GOAWAY and not frame.stream and frame.size >= 8:
                    self._left(frame)
                    continue
                for event in self._h2.receive_data(frame.data):
                    self._event(event, said)
        except ProtocolError as problem:
            self.leaving = True
            raise SyntaxFault(502, f"the server breaks HTTP/2: {problem}") from problem
        except SyntaxFault:
            self.leaving = True
            raise
        return b"".join(said)

    def _left(self, frame: Frame) -> None:
        """The server takes no further stream, but finishes those that it has begun (RFC 9113 section 6.8). The library
        would end the connection here.
        """
        self.leaving = True
        last = int.from_bytes(frame.data[HEADER : HEADER + 4], "big") & LAST_STREAM
        if self._number > last and self.reset < 0 and not self.whole:
            self.reset = REFUSED_STREAM

    def _event(self, event: Event, said: list[bytes]) -> None:
        if isinstance(event, RemoteSettingsChanged):
            encoder = self._h2.encoder
            encoder.header_table_size = min(encoder.header_table_size, ENCODER_TABLE)
            if not self._h2.remote_settings.max_concurrent_streams:
                self.leaving = True
        elif getattr(event, "stream_id", 0) != self._number or not self._number:
            return
        elif isinstance(event, DataReceived):
            if event.flow_controlled_length:
                self._h2.acknowledge_received_data(event.flow_controlled_length, self._number)
            body = bytes(event.data or b"")
            said.append(chunk(body) if self._chunked else body)
        elif isinstance(event, ResponseReceived):
            said.append(self._answer(event.headers or [], event.stream_ended is not None))
        elif isinstance(event, InformationalResponseReceived):
            said.append(start(event.headers or []) + b"\r\n")
        elif isinstance(event, TrailersReceived):
            if self._chunked:
                said.append(last_chunk(checked_lines(event.headers or [])))
                self._chunked = False
        elif isinstance(event, StreamEnded):
            if self._chunked:
                said.append(last_chunk([]))
                self._chunked = False
            self.whole = True
        elif isinstance(event, StreamReset):
            self.reset = int(event.error_code)

    def _answer(self, fields: FieldList, ended: bool) -> bytes:
        head = start(fields)
        bodiless = self.head_only or head[9:12] in (b"204", b"304")
        known = any(name == b"content-length" for name, _ in fields)
        self._chunked = not (known or ended or bodiless)
        if self._chunked:
            head += b"Transfer-Encoding: chunked\r\n"
        elif not known and not bodiless:
            head += b"Content-Length: 0\r\n"
        return head + b"\r\n"


def trailer_lines(reader: LengthReader | ChunkedReader) -> list[bytes]:
    """The trailers that a body came with."""
    return reader.trailers if isinstance(reader, ChunkedReader) else []


def checked_lines(fields: FieldList) -> list[bytes]:
    """A server's fields as lines; raises SyntaxFault(502) for what could be taken for something else."""
    lines = []
    for name, value in fields:
        if name != name.lower() or not syntax.TOKEN.fullmatch(name) or name in LEFT_OUT:
            raise SyntaxFault(502, "the server sent a field that HTTP/2 does not have")
        if value.translate(None, syntax.LINE_BYTES):
            raise SyntaxFault(502, "a control character in the server's header")
        lines.append(name + b": " + value)
    return lines


def start(fields: FieldList) -> bytes:
    """A status line and fields, without the empty line behind them."""
    if not fields or fields[0][0] != b":status" or len(fields[0][1]) != 3 or not fields[0][1].isdigit():
        raise SyntaxFault(502, "the server's answer has no status")
    lines = checked_lines(fields[1:])
    return b"HTTP/1.1 " + fields[0][1] + b" \r\n" + b"".join(line + b"\r\n" for line in lines)
