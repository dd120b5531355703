"""What workers and the directory process say, over a unix stream socket: MessagePack behind its length in four bytes.

    worker                          process
    Join                    ->
                            <-      Welcome, or the end where it speaks another version
    Use                     ->      (again when the configuration changes)
    Ask                     ->
                            <-      Told, once for each Ask that was not forgotten, in any order
    Forget                  ->

    AskNumbers              ->      (the supervisor, which joins as workers do)
                            <-      Numbers

Whoever asks sets a limit of its own: a process that dies answers nothing, and its successor is asked again.
"""

from __future__ import annotations

import msgspec

from l7lb.core.contracts import Entry
from l7lb.core.directory import Question
from l7lb.core.snapshot import Directory, FileSource, HttpSource, LdapSource

PROTOCOL = 1  # grows when the messages change
LIMIT = 16 * 1024 * 1024  # bytes of one message: certificates of authorities are in it
OPEN = 8192  # questions of one worker without an answer
LOADING = 5.0  # seconds until a file has been read for the first time


class Join(msgspec.Struct, tag="join"):
    """A worker introduces itself."""

    protocol: int


class Use(msgspec.Struct, tag="use"):
    """The directories that the questions behind this name."""

    directories: tuple[Directory, ...]


class Ask(msgspec.Struct, tag="ask", omit_defaults=True):
    """A question to these directories; its fields are those of :class:`l7lb.core.directory.Question`."""

    number: int
    names: tuple[str, ...]
    address: bytes
    user: bytes
    login: bytes
    protocol: str
    client: str
    password: bytes = b""
    mechanism: str = ""
    attempt: int = 1
    tls: bool = False

    @classmethod
    def of(cls, number: int, names: tuple[str, ...], one: Question) -> Ask:
        """The message for a question."""
        return cls(
            number,
            names,
            one.address,
            one.user,
            one.login,
            one.protocol,
            one.client,
            one.password,
            one.mechanism,
            one.attempt,
            bool(one.tls),
        )

    def question(self) -> Question:
        """What was asked."""
        one = Question(self.address, self.user, self.login, self.protocol, self.client)
        one.password, one.mechanism, one.attempt, one.tls = self.password, self.mechanism, self.attempt, self.tls
        return one

    def __repr__(self) -> str:
        return f"Ask({self.number}, {self.address!r})"  # the password must not come into a log


class Forget(msgspec.Struct, tag="forget"):
    """Nobody waits for that answer any more."""

    number: int


class AskNumbers(msgspec.Struct, tag="ask-numbers"):
    """How are the directories?"""


class Welcome(msgspec.Struct, tag="welcome"):
    """The process answers Join."""

    protocol: int


# mailbox, server, user, password, master user and its password, whether the client's was checked
Fields = tuple[bytes, str, bytes, bytes, bytes, bytes, bool]


class Told(msgspec.Struct, tag="told", omit_defaults=True):
    """The answer; ``directory`` is the one that gave it. See :class:`l7lb.core.directory.Answer`."""

    number: int
    status: str
    directory: str = ""
    why: str = ""
    wait: float = 0.0
    entry: Fields | None = None

    def __repr__(self) -> str:
        return f"Told({self.number}, {self.status})"


class DirectoryNumbers(msgspec.Struct):
    """One directory since the process began to use it.

    ``answers`` by status, how often it was ``asked`` because nothing was remembered, how many ``seconds`` that took
    together, and how many ``entries`` are in memory.
    """

    directory: str
    answers: dict[str, int]
    asked: int
    seconds: float
    entries: int


class Numbers(msgspec.Struct, tag="numbers"):
    """The answer to AskNumbers: the directories that are used."""

    rows: list[DirectoryNumbers]


ToProcess = Join | Use | Ask | Forget | AskNumbers
FromProcess = Welcome | Told | Numbers

to_process = msgspec.msgpack.Decoder(ToProcess)
from_process = msgspec.msgpack.Decoder(FromProcess)


def fields(entry: Entry) -> Fields:
    """An entry as it travels and is remembered."""
    proof = entry.user, entry.password, entry.master_user, entry.master_password, entry.proven
    return entry.mailbox, entry.server, *proof


def entry(values: Fields) -> Entry:
    """The reverse of :func:`fields`."""
    made = Entry(values[0], values[1])
    _, _, made.user, made.password, made.master_user, made.master_password, made.proven = values
    return made


def frame(message: ToProcess | FromProcess) -> bytes:
    """The message behind its length."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(4, "big") + body


class Frames:
    """Takes bytes as they come and gives the bodies of whole messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are complete now. Raises ValueError for one that is too long."""
        buffer = self._buffer
        buffer += data
        found = []
        start = 0
        while len(buffer) - start >= 4:
            length = int.from_bytes(buffer[start : start + 4], "big")
            if length > LIMIT:
                raise ValueError(f"a message of {length} bytes")
            if len(buffer) - start - 4 < length:
                break
            found.append(bytes(buffer[start + 4 : start + 4 + length]))
            start += 4 + length
        del buffer[:start]
        return found


def budget(directory: Directory) -> float:
    """The seconds in which this directory has answered, or has failed to."""
    match directory.source:
        case LdapSource(urls=urls, timeout=timeout):
            return timeout * (len(urls) + 1)  # each server may be tried, and a connection be waited for
        case HttpSource(timeout=timeout):
            return timeout * 2
        case FileSource():
            return LOADING
