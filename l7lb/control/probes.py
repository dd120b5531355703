"""The checks themselves: one connection, one question, one answer in words.

A probe returns what an operator may read of a good answer and raises ProbeFailed with the reason for a bad one. What
is this node's own fault (no file descriptors, no right to send ICMP) is :class:`ProbeUnavailable`: it says nothing
about the server, and changes nothing about it. The caller limits the time.
"""

from __future__ import annotations

import asyncio
import errno
import importlib
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import aiohttp
import msgspec
from aiohttp import hdrs
from aiohttp.connector import Connection
from yarl import URL

from l7lb import __version__
from l7lb.core.contracts import Probe, ProbeTls, ProtocolSpec
from l7lb.core.errors import ProbeFailed
from l7lb.core.proxy_protocol.writing import write_own
from l7lb.core.snapshot import Address, Health, Server
from l7lb.core.unixpath import short_path
from l7lb.proxy.upstream import explain

BODY = 64 * 1024  # bytes of an answer that are looked at
HEADER = 32 * 1024  # bytes of one line of an answer's header
EXPECT = ((200, 399),)
NOTHING_TOLD: Mapping[str, str] = {}

_OWN_FAULT = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EPERM}
_REASONS = {
    errno.ECONNREFUSED: "connect refused",
    errno.ECONNRESET: "connection reset",
    errno.EPIPE: "connection reset",
    errno.EHOSTUNREACH: "no route to host",
    errno.ENETUNREACH: "network unreachable",
    errno.ETIMEDOUT: "connect timed out",
    errno.ENOENT: "no such socket",
    errno.EACCES: "no permission to connect",
}


class ProbeUnavailable(ProbeFailed):
    """This node can't make the check at all; says nothing about the server."""


def failed(error: OSError) -> ProbeFailed:
    """What a system call's error means for a check."""
    reason = _REASONS.get(error.errno or 0) or error.strerror or str(error) or type(error).__name__
    if error.errno in _OWN_FAULT:
        return ProbeUnavailable(f"not checked: {reason}")
    return ProbeFailed(reason)


# --- tcp ----------------------------------------------------------------------------------------------------------


async def connect(address: Address, settings: dict[str, Any], timeout: float) -> str:  # noqa: ARG001
    """Whether a TCP connection, or one to a unix socket, is accepted, and its TLS where ``settings`` have ``tls``.

    A server with ``send_proxy`` gets the header of a connection of our own, lest it logs one that broke off.
    """
    loop = asyncio.get_running_loop()
    try:
        if address.path:
            kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
            with socket.socket(socket.AF_UNIX, kind) as stream, short_path(address.path) as path:
                await loop.sock_connect(stream, path)
                await _announce(stream, settings)
        else:
            family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
            with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as stream:
                await loop.sock_connect(stream, (address.host, address.port))
                await _announce(stream, settings)
    except OSError as error:
        raise failed(error) from None
    return "connected"


async def _announce(stream: socket.socket, settings: dict[str, Any]) -> None:
    """What the connection begins with: a PROXY header, a TLS handshake."""
    loop, version, tls = asyncio.get_running_loop(), settings.get("send_proxy"), settings.get("tls")
    if version:
        await loop.sock_sendall(stream, write_own(version, stream.getsockname(), stream.getpeername()))
    if tls is not None:
        try:
            _, writer = await asyncio.open_connection(
                sock=stream.dup(), ssl=tls.context, server_hostname=tls.name or ""
            )
        except ssl.SSLError as error:
            raise ProbeFailed(f"TLS: {explain(error)}") from None
        except ssl.CertificateError as error:
            raise ProbeFailed(f"TLS: {_one_line(str(error))}") from None
        writer.transport.abort()


# --- http ---------------------------------------------------------------------------------------------------------


