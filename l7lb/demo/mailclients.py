"""Clients of mail for the demo, the example and the tests: they log in, say which server they have got, and send."""

from __future__ import annotations

import base64
import contextlib
import imaplib
import poplib
import re
import smtplib
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from email.message import EmailMessage
from email.utils import make_msgid
from pathlib import Path
from typing import NamedTuple, Self

SECONDS = 40.0  # longer than a login waits while its mailbox moves


class Target(NamedTuple):
    """Where a client connects, as HOST:PORT; with ``certificate`` TLS is spoken and the server's verified by that
    file: from the first byte where ``implicit``, else by STARTTLS. ``source`` is the client's own address.
    """

    address: str
    certificate: Path | None = None
    implicit: bool = False
    source: str = "127.0.0.1"

    @property
    def host(self) -> str:
        """The address' host."""
        return self.address.rpartition(":")[0]

    @property
    def port(self) -> int:
        """The address' port."""
        return int(self.address.rpartition(":")[2])

    def context(self) -> ssl.SSLContext:
        """What verifies the server."""
        return ssl.create_default_context(cafile=str(self.certificate))

    def connect(self) -> socket.socket:
        """A connection, with its handshake done where TLS is implicit. Raises OSError."""
        sock = socket.create_connection((self.host, self.port), SECONDS, source_address=(self.source, 0))
        if self.certificate is not None and self.implicit:
            return self.context().wrap_socket(sock, server_hostname=self.host)
        return sock


class Imap(imaplib.IMAP4):
    """IMAP; ``server()`` asks who is there (ID, RFC 2971)."""

    def __init__(self, target: Target) -> None:
        self.target = target
        super().__init__(target.host, target.port)
        if target.certificate is not None and not target.implicit:
            with closed_by_failure(self.hang_up):
                self.starttls(target.context())

    def _create_socket(self, timeout: float | None) -> socket.socket:
        return self.target.connect()

    def hang_up(self) -> None:
        """Close the connection without a word."""
        with contextlib.suppress(OSError):
            self.shutdown()

    def server(self) -> str:
        """The server's name."""
        self.untagged_responses.pop("ID", None)
        self.xatom("ID", "NIL")
        text = b"".join(part for part in self.response("ID")[1] if isinstance(part, bytes))
        found = re.search(rb'"name" "([^"]*)"', text)
        return found[1].decode() if found else ""


imaplib.Commands.setdefault("ID", ("NONAUTH", "AUTH", "SELECTED"))


class Pop(poplib.POP3):
    """POP3; which server it was only the server's log tells."""

    def __init__(self, target: Target) -> None:
        self.target = target
        with closed_by_failure(self.hang_up):
            super().__init__(target.host, target.port, SECONDS)
            if target.certificate is not None and not target.implicit:
                self.stls(target.context())

    def _create_socket(self, timeout: float) -> socket.socket:
        self._socket = self.target.connect()
        return self._socket

    def hang_up(self) -> None:
        """Close the connection without a word."""
        with contextlib.suppress(OSError, AttributeError):  # where even the greeting was missing there is no file yet
            self.close()
        self._socket.close()


class Smtp(smtplib.SMTP):
    """SMTP, submission; which server it was only the node and the server's log tell."""

    def __init__(self, target: Target, name: str = "client.example.org") -> None:
        self.target = target
        super().__init__(target.host, target.port, name, SECONDS)
        if target.certificate is not None and not target.implicit:
            with closed_by_failure(self.hang_up):
                self.starttls(context=target.context())

    def hang_up(self) -> None:
        """Close the connection without a word."""
        with contextlib.suppress(OSError):
            self.close()

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        return self.target.connect()


