"""Playbooks: a whole conversation between clients, the node and its servers, written as it goes over the wire.

One step a line, carried out in order; nothing waits for a time, each step waits for what it says::

    client connects
    client> GET /api/users HTTP/1.1
    client> Host: shop.example.org
    client>
    api1 accepts
    api1< GET /api/users HTTP/1.1
    api1< ...
    api1< x-l7lb-route: api
    api1< ...
    api1<
    api1> HTTP/1.1 200 OK
    api1> Content-Length: 6
    api1>
    api1> hello!\\
    client< HTTP/1.1 200 OK
    client< ...
    client<
    client< hello!\\
    client closes

``NAME> text`` sends a line with CRLF, ``NAME< text`` says what the next line is. In an expected line ``*`` stands for
any run of characters, and ``...`` alone for any number of lines. A backslash at the end leaves the CRLF out; ``\\r``,
``\\n``, ``\\t``, ``\\\\`` and ``\\xNN`` inside are what they are in Python. ``#`` begins a comment line.

The verbs, beside these two::

    NAME connects [to LISTENER]       a client of that name opens a connection; NAME is it from here on
    NAME accepts [for SERVER]         the server NAME (or SERVER; or whichever, if NAME is no server) accepts one
    NAME closes | half-closes | resets
    NAME sees end | sees reset | sees closed       in order | by a reset | either, and whatever comes before
    NAME refuses | listens | hangs | dies          a server does this to new connections (dies: to all)
    NAME is up | down | draining | disabled | enabled         a server's health and state, set by hand

What one name sends in neighbouring lines leaves in one piece, unless ``split`` says otherwise: :func:`pieces` of so
many bytes, or each of :meth:`Playbook.splits`, which cut one sending in two at one position after the other. The
rest of the playbook must hold all the same: that is what "any split gives the same actions" means on the wire.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from l7lb.testing.servers import ScriptedServer
from l7lb.testing.wire import Transcript, Unexpected, Wire

Split = Callable[[int, bytes], list[bytes]]  # the sending's number in the playbook, its bytes

SEND = ">"
EXPECT = "<"
LINE = re.compile(r"^\s*(?P<name>[\w./@-]+)(?:(?P<sign>[<>])(?: (?P<text>.*)|)|\s+(?P<words>[^<>]+?)\s*)$")
ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|[rnt\\])")
CONNECTS = re.compile(r"connects(?: to (?P<listener>\S+))?$")
ACCEPTS = re.compile(r"accepts(?: for (?P<server>\S+))?$")
WIRE_VERBS = ("closes", "half-closes", "resets", "sees end", "sees reset", "sees closed")
SERVER_VERBS = ("refuses", "listens", "hangs", "dies")
STATES = ("up", "down", "draining", "disabled", "enabled")


class Stage(Protocol):
    """Where a playbook is performed: a :class:`~l7lb.testing.node.Node`, or anything else that can do this."""

    async def connect(self, listener: str = "", *, name: str = "client", transcript: Transcript | None = None) -> Wire:
        """Open a client's connection."""
        ...

    def find_server(self, name: str) -> ScriptedServer | None:
        """The server of that name, if there is one."""
        ...

    async def by_hand(self, names: set[str] | None, transcript: Transcript | None) -> None:
        """From now on these servers' connections (None: all servers') wait to be accepted; the empty set: nobody's."""
        ...

    async def accept_any(self) -> Wire:
        """The next connection that any server by hand gets."""
        ...

    def set_state(self, server: str, state: str) -> None:
        """Set a server's health or state: one of ``STATES``."""
        ...


@dataclass(frozen=True)
class Step:
    """One step: ``verb`` is ``>``, ``<`` or words; ``data`` what is sent, ``texts`` the lines expected."""

    line: int
    name: str
    verb: str
    data: bytes = b""
    texts: tuple[str, ...] = ()


def pieces(size: int) -> Split:
    """Cut everything into pieces of so many bytes."""
    return lambda _, data: [data[at : at + size] for at in range(0, len(data), size)]


