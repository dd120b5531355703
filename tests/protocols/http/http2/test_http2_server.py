"""The translator towards servers: HTTP/1.1 on the exchange's side, frames on the server's."""

from __future__ import annotations

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, RequestReceived, StreamEnded, StreamReset, TrailersReceived
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame, PingFrame

from l7lb.protocols.http.http2.server import CONTROL_FRAMES, HIGH_WATER, ServerLink
from l7lb.protocols.http.syntax import SyntaxFault

GET = b"GET /x?y HTTP/1.1\r\nHost: a\r\nX-A: b\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n"
OK = [(b":status", b"200"), (b"x-a", b"b")]


class Talk:
    """A link and the server that it speaks to."""

    def __init__(self, **values: int) -> None:
        config = H2Configuration(
            client_side=False, header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.server = H2Connection(config)
        for name, value in values.items():
            self.server.local_settings[int(name.removeprefix("s"))] = value
            self.server.local_settings.acknowledge()
        self.server.initiate_connection()
        self.link = ServerLink(False, 32768)
        self.events: list[Event] = []

    def say(self, data: bytes, te: bool = False, head_only: bool = False) -> Talk:
        """A request begins."""
        self.link.begin(te, head_only)
        return self.go_on(data)

    def go_on(self, data: bytes) -> Talk:
        """More of a request."""
        self._to_server(self.link.send(data))
        return self

    def _to_server(self, frames: bytes) -> None:
        if frames:
            self.events += self.server.receive_data(frames)

    def hear(self) -> bytes:
        """What the server has said since, in HTTP/1.1."""
        said = self.link.receive(self.server.data_to_send(), 0.0)
        self._to_server(self.link.flush())
        return said

    def words(self) -> list[str]:
        """What the server saw."""
        events, self.events = self.events, []
        words = []
        for event in events:
            if isinstance(event, RequestReceived | TrailersReceived):
                words.append(" ".join(f"{name.decode()}={value.decode()}" for name, value in event.headers))
            elif isinstance(event, DataReceived) and event.data:
                words.append(f"data {event.data.decode() if len(event.data) < 40 else len(event.data)}")
            elif isinstance(event, StreamEnded):
                words.append("end")
            elif isinstance(event, StreamReset):
                words.append(f"reset {int(event.error_code)}")
        return words


def test_a_request_without_a_body() -> None:
    assert Talk().say(GET, te=True).words() == [
        ":method=GET :scheme=http :authority=a :path=/x?y x-a=b te=trailers",
        "end",
    ]


def test_a_body_in_chunks_with_trailers() -> None:
    talk = Talk().say(POST + b"3\r\nabc\r\n")
    talk.go_on(b"2\r\nde\r\n").go_on(b"0\r\nX-Sum: 1\r\n\r\n")
    assert talk.words() == [
        ":method=POST :scheme=http :authority=a :path=/ x-a=b",
        "data abc",
        "data de",
        "x-sum=1",
        "end",
    ]


def test_a_body_of_known_length() -> None:
    talk = Talk().say(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab").go_on(b"cde")
    assert talk.words() == [
        ":method=POST :scheme=http :authority=a :path=/ content-length=5",
        "data ab",
        "data cde",
        "end",
    ]


def test_an_answer_of_unknown_length_and_its_trailers() -> None:
    talk = Talk().say(GET)
    talk.server.send_headers(1, [(b":status", b"103"), (b"link", b"x")])
    talk.server.send_headers(1, OK)
    talk.server.send_data(1, b"abc")
    talk.server.send_headers(1, [(b"grpc-status", b"0")], end_stream=True)
    assert talk.hear() == (
        b"HTTP/1.1 103 \r\nlink: x\r\n\r\n"
        b"HTTP/1.1 200 \r\nx-a: b\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\ngrpc-status: 0\r\n\r\n"
    )
    assert talk.link.whole


def test_an_answer_of_trailers_alone_and_one_of_known_length() -> None:
    talk = Talk().say(GET)
    talk.server.send_headers(1, OK, end_stream=True)
    assert talk.hear() == b"HTTP/1.1 200 \r\nx-a: b\r\nContent-Length: 0\r\n\r\n"
    talk.say(GET)
    talk.server.send_headers(3, [*OK, (b"content-length", b"2")])
    talk.server.send_data(3, b"ok", end_stream=True)
    assert talk.hear() == b"HTTP/1.1 200 \r\nx-a: b\r\ncontent-length: 2\r\n\r\nok"


def test_the_servers_window_makes_the_request_wait() -> None:
    talk = Talk().say(POST)
    talk.hear()
    for _ in range(10):
        talk.go_on(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
    assert talk.link.full
    assert talk.link.waiting == 10 * 0x4000 - 65535 >= HIGH_WATER
    talk.server.increment_flow_control_window(200_000, 1)
    talk.server.increment_flow_control_window(200_000)
    talk.hear()
    assert talk.link.waiting == 0
    talk.go_on(b"0\r\n\r\n")
    assert talk.words()[-1] == "end"


def test_large_answers_are_given_window() -> None:
    talk = Talk().say(GET)
    talk.hear()
    talk.server.send_headers(1, OK)
    total = 0
    for _ in range(400):
        talk.server.send_data(1, b"x" * 16384)
        total += talk.hear().count(b"x" * 100) * 100
    assert total > 6_000_000


def test_a_cancelled_stream_leaves_the_connection() -> None:
    talk = Talk().say(GET)
    talk._to_server(talk.link.cancel())
    assert talk.words()[-1] == "reset 8"
    assert not talk.link.leaving
    talk.say(GET)
    talk.server.send_headers(3, OK, end_stream=True)
    assert talk.hear().startswith(b"HTTP/1.1 200 ")


def test_a_server_that_resets_or_leaves() -> None:
    talk = Talk().say(GET)
    talk.server.reset_stream(1, 7)
    talk.hear()
    assert talk.link.reset == 7
    talk.server.close_connection()
    talk.hear()
    assert talk.link.leaving


@pytest.mark.parametrize("last", [1, 2**31 - 1])
def test_a_server_that_leaves_finishes_what_it_has_begun(last: int) -> None:
    talk = Talk().say(POST)
    talk.hear()
    assert talk.link.receive(GoAwayFrame(0, last_stream_id=last).serialize(), 0.0) == b""
    talk.go_on(b"3\r\nabc\r\n0\r\n\r\n")
    talk.server.send_headers(1, OK)
    talk.server.send_data(1, b"ok", end_stream=True)
    assert talk.hear().endswith(b"\r\n\r\n2\r\nok\r\n0\r\n\r\n")
    assert talk.words()[1:] == ["data abc", "end"]
    assert talk.link.whole
    assert talk.link.leaving


def test_a_server_that_leaves_without_the_stream_refuses_it() -> None:
    talk = Talk().say(GET)
    talk.hear()
    talk.link.receive(GoAwayFrame(0, last_stream_id=0).serialize(), 0.0)
    assert talk.link.reset == 7
    assert talk.link.leaving


def test_a_server_that_allows_no_streams_any_more_gets_none() -> None:
    talk = Talk().say(GET)
    talk.hear()
    talk.server.send_headers(1, OK, end_stream=True)
    talk.server.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 0})
    talk.hear()
    assert talk.link.whole
    assert talk.link.leaving


@pytest.mark.parametrize(
    "fields",
    [
        [(b":status", b"200"), (b"x", b"a\r\nset-cookie: b")],
        [(b":status", b"200"), (b"Upper", b"x")],
        [(b":status", b"200"), (b"connection", b"close")],
        [(b":status", b"200"), (b"transfer-encoding", b"chunked")],
        [(b":status", b"200"), (b"x y", b"z")],
        [(b":status", b"20"), (b"x", b"y")],
        [(b"x", b"y"), (b":status", b"200")],
        [(b":status", b"200"), (b":status", b"200")],
    ],
)
def test_answers_that_are_malformed(fields: list[tuple[bytes, bytes]]) -> None:
    talk = Talk().say(GET)
    try:
        talk.server.send_headers(1, fields)
    except ValueError:
        pytest.skip("the library would not send this")
    with pytest.raises(SyntaxFault):
        talk.hear()


def test_garbage_from_a_server() -> None:
    talk = Talk().say(GET)
    with pytest.raises(SyntaxFault):
        talk.link.receive(b"HTTP/1.1 400 Bad Request\r\n\r\n", 0.0)
    assert talk.link.leaving


def test_a_server_that_floods_its_connection_is_given_up() -> None:
    talk = Talk().say(GET)
    talk.hear()
    pings = PingFrame(0, b"12345678").serialize() * (CONTROL_FRAMES - 10)
    assert talk.link.receive(pings, 0.0) == b""
    assert talk.link.receive(pings, 10.0) == b""  # as many in ten seconds are no flood
    with pytest.raises(SyntaxFault, match="floods"):
        talk.link.receive(pings, 10.0)
    assert talk.link.leaving
