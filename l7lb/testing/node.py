"""A whole node inside a test: the real data path over real sockets, with servers that the test holds in its hands.

The configuration is the one that would run. Some things are replaced in it: every bind by a free port of the
loopback interface (unix sockets by one in a temporary folder), every server by a scripted one of the same name that
answers 200 by itself and speaks no TLS, and the access log by ``records``. Health, drains and weights are set by hand
and take effect at once; no check runs, nothing is resolved, no other process is started.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Self

import msgspec

from l7lb import config as configuration
from l7lb.control.node import Change, NodeState
from l7lb.control.operator import Operator
from l7lb.core.contracts import ProtocolSpec
from l7lb.core.messages import ServerResult
from l7lb.core.record import AccessRecord
from l7lb.core.snapshot import Address, Listener, Pool, Server, Snapshot
from l7lb.persistence import Tables
from l7lb.protocols import PROTOCOLS
from l7lb.proxy import counts as columns
from l7lb.proxy.counts import Counts
from l7lb.proxy.runtime import Runtime
from l7lb.testing.exchange import Browser, Exchange, HeaderLines, exchange
from l7lb.testing.http import HttpServer
from l7lb.testing.playbook import Playbook, Split
from l7lb.testing.servers import ScriptedServer
from l7lb.testing.tls import TlsWire
from l7lb.testing.wire import PATIENCE, TURNS, Transcript, Unexpected, Wire

BACKLOG = 512


class Node:
    """``async with Node("l7lb.yaml") as node: ...``

    ``config`` is a file's path, its text (YAML), a mapping of the same shape, or a compiled snapshot. Raises
    ConfigurationError with every problem when it is entered.

    ``servers`` maps ``pool/name`` to the :class:`HttpServer` that stands for it, ``records`` holds the access records
    as they are written, ``results`` what passive health was told. With ``server_tls`` servers are spoken to by TLS
    where the configuration says so, and the test must answer it.
    """

    def __init__(
        self,
        config: object,
        *,
        protocols: Mapping[str, ProtocolSpec] | None = None,
        patience: float = PATIENCE,
        server_tls: bool = False,
    ) -> None:
        self.patience = patience
        self._server_tls = server_tls
        self.servers: dict[str, HttpServer] = {}
        self.records: list[AccessRecord] = []
        self.results: list[ServerResult] = []
        self._config = config
        self._protocols = protocols if protocols is not None else PROTOCOLS
        self._binds: dict[str, tuple[Address, socket.socket]] = {}  # by listener's name and the configured bind
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    async def __aenter__(self) -> Self:
        try:
            self._start(load(self._config))
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stop()

    def _start(self, snapshot: Snapshot) -> None:
        loop = asyncio.get_running_loop()
        self._folder = tempfile.TemporaryDirectory(prefix="l7lb-testing-")
        descriptor = columns.create()
        try:
            self.counts = Counts(descriptor)
        finally:
            os.close(descriptor)  # the mapping keeps the memory
        adapted = self._adapt(snapshot)
        self.tables = Tables(adapted.tables)
        self.runtime = Runtime(
            loop, self._protocols, self.counts, self.tables, self.results.append, observe=self._observe
        )
        self.state = NodeState(adapted, counts=self.counts, clock=loop.time)
        self.operator = Operator(self.state)
        self.runtime.apply(self.state.effective())
        self.state.subscribe(self._changed)
        self._accept()

    async def _stop(self) -> None:
        runtime: Runtime | None = getattr(self, "runtime", None)
        if runtime is not None:
            runtime.close()
        for server in self.servers.values():
            await server.close()
        for _, sock in self._binds.values():
            sock.close()
        self._binds.clear()
        if self._folder is not None:
            self._folder.cleanup()
        await asyncio.sleep(0)  # the loop forgets what was closed
        counts: Counts | None = getattr(self, "counts", None)
        if counts is not None:
            counts.close()

    # --- what the node is made of -----------------------------------------------------------------------------

    @property
    def snapshot(self) -> Snapshot:
        """The configuration in force, with the test's ports and servers."""
        return self.state.effective()

    def address(self, listener: str = "") -> Address:
        """Where a listener's clients connect; the first listener's if none is named, and the first of its binds."""
        for one in self.snapshot.listeners:
            if listener in ("", one.name):
                return one.bind[0]
        raise KeyError(f"no listener {listener!r}: there are {', '.join(one.name for one in self.snapshot.listeners)}")

    def server(self, name: str) -> HttpServer:
        """The server of that name, or of ``pool/name`` where several pools have one of that name."""
        found = self._named(name)
        if len(found) != 1:
            what = "no server" if not found else "more than one server"
            raise KeyError(f"{what} {name!r}: there are {', '.join(sorted(self.servers))}")
        return self.servers[found[0]]

    def find_server(self, name: str) -> ScriptedServer | None:
        """The server of that name, if there is exactly one."""
        found = self._named(name)
        return self.servers[found[0]] if len(found) == 1 else None

    def _named(self, name: str) -> list[str]:
        return [key for key in self.servers if key == name or key.split("/", 1)[1] == name]

    # --- clients ----------------------------------------------------------------------------------------------

    async def connect(
        self, listener: str = "", *, source: str = "", name: str = "client", transcript: Transcript | None = None
    ) -> Wire:
        """A client's connection, byte for byte; ``source`` is the address it comes from (any of 127.0.0.0/8)."""
        return await Wire.connect(
            self.address(listener), source=source, name=name, patience=self.patience, transcript=transcript
        )

    async def request(
        self,
        method: str,
        url: str,
        headers: HeaderLines = (),
        body: bytes = b"",
        *,
        listener: str = "",
        source: str = "",
    ) -> Exchange:
        """One HTTP request over a connection of its own, with TLS where the listener ends it; its certificate is not
        verified. The URL's host goes into Host, whatever the port.
        """
        async with await self._dial(listener, source=source) as wire:
            return await exchange(wire, self.servers, method, url, headers, body)

    async def get(self, url: str, headers: HeaderLines = (), *, listener: str = "", source: str = "") -> Exchange:
        """A GET request."""
        return await self.request("GET", url, headers, listener=listener, source=source)

    async def post(
        self, url: str, body: bytes = b"", headers: HeaderLines = (), *, listener: str = "", source: str = ""
    ) -> Exchange:
        """A POST request."""
        return await self.request("POST", url, headers, body, listener=listener, source=source)

    def browser(self, listener: str = "", *, source: str = "") -> Browser:
        """A client that keeps its connection and its cookies."""
        return Browser(partial(self._dial, listener, source=source), self.servers)

    async def _dial(self, listener: str, source: str) -> Wire:
        wire = await self.connect(listener, source=source)
        if next(one for one in self.snapshot.listeners if listener in ("", one.name)).tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return await TlsWire.over(wire, context)
        return wire

    async def play(self, playbook: str | Playbook, split: Split | None = None) -> Transcript:
        """Perform a playbook; see :mod:`l7lb.testing.playbook`."""
        return await (Playbook(playbook) if isinstance(playbook, str) else playbook).perform(self, split)

    async def record(self, number: int = -1) -> AccessRecord:
        """The access record of that number, or the newest; waits for it."""
        await self.until(lambda: len(self.records) > max(number, 0))
        return self.records[number]

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the node work until the condition holds; fails when the patience ends."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.patience
        turns = 0
        while not condition():
            if loop.time() > end:
                raise Unexpected(f"the condition did not come true in {self.patience:g} s")
            # At first as fast as the loop turns, then seldom enough not to disturb what is measured.
            await asyncio.sleep(0 if turns < 50 else 0.002)
            turns += 1

    # --- an operator's words ----------------------------------------------------------------------------------

    def up(self, server: str) -> None:
        """The checks find this server healthy."""
        self.set_state(server, "up")

    def down(self, server: str) -> None:
        """The checks find this server dead."""
        self.set_state(server, "down")

    def drain(self, server: str) -> None:
        """It keeps the users it has."""
        self.set_state(server, "draining")

    def disable(self, server: str) -> None:
        """It gets nobody."""
        self.set_state(server, "disabled")

    def enable(self, server: str) -> None:
        """The reverse of drain and disable."""
        self.set_state(server, "enabled")

    def weight(self, server: str, weight: int) -> None:
        """Give it that weight."""
        self.operator.weight(self.server(server).name, weight)

    def set_state(self, server: str, state: str) -> None:
        """``up``, ``down``, ``draining``, ``disabled`` or ``enabled``."""
        name = self.server(server).name
        if state in ("up", "down"):
            pool, _, short = name.partition("/")
            self.state.set_health(pool, short, state == "up", "by hand")
        elif state == "draining":
            self.operator.drain(name)
        elif state == "disabled":
            self.operator.disable(name)
        else:
            self.operator.enable(name)

    async def reload(self, config: object) -> None:
        """Another configuration; listeners and servers of the same name stay what they are.

        Raises ConfigurationError, and the old one stays.
        """
        self.state.reload(self._adapt(load(config)))
        self._accept()

    # --- for playbooks ----------------------------------------------------------------------------------------

    async def by_hand(self, names: set[str] | None, transcript: Transcript | None) -> None:
        """These servers' connections wait to be accepted from now on; None: those of all, the empty set: of none."""
        chosen = set(self.servers) if names is None else {self.server(name).name for name in names}
        for key, server in self.servers.items():
            by_hand = key in chosen
            if by_hand or server.by_hand:
                server.close_connections()  # a kept connection would go past who accepts now
            server.by_hand = by_hand
            if transcript is not None:
                server.transcript = transcript
        for _ in range(TURNS):
            await asyncio.sleep(0)

    async def accept_any(self) -> Wire:
        """The next connection that any server by hand gets."""
        await self.until(lambda: any(server.waiting for server in self.servers.values()))
        return await next(server for server in self.servers.values() if server.waiting).accept()

    # --- inside -----------------------------------------------------------------------------------------------

    def _observe(self, record: AccessRecord) -> None:
        self.records.append(record)

    def _changed(self, change: Change) -> None:
        if change.snapshot:
            self.runtime.apply(self.state.effective())
        for verdict in change.health:
            self.runtime.server_health(verdict)

    def _accept(self) -> None:
        wanted = {str(address) for listener in self.snapshot.listeners for address in listener.bind}
        for address, sock in self._binds.values():
            if str(address) in wanted:
                self.runtime.accept_from(str(address), sock)

    def _adapt(self, snapshot: Snapshot) -> Snapshot:
        return msgspec.structs.replace(
            snapshot,
            listeners=tuple(self._adapt_listener(one) for one in snapshot.listeners),
            pools=tuple(self._adapt_pool(one) for one in snapshot.pools),
            workers=1,
            access_log=None,
        )

    def _adapt_listener(self, listener: Listener) -> Listener:
        binds = [self._bind(f"{listener.name} {address}", address) for address in listener.bind]
        return msgspec.structs.replace(listener, bind=tuple(binds))

    def _adapt_pool(self, pool: Pool) -> Pool:
        return msgspec.structs.replace(pool, servers=tuple(self._adapt_server(pool.name, one) for one in pool.servers))

    def _adapt_server(self, pool: str, server: Server) -> Server:
        key = f"{pool}/{server.name}"
        if key not in self.servers:
            made = self.servers[key] = HttpServer(key, patience=self.patience)
            made.listen()
        tls = server.tls if self._server_tls else None
        address = self.servers[key].address
        ports = dict.fromkeys(server.ports, address.port)  # one scripted server stands for all of its protocols
        return msgspec.structs.replace(server, address=address, ports=ports, tls=tls)

    def _bind(self, key: str, wanted: Address) -> Address:
        if key not in self._binds:
            assert self._folder is not None
            if wanted.path:
                path = str(Path(self._folder.name) / f"{len(self._binds)}.sock")
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._binds[key] = Address(path=path), sock
                sock.bind(path)
            else:
                sock = socket.socket(socket.AF_INET6 if ":" in wanted.host else socket.AF_INET, socket.SOCK_STREAM)
                host = "::1" if ":" in wanted.host else "127.0.0.1"
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    sock.bind((host, 0))
                except OSError:
                    sock.close()
                    raise
                self._binds[key] = Address(host=host, port=sock.getsockname()[1]), sock
            sock.setblocking(False)
            sock.listen(BACKLOG)
        return self._binds[key][0]


def load(config: object) -> Snapshot:
    """A configuration given as a file's path, as text, as a mapping or as a snapshot. Raises ConfigurationError."""
    if isinstance(config, Snapshot):
        return config
    if isinstance(config, Mapping):
        return configuration.load(Path("l7lb.json"), text=json.dumps(config), format="json").snapshot
    if isinstance(config, str) and "\n" in config:
        return configuration.load(Path("l7lb.yaml"), text=config, format="yaml").snapshot
    if isinstance(config, (str, Path)):
        return configuration.load(Path(config)).snapshot
    raise TypeError(f"a configuration is a path, text, a mapping or a snapshot, not {type(config).__name__}")
