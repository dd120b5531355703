"""The demo's clients: browsers that keep their cookies, and a WebSocket. None of them ever tries anything twice."""

from __future__ import annotations

import asyncio
import http.client
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self

import aiohttp

SECONDS = 10.0  # that a client waits for anything
KEPT = 20  # failures that are kept to be shown


class Answer(NamedTuple):
    """What a client got; ``server`` is who says to have answered, "" where l7lb did."""

    status: int
    server: str
    body: bytes
    headers: Mapping[str, str]


class Browser:
    """One user: a connection that is kept, and cookies."""

    def __init__(self, address: str, host: str = "shop.example.com") -> None:
        self.host = host
        self.cookies: dict[str, str] = {}
        self._connection = http.client.HTTPConnection(address, timeout=SECONDS)

    def ask(self, path: str = "/", method: str = "GET", headers: Mapping[str, str] | None = None) -> Answer:
        """One request. Raises OSError or HTTPException."""
        own = {"Host": self.host, **(headers or {})}
        if self.cookies:
            own.setdefault("Cookie", "; ".join(f"{name}={value}" for name, value in self.cookies.items()))
        self._connection.request(method, path, headers=own)
        response = self._connection.getresponse()
        body = response.read()
        for text in response.headers.get_all("Set-Cookie", ()):
            name, _, value = text.partition(";")[0].partition("=")
            self.cookies[name.strip()] = value.strip()
        return Answer(response.status, response.getheader("X-Server", ""), body, dict(response.getheaders()))

    def close(self) -> None:
        """Leave."""
        self._connection.close()


class Mark(NamedTuple):
    """A moment of the load, to count from."""

    requests: int
    failed: int
    moves: int
    servers: Counter[str]


class Load:
    """Users that ask all the time. ``failures`` must stay empty; ``moves`` are users that changed their server."""

    def __init__(self, address: str, hosts: Sequence[str], pause: float = 0.04) -> None:
        self.failures: list[str] = []
        self.moves: list[tuple[str, str]] = []
        self.requests = 0
        self.failed = 0
        self.servers: Counter[str] = Counter()
        self.users: dict[int, str] = {}  # the server of each user that has a cookie
        self._address = address
        self._pause = pause
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._user, args=(number, host), daemon=True) for number, host in enumerate(hosts)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(SECONDS)

    def _user(self, number: int, host: str) -> None:
        browser = Browser(self._address, host)
        count = 0
        while not self._ending.wait(self._pause):
            count += 1
            if number % 4 == 3:
                browser.close()  # this one opens a connection for each request
            try:
                answer = browser.ask(f"/items/{number}/{count % 10}")
            except (OSError, http.client.HTTPException) as error:
                browser.close()
                self._count(number, "", f"{type(error).__name__}: {error}", sticky=False)
            else:
                fault = "" if answer.status == 200 else f"{answer.status} {answer.body[:60]!r}"
                self._count(number, answer.server, fault, bool(browser.cookies))
        browser.close()

    def _count(self, number: int, server: str, fault: str, sticky: bool) -> None:
        with self._lock:
            self.requests += 1
            if fault:
                self.failed += 1
                self.failures = [*self.failures, fault][:KEPT]
                return
            self.servers[server] += 1
            if sticky:
                before = self.users.get(number, server)
                if before != server:
                    self.moves.append((before, server))
                self.users[number] = server

    def mark(self) -> Mark:
        """This moment."""
        with self._lock:
            return Mark(self.requests, self.failed, len(self.moves), Counter(self.servers))

    def since(self, mark: Mark) -> Mark:
        """What happened since then."""
        now = self.mark()
        return Mark(
            now.requests - mark.requests, now.failed - mark.failed, now.moves - mark.moves, now.servers - mark.servers
        )

    def more(self, requests: int, seconds: float = 20.0) -> bool:
        """Wait for so many more requests; False if they don't come in time."""
        goal, end = self.requests + requests, time.monotonic() + seconds
        while self.requests < goal:
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True


class Live:
    """A WebSocket that says something ten times a second and checks what comes back."""

    def __init__(self, address: str, host: str = "shop.example.com", path: str = "/live") -> None:
        self.server = ""
        self.echoes = 0
        self.fault = ""
        self._url = f"http://{address}{path}"
        self._host = host
        self._ending = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._guarded()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        """Say good-bye."""
        self._ending.set()
        self._thread.join(SECONDS)

    async def _guarded(self) -> None:
        try:
            await self._talk()
        except (aiohttp.ClientError, OSError, TypeError) as error:
            self.fault = f"{type(error).__name__}: {error}"

    async def _talk(self) -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(self._url, headers={"Host": self._host}) as socket,
        ):
            while not self._ending.is_set():
                text = f"message {self.echoes}"
                await socket.send_str(text)
                answer = await socket.receive_str(timeout=SECONDS)
                server, _, echo = answer.partition(" ")
                if echo != text or server != (self.server or server):
                    self.fault = f"said {text!r}, got {answer!r}"
                    return
                self.server = server
                self.echoes += 1
                await asyncio.sleep(0.1)
