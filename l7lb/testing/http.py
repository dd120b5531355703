"""HTTP/1 as tests speak it: a plain reader and writer, and a server that answers by itself.

The reader is deliberately another one than the proxy's: it takes what it is given at its word, so that a test sees
what was really sent, and it fails where a message has no readable framing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from l7lb.testing.servers import ScriptedServer
from l7lb.testing.wire import PATIENCE, Ended, Transcript, Unexpected, Wire

SERVED = "l7lb-testing-served"  # tells a test which recorded request an answer belongs to


class Headers:
    """Header lines in their order; names compare without case."""

    def __init__(self, lines: Iterable[tuple[str, str]] = ()) -> None:
        self.lines = list(lines)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.lines)

    def __contains__(self, name: str) -> bool:
        return any(key.lower() == name.lower() for key, _ in self.lines)

    def __getitem__(self, name: str) -> str:
        """The value; several are joined with a comma. Raises KeyError where there is none."""
        values = self.all(name)
        if not values:
            raise KeyError(name)
        return ", ".join(values)

    def __repr__(self) -> str:
        return f"Headers({self.lines!r})"

    def get(self, name: str, default: str = "") -> str:
        """The value, or the default."""
        values = self.all(name)
        return ", ".join(values) if values else default

    def all(self, name: str) -> list[str]:
        """Each value by itself."""
        return [value for key, value in self.lines if key.lower() == name.lower()]

    def without(self, name: str) -> Headers:
        """The same lines, those of that name left out."""
        return Headers((key, value) for key, value in self.lines if key.lower() != name.lower())


@dataclass
class Request:
    """A request as a server got it; ``number`` is its place in the server's ``requests``."""

    method: str
    target: str
    version: str
    headers: Headers
    body: bytes = b""
    trailers: Headers = field(default_factory=Headers)
    number: int = 0


@dataclass
class Response:
    """An answer as a client got it. ``interim`` are the 1xx answers before it."""

    status: int
    reason: str
    version: str
    headers: Headers
    body: bytes = b""
    trailers: Headers = field(default_factory=Headers)
    interim: list[Response] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")


@dataclass
class Answer:
    """What a server of the test says. ``chunked`` sends the body in chunks, each item by itself."""

    status: int = 200
    body: bytes = b""
    headers: Iterable[tuple[str, str]] = ()
    reason: str = ""
    chunked: tuple[bytes, ...] = ()
    close: bool = False


async def read_head(wire: Wire) -> tuple[str, Headers]:
    """A start line and its header lines."""
    lines = (await wire.until(b"\r\n\r\n"))[:-4].decode("latin-1").split("\r\n")
    headers = []
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon:
            raise Unexpected(f"{wire.name} got a header line without a colon: {line!r}\n{wire.transcript}")
        headers.append((name, value.strip(" \t")))
    return lines[0], Headers(headers)


async def read_request(wire: Wire, before_body: Callable[[Request], None] | None = None) -> Request:
    """The next request; ``before_body`` is called when its header is there."""
    start, headers = await read_head(wire)
    parts = start.split(" ")
    if len(parts) != 3:
        raise Unexpected(f"{wire.name} got no request line: {start!r}\n{wire.transcript}")
    request = Request(parts[0], parts[1], parts[2], headers)
    if before_body is not None:
        before_body(request)
    if headers.get("expect").lower() == "100-continue":
        await wire.send_lines("HTTP/1.1 100 Continue", "")
    if headers.get("transfer-encoding").lower() == "chunked":
        request.body, request.trailers = await read_chunked(wire)
    else:
        request.body = await wire.exactly(int(headers.get("content-length", "0")))
    return request