class Playbook:
    """A parsed playbook. Raises ValueError for a line that is none."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.steps = _joined(_parse(text))

    def splits(self) -> Iterator[Split]:
        """Every way to cut exactly one sending in two."""
        sendings = [step.data for step in self.steps if step.verb == SEND]
        for number, data in enumerate(sendings):
            for at in range(1, len(data)):
                yield (
                    lambda n, whole, number=number, at=at: (  # type: ignore[misc]
                        [whole[:at], whole[at:]] if n == number else [whole]
                    )
                )

    async def perform(self, stage: Stage, split: Split | None = None) -> Transcript:
        """Carry it out; raises Unexpected with the step and everything that was said until then."""
        performance = _Performance(self, stage, split)
        try:
            await performance.run()
        finally:
            await performance.end()
        return performance.transcript


class _Performance:
    def __init__(self, playbook: Playbook, stage: Stage, split: Split | None) -> None:
        self.playbook = playbook
        self.stage = stage
        self.split = split
        self.transcript = Transcript()
        self.wires: dict[str, Wire] = {}
        self.opened: list[Wire] = []
        self.sendings = 0

    async def run(self) -> None:
        accepting = [(step.name, ACCEPTS.match(step.verb)) for step in self.playbook.steps]
        names = {(found["server"] or name) for name, found in accepting if found}
        unknown = any(self.stage.find_server(name) is None for name in names)
        await self.stage.by_hand(None if unknown else names, self.transcript)
        for step in self.playbook.steps:
            try:
                await self._step(step)
            except (Unexpected, OSError) as problem:
                shown = self.playbook.text.split("\n")[step.line - 1].strip()
                raise Unexpected(f"line {step.line}, `{shown}`: {problem}") from None

    async def end(self) -> None:
        for wire in self.opened:
            wire.close()
        await self.stage.by_hand(set(), None)

    async def _step(self, step: Step) -> None:
        if step.verb == SEND:
            number, self.sendings = self.sendings, self.sendings + 1
            await self._wire(step).send_pieces(self.split(number, step.data) if self.split else [step.data])
        elif step.verb == EXPECT:
            await self._expect(step)
        elif found := CONNECTS.match(step.verb):
            wire = await self.stage.connect(found["listener"] or "", name=step.name, transcript=self.transcript)
            self._opened(step.name, wire)
        elif found := ACCEPTS.match(step.verb):
            server = self.stage.find_server(found["server"] or step.name)
            self._opened(step.name, await (server.accept() if server is not None else self.stage.accept_any()))
        elif step.verb in WIRE_VERBS:
            await self._wire_verb(self._wire(step), step.verb)
        else:
            await self._server_verb(step)

    def _opened(self, name: str, wire: Wire) -> None:
        wire.name = name
        self.wires[name] = wire
        self.opened.append(wire)

    def _wire(self, step: Step) -> Wire:
        if step.name not in self.wires:
            raise Unexpected(f"{step.name} has no connection yet: it connects or accepts first")
        return self.wires[step.name]

    async def _expect(self, step: Step) -> None:
        wire = self._wire(step)
        if step.data:
            await wire.expect(step.data)
        else:
            await wire.expect_lines(*step.texts)

    async def _wire_verb(self, wire: Wire, verb: str) -> None:
        if verb == "closes":
            wire.close()
        elif verb == "half-closes":
            wire.half_close()
        elif verb == "resets":
            wire.reset()
        elif verb == "sees end":
            await wire.sees_end()
        elif verb == "sees reset":
            await wire.sees_reset()
        else:
            await wire.sees_closed()

    async def _server_verb(self, step: Step) -> None:
        server = self.stage.find_server(step.name)
        if server is None:
            raise Unexpected(f"there is no server {step.name}")
        if step.verb.startswith("is "):
            self.stage.set_state(step.name, step.verb.removeprefix("is "))
        elif step.verb == "refuses":
            server.refuse()
        elif step.verb == "listens":
            server.listen()
        elif step.verb == "hangs":
            server.hang()
        else:
            server.die()
        await asyncio.sleep(0)


def _parse(text: str) -> Iterator[Step]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = LINE.match(line)
        if found is None:
            raise ValueError(f"line {number}: {line.strip()!r} is no step of a playbook")
        name, sign, words = found["name"], found["sign"], found["words"]
        said = found["text"] or ""
        if sign is None:
            if not _known(words):
                raise ValueError(f"line {number}: nobody can do {words!r}")
            yield Step(number, name, words)
        elif sign == SEND:
            yield Step(number, name, SEND, data=_bytes(said, b"\r\n"))
        elif _unended(said):
            yield Step(number, name, EXPECT, data=_bytes(said, b""))
        else:
            yield Step(number, name, EXPECT, texts=(_bytes(said, b"").decode("latin-1"),))


def _known(words: str) -> bool:
    if CONNECTS.match(words) or ACCEPTS.match(words):
        return True
    return words in WIRE_VERBS or words in SERVER_VERBS or words in {f"is {state}" for state in STATES}


def _joined(steps: Iterator[Step]) -> list[Step]:
    """Neighbouring lines that one name sends, or that it expects by pattern, become one step."""
    joined: list[Step] = []
    for step in steps:
        last = joined[-1] if joined else None
        same = last is not None and last.name == step.name and last.verb == step.verb
        if last is not None and same and step.verb == SEND:
            joined[-1] = Step(last.line, last.name, SEND, data=last.data + step.data)
        elif last is not None and same and last.texts[-1:] == ("...",) and step.texts:
            joined[-1] = Step(step.line, last.name, EXPECT, texts=last.texts + step.texts)
        else:
            joined.append(step)
    return joined


def _unended(text: str) -> bool:
    """Whether a backslash at the end, itself not escaped, says that no CRLF follows."""
    return (len(text) - len(text.rstrip("\\"))) % 2 == 1


def _bytes(text: str, end: bytes) -> bytes:
    if _unended(text):
        text, end = text[:-1], b""
    named = {"r": b"\r", "n": b"\n", "t": b"\t", "\\": b"\\"}
    out, at = [], 0
    for found in ESCAPE.finditer(text):
        code = found[1]
        out.append(text[at : found.start()].encode("latin-1"))
        out.append(bytes([int(code[1:], 16)]) if code[0] == "x" else named[code])
        at = found.end()
    return b"".join([*out, text[at:].encode("latin-1"), end])
