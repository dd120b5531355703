"""One connection to one LDAP server, in a thread: blocks, and may be cut from another thread."""

from __future__ import annotations

import math
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ldap3
from ldap3.core.exceptions import LDAPException

from l7lb.core.snapshot import LdapSource

WARM = 30.0  # seconds without work after which a connection is not trusted: a firewall may have forgotten it
ENTRIES = 2  # that are asked for: one is the answer, a second is one too many

SUCCESS, SIZE_LIMIT, BUSY, UNAVAILABLE, UNWILLING = 0, 4, 51, 52, 53  # result codes (RFC 4511 appendix A)


class LdapProblem(Exception):
    """A search that failed; the text says why. ``server``: for a reason that will meet the next one too."""

    def __init__(self, text: str, server: bool) -> None:
        super().__init__(text)
        self.server = server


@dataclass
class Found:
    """What a search found: names and attributes by their names in lower case. ``more``: it wasn't all."""

    entries: list[tuple[str, dict[str, list[bytes]]]]
    more: bool = False


class ContextTls(ldap3.Tls):  # type: ignore[misc]
    """TLS as our own context has it: ldap3 would make one for each connection, and compare names by itself."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(validate=context.verify_mode)
        self._context = context

    def wrap_socket(self, connection: Any, do_handshake: bool = False) -> None:
        """Put TLS over the connection's socket. Raises OSError."""
        connection.socket = self._context.wrap_socket(
            connection.socket, do_handshake_on_connect=do_handshake, server_hostname=connection.server.host
        )


class LdapLine:
    """See the module."""

    def __init__(self, url: str, config: LdapSource, context: ssl.SSLContext | None) -> None:
        self._url = url
        self._config = config
        self._context = context
        self._connection: Any = None
        self._used = 0.0

    def search(self, text: str, over: Callable[[], bool]) -> Found:
        """The entries that match the filter. ``over`` says whether it's in vain. Raises LdapProblem."""
        if self._connection is not None and time.monotonic() - self._used > WARM:
            self.close()
        fresh = self._connection is None
        try:
            if fresh:
                self._open()
            return self._search(text)
        except (LDAPException, OSError) as error:
            self.close()
            if fresh or over():
                raise LdapProblem(self._words(error), True) from None
        except LdapProblem:
            self.close()
            raise
        try:  # it was kept, and the server has closed it meanwhile
            self._open()
            return self._search(text)
        except (LDAPException, OSError) as error:
            self.close()
            raise LdapProblem(self._words(error), True) from None

    @staticmethod
    def _words(error: Exception) -> str:
        return " ".join(str(error).split())[:200] or type(error).__name__

    def _open(self) -> None:
        """Connect, begin TLS, bind. Raises LdapProblem, LDAPException or OSError."""
        config = self._config
        tls = ContextTls(self._context) if self._context is not None else None
        server = ldap3.Server(self._url, get_info=ldap3.NONE, connect_timeout=config.timeout, tls=tls)
        named: dict[str, Any] = {}
        if config.bind_dn:
            named = {"user": config.bind_dn, "password": config.bind_password, "authentication": ldap3.SIMPLE}
        self._connection = connection = ldap3.Connection(
            server,
            receive_timeout=math.ceil(config.timeout),  # ldap3 takes whole seconds; who asks keeps the exact time
            auto_referrals=False,
            auto_range=False,
            auto_encode=False,
            auto_escape=False,
            check_names=False,
            read_only=True,
            **named,
        )
        connection.open(read_server_info=False)
        if config.start_tls:
            connection.start_tls(read_server_info=False)
        if config.bind_dn and not connection.bind(read_server_info=False):
            raise LdapProblem(f"bind as {config.bind_dn}: {connection.result['description']}", True)

    def _search(self, text: str) -> Found:
        config, connection = self._config, self._connection
        connection.search(
            config.base,
            text,
            attributes=sorted(set(config.attributes.values())) or ["1.1"],
            size_limit=ENTRIES,
            time_limit=math.ceil(config.timeout),
        )
        self._used = time.monotonic()
        code = connection.result["result"]
        if code not in (SUCCESS, SIZE_LIMIT):
            text = connection.result["message"] or ""
            why = f"{connection.result['description']}{': ' if text else ''}{text}"
            raise LdapProblem(why, code in (BUSY, UNAVAILABLE, UNWILLING))
        entries = [
            (one["dn"], {name.lower(): [bytes(v) for v in values] for name, values in one["raw_attributes"].items()})
            for one in connection.response or ()
            if one["type"] == "searchResEntry"  # a reference to other servers is none
        ]
        return Found(entries, code == SIZE_LIMIT)

    def cut(self) -> None:
        """From another thread: break the connection, so that whoever waits in it wakes up."""
        connection = self._connection
        sock = connection.socket if connection is not None else None
        if sock is not None:
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # TLS has a shutdown of its own, for this thread alone

    def close(self) -> None:
        """Let go of the connection, without the goodbye that a sick server would make us wait for."""
        connection, self._connection = self._connection, None
        sock = connection.socket if connection is not None else None
        if sock is not None:
            with suppress(OSError):
                sock.close()
