"""The state of servers as one worker sees it: what the snapshot doesn't hold because it changes by the second.

One :class:`ServerState` lives as long as its server is configured, through reloads, so that health, counts and
idle connections carry over. The supervisor decides health; the worker counts.
"""

from __future__ import annotations

from typing import Final

from l7lb.core.mailbox import MAIL_PROTOCOLS
from l7lb.core.snapshot import Pool, Server
from l7lb.core.tally import Tally

NO_PROTOCOLS: Final[frozenset[str]] = frozenset()


class ServerState:
    """A server in one worker.

    ``config`` may be set anew while it lives; ``limit`` is its ``max_connections``, and ``send_proxy`` stands there as
    well. ``active`` is what this worker has in progress, ``others`` what the node's other workers had when it last
    looked. ``latency`` is a moving average in seconds, 0.0 before the first answer. ``up_since`` is the monotonic time
    from which slow start counts; 0.0: it was up from the start. ``down`` has the protocols that its checks find dead
    while others live, ``learned`` how connections in TLS mode ``auto`` found it to be spoken to, by protocol, and
    ``offers`` the extensions that it named when it was last asked, by protocol.
    """

    __slots__ = (
        "_config",
        "_disabled",
        "_takes_new",
        "active",
        "dialer",
        "down",
        "ejected",
        "failures",
        "healthy",
        "idle",
        "kept",
        "latency",
        "learned",
        "limit",
        "name",
        "offers",
        "others",
        "pool",
        "ports",
        "send_proxy",
        "slot",
        "tally",
        "up_since",
    )

    def __init__(self, pool: str, config: Server) -> None:
        self.pool = pool
        self.configure(config)
        self.name = config.name
        self.slot = config.slot
        self.healthy = True
        self.down: frozenset[str] = NO_PROTOCOLS
        self.ejected = False
        self.up_since = 0.0
        self.active = 0
        self.others = 0
        self.latency = 0.0
        self.idle: list[object] = []  # the proxy's idle connections, newest last
        self.kept: list[object] = []  # those that began with a client's PROXY header and wait for that client alone
        self.dialer: object | None = None  # the proxy's way to speak TLS to it
        self.learned: dict[str, str] = {}  # "implicit" or "starttls"
        self.offers: dict[str, tuple[str, ...]] = {}
        self.tally = Tally()
        self.failures = 0  # in a row, in this worker

    def configure(self, config: Server) -> None:
        """Take over the server's configuration. What every request asks of it is kept at hand."""
        self._config = config
        self._disabled = config.state == "disabled"
        self._takes_new = config.state == "enabled" and config.weight > 0
        self.limit = config.max_connections
        self.send_proxy = config.send_proxy
        self.ports = bool(config.ports)

    @property
    def config(self) -> Server:
        """Its configuration in the current snapshot."""
        return self._config

    @config.setter
    def config(self, config: Server) -> None:
        self.configure(config)

    @property
    def alive(self) -> bool:
        """Whether it can be used at all: healthy and not disabled. Sticky users may still go to it."""
        return self.healthy and not self._disabled

    @property
    def open(self) -> bool:
        """Whether new users may be sent to it: alive, not draining, not ejected, and of some weight."""
        return self.healthy and not self.ejected and self._takes_new

    def alive_for(self, protocol: str) -> bool:
        """Whether it can be used at all in that protocol (see :attr:`alive`)."""
        return self.healthy and not self._disabled and protocol not in self.down

    def open_for(self, protocol: str) -> bool:
        """Whether new users may be sent to it in that protocol (see :attr:`open`)."""
        return self.open and protocol not in self.down

    def tls_mode(self, protocol: str) -> str:
        """How TLS begins in that protocol: ``implicit``, ``starttls``, ``auto`` while it is not known; "": none.

        Protocols without a request for TLS have it from the first byte.
        """
        tls = self._config.tls
        if tls is None:
            return ""
        if protocol not in MAIL_PROTOCOLS:
            return "implicit"
        return self.learned.get(protocol, "auto") if tls.mode == "auto" else tls.mode

    @property
    def load(self) -> int:
        """Requests or sessions in progress, the node's other workers included."""
        return self.active + self.others

    @property
    def full(self) -> bool:
        """Whether its connection limit is reached."""
        return self.limit > 0 and self.active + self.others >= self.limit

    def weight(self, now: float, slow_start: float) -> float:
        """The weight that counts now: a server that came back grows to its own over ``slow_start`` seconds.

        It begins at a tenth, so that it is tried at all.
        """
        weight = float(self._config.weight)
        if slow_start <= 0.0 or self.up_since <= 0.0:
            return weight
        age = now - self.up_since
        return weight if age >= slow_start else weight * max(0.1, age / slow_start)


class PoolState:
    """A pool in one worker: its compiled configuration and its servers' states, in the configuration's order.

    ``response_header`` and ``response_body`` are timeouts in seconds, ``idle_connections`` is for each server,
    ``announces`` the version of the PROXY header that servers get, by protocol, where ``client_address`` asks for it.
    """

    __slots__ = (
        "announces", "by_name", "config", "http2", "idle_connections", "name", "response_body", "response_header",
        "servers",
    )  # fmt: skip

    def __init__(self, config: Pool, servers: list[ServerState]) -> None:
        self.name = config.name
        self.config = config
        self.announces = {
            protocol: how.removeprefix("proxy-")
            for protocol, how in config.client_address.items()
            if how.startswith("proxy-")
        }
        self.http2 = config.http_version == "2"
        self.response_header = config.timeouts.response_header
        self.response_body = config.timeouts.response_body
        self.idle_connections = config.idle_connections
        self.servers = servers
        self.by_name = {server.name: server for server in servers}

    def down_for(self, protocol: str) -> list[ServerState]:
        """Those whose checks of that protocol fail, while others are good."""
        return [server for server in self.servers if protocol in server.down]


# The process' pools as its runtime has them now, for sessions that must know of servers before they ask for one.
POOLS: Final[dict[str, PoolState]] = {}
