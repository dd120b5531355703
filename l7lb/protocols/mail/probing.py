"""How the health checks of the mail protocols talk to a server: lines and answers, TLS as users get it, a time for all.

A check greets, asks what the server can do, asks for TLS where the configuration wants that, logs in where ``settings``
have a ``user`` and a ``password`` (text), and takes its leave. Whatever a server says is bounded, and shown to an
operator without what a terminal would obey.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any

from l7lb.core.contracts import ProbeTls
from l7lb.core.errors import ProbeFailed
from l7lb.core.snapshot import Address
from l7lb.protocols.probing import explain, open_server

LINE = 8192  # bytes of a line
LINES = 200  # of one answer
GREETING_SECONDS = 1.0  # how long a server in TLS mode ``auto`` may take to greet in the clear; less in a short check
GOODBYE_SECONDS = 0.2  # how long the answer to the last word is waited for, so that no server logs a broken connection
KNOWN = 10_000  # servers whose way of TLS is remembered
SHOWN = 80  # characters of what a server says

# How servers in TLS mode ``auto`` were found to be spoken to: "implicit" or "starttls".
_learned: dict[Address, str] = {}


class Talk:
    """One check's connection. ``secure``: it has TLS; ``wants_tls``: it has to ask for it before all else."""

    def __init__(self, address: Address, settings: dict[str, Any], timeout: float) -> None:
        self.step = "greeting"  # what is waited for, in an operator's words
        self.secure = ""  # the version of TLS
        self.wants_tls = False
        self.user = str(settings.get("user") or "")
        self.password = str(settings.get("password") or "")
        self._address = address
        self._settings = settings
        tls = settings.get("tls")
        self._tls = tls if isinstance(tls, ProbeTls) else None
        self._ends = time.monotonic() + timeout
        self._timeout = timeout
        self._buffer = b""
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        """Connect, and shake hands where TLS comes first. Raises OSError and ProbeFailed."""
        self._reader, self._writer = await open_server(self._address, self._settings)
        if self._tls is None:
            return
        mode = self._tls.mode
        if mode == "auto":
            mode = _learned.get(self._address, "") or await self._find_mode()
        if mode == "implicit":
            self.step = "handshake"
            await self._shake()
            self._learn("implicit")
            self.step = "greeting"
        else:
            self.wants_tls = True

    async def _find_mode(self) -> str:
        try:
            async with asyncio.timeout(min(GREETING_SECONDS, self._timeout * 0.4)):
                await self._more()
        except TimeoutError:
            return "implicit"
        self._learn("starttls")
        return "starttls"

    def _learn(self, mode: str) -> None:
        if self._tls is not None and self._tls.mode == "auto":
            if len(_learned) >= KNOWN:
                _learned.clear()
            _learned[self._address] = mode

    async def _shake(self) -> None:
        assert self._writer is not None
        assert self._tls is not None
        await self._writer.start_tls(self._tls.context, server_hostname=self._tls.name or "")
        found: ssl.SSLObject = self._writer.get_extra_info("ssl_object")
        self.secure = found.version() or "TLS"

    async def start_tls(self) -> None:
        """The server agreed to TLS: shake hands. Raises OSError and ProbeFailed."""
        if self._buffer:
            raise ProbeFailed("sent more behind its consent to TLS: somebody may be in between")
        self.step = "handshake"
        await self._shake()
        self.wants_tls = False

    async def line(self) -> bytes:
        """The next line, without its end. Raises ProbeFailed."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > LINE:
                raise ProbeFailed(f"{self.step}: a line of more than {LINE} bytes")
            await self._more()
        line, self._buffer = self._buffer[:end], self._buffer[end + 1 :]
        return line.removesuffix(b"\r")

    async def lines(self, last: Callable[[bytes], bool]) -> list[bytes]:
        """The lines of an answer, up to and with the one that is its last. Raises ProbeFailed."""
        found: list[bytes] = []
        while not found or not last(found[-1]):
            if len(found) == LINES:
                raise ProbeFailed(f"{self.step}: more than {LINES} lines")
            found.append(await self.line())
        return found

    async def exactly(self, count: int) -> bytes:
        """So many bytes of a literal. Raises ProbeFailed."""
        if count > LINE:
            raise ProbeFailed(f"{self.step}: a literal of more than {LINE} bytes")
        while len(self._buffer) < count:
            await self._more()
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    async def _more(self) -> None:
        data = await self._reader.read(LINE)
        if not data:
            raise ProbeFailed("closed without a greeting" if self.step == "greeting" else f"{self.step}: closed")
        self._buffer += data

    def send(self, line: bytes, step: str) -> None:
        """Send a line; ``step`` names it for an operator, without what is secret."""
        assert self._writer is not None
        self.step = step
        self._writer.write(line + b"\r\n")

    @property
    def host(self) -> str:
        """This node's end as an address literal (RFC 5321 section 4.1.3), for EHLO."""
        assert self._writer is not None
        name = self._writer.get_extra_info("sockname")
        if not isinstance(name, tuple):
            return "localhost"
        host = name[0].removeprefix("::ffff:")
        return f"[IPv6:{host}]" if ":" in host else f"[{host}]"

    def plain(self) -> bytes:
        """The response of SASL PLAIN (RFC 4616), in base64."""
        return base64.b64encode(f"\0{self.user}\0{self.password}".encode())

    def found(self, words: str) -> str:
        """What an operator reads of a good check."""
        parts = [words, self.secure, "logged in" if self.user else ""]
        return ", ".join(part for part in parts if part)

    async def goodbye(self, word: bytes) -> None:
        """Take leave, and wait a moment for the answer, whatever it is."""
        assert self._writer is not None
        self._writer.write(word + b"\r\n")
        left = self._ends - time.monotonic()
        try:
            async with asyncio.timeout(min(GOODBYE_SECONDS, left / 2)):
                await self._more()
        except (ProbeFailed, TimeoutError, OSError):
            pass

    def forget(self) -> None:
        """The check has failed: look again how the server wants TLS."""
        _learned.pop(self._address, None)

    def close(self) -> None:
        """Close at once."""
        if self._writer is None:
            return
        if self.secure:
            self._writer.transport.abort()  # else it would wait for the server's last word of TLS
        else:
            self._writer.close()


async def check(
    address: Address, settings: dict[str, Any], timeout: float, dialogue: Callable[[Talk], Awaitable[str]]
) -> str:
    """Make one check; returns what the dialogue does. Raises ProbeFailed."""
    talk = Talk(address, settings, timeout)
    try:
        async with asyncio.timeout(timeout * 0.97):  # before the caller, who does not know what was waited for
            await talk.open()
            return await dialogue(talk)
    except TimeoutError:
        talk.forget()
        raise ProbeFailed(f"{talk.step}: no answer within {timeout:g} s") from None
    except ProbeFailed:
        talk.forget()
        raise
    except ssl.SSLError as problem:
        talk.forget()
        reason = getattr(problem, "verify_message", "") or (problem.reason or str(problem)).lower().replace("_", " ")
        raise ProbeFailed(f"TLS: {reason}") from None
    except OSError as problem:
        talk.forget()
        raise ProbeFailed(explain(problem)) from None
    finally:
        talk.close()


def shown(text: bytes) -> str:
    """What a server said, for a terminal and of a decent length."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in text.decode("utf-8", "replace"))
    return plain if len(plain) <= SHOWN else f"{plain[:SHOWN]}..."
