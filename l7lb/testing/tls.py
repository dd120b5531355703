"""TLS over a :class:`~l7lb.testing.Wire`, for either end, with the encrypted bytes in the test's hands."""

from __future__ import annotations

import asyncio
import ssl
from typing import Self

from l7lb.testing.wire import READ_SIZE, Wire


class TlsWire(Wire):
    """A wire whose bytes travel encrypted over another one. ``cut`` sends the encrypted ones in pieces of that size.

    ``truncated`` tells, after the end, that it came without close_notify.
    """

    def __init__(
        self,
        wire: Wire,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        session: ssl.SSLSession | None = None,
        cut: int = 0,
    ) -> None:
        super().__init__(wire.socket, wire.name, wire.patience, wire.transcript)
        self.wire = wire
        self.cut = cut
        self.truncated = False
        self.alert = ""  # what the other side gave as its reason to end
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname, session=session
        )

    @classmethod
    async def over(
        cls,
        wire: Wire,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        session: ssl.SSLSession | None = None,
        cut: int = 0,
    ) -> Self:
        """Make one and shake hands. Raises ssl.SSLError where the other side or this one refuses."""
        made = cls(wire, context, server_side=server_side, server_hostname=server_hostname, session=session, cut=cut)
        await made.shake()
        return made

    async def shake(self) -> None:
        """The handshake. Raises ssl.SSLError."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._feed():
                    self._incoming.write_eof()
            else:
                break
            finally:
                await self._flush()

    async def send_pieces(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            if piece:
                self.tls.write(piece)
            await self._flush()

    async def close_notify(self) -> None:
        """Say that nothing more will be sent."""
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        await self._flush()

    async def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            await self.wire.send(data, self.cut)

    async def _feed(self) -> bool:
        """Read more of what is encrypted; returns whether anything came."""
        data = await self.wire._wait(self._loop.sock_recv(self.socket, READ_SIZE), "more of TLS")
        self._incoming.write(data)
        return bool(data)

    async def _more(self, what: str) -> None:
        while True:
            try:
                data = self.tls.read(READ_SIZE)
            except ssl.SSLWantReadError:
                try:
                    came = await self._feed()
                except ConnectionError:
                    self._ended = self._reset = True
                    return
                if not came:
                    self._incoming.write_eof()
                    self.truncated = self._ended = True
                    return
                await asyncio.sleep(0)
                continue
            except ssl.SSLZeroReturnError:
                data = b""
            except ssl.SSLError as error:
                self.alert = (error.reason or "").rpartition("ALERT_")[2].replace("_", " ").lower()
                self.truncated = self._ended = True
                return
            if data:
                self.received += data
            else:
                self._ended = True
            return
