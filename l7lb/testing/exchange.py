"""A request through the node and what became of it, told from both ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from l7lb.testing.http import SERVED, Headers, HttpServer, Request, Response, encode_request, read_response
from l7lb.testing.wire import Wire

HeaderLines = Mapping[str, str] | Iterable[tuple[str, str]]


@dataclass
class Exchange:
    """An answer, the server that gave it, and the request as that server got it.

    ``pool``, ``server`` and ``request`` are empty where l7lb answered itself: a redirect, an error, a fixed response.
    """

    response: Response
    pool: str = ""
    server: str = ""
    request: Request | None = None

    @property
    def status(self) -> int:
        """The answer's status."""
        return self.response.status

    @property
    def headers(self) -> Headers:
        """The answer's headers."""
        return self.response.headers

    @property
    def body(self) -> bytes:
        """The answer's body."""
        return self.response.body

    @property
    def text(self) -> str:
        """The answer's body as text."""
        return self.response.text

    @property
    def seen(self) -> Request:
        """The request as the server got it; fails where none did."""
        assert self.request is not None, f"no server got it: l7lb answered {self.status} itself"
        return self.request


@dataclass(frozen=True)
class Target:
    """A URL as a client sends it."""

    host: str
    target: str


def split_url(url: str) -> Target:
    """``http://host/path?query``, or only ``/path`` (host ``localhost``). The path stays as it is written."""
    if url.startswith("/") or url == "*":
        return Target("localhost", url)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"{url!r} is neither a path nor http://host/path")
    rest = url.split("://", 1)[1][len(parts.netloc) :].partition("#")[0]
    return Target(parts.netloc, rest if rest.startswith("/") else "/" + rest)


def header_lines(host: str, headers: HeaderLines, close: bool) -> list[tuple[str, str]]:
    """The lines of a request: those given, Host before them, and Connection: close where wanted and not given."""
    given = Headers(headers.items() if isinstance(headers, Mapping) else headers)
    lines = [] if "host" in given else [("Host", host)]
    lines += given.lines
    if close and "connection" not in given:
        lines.append(("Connection", "close"))
    return lines


async def exchange(
    wire: Wire,
    servers: Mapping[str, HttpServer],
    method: str,
    url: str,
    headers: HeaderLines = (),
    body: bytes = b"",
    close: bool = True,
) -> Exchange:
    """Send a request over this connection and read its answer."""
    target = split_url(url)
    await wire.send(encode_request(method, target.target, header_lines(target.host, headers, close), body))
    response = await read_response(wire, method)
    served = response.headers.get(SERVED)
    response.headers = response.headers.without(SERVED)
    if not served:
        return Exchange(response)
    name, _, number = served.rpartition(" ")
    pool, _, server = name.partition("/")
    return Exchange(response, pool, server, servers[name].requests[int(number)])


class Browser:
    """A client that keeps its connection and its cookies, as a user's browser does."""

    def __init__(self, connect: Callable[[], Awaitable[Wire]], servers: Mapping[str, HttpServer]) -> None:
        self.cookies: dict[str, str] = {}
        self._connect = connect
        self._servers = servers
        self._wire: Wire | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens another, with the same cookies."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    async def request(self, method: str, url: str, headers: HeaderLines = (), body: bytes = b"") -> Exchange:
        """Send a request over the kept connection."""
        if self._wire is None:
            self._wire = await self._connect()
        lines = list(headers.items() if isinstance(headers, Mapping) else headers)
        if self.cookies:
            lines.append(("Cookie", "; ".join(f"{name}={value}" for name, value in self.cookies.items())))
        try:
            answer = await exchange(self._wire, self._servers, method, url, lines, body, close=False)
        except BaseException:
            self.close()
            raise
        for line in answer.headers.all("set-cookie"):
            self._keep(line)
        if "close" in answer.headers.get("connection").lower():
            self.close()
        return answer

    async def get(self, url: str, headers: HeaderLines = ()) -> Exchange:
        """A GET request."""
        return await self.request("GET", url, headers)

    async def post(self, url: str, body: bytes = b"", headers: HeaderLines = ()) -> Exchange:
        """A POST request."""
        return await self.request("POST", url, headers, body)

    def _keep(self, line: str) -> None:
        pair, *attributes = line.split(";")
        name, _, value = pair.strip().partition("=")
        if any(one.strip().lower() == "max-age=0" for one in attributes):
            self.cookies.pop(name, None)
        else:
            self.cookies[name] = value