class HttpProbe:
    """GET (or another method), a status in the expected ranges, perhaps a text in the body.

    Settings: ``path``, ``expect`` (ranges of statuses, first and last), ``method``, ``host``, ``headers``, ``body``: a
    text that the answer must hold. Every check has a connection of its own; redirections are answers like others.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, aiohttp.ClientSession] = {}  # by the version of the PROXY header they send

    async def __call__(self, address: Address, settings: dict[str, Any], timeout: float) -> str:
        """Make one check."""
        version = str(settings.get("send_proxy") or "")
        if version and settings.get("tls") is not None:
            text = "an HTTP check can't send a PROXY header before TLS; `health: {protocol: {}}` and tcp can"
            raise ProbeUnavailable(f"not checked: {text}")
        try:
            if not address.path:
                return await self._ask(self._shared(version), address, settings)
            with short_path(address.path) as path:
                async with _client(_UnixConnector(version, path, force_close=True)) as session:
                    return await self._ask(session, address, settings)
        except aiohttp.ClientConnectorCertificateError as error:
            raise ProbeFailed(f"TLS: {_one_line(str(error.certificate_error))}") from None
        except aiohttp.ClientSSLError as error:
            inner = error.os_error
            raise ProbeFailed(f"TLS: {explain(inner)}") from None
        except aiohttp.ServerDisconnectedError:
            raise ProbeFailed("closed without an answer") from None
        except aiohttp.ClientOSError as error:
            cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
            raise failed(cause) from None
        except aiohttp.ClientResponseError as error:
            raise ProbeFailed(f"not an HTTP answer: {_one_line(error.message)}") from None
        except (aiohttp.ClientError, ValueError) as error:
            raise ProbeFailed(_one_line(str(error)) or type(error).__name__) from None
        except OSError as error:
            raise failed(error) from None

    async def close(self) -> None:
        """End the client."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    def _shared(self, version: str) -> aiohttp.ClientSession:
        if version not in self._sessions:
            connector = _TcpConnector(version, force_close=True, limit=0, use_dns_cache=False)
            self._sessions[version] = _client(connector)
        return self._sessions[version]

    async def _ask(self, session: aiohttp.ClientSession, address: Address, settings: dict[str, Any]) -> str:
        authority = "localhost" if address.path else str(address)
        tls: ProbeTls | None = settings.get("tls")
        url = URL(f"{'https' if tls is not None else 'http'}://{authority}{settings.get('path') or '/'}", encoded=True)
        headers = dict(settings.get("headers") or {})
        if settings.get("host"):
            headers[hdrs.HOST] = settings["host"]
        method = settings.get("method") or "GET"
        secure: dict[str, Any] = {"ssl": tls.context, "server_hostname": tls.name} if tls is not None else {}
        async with session.request(method, url, headers=headers, allow_redirects=False, **secure) as response:
            expect = settings.get("expect") or EXPECT
            if not any(low <= response.status <= high for low, high in expect):
                raise ProbeFailed(f"status {response.status}, expected {_ranges_text(expect)}")
            wanted = settings.get("body")
            if wanted and wanted.encode() not in await _body(response):
                raise ProbeFailed(f"status {response.status}, but the answer lacks {wanted[:40]!r}")
            return f"status {response.status}"


class _Connector(aiohttp.BaseConnector):
    """Connections that begin with a PROXY header of our own, where a version is given; none is used twice."""

    def __init__(self, version: str, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._version = version

    async def connect(self, *args: Any, **options: Any) -> Connection:
        connection = await super().connect(*args, **options)
        transport = connection.transport
        if self._version and transport is not None:
            own, server = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
            transport.write(write_own(self._version, own, server))
        return connection


class _TcpConnector(_Connector, aiohttp.TCPConnector):
    """The same over TCP."""


class _UnixConnector(_Connector, aiohttp.UnixConnector):
    """The same over a unix socket."""


def _client(connector: aiohttp.BaseConnector) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        headers={hdrs.USER_AGENT: f"l7lb/{__version__} (health check)", hdrs.ACCEPT: "*/*"},
        skip_auto_headers=[hdrs.ACCEPT_ENCODING],
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # the caller's
        max_line_size=HEADER,
        max_field_size=HEADER,
        read_bufsize=BODY,
    )


