"""A program that is asked over HTTP, in the words of nginx's mail_auth_http module, so that existing ones serve.

It is asked by GET, with everything in headers:

    Auth-Method             plain (for LOGIN and USER too), external, xoauth2 ...; none for a recipient
    Auth-User, Auth-Pass    as typed; what nginx would escape is escaped as nginx does
    Auth-Protocol           imap, pop3, smtp (submission too), lmtp, sieve, http
    Auth-Login-Attempt      1, 2 ... in this connection
    Client-IP               the client's address
    Auth-SSL                on, where the client speaks TLS
    Auth-SMTP-To            of a recipient: RCPT TO:<...>
    Auth-Address            the canonical address: l7lb's own word

and answers 200 with

    Auth-Status             OK, WAIT, or the words of a refusal
    Auth-Server, Auth-Port  the server's name or address; without them the pool chooses
    Auth-User, Auth-Pass    what to log in to the server with, in place of what was typed
    Auth-Mailbox            one name for one store, where it isn't Auth-User: l7lb's own word
    Auth-Error-Code         an SMTP code: one that begins with 4 makes it a temporary failure
    Auth-Wait               seconds until the client hears of a refusal

Answers with credentials, and refusals, are not remembered: the program has judged a password, and counts attempts.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable, Mapping

import aiohttp

from l7lb.core.contracts import Entry
from l7lb.core.directory import FOUND, MISSING, REFUSED, Question
from l7lb.core.snapshot import HttpSource
from l7lb.routing.directory.source import Rest, Result, digest, failed

LONGEST_WAIT = 60.0  # seconds
METHODS = {"": "plain", "login": "plain"}
PROTOCOLS = {"imap4": "imap", "submission": "smtp", "managesieve": "sieve"}
_ESCAPED = frozenset(b' "%') | frozenset(range(0x20)) | frozenset(range(0x7F, 0x100))


def escape(value: bytes) -> str:
    """As nginx writes a name or a password into a header."""
    return "".join(f"%{octet:02X}" if octet in _ESCAPED else chr(octet) for octet in value)


def request_headers(question: Question) -> dict[str, str]:
    """The headers that a question becomes."""
    login = bool(question.password or question.mechanism)
    headers = {
        "Auth-Method": METHODS.get(question.mechanism, question.mechanism) if login else "none",
        "Auth-User": escape(question.login),
        "Auth-Pass": escape(question.password),
        "Auth-Protocol": PROTOCOLS.get(question.protocol, question.protocol),
        "Auth-Login-Attempt": str(question.attempt),
        "Client-IP": question.client,
        "Auth-Address": escape(question.address),
    }
    if question.tls:
        headers["Auth-SSL"] = "on"
    if not login and question.protocol in ("smtp", "lmtp"):
        headers["Auth-SMTP-To"] = f"RCPT TO:<{escape(question.login)}>"
    return headers


def read_answer(status: int, headers: Mapping[str, str], login: bool) -> Result:
    """What an answer says. Anything but a clear yes or no is a temporary failure."""
    if status != 200:
        return failed(f"HTTP status {status}")
    word = headers.get("Auth-Status", "").strip()
    wait = _seconds(headers.get("Auth-Wait", ""))
    if word == "OK":
        return _entry(headers, login)
    if not word:
        return failed("an answer without Auth-Status")
    if word == "WAIT" or headers.get("Auth-Error-Code", "").strip().startswith("4"):
        result = failed(f"Auth-Status: {word[:100]}")
        result.wait = wait
        return result
    return Result(REFUSED if login else MISSING, why=word[:100], wait=wait)


def _entry(headers: Mapping[str, str], login: bool) -> Result:
    server, port = headers.get("Auth-Server", "").strip(), headers.get("Auth-Port", "").strip()
    if port and not (port.isascii() and port.isdigit()):
        return failed(f"Auth-Port: {port[:20]}")
    if ":" in server and not server.startswith("["):
        server = f"[{server}]"
    entry = Entry(server=f"{server}:{port}" if server and port else server)
    entry.user = headers.get("Auth-User", "").encode("utf-8", "surrogateescape")
    entry.password = headers.get("Auth-Pass", "").encode("utf-8", "surrogateescape")
    entry.mailbox = headers.get("Auth-Mailbox", "").encode("utf-8", "surrogateescape") or entry.user
    entry.proven = login and bool(entry.password)  # it was asked about the client's password, and not told before
    return Result(FOUND, entry, lasting=not entry.password)


def _seconds(text: str) -> float:
    text = text.strip()
    return min(float(text), LONGEST_WAIT) if text.isascii() and text.isdigit() else 0.0


class HttpDirectory:
    """See the module."""

    def __init__(self, config: HttpSource, clock: Callable[[], float]) -> None:
        self._config = config
        self._secret = os.urandom(16)
        self._rest = Rest(config.url, clock)
        self._session: aiohttp.ClientSession | None = None
        self._context = ssl.create_default_context(cadata=config.ca.decode() if config.ca else None)
        if not config.verify:
            self._context.check_hostname = False
            self._context.verify_mode = ssl.CERT_NONE

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._config.connections, ssl=self._context),
                timeout=aiohttp.ClientTimeout(total=self._config.timeout),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=list(self._config.headers),
                auto_decompress=False,
            )
        return self._session

    def known(self, question: Question) -> Result | None:
        """See Source."""
        return None

    def key(self, question: Question) -> bytes | None:
        """See Source: it may judge by anything that it was told, but for the number of the attempt."""
        told = request_headers(question)
        return digest(self._secret, *(told[name].encode() for name in sorted(told) if name != "Auth-Login-Attempt"))

    async def find(self, question: Question) -> Result:
        """See Source."""
        if not self._rest.may(self._config.timeout):
            return failed(f"{self._config.url} is left alone ({self._rest.why})")
        try:
            async with self._client().get(
                self._config.url, headers=request_headers(question), allow_redirects=False
            ) as answer:
                status, headers = answer.status, answer.headers
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            why = f"no answer within {self._config.timeout:g} s" if isinstance(error, TimeoutError) else str(error)
            self._rest.failed(why or type(error).__name__)
            return failed(f"{self._config.url}: {why or type(error).__name__}")
        self._rest.answered()
        return read_answer(status, headers, bool(question.password or question.mechanism))

    def size(self) -> int:
        """See Source."""
        return 0

    async def close(self) -> None:
        """See Source."""
        if self._session is not None:
            await self._session.close()
            await asyncio.sleep(0)  # aiohttp closes its transports in the next turn
