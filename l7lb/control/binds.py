"""The addresses that the node listens at, as the supervisor sees them.

The keeper opens and hands out the sockets. The supervisor keeps copies and never accepts from them: should the keeper
be killed, the next one gets them, so that no client is refused and no privilege is needed again.
"""

from __future__ import annotations

import os
import socket

import structlog

from l7lb.control.keeper_client import KeeperClient, KeeperRefused
from l7lb.core.errors import ConfigurationError, Problem
from l7lb.core.snapshot import Address, Listener, Snapshot
from l7lb.proxy.workers import channel

log = structlog.get_logger("l7lb.supervisor")


class Binds:
    """See the module. ``activated`` are sockets that systemd opened."""

    def __init__(self, activated: list[socket.socket]) -> None:
        self._activated = activated
        self._copies: dict[str, list[int]] = {}
        self._listeners: dict[str, tuple[Listener, Address, bool]] = {}  # and whether its socket is shared
        self._ports: dict[str, int] = {}

    async def adopt(self, keeper: KeeperClient, snapshot: Snapshot) -> None:
        """Take note of what the keeper has open already."""
        wanted = {str(address): (one, address) for one in snapshot.listeners for address in one.bind}
        for bind in keeper.state["binds"]:
            key = bind["key"]
            listener, address = wanted.get(key) or (None, Address(bind["host"], bind["port"], bind["path"]))
            await self._take(keeper, key)
            if listener is not None:
                self._listeners[key] = listener, address, bind["shared"]

    async def open(self, keeper: KeeperClient, snapshot: Snapshot, count: int, beside: bool = False) -> list[str]:
        """Open what the snapshot needs and isn't open yet; returns what that was.

        All or nothing: raises ConfigurationError with a problem for each address that can't be opened.
        """
        opened: list[str] = []
        problems: list[Problem] = []
        for listener in snapshot.listeners:
            for address in listener.bind:
                key = str(address)
                if key in self._copies:
                    shared = self._listeners[key][2] if key in self._listeners else bool(address.path)
                    self._listeners[key] = listener, address, shared
                    continue
                try:
                    await self._open(keeper, listener, address, count, beside)
                    opened.append(key)
                except KeeperRefused as error:
                    where = f"listeners.{listener.name}.bind"
                    problems.append(Problem(snapshot.file or "configuration", 0, 0, where, str(error)))
        if problems:
            for key in opened:
                await self._close(keeper, key)
            raise ConfigurationError(problems)
        return opened

    async def close_others(self, keeper: KeeperClient, snapshot: Snapshot) -> None:
        """Close what the snapshot doesn't need."""
        wanted = {str(address) for listener in snapshot.listeners for address in listener.bind}
        for key in [key for key in self._copies if key not in wanted]:
            await self._close(keeper, key)
            log.info("a listening socket was closed", bind=key)

    async def close(self, keeper: KeeperClient, keys: list[str]) -> None:
        """Close these again."""
        for key in keys:
            await self._close(keeper, key)

    async def refresh(self, keeper: KeeperClient) -> None:
        """The number of workers has changed: get copies of new sockets."""
        for key in list(self._copies):
            await self._take(keeper, key)

    async def restore(self, keeper: KeeperClient, count: int) -> None:
        """Give all sockets to a new keeper."""
        for key, (listener, address, shared) in list(self._listeners.items()):
            await self._request(keeper, listener, address, count, shared, self._copies[key])

    def forget_activated(self) -> None:
        """Close systemd's sockets that were not taken: the keeper has them already, or no listener wants them."""
        for sock in self._activated:
            if not any(is_at(sock, address) for _, address, _ in self._listeners.values()):
                name = str(sock.getsockname())
                log.warning("no listener is configured for a socket that systemd opened", socket=name)
            sock.close()
        self._activated = []

    def drop(self) -> None:
        """Close all copies."""
        for copies in self._copies.values():
            channel.close_all(copies)
        self._copies.clear()

    def text(self, address: Address) -> str:
        """The address as it really is, where the configuration leaves the port to the system."""
        port = self._ports.get(str(address), address.port)
        return str(Address(address.host, port, address.path))

    # --- inside ---------------------------------------------------------------------------------------------------

    async def _open(self, keeper: KeeperClient, listener: Listener, address: Address, count: int, beside: bool) -> None:
        given = next((sock for sock in self._activated if is_at(sock, address)), None)
        if given is None:
            await self._request(keeper, listener, address, count, False, [], beside)
            return
        self._activated.remove(given)
        with given:
            await self._request(keeper, listener, address, count, True, [given.fileno()])
        log.info("a socket comes from systemd", bind=str(address))

    async def _request(
        self,
        keeper: KeeperClient,
        listener: Listener,
        address: Address,
        count: int,
        shared: bool,
        given: list[int],
        beside: bool = False,
    ) -> None:
        key = str(address)
        reply, copies = await keeper.request(
            "open",
            given,
            key=key,
            host=address.host,
            port=address.port,
            path=address.path,
            backlog=listener.backlog,
            shared=shared,
            count=count,
            beside=beside,
        )
        self._hold(key, copies, reply)
        self._listeners[key] = listener, address, shared or bool(address.path)

    async def _take(self, keeper: KeeperClient, key: str) -> None:
        reply, copies = await keeper.request("sockets", key=key)
        self._hold(key, copies, reply)

    def _hold(self, key: str, copies: list[int], reply: channel.Packet) -> None:
        channel.close_all(self._copies.get(key, ()))
        self._copies[key] = copies
        self._ports[key] = int(reply["port"])

    async def _close(self, keeper: KeeperClient, key: str) -> None:
        channel.close_all(self._copies.pop(key, ()))
        self._listeners.pop(key, None)
        self._ports.pop(key, None)
        await keeper.request("close", key=key)


def is_at(sock: socket.socket, address: Address) -> bool:
    """Whether the socket listens at that address of the configuration."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return bool(address.path) and os.fsdecode(name) == address.path
    if address.path or name[1] != address.port:
        return False
    everywhere = name[0] in ("::", "0.0.0.0")
    if address.host in ("", "*"):
        only = sock.family == socket.AF_INET6 and sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        return everywhere and not only
    try:
        numbers = socket.getaddrinfo(address.host, None, sock.family, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
    except OSError:
        return False
    return bool(numbers[0][4][0] == name[0])
