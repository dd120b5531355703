"""The admin API: HTTP and JSON over a unix socket that only its owner can open.

::

    GET  /v1/status                          GET  /v1/servers?pool=NAME      GET /v1/sessions?limit=N
                                             (&mailbox=NAME&protocol=NAME&address=ADDRESS or network)
    POST /v1/undrain|disable|enable          {"server": "[POOL/]SERVER"}
    POST /v1/drain                           {"server": "[POOL/]SERVER", "rate": mailboxes in a second, 0: none}
    POST /v1/move                            {"mailbox", "server": "[POOL/]SERVER"}
    POST /v1/kick                            {"mailbox"}
    POST /v1/weight                          {"server": "[POOL/]SERVER", "weight": N or null for the configuration's}
    POST /v1/add-server                      {"pool", "name", "address", "weight", "max_connections", "backup",
                                              "send_proxy", "ports"}
    POST /v1/remove-server                   {"server": "[POOL/]SERVER"}
    GET  /v1/tables                          GET  /v1/table?table=NAME&key=KEY&server=NAME&limit=N
    GET  /v1/limits?limit=N                  GET  /v1/directory?address=ADDRESS&directory=NAME (repeatable)
    POST /v1/table-delete                    {"table", "key" or "server"}
    POST /v1/table-pin                       {"table", "key", "server", "seconds": 0 for ever}
    POST /v1/reload                          POST /v1/shutdown
    POST /v1/explain                         a question, see :class:`l7lb.control.explaining.Question`

A verb answers ``{"done": "a sentence"}``, ``reload`` also with ``notes``. Errors are ``{"error": "a sentence"}``, with
``problems`` where a configuration has some: 400 for a request that can't be understood, 404 for an unknown name, 409
for what is refused, 422 for a configuration that can't work.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog
from aiohttp import web

from l7lb.config import MoveHook
from l7lb.config.addresses import parse_host, parse_server, resolve
from l7lb.control.directories import NodeDirectories
from l7lb.control.explaining import Question, asked, explain_rules, explain_server
from l7lb.control.explaining_mail import Heard, question_of
from l7lb.control.http_server import HttpServer, listen_unix, remove_unix
from l7lb.control.mailboxes import Drains, MailboxVerbs
from l7lb.control.node import NodeState, SupervisorView
from l7lb.control.operator import Operator, Refused
from l7lb.control.sticky import StickyTables
from l7lb.core.errors import ConfigurationError, L7lbError, UnknownName
from l7lb.core.messages import Wanted
from l7lb.core.proxy_protocol.writing import VERSIONS
from l7lb.core.snapshot import Address, Server
from l7lb.persistence.asking import ROWS
from l7lb.proxy.workers.children import DIRECTORIES_SOCKET, STATE_SOCKET

BODY = 64 * 1024  # bytes of a request
SESSIONS = 100_000  # rows at most
CONNECTIONS = 64
SECONDS = 180.0  # a connection's life: a move may wait for sessions' ends and its hook
FASTEST_DRAIN = 10_000.0  # mailboxes in a second
READ = 10.0  # seconds for a request's body

log = structlog.get_logger("l7lb.admin")
T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class OneServer(msgspec.Struct, forbid_unknown_fields=True):
    """A verb's object."""

    server: str


class Drain(msgspec.Struct, forbid_unknown_fields=True):
    """What ``drain`` takes: a rate of mailboxes in a second that move away."""

    server: str
    rate: float = 0.0


class MailboxMove(msgspec.Struct, forbid_unknown_fields=True):
    """What ``move`` takes."""

    mailbox: str
    server: str


class OneMailbox(msgspec.Struct, forbid_unknown_fields=True):
    """What ``kick`` takes."""

    mailbox: str


class NewWeight(msgspec.Struct, forbid_unknown_fields=True):
    """What ``weight`` takes."""

    server: str
    weight: int | None


class NewServer(msgspec.Struct, forbid_unknown_fields=True):
    """What ``add-server`` takes; no address brings a removed server back. With ``ports`` the address is a host."""

    pool: str
    name: str
    address: str = ""
    weight: int = 1
    max_connections: int = 0
    backup: bool = False
    send_proxy: str = ""
    ports: dict[str, int] = {}


class Deletion(msgspec.Struct, forbid_unknown_fields=True):
    """What ``table-delete`` takes: a key, or a server."""

    table: str
    key: str = ""
    server: str = ""


class Pin(msgspec.Struct, forbid_unknown_fields=True):
    """What ``table-pin`` takes; 0.0 seconds: for ever."""

    table: str
    key: str
    server: str
    seconds: float = 0.0


