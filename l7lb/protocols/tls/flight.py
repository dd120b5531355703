"""The server's side of a handshake, looked at for the session that it issues (RFC 5246 section 7.4, RFC 5077).

Up to TLS 1.2 the messages before ChangeCipherSpec are in the clear. There a server issues a session by its identifier
in the ServerHello, unless that is the client's own: then it resumes one, or, in TLS 1.3, only mirrors what middleboxes
expect. Or it issues a ticket in a NewSessionTicket. Both count once the server changes its cipher: from then on it
holds the session, and a client that never completes a handshake teaches nothing.

In TLS 1.3 sessions are issued under encryption: nothing is learned.
"""

from __future__ import annotations

from typing import Final

CHANGE_CIPHER_SPEC: Final = 20
HANDSHAKE: Final = 22
SERVER_HELLO: Final = 2
NEW_SESSION_TICKET: Final = 4
SUPPORTED_VERSIONS: Final = 43
LOOK_BYTES = 128 * 1024  # a chain of certificates is shorter; behind that nothing is looked for
KEPT_BYTES = 66 * 1024  # the longest ticket with its message


class ServerFlight:
    """Reads what the server says, as it goes by. ``sessions`` is what it has issued, once ``feed`` says so."""

    __slots__ = ("_buffer", "_found", "_greeted", "_left", "_looked", "_message", "_skip", "_wanted", "sessions")

    def __init__(self, session_id: bytes) -> None:
        self.sessions: list[bytes] = []
        self._greeted = session_id  # what the client's hello had
        self._buffer = bytearray()  # a record's head that is not complete
        self._left = 0  # bytes of the handshake record that are still to come
        self._message = bytearray()  # a message's head, and its body where it is wanted
        self._wanted = 4
        self._skip = 0  # bytes of a message that is not wanted
        self._found: list[bytes] = []
        self._looked = 0

    def feed(self, data: bytes) -> bool:
        """More bytes. True once there is nothing more to learn."""
        self._looked += len(data)
        at = 0
        while at < len(data):
            if not self._left:
                taken = min(5 - len(self._buffer), len(data) - at)
                self._buffer += data[at : at + taken]
                at += taken
                if len(self._buffer) < 5:
                    break
                kind = self._buffer[0]
                self._left = self._buffer[3] << 8 | self._buffer[4]
                self._buffer.clear()
                if kind == CHANGE_CIPHER_SPEC:
                    self.sessions = self._found
                    return True
                if kind != HANDSHAKE:
                    return True
            taken = min(self._left, len(data) - at)
            self._left -= taken
            if self._messages(data[at : at + taken]):
                return True
            at += taken
        return self._looked > LOOK_BYTES

    def _messages(self, data: bytes) -> bool:
        """A part of the stream of messages."""
        at = 0
        while at < len(data):
            if self._skip:
                taken = min(self._skip, len(data) - at)
                self._skip -= taken
                at += taken
                continue
            taken = min(self._wanted - len(self._message), len(data) - at)
            self._message += data[at : at + taken]
            at += taken
            if len(self._message) < self._wanted:
                return False
            if self._wanted == 4:
                kind, length = self._message[0], int.from_bytes(self._message[1:4], "big")
                if kind not in (SERVER_HELLO, NEW_SESSION_TICKET):
                    self._message.clear()
                    self._skip = length
                    continue
                if length > KEPT_BYTES or not length:
                    return True
                self._wanted += length
                continue
            if self._message[0] == SERVER_HELLO:
                over = self._server_hello(bytes(self._message))
            else:
                over = self._ticket(bytes(self._message))
            if over:
                return True
            self._message.clear()
            self._wanted = 4
        return False

    def _server_hello(self, message: bytes) -> bool:
        """Whether this ends the search: TLS 1.3, or nothing that can be read."""
        if len(message) < 39 or len(message) < 42 + message[38]:
            return True
        end = 39 + message[38]
        session_id = message[39:end]
        at = end + 3 + 2  # cipher, compression, the extensions' length
        while at + 4 <= len(message):
            if int.from_bytes(message[at : at + 2], "big") == SUPPORTED_VERSIONS:
                return True  # only TLS 1.3 has it there
            at += 4 + int.from_bytes(message[at + 2 : at + 4], "big")
        if session_id and session_id != self._greeted:
            self._found.append(session_id)
        return False

    def _ticket(self, message: bytes) -> bool:
        """A hint of its lifetime, and the ticket (RFC 5077 section 3.3); an empty one is none."""
        if len(message) < 10 or len(message) != 10 + int.from_bytes(message[8:10], "big"):
            return True
        if len(message) > 10:
            self._found.append(message[10:])
        return False
