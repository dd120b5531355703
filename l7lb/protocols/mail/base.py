"""A mail session's beginning and end, and what it keeps in between; its life is :mod:`l7lb.protocols.mail.login`'s."""

from __future__ import annotations

from typing import Final

from l7lb.core.actions import Action, Close, Finished, Release, ToClient
from l7lb.core.contracts import Assignment, Peer
from l7lb.core.errors import Failure, Owner
from l7lb.protocols.mail.dialogue import Dialogue
from l7lb.protocols.mail.facts import MailFacts
from l7lb.protocols.mail.origin import Origin
from l7lb.protocols.mail.record import MailFlow
from l7lb.protocols.mail.sasl import Exchange
from l7lb.protocols.mail.shared import MailShared
from l7lb.protocols.mail.wording import Wording

COMMANDS: Final = 0
RESPONSES: Final = 1
SECURING: Final = 2
ROUTING: Final = 3
DIALOGUE: Final = 4
SECURED: Final = 5
EXCUSE: Final = 6
TUNNEL: Final = 7
CLOSED: Final = 8

PHASES: Final = ("login", "login", "tls", "queue", "server-login", "server-tls", "login", "tunnel", "closed")
TALKING: Final = frozenset({COMMANDS, RESPONSES, EXCUSE})  # the client is listened to


class MailSession(Wording):
    """A client's connection, and what is known of it until now."""

    __slots__ = (
        "assignment", "attempts", "bad", "buffer", "dialogue", "draining_now", "exchange", "facts", "failure",
        "flow", "half_closed", "idle", "origin", "peer", "server_buffer", "settings", "shared", "spoken", "state",
    )  # fmt: skip

    def __init__(self, shared: MailShared, peer: Peer, now: float) -> None:
        super().__init__()
        self.shared = shared
        self.settings = shared.settings
        self.peer = peer
        self.origin = Origin(peer, shared.settings.hops)
        self.facts = self.make_facts()
        self.flow = MailFlow(self.facts, now)
        self.buffer = bytearray()
        self.server_buffer = bytearray()
        self.exchange: Exchange | None = None
        self.dialogue: Dialogue | None = None
        self.assignment: Assignment | None = None
        self.failure = Failure.LOGIN_REFUSED  # that an answer tells of which waits
        self.attempts = 0
        self.bad = 0
        self.spoken = False  # the client has said something that is of this protocol
        self.half_closed = False  # the client will say no more
        self.draining_now = False
        self.idle = shared.settings.tunnel
        self.state = COMMANDS
        self.deadline = now + shared.settings.login

    def describe(self) -> dict[str, str]:
        mailbox = self.facts.mailbox[:200].decode("utf-8", "backslashreplace")
        shown = {"detail": PHASES[self.state]}
        if mailbox:
            shown["mailbox"] = mailbox
        return shown

    def say(self, data: bytes) -> list[Action]:
        """The client is told this, if it is anything."""
        self.flow.sent += len(data)
        return [ToClient(data)] if data else []

    def complain(self, answer: bytes, now: float) -> list[Action]:
        """The answer to a command that is none; there may be so many of them."""
        self.bad += 1
        if self.bad > self.settings.bad_commands:
            return [*self.say(answer), *self.end(Failure.CLIENT_PROTOCOL, now)]
        return self.say(answer)

    def make_facts(self) -> MailFacts:
        """Those of the next login."""
        facts = MailFacts(self.shared.protocol, self.shared.listener, self.origin.client)
        facts.tls = self.peer.tls
        if self.peer.handshake is not None:
            facts.host = self.peer.handshake.sni
        return facts

    # --- the end ----------------------------------------------------------------------------------------------

    def end(self, failure: Failure | None, now: float, why: str = "") -> list[Action]:
        """Say goodbye, outside any answer, and close."""
        ended = self._ended_at(failure) if failure is not None else "ok"
        said: list[Action] = []
        if failure is not None and self.state != SECURING:
            said = self.say(self.farewell(failure, why))
        return [*said, *self.close(failure, ended, now)]

    def close(self, failure: Failure | None, ended: str, now: float) -> list[Action]:
        """Both sides' regular end."""
        actions: list[Action] = [self._finished(failure, ended, now)]
        if self.state in (ROUTING, DIALOGUE, SECURED, TUNNEL):
            actions.append(Release(False, None, self.flow.latency()))
        self._over()
        return [*actions, Close(linger=failure is not None and failure.owner is Owner.CLIENT)]

    def cut(self, failure: Failure, now: float) -> list[Action]:
        """Both sides' end by reset: nobody takes what came for the whole."""
        actions: list[Action] = [self._finished(failure, self._ended_at(failure), now)]
        if self.state in (ROUTING, DIALOGUE, SECURED, TUNNEL):
            blame = failure if failure.owner is Owner.SERVER else None
            actions.append(Release(False, blame, self.flow.latency(), abort=True))
        self._over()
        return [*actions, Close(abort=True)]

    def _over(self) -> None:
        self.state = CLOSED
        self.deadline = 0.0
        self.buffer = bytearray()
        self.server_buffer = bytearray()
        self.dialogue = None
        self.facts.password = b""
        self.wants_client = True

    def _ended_at(self, failure: Failure) -> str:
        return f"{failure.label}@{PHASES[self.state]}"

    def _finished(self, failure: Failure | None, ended: str, now: float) -> Finished:
        flow = self.flow
        return Finished(flow, flow.status, failure, ended, flow.received, flow.sent, now - flow.began)