async def read_response(wire: Wire, method: str = "GET") -> Response:
    """The next final answer, to a request of that method, with the interim ones before it."""
    interim: list[Response] = []
    while True:
        start, headers = await read_head(wire)
        version, _, rest = start.partition(" ")
        status, _, reason = rest.partition(" ")
        if not (status.isascii() and status.isdigit()):
            raise Unexpected(f"{wire.name} got no status line: {start!r}\n{wire.transcript}")
        response = Response(int(status), reason, version, headers, interim=interim)
        if 100 <= response.status < 200 and response.status != 101:
            interim.append(response)
            continue
        break
    if method == "HEAD" or response.status in (101, 204, 304) or (method == "CONNECT" and response.status < 300):
        return response
    if headers.get("transfer-encoding").lower() == "chunked":
        response.body, response.trailers = await read_chunked(wire)
    elif "content-length" in headers:
        response.body = await wire.exactly(int(headers["content-length"]))
    else:
        response.body = await wire.rest()
    return response


async def read_chunked(wire: Wire) -> tuple[bytes, Headers]:
    """A chunked body and its trailers."""
    pieces = []
    while True:
        size = int((await wire.line()).partition(";")[0], 16)
        if size == 0:
            break
        pieces.append(await wire.exactly(size))
        await wire.expect(b"\r\n")
    trailers = []
    while line := await wire.line():
        name, _, value = line.partition(":")
        trailers.append((name, value.strip(" \t")))
    return b"".join(pieces), Headers(trailers)


def encode_request(method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes = b"") -> bytes:
    """A request's bytes; gives the body's length unless the headers frame it themselves."""
    headers = Headers(headers)
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    framed = "content-length" in headers or "transfer-encoding" in headers
    if not framed and (body or method in ("POST", "PUT", "PATCH")):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def encode_answer(answer: Answer, method: str = "GET") -> bytes:
    """An answer's bytes."""
    headers = Headers(answer.headers)
    lines = [f"HTTP/1.1 {answer.status} {answer.reason or 'Scripted'}", *(f"{key}: {value}" for key, value in headers)]
    bodiless = answer.status < 200 or answer.status in (204, 304)
    if answer.chunked:
        lines.append("Transfer-Encoding: chunked")
    elif not bodiless and "content-length" not in headers and not answer.close:
        lines.append(f"Content-Length: {len(answer.body)}")
    if answer.close:
        lines.append("Connection: close")
    data = "\r\n".join([*lines, "", ""]).encode("latin-1")
    if method == "HEAD" or bodiless:
        return data
    if answer.chunked:
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in answer.chunked)
        return data + chunks + b"0\r\n\r\n"
    return data + answer.body


class HttpServer(ScriptedServer):
    """Answers every request by itself and keeps what it got in ``requests``.

    ``answer`` is what it says: an :class:`Answer`, or a function of the request that returns one. By default 200
    with the server's name. With ``by_hand`` its connections wait for ``accept`` instead, as those of
    :class:`ScriptedServer` do.
    """

    def __init__(
        self,
        name: str = "server",
        answer: Answer | Callable[[Request], Answer] | None = None,
        *,
        host: str = "127.0.0.1",
        patience: float = PATIENCE,
        transcript: Transcript | None = None,
    ) -> None:
        super().__init__(name, host=host, patience=patience, transcript=transcript)
        self.answer = answer if answer is not None else Answer(body=f"{name}\n".encode())
        self.requests: list[Request] = []
        self.by_hand = False
        self.serving: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Close the port and every connection."""
        await super().close()
        for task in self.serving:
            task.cancel()
        await asyncio.gather(*self.serving, return_exceptions=True)

    def _opened(self, wire: Wire) -> None:
        if self.by_hand:
            super()._opened(wire)
            return
        wire.patience = 3600.0  # a kept connection waits as long as its client likes
        task = asyncio.ensure_future(self._serve(wire))
        self.serving.add(task)
        task.add_done_callback(self.serving.discard)

    async def _serve(self, wire: Wire) -> None:
        try:
            while True:
                request = await read_request(wire, self._note)
                answer = self.answer if isinstance(self.answer, Answer) else self.answer(request)
                served = replace(answer, headers=[*answer.headers, (SERVED, f"{self.name} {request.number}")])
                await wire.send(encode_answer(served, request.method))
                if answer.close:
                    break
        except (Ended, OSError):
            pass  # the other side is done, or this server died in the middle
        finally:
            wire.close()

    def _note(self, request: Request) -> None:
        request.number = len(self.requests)
        self.requests.append(request)
