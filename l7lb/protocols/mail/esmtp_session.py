"""A client's connection that speaks SMTP, submission or LMTP, sans-io: what is the same for all three.

=========  ==================================================  ===================================================
state      waits for                                           leaves on
=========  ==================================================  ===================================================
NEW        nothing: it greets at once                          -> COMMAND
COMMAND    a command line                                      a server is to be asked -> WAITING; AUTH -> LOGIN;
                                                               STARTTLS -> SECURING; QUIT, faults, time -> LEAVING
LOGIN      the client's response in an AUTH exchange           identity -> WAITING; fault, ``*`` -> COMMAND
WAITING    servers, directories, the end of a delay            the reply -> COMMAND, MESSAGE, CHUNK
MESSAGE    the message behind DATA                             its end -> WAITING; lone CR or LF -> LEAVING
CHUNK      the bytes behind BDAT                               the last -> WAITING, or COMMAND
SECURING   the client's handshake                              secured -> COMMAND, with nothing remembered
LEAVING    servers that are said goodbye to                    the last is gone -> CLOSED
CLOSED     nothing
=========  ==================================================  ===================================================

Commands are carried out one at a time, each answered before the next is looked at: the replies of pipelined commands
come in order (RFC 2920), and what stands behind DATA is never taken for a command before its 354. Servers are streams
of the connection (:mod:`.esmtp_leg`), so that one message may go to several of them; what they answer changes the
session, and :meth:`EsmtpSession.output` says what follows from it.
"""

from __future__ import annotations

from typing import Final

from l7lb.core.actions import (
    CLIENT,
    Action,
    Close,
    Finished,
    Multiplex,
    OpenStream,
    Side,
    ToClient,
)
from l7lb.core.contracts import Assignment, Choice, Location, Multiplexer, Peer
from l7lb.core.errors import Failure
from l7lb.protocols.mail.esmtp import (
    AUTH_BYTES,
    FOREIGN,
    Command,
    Fault,
    parse_command,
)
from l7lb.protocols.mail.esmtp_leg import GONE, Done, Leg
from l7lb.protocols.mail.esmtp_offers import Offer
from l7lb.protocols.mail.esmtp_opening import Client
from l7lb.protocols.mail.esmtp_replies import Reply, speaks_for
from l7lb.protocols.mail.esmtp_shared import EsmtpShared
from l7lb.protocols.mail.facts import MailFacts
from l7lb.protocols.mail.lines import foreign
from l7lb.protocols.mail.origin import Origin
from l7lb.protocols.mail.record import MailFlow

NEW: Final = 0
COMMAND: Final = 1
LOGIN: Final = 2
WAITING: Final = 3
MESSAGE: Final = 4
CHUNK: Final = 5
SECURING: Final = 6
LEAVING: Final = 7
CLOSED: Final = 8
PHASES: Final = ("greeting", "command", "login", "server", "message", "message", "tls", "quit", "closed")

READ_AHEAD: Final = 32 * 1024  # bytes of further commands that are taken while one waits
LEAVE_SECONDS: Final = 3.0