class Lmtp(smtplib.LMTP):
    """LMTP."""

    def __init__(self, target: Target) -> None:
        super().__init__(target.host, target.port, "client.example.org")

    def hang_up(self) -> None:
        """Close the connection without a word."""
        self.close()

    def deliver(self, sender: str, recipients: Sequence[str], message: bytes) -> list[tuple[int, bytes]]:
        """The replies to RCPT that refused, or to the end of data: one for each recipient, in their order."""
        self.ehlo_or_helo_if_needed()
        self.mail(sender)
        answers = [self.rcpt(each) for each in recipients]
        accepted = [code == 250 for code, _ in answers]
        if any(accepted):
            found = [self.data(on_the_wire(message))]
            found += [self.getreply() for _ in range(sum(accepted) - 1)]
            replies = iter(found)
            answers = [next(replies) if good else answer for good, answer in zip(accepted, answers, strict=True)]
        return answers


def on_the_wire(text: bytes) -> bytes:
    """A message with CRLF at the end of each line, as SMTP and LMTP want it."""
    return b"\r\n".join(text.splitlines()) + b"\r\n"


class SieveError(Exception):
    """The server answered NO or BYE; the text is its line."""


class Sieve:
    """ManageSieve (RFC 5804), as far as it is needed; ``server()`` is the implementation's name behind the login."""

    def __init__(self, target: Target) -> None:
        self._sock = target.connect()
        self._file = self._sock.makefile("rb")
        with closed_by_failure(self.hang_up):
            self.capabilities = self._answer()
            if target.certificate is not None and not target.implicit:
                self.command("STARTTLS")
                self._file.close()
                self._sock = target.context().wrap_socket(self._sock, server_hostname=target.host)
                self._file = self._sock.makefile("rb")
                self.capabilities = self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.hang_up()

    def command(self, text: str) -> list[str]:
        """The lines that a command is answered with. Raises SieveError where it is refused."""
        self._sock.sendall(f"{text}\r\n".encode())
        return self._answer()

    def login(self, user: str, password: str) -> None:
        """By PLAIN. Raises SieveError."""
        text = base64.b64encode(f"\0{user}\0{password}".encode()).decode()
        self.command(f'AUTHENTICATE "PLAIN" "{text}"')

    def server(self) -> str:
        """The server's name."""
        found = next(line for line in self.command("CAPABILITY") if line.startswith('"IMPLEMENTATION"'))
        return found.split('"')[3]

    def put(self, name: str, script: str) -> None:
        """Store a script and make it the active one. Raises SieveError."""
        data = script.encode()
        self._sock.sendall(f'PUTSCRIPT "{name}" {{{len(data)}+}}\r\n'.encode() + data + b"\r\n")
        self._answer()
        self.command(f'SETACTIVE "{name}"')

    def logout(self) -> None:
        """Say goodbye."""
        self.command("LOGOUT")

    def hang_up(self) -> None:
        """Close the connection without a word."""
        self._file.close()
        self._sock.close()

    def _answer(self) -> list[str]:
        lines: list[str] = []
        while True:
            line = self._file.readline().decode().rstrip("\r\n")
            word = line.partition(" ")[0].upper()
            if word == "OK":
                return lines
            if word in ("NO", "BYE", ""):
                raise SieveError(line or "the connection was closed")
            lines.append(line)


def message(sender: str, recipient: str, subject: str, body: str = "") -> EmailMessage:
    """A message with a Message-ID of its own."""
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = sender, recipient, subject
    made["Message-ID"] = make_msgid(domain="client.example.org")
    made.set_content(f"{body or subject}\n")
    return made


@contextlib.contextmanager
def closed_by_failure(hang_up: Callable[[], object]) -> Iterator[None]:
    """Close the connection where what is inside fails."""
    try:
        yield
    except BaseException:
        hang_up()
        raise


@contextlib.contextmanager
def quietly(client: Imap | Pop | Smtp | Lmtp | Sieve) -> Iterator[None]:
    """Say goodbye at the end, and close, also where the connection is gone by then."""
    try:
        yield
    finally:
        bye = client.logout if isinstance(client, (Imap, Sieve)) else client.quit
        with contextlib.suppress(OSError, imaplib.IMAP4.error, poplib.error_proto, smtplib.SMTPException, SieveError):
            bye()
        client.hang_up()