async def _body(response: aiohttp.ClientResponse) -> bytes:
    data = b""
    while len(data) < BODY:
        more = await response.content.read(BODY - len(data))
        if not more:
            break
        data += more
    return data


def _ranges_text(expect: Sequence[Sequence[int]]) -> str:
    return ", ".join(f"{low}-{high}" if low != high else str(low) for low, high in expect)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:120]


# --- ping ---------------------------------------------------------------------------------------------------------


async def ping(address: Address, settings: dict[str, Any], timeout: float) -> str:  # noqa: ARG001
    """One ICMP echo: without privileges where net.ipv4.ping_group_range allows, else by a raw socket."""
    import icmplib  # type: ignore[import-untyped]  # here, since few nodes ping

    if address.path:
        raise ProbeUnavailable("not checked: a unix socket can't be pinged")
    for privileged in (False, True):
        try:
            host = await icmplib.async_ping(
                address.host, count=1, timeout=timeout, privileged=privileged, payload_size=16
            )
        except icmplib.SocketPermissionError:
            continue
        except icmplib.ICMPLibError as error:
            raise ProbeFailed(_one_line(str(error))) from None
        except OSError as error:
            raise failed(error) from None
        if not host.is_alive:
            raise ProbeFailed("no echo")
        return f"echo in {host.min_rtt:.1f} ms"
    raise ProbeUnavailable(
        "not checked: ping needs this process's group in net.ipv4.ping_group_range, or CAP_NET_RAW; "
        "`health: {tcp: {}}` needs neither"
    )


# --- which one -----------------------------------------------------------------------------------------------------


def load(name: str) -> Probe:
    """The function that ``module:function`` names. Raises ProbeUnavailable."""
    module, _, function = name.partition(":")
    try:
        found: Probe = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ProbeUnavailable(f"not checked: the probe {name} can't be loaded: {_one_line(str(error))}") from None
    return found


def chooser(protocols: Mapping[str, ProtocolSpec], http: HttpProbe) -> Callable[[Health], Probe]:
    """What finds the probe of a pool's checks; it raises ProbeUnavailable."""
    loaded: dict[str, Probe] = {}

    def choose(health: Health) -> Probe:
        if health.kind == "http":
            return http
        if health.kind == "tcp":
            return connect
        if health.kind == "ping":
            return ping
        spec = protocols.get(health.protocol)
        if spec is None or not spec.probe:
            raise ProbeUnavailable(f"not checked: there is no probe for {health.protocol or health.kind}")
        if spec.probe not in loaded:
            loaded[spec.probe] = load(spec.probe)
        return loaded[spec.probe]

    return choose


def of_server(
    health: Health, server: Server, protocol: str = "", client_address: Mapping[str, str] = NOTHING_TOLD
) -> Health:
    """The pool's checks as this server needs them in that protocol. A port of its own for checks is taken to know no
    PROXY protocol. ``client_address`` is the pool's.
    """
    if health.kind == "protocol" and protocol:
        health = msgspec.structs.replace(health, protocol=protocol)
    told = client_address.get(protocol, "")
    version = server.send_proxy or (told.removeprefix("proxy-") if told.startswith("proxy-") else "")
    if not version or health.port not in (0, server.address_for(protocol).port):
        return health
    return msgspec.structs.replace(health, settings={**health.settings, "send_proxy": version})


def target(address: Address, health: Health) -> Address:
    """Where to connect: the server's address, or the pool's own port for checks."""
    return Address(host=address.host, port=health.port) if health.port and not address.path else address


def describe_timeout(seconds: float) -> str:
    """The reason of a check that took too long."""
    return f"no answer within {seconds:g} s" if seconds >= 1 else f"no answer within {seconds * 1000:g} ms"