class EsmtpSession(Multiplexer):
    """See the module's head. A protocol derives its machine from :class:`.esmtp_transaction.Transactions`."""

    __slots__ = (
        "_counted",
        "_leaves",
        "_out",
        "_scanned",
        "_spoken",
        "_too_long",
        "bad",
        "buffer",
        "ended_by_client",
        "extended",
        "flow",
        "hello",
        "legs",
        "locating_until", "login_until",
        "next_leg",
        "offer",
        "origin",
        "peer",
        "received_bytes",
        "recorded",
        "sent_bytes",
        "shared",
        "state",
    )  # fmt: skip

    def __init__(self, shared: EsmtpShared, peer: Peer, now: float) -> None:
        super().__init__()
        self.shared = shared
        self.peer = peer
        self.state = NEW
        self.buffer = bytearray()
        self.origin = Origin(peer, shared.settings.hops)
        self.hello = b""  # as the client called itself
        self.offer: Offer = {}  # what it was told
        self.legs: dict[int, Leg] = {}
        self.next_leg = 1
        self.bad = 0  # commands that were none
        self.ended_by_client = False
        self.locating_until = 0.0  # the proxy is asked where a mailbox is
        self.login_until = now + shared.settings.login if shared.logs_in else 0.0
        self.flow = MailFlow(self.facts(), now)
        self.recorded = False  # a leg's record tells of this session
        self.received_bytes = 0
        self.sent_bytes = 0
        self._counted = (0, 0)
        self.extended = False  # it said EHLO or LHLO: extensions are in force
        self._leaves: Failure | None = None  # why it ends as soon as no transaction is in progress
        self._spoken = False
        self._out: list[Action] = []
        self._scanned = 0
        self._too_long = False  # the rest of an endless line is skipped

    # --- what protocols and transactions add ----------------------------------------------------------------------

    def command(self, command: Command, now: float) -> None:
        """Carry out a command. Raises Fault."""
        raise NotImplementedError

    def response(self, line: bytes, now: float) -> None:
        """The client's line in an AUTH exchange."""
        raise NotImplementedError

    def message_bytes(self, now: float) -> None:
        """Pass on what the buffer has of a message, in the states MESSAGE and CHUNK."""
        raise NotImplementedError

    def forget(self, now: float) -> None:
        """No transaction is in progress from here on: the servers that it had are left."""
        raise NotImplementedError

    def idle(self) -> bool:
        """Whether no transaction is in progress."""
        raise NotImplementedError

    def leg_gone(self, leg: Leg, now: float) -> None:
        """A server is lost, or has been left."""
        self.legs.pop(leg.number, None)

    # --- what the proxy tells -------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        return [Multiplex(self)]

    def received(self, side: Side, data: bytes, now: float) -> list[Action]:
        if self.state in (LEAVING, CLOSED):
            return self._taken()
        self.buffer += data
        self.received_bytes += len(data)
        if self.state == SECURING and data:
            return self._gone(now)  # in the clear, behind its request for TLS
        return self.output(0, now)

    def output(self, room: int, now: float) -> list[Action]:
        """All that follows from what has come and happened."""
        if self.state == NEW:
            self.state = COMMAND
            self.say(b"220 " + self.shared.hostname + b" " + self.shared.banner, now)
            self.deadline = self._until(now)
        before = self.state
        while self.state in (COMMAND, LOGIN, MESSAGE, CHUNK) and self._step(now):
            pass
        self._settle(before, now)
        return self._taken()

    def failed_stream(self, number: int) -> None:
        leg = self.legs.get(number)
        if leg is not None:
            leg.abort(Failure.BUG, leg.progress)

    def ended(self, side: Side, now: float, error: bool) -> list[Action]:
        self.ended_by_client = True
        if error or self.state in (SECURING, LEAVING):
            return self._gone(now)
        return self.output(0, now)  # what it said before is done first

    def expired(self, now: float, blocked: Side | None, progress: float) -> list[Action]:
        self.deadline = 0.0
        if self.state in (LEAVING, CLOSED) or blocked is CLIENT:
            return self._gone(now)
        if self.state in (MESSAGE, CHUNK):
            stuck = [leg for leg in self.legs.values() if not leg.takes]
            if stuck:
                for leg in stuck:
                    leg.abort(Failure.SERVER_STALLED, now)
                return self.output(0, now)
        self.leave(b"421 4.4.2 The connection was idle for too long", Failure.CLIENT_TIMEOUT, now)
        return self._taken()

    def secured(self, now: float) -> list[Action]:
        self.state = COMMAND
        self.deadline = self._until(now)
        return self.output(0, now)

    def dismissed(self, why: str, now: float) -> list[Action]:
        self._abort_legs(Failure.ENDED_HERE, now)
        self.leave(b"421 4.3.2 The session was ended: try again later", Failure.ENDED_HERE, now)
        return self._taken()

    def draining(self, now: float, patient: bool) -> list[Action]:
        self.leaves(Failure.SHUTDOWN)
        return self.output(0, now)

    def connected(self, assignment: Assignment, now: float) -> list[Action]:
        raise RuntimeError("only the legs of a mail session ask for servers")

    def answered(self, choice: Choice, now: float) -> list[Action]:
        raise RuntimeError("only the legs of a mail session ask for servers")

    def failed(self, failure: Failure, choice: Choice | None, now: float) -> list[Action]:
        raise RuntimeError("only the legs of a mail session ask for servers")

    def located(self, location: Location, now: float) -> list[Action]:
        raise NotImplementedError

    def describe(self) -> dict[str, str]:
        mailbox = self.flow.facts.mailbox.decode("utf-8", "backslashreplace")
        return {"mailbox": mailbox, "detail": f"{mailbox} ({PHASES[self.state]})".strip()}

    # --- what is done with it -------------------------------------------------------------------------------------

    def say(self, text: bytes, now: float) -> None:
        """A reply of our own, without its CRLF."""
        self.tell(text + b"\r\n")

    def reply(self, reply: Reply) -> None:
        """A server's reply; its 421 is about its own connection, not about the client's."""
        self.tell((Reply(451, reply.lines) if reply.code == 421 else reply).render())

    def tell(self, data: bytes) -> None:
        """Bytes for the client, behind what is to be done before them."""
        self.sent_bytes += len(data)
        self.do(ToClient(data))

    def do(self, action: Action) -> None:
        """Have this done, in its turn."""
        self._out.append(action)

    def refuse(self, text: bytes, now: float) -> None:
        """A command that can't be: too many of them end the session."""
        self.bad += 1
        if self.bad > self.shared.settings.bad_commands:
            self.leave(b"421 4.7.0 Too many errors", Failure.CLIENT_PROTOCOL, now)
        else:
            self.say(text, now)

    def leave(self, text: bytes, failure: Failure | None, now: float) -> None:
        """Say this and close, once the servers have been said goodbye to."""
        if self.state in (LEAVING, CLOSED):
            return
        phase = PHASES[self.state]
        self.say(text, now)
        self.buffer.clear()
        self.state = LEAVING
        self.deadline = now + LEAVE_SECONDS
        self.forget(now)
        for leg in list(self.legs.values()):
            leg.quit(now)
        if not self.recorded or failure is not None:
            ended = "ok" if failure is None else f"{failure.label}@{phase}"
            self._finish(failure, ended, now)

    def leaves(self, why: Failure) -> None:
        """End the session as soon as no transaction is in progress."""
        self._leaves = why

    def open_leg(self, facts: MailFacts, login: bool, ready: Done, now: float) -> Leg:
        """Look for a server for these facts; ``ready`` is called when it takes mail, or won't."""
        number, self.next_leg = self.next_leg, self.next_leg + 1
        leg = self.legs[number] = Leg(self, number, facts, login, ready, now)
        self.recorded = True
        self.do(OpenStream(number, leg, leg, leg.begin()))
        return leg

    def facts(self) -> MailFacts:
        """Facts about this client."""
        facts = MailFacts(self.shared.protocol, self.shared.listener, self.origin.client)
        facts.tls = self.peer.tls
        if self.peer.handshake is not None:
            facts.host = self.peer.handshake.sni
        return facts

    def client(self) -> Client:
        """What servers may be told of this client."""
        return Client(self.origin, self.hello, self.extended)

    def counted(self) -> tuple[int, int]:
        """Bytes from and to the client since this was last asked."""
        before, self._counted = self._counted, (self.received_bytes, self.sent_bytes)
        return self._counted[0] - before[0], self._counted[1] - before[1]

    # --- lines and commands ---------------------------------------------------------------------------------------

    def _step(self, now: float) -> bool:
        """One line, or what there is of a message; False where there is nothing to go on with."""
        if self.state in (MESSAGE, CHUNK):
            if not self.buffer:
                return False
            self.message_bytes(now)
            return True
        line = self._line(now)
        if line is None:
            return False
        self.deadline = self._until(now)
        if self.state == LOGIN:
            self.response(line, now)
            return True
        try:
            if not self._spoken and foreign(line):
                self._foreign(now)
                return False
            command = parse_command(line)
            if command.verb in FOREIGN:
                self._foreign(now)
                return False
            self._spoken = True
            self.command(command, now)
        except Fault as fault:
            self.refuse(fault.reply, now)
        return True

    def _line(self, now: float) -> bytes | None:
        """The next line without its CRLF. A lone CR or LF ends the session: to others it may end a line, or not."""
        buffer = self.buffer
        end = buffer.find(b"\n", self._scanned)
        if end < 0:
            if not self._spoken and foreign(buffer[:32]):
                self._foreign(now)
                return None
            if self._too_long or len(buffer) > AUTH_BYTES:
                self._too_long = True
                del buffer[: -1 if buffer.endswith(b"\r") else len(buffer)]
            self._scanned = len(buffer)
            return None
        self._scanned = 0
        line = bytes(buffer[:end])
        del buffer[: end + 1]
        if not line.endswith(b"\r") or b"\r" in line[:-1]:
            self.leave(b"521 5.5.2 A line ends in CRLF, not in LF or CR alone", Failure.CLIENT_PROTOCOL, now)
            return None
        if self._too_long:
            self._too_long = False
            self.refuse(b"500 5.5.2 The line is too long", now)
            return self._line(now) if self.state in (COMMAND, LOGIN) else None
        return line[:-1]

    def _foreign(self, now: float) -> None:
        """This client speaks something else, and may have been made to by somebody's page (ALPACA)."""
        self.leave(b"554 5.7.0 This is not the protocol spoken here", Failure.CLIENT_PROTOCOL, now)

    # --- time and the end -----------------------------------------------------------------------------------------

    def _until(self, now: float) -> float:
        """How long the client may take for its next command."""
        limit = now + self.shared.settings.command
        return min(limit, self.login_until) if self.login_until else limit

    def _settle(self, before: int, now: float) -> None:
        """Bring reading, deadline and the end into line with the state."""
        state = self.state
        if self._leaves is not None and state in (COMMAND, LOGIN) and self.idle():
            self.leave(b"421" + speaks_for(self._leaves).render()[3:-2], self._leaves, now)
            state = self.state
        if self.ended_by_client and state in (COMMAND, LOGIN, MESSAGE, CHUNK):
            self._out += self._gone(now)
            return
        if state == LEAVING and not self.legs:
            self.state = CLOSED
            self.deadline = 0.0
            self.do(Close(linger=True))
        if state != before and state in (COMMAND, LOGIN, MESSAGE, CHUNK):
            self.deadline = self._until(now)
        if state in (MESSAGE, CHUNK):
            self.wants_client = self.takes_message()
        elif state == WAITING:
            self.wants_client = len(self.buffer) < READ_AHEAD and not self.ended_by_client
            self.deadline = self.locating_until  # the servers have their own
        else:
            self.wants_client = not self.ended_by_client and state != SECURING

    def takes_message(self) -> bool:
        """Whether all servers of the message can take more of it."""
        return all(leg.takes for leg in self.legs.values())

    def _gone(self, now: float) -> list[Action]:
        """The client is gone: a message that is not whole must not be taken for whole by anybody."""
        if self.state == CLOSED:
            return self._taken()
        phase = PHASES[self.state]
        self.state = CLOSED
        self.deadline = 0.0
        self._abort_legs(Failure.CLIENT_CLOSED, now)
        if not self.recorded:
            ended = "ok" if self.idle() and phase in ("command", "quit") else f"{Failure.CLIENT_CLOSED.label}@{phase}"
            self._finish(None if ended == "ok" else Failure.CLIENT_CLOSED, ended, now)
        self.do(Close())
        return self._taken()

    def _abort_legs(self, failure: Failure, now: float) -> None:
        for leg in list(self.legs.values()):
            if leg.state != GONE:
                leg.abort(failure, now)

    def _finish(self, failure: Failure | None, ended: str, now: float) -> None:
        self.recorded = True
        flow = self.flow
        flow.received, flow.sent = self.counted()
        self.do(Finished(flow, flow.status, failure, ended, flow.received, flow.sent, now - flow.began))

    def _taken(self) -> list[Action]:
        """What is to be done now. What opens TLS or closes is the last of it."""
        out, self._out = self._out, []
        return out