class AdminServer:
    """See the module."""

    def __init__(
        self,
        path: Path,
        node: NodeState,
        supervisor: SupervisorView,
        hook: Callable[[], MoveHook | None] = lambda: None,
    ) -> None:
        self.path = path
        self._node = node
        self._supervisor = supervisor
        self._operator = Operator(node)
        self._server = HttpServer(self._application(), CONNECTIONS, SECONDS)
        self._sticky = StickyTables(node, path.parent / STATE_SOCKET)
        self._directories = NodeDirectories(node, path.parent / DIRECTORIES_SOCKET)
        state = path.parent / STATE_SOCKET
        self._mailboxes = MailboxVerbs(node, self._operator, self._directories, state, hook)
        self._drains = Drains(node, self._mailboxes, state)
        self._identity: tuple[int, int] | None = None

    async def start(self) -> None:
        """Open the socket and answer. Raises OSError."""
        listening, self._identity = listen_unix(self.path)
        await self._server.start(listening)
        self._drains.begin()

    async def stop(self) -> None:
        """Answer no more; the socket is removed unless another supervisor has put its own there."""
        await self._server.stop()
        await self._drains.stop()
        if self._identity is not None:
            remove_unix(self.path, self._identity)
            self._identity = None

    def _application(self) -> web.Application:
        app = web.Application(client_max_size=BODY, middlewares=[errors])
        app.router.add_get("/v1/status", self._status)
        app.router.add_get("/v1/servers", self._servers)
        app.router.add_get("/v1/sessions", self._sessions)
        app.router.add_post("/v1/drain", self._drain)
        app.router.add_post("/v1/move", self._move)
        app.router.add_post("/v1/kick", self._kick)
        for verb in ("undrain", "disable", "enable", "remove-server"):
            app.router.add_post(f"/v1/{verb}", self._verb(getattr(self._operator, verb.replace("-", "_"))))
        app.router.add_post("/v1/weight", self._weight)
        app.router.add_post("/v1/add-server", self._add_server)
        app.router.add_get("/v1/tables", self._tables)
        app.router.add_get("/v1/limits", self._limits)
        app.router.add_get("/v1/directory", self._directory)
        app.router.add_get("/v1/table", self._table)
        app.router.add_post("/v1/table-delete", self._table_delete)
        app.router.add_post("/v1/table-pin", self._table_pin)
        app.router.add_post("/v1/reload", self._reload)
        app.router.add_post("/v1/shutdown", self._shutdown)
        app.router.add_post("/v1/explain", self._explain)
        return app

    async def _status(self, request: web.Request) -> web.Response:
        return answer(self._supervisor.status())

    async def _servers(self, request: web.Request) -> web.Response:
        rows = self._operator.rows()
        pool = request.query.get("pool")
        if pool is not None:
            self._operator.pool(pool)
            rows = [row for row in rows if row.pool == pool]
        return answer(rows)

    async def _sessions(self, request: web.Request) -> web.Response:
        query = request.query
        mailbox = query.get("mailbox", "")
        names = self._mailboxes.names(mailbox) if mailbox else []
        wanted = Wanted(names, query.get("protocol", ""), _network(query.get("address", "")))
        return answer(await self._supervisor.sessions(_limit(request, SESSIONS), wanted))

    async def _tables(self, request: web.Request) -> web.Response:
        return answer(await self._sticky.tables())

    async def _limits(self, request: web.Request) -> web.Response:
        return answer(await self._sticky.limited(_limit(request, ROWS)))

    async def _directory(self, request: web.Request) -> web.Response:
        query = request.query
        return answer(await self._directories.ask(query.get("address", ""), query.getall("directory", [])))

    async def _table(self, request: web.Request) -> web.Response:
        query = request.query
        table, key, server = query.get("table", ""), query.get("key", ""), query.get("server", "")
        return answer(await self._sticky.find(table, key, server, _limit(request, ROWS)))

    async def _table_delete(self, request: web.Request) -> web.Response:
        asked = await body(request, Deletion)
        return done(request, await self._sticky.delete(asked.table, asked.key, asked.server))

    async def _table_pin(self, request: web.Request) -> web.Response:
        asked = await body(request, Pin)
        return done(request, await self._sticky.pin(asked.table, asked.key, asked.server, asked.seconds))

    def _verb(self, act: Callable[[str], str]) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            told = act((await body(request, OneServer)).server)
            await self._supervisor.in_force()
            return done(request, told)

        return handle

    async def _drain(self, request: web.Request) -> web.Response:
        asked = await body(request, Drain)
        if not 0.0 <= asked.rate <= FASTEST_DRAIN:
            raise Refused(f"a rate is from 0 (none) to {FASTEST_DRAIN:g}/s")
        told = self._operator.drain(asked.server, asked.rate)
        await self._supervisor.in_force()
        self._drains.begin()
        return done(request, told)

    async def _move(self, request: web.Request) -> web.Response:
        asked = await body(request, MailboxMove)
        return done(request, await self._mailboxes.move(asked.mailbox, asked.server))

    async def _kick(self, request: web.Request) -> web.Response:
        return done(request, await self._mailboxes.kick((await body(request, OneMailbox)).mailbox))

    async def _weight(self, request: web.Request) -> web.Response:
        asked = await body(request, NewWeight)
        told = self._operator.weight(asked.server, asked.weight)
        await self._supervisor.in_force()
        return done(request, told)

    async def _add_server(self, request: web.Request) -> web.Response:
        asked = await body(request, NewServer)
        base = Path(self._node.configured.file).parent
        told = self._operator.add_server(asked.pool, new_server(asked, base))
        await self._supervisor.in_force()
        return done(request, told)

    async def _reload(self, request: web.Request) -> web.Response:
        log.info("a reload was asked for", **caller(request))
        notes = await self._supervisor.reload()
        return answer({"done": "the configuration was reloaded", "notes": notes})

    async def _shutdown(self, request: web.Request) -> web.Response:
        log.info("the node is told to drain and end", **caller(request))
        await self._supervisor.shutdown()
        return answer({"done": "the node drains and ends"})

    async def _explain(self, request: web.Request) -> web.Response:
        question = await body(request, Question)
        snapshot = self._node.effective()
        explained, pool, facts = explain_rules(snapshot, question)
        if pool is not None:
            stickiness = await self._sticky.stickiness(pool, facts)
            said = None
            if explained.directories:
                listener, directories = asked(snapshot, explained)
                said = await self._directories.answer(directories, question_of(listener, facts))
            mailbox = (said.entry.mailbox if said is not None and said.entry is not None else b"") or facts.mailbox
            heard = Heard(said, await self._mailboxes.pinned(pool, mailbox))
            explain_server(explained, pool, facts, stickiness, self._node, heard)
        return answer(explained)


