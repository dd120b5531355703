"""gRPC through a node: a real grpcio client, l7lb, a real grpcio server, without TLS and with TLS on both sides."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
import trustme
from scenario_node import Node, wait_for

pytestmark = pytest.mark.scenario

LARGE = 4_000_000
OPTIONS = [("grpc.max_receive_message_length", 2 * LARGE), ("grpc.max_send_message_length", 2 * LARGE)]


class Service:
    """Messages are bytes; ``cancelled`` is set when a call ends before its time."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.cancelled = threading.Event()
        self.server = grpc.server(futures.ThreadPoolExecutor(16), options=OPTIONS)
        self.server.add_generic_rpc_handlers((self._handlers(),))
        if credentials is None:
            self.port = self.server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self.server.add_secure_port("127.0.0.1:0", credentials)

    def _handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            "test.Service",
            {
                "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
                "Down": grpc.unary_stream_rpc_method_handler(self.down),
                "Up": grpc.stream_unary_rpc_method_handler(lambda messages, context: b",".join(messages)),
                "Both": grpc.stream_stream_rpc_method_handler(self.both),
                "Hang": grpc.unary_unary_rpc_method_handler(self.hang),
            },
        )

    def unary(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        """Say it again, with a trailer; or fail."""
        context.set_trailing_metadata((("x-trailer", "at the end"),))
        if message == b"fail":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")
        return message

    def down(self, message: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Count; without end for ``forever``."""
        number = 0
        context.add_callback(self.cancelled.set)
        while message == b"forever" or number < 20:
            yield b"%d" % number
            number += 1
            if not context.is_active():
                return

    def both(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Answer each message at once; fail at ``fail``."""
        for message in messages:
            if message == b"fail":
                context.abort(grpc.StatusCode.ABORTED, "as asked")
            yield b"re:" + message

    def hang(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        """Wait until the client has given up."""
        context.add_callback(self.cancelled.set)
        self.cancelled.wait(30)
        return b""


@pytest.fixture(scope="module", params=["plain", "tls"])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, grpc.Channel, Node]]:
    directory: Path = tmp_path_factory.mktemp("grpc")
    secure = request.param == "tls"
    if secure:
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1", "localhost")
        authority.cert_pem.write_to_path(str(directory / "ca.pem"))
        certificate.private_key_pem.write_to_path(str(directory / "key.pem"))
        (directory / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        pair = [((directory / "key.pem").read_bytes(), (directory / "cert.pem").read_bytes())]
        service = Service(grpc.ssl_server_credentials(pair))
    else:
        service = Service()
    service.server.start()
    ending = "    tls: {certificates: [{cert: cert.pem, key: key.pem}]}\n" if secure else ""
    speaking = ", tls: {ca: ca.pem, server_name: localhost}" if secure else ""
    text = f"""
access_log: {{path: access.log}}
listeners:
  - name: grpc
    protocol: http
    bind: ["127.0.0.1:PORT"]
{ending}    routes:
      - match: {{path: "/nowhere/*"}}
        pool: dead
      - pool: grpc
pools:
  grpc:
    http_version: "2"
    servers: [{{name: one, address: "127.0.0.1:{service.port}"{speaking}}}]
  dead:
    http_version: "2"
    retries: {{attempts: 0}}
    servers: [{{name: none, address: "127.0.0.1:1"}}]
"""
    with Node(directory, text, workers=1) as node:
        address = f"127.0.0.1:{node.port}"
        if secure:
            credentials = grpc.ssl_channel_credentials((directory / "ca.pem").read_bytes())
            channel = grpc.secure_channel(address, credentials, OPTIONS)
        else:
            channel = grpc.insecure_channel(address, OPTIONS)
        with channel:
            yield service, channel, node
    service.server.stop(0)


Place = tuple[Service, grpc.Channel, Node]


def test_unary_calls_and_their_trailers(place: Place) -> None:
    call = place[1].unary_unary("/test.Service/Unary")
    answer, about = call.with_call(b"hello", timeout=20)
    assert answer == b"hello"
    assert dict(about.trailing_metadata()) == {"x-trailer": "at the end"}
    for _ in range(50):
        assert call(b"again", timeout=20) == b"again"


def test_large_messages(place: Place) -> None:
    message = bytes(range(256)) * (LARGE // 256)
    assert place[1].unary_unary("/test.Service/Unary")(message, timeout=60) == message


def test_errors_of_the_server(place: Place) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        place[1].unary_unary("/test.Service/Unary")(b"fail", timeout=20)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, "no such thing")


def test_streams_in_each_direction(place: Place) -> None:
    _, channel, _ = place
    assert list(channel.unary_stream("/test.Service/Down")(b"", timeout=20)) == [b"%d" % number for number in range(20)]
    messages = [b"%d" % number for number in range(200)]
    assert channel.stream_unary("/test.Service/Up")(iter(messages), timeout=20) == b",".join(messages)


def test_a_conversation(place: Place) -> None:
    """Each message is sent only when the one before was answered: nothing is held back on the way."""
    turn = threading.Semaphore(1)

    def ask() -> Iterator[bytes]:
        for number in range(50):
            assert turn.acquire(timeout=20)
            yield b"%d" % number

    answers = []
    for answer in place[1].stream_stream("/test.Service/Both")(ask(), timeout=40):
        answers.append(answer)
        turn.release()
    assert answers == [b"re:%d" % number for number in range(50)]


def test_a_conversation_that_fails(place: Place) -> None:
    answers = place[1].stream_stream("/test.Service/Both")(iter([b"a", b"fail"]), timeout=20)
    assert next(answers) == b"re:a"
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.ABORTED, "as asked")


def test_calls_beside_one_another(place: Place) -> None:
    call = place[1].unary_unary("/test.Service/Unary")
    pending = [call.future(b"%d" % number, timeout=30) for number in range(40)]
    assert [one.result() for one in pending] == [b"%d" % number for number in range(40)]


def test_a_deadline_reaches_the_server(place: Place) -> None:
    service, channel, _ = place
    service.cancelled.clear()
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/test.Service/Hang")(b"", timeout=0.5)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert service.cancelled.wait(20)


def test_a_cancelled_stream_reaches_the_server(place: Place) -> None:
    service, channel, _ = place
    service.cancelled.clear()
    call = channel.unary_stream("/test.Service/Down")(b"forever", timeout=30)
    assert next(call) == b"0"
    call.cancel()
    assert service.cancelled.wait(20)


def test_a_dead_server_is_unavailable(place: Place) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        place[1].unary_unary("/nowhere/Unary")(b"", timeout=20)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_records_say_what_was_called(place: Place) -> None:
    place[1].unary_unary("/test.Service/Unary")(b"hello", timeout=20)
    log = place[2].directory / "access.log"
    wait_for(lambda: '"path":"/test.Service/Unary","version":"2"' in log.read_text(), "the record")
