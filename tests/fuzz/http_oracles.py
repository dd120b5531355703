"""What other parsers read in a stream of requests: h11, and llhttp by httptools."""

from __future__ import annotations

from dataclasses import dataclass

import h11
import httptools


@dataclass
class Message:
    """One complete request: its method, its target as it came, its body."""

    method: bytes
    target: bytes
    body: bytes


def read_h11(data: bytes) -> tuple[list[Message], str]:
    """The complete requests, and what stopped it (empty: the end of the data)."""
    found: list[Message] = []
    while True:
        # The empty lines that may stand before a request are the one thing that h11 does not know.
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1_000_000)
        connection.receive_data(data.lstrip(b"\r\n"))
        try:
            message, stopped = _read_one(connection)
        except h11.RemoteProtocolError as problem:
            return found, str(problem)
        if message is None:
            return found, stopped
        found.append(message)
        if stopped:
            return found, stopped
        data = connection.trailing_data[0]


def _read_one(connection: h11.Connection) -> tuple[Message | None, str]:
    current: Message | None = None
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            current = Message(event.method, event.target, b"")
        elif isinstance(event, h11.Data) and current is not None:
            current.body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return current, "it closes" if connection.their_state is h11.MUST_CLOSE else ""
        else:
            return None, "it pauses" if event is h11.PAUSED else ""


class _Listener:
    def __init__(self) -> None:
        self.found: list[Message] = []
        self.current = Message(b"", b"", b"")
        self.parser: httptools.HttpRequestParser | None = None

    def on_message_begin(self) -> None:
        self.current = Message(b"", b"", b"")

    def on_url(self, url: bytes) -> None:
        self.current.target += url

    def on_body(self, body: bytes) -> None:
        self.current.body += body

    def on_headers_complete(self) -> None:
        assert self.parser is not None
        self.current.method = self.parser.get_method()

    def on_message_complete(self) -> None:
        self.found.append(self.current)


def read_httptools(data: bytes) -> tuple[list[Message], str]:
    """The complete requests, and what stopped it (empty: the end of the data)."""
    listener = _Listener()
    parser = listener.parser = httptools.HttpRequestParser(listener)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        return listener.found, "it upgrades"
    except httptools.HttpParserError as problem:
        return listener.found, str(problem)
    return listener.found, ""