def new_server(asked: NewServer, base: Path) -> Server:
    """The server that ``add-server`` describes; paths are relative to ``base``. Raises Refused."""
    if not 0 < len(asked.name) <= 128 or any(mark in asked.name or not asked.name.isprintable() for mark in "/@ "):
        raise Refused(f"{asked.name!r} is not a server's name: at most 128 characters, without /, @ and spaces")
    if not 0 <= asked.weight <= 65_535 or not 0 <= asked.max_connections <= 1_000_000_000:
        raise Refused("a weight is from 0 to 65535, max_connections from 0 (no limit) to 1000000000")
    if asked.send_proxy not in ("", *VERSIONS):
        raise Refused(f"{asked.send_proxy!r} is no version of the PROXY protocol: v1 or v2")
    if any(not protocol or not 0 < port < 65_536 for protocol, port in asked.ports.items()):
        raise Refused("ports are from 1 to 65535, each of a protocol")
    try:
        if asked.ports:
            address = Address(host=parse_host(asked.address), port=next(iter(asked.ports.values())))
        else:
            address = resolve(parse_server(asked.address), base) if asked.address else Address()
    except ValueError as error:
        raise Refused(str(error)) from None
    return Server(
        name=asked.name,
        address=address,
        weight=asked.weight,
        max_connections=asked.max_connections,
        backup=asked.backup,
        send_proxy=asked.send_proxy,
        ports=asked.ports,
    )


def _network(text: str) -> str:
    """An address or network as text that a worker can take. Raises HTTPBadRequest."""
    try:
        return str(ip_network(text, strict=False)) if text else ""
    except ValueError:
        raise web.HTTPBadRequest(text=f"{text!r} is neither an address nor a network such as 192.0.2.0/24") from None


def _limit(request: web.Request, most: int) -> int:
    text = request.query.get("limit", "1000")
    if not (text.isascii() and text.isdigit() and 0 < int(text[:9]) <= most):
        raise web.HTTPBadRequest(text=f"limit is a number from 1 to {most}")
    return int(text)


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error as JSON in plain words."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return answer({"error": error.text or error.reason}, error.status)
    except msgspec.DecodeError as error:
        return answer({"error": f"the request can't be understood: {error}"}, 400)
    except UnknownName as error:
        return answer({"error": str(error)}, 404)
    except ConfigurationError as error:
        problems = [str(problem) for problem in error.problems]
        return answer({"error": "the configuration is refused, the old one stays", "problems": problems}, 422)
    except L7lbError as error:
        return answer({"error": str(error)}, 409)
    except TimeoutError:
        return answer({"error": "the request did not arrive in time"}, 408)
    except Exception:
        log.exception("a fault in the admin API", method=request.method, path=request.path)
        return answer({"error": "a fault in l7lb itself: its log says more"}, 500)


def answer(value: Any, status: int = 200) -> web.Response:
    """A JSON response."""
    return web.Response(body=msgspec.json.encode(value) + b"\n", status=status, content_type="application/json")


def done(request: web.Request, sentence: str) -> web.Response:
    """A verb's answer; what an operator changed is logged with who it was."""
    log.info(sentence, **caller(request))
    return answer({"done": sentence})


async def body(request: web.Request, form: type[T]) -> T:
    """The request's body in this form. Raises msgspec.DecodeError, web.HTTPException, TimeoutError."""
    async with asyncio.timeout(READ):
        data = await request.read()
    return msgspec.json.decode(data or b"{}", type=form)


def caller(request: web.Request) -> dict[str, int]:
    """The process and user at the other end of the unix socket (SO_PEERCRED, unix(7))."""
    connection = request.transport.get_extra_info("socket") if request.transport is not None else None
    if connection is None or connection.family != socket.AF_UNIX:
        return {}
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return {"by_pid": pid, "by_user": uid}
