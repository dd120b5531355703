"""An operator's verbs, and the servers as an operator sees them.

Every verb names its server as ``[POOL/]SERVER``, changes the overrides and returns a sentence that says what holds now;
doing a thing twice is no error. A host name's server stands for all of its addresses; ``web1@10.0.0.5`` is one of them.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from l7lb.config.units import format_rate
from l7lb.control.effective import declared
from l7lb.control.names import suggestion
from l7lb.control.node import NodeState
from l7lb.control.overrides import ENTRIES, Override
from l7lb.control.slots import NoRowLeft
from l7lb.core.errors import L7lbError, UnknownName
from l7lb.core.snapshot import MailboxKey, Pool, Server
from l7lb.proxy.counts import ACTIVE, CONNECT_ERRORS, REQUESTS, RESPONSE_ERRORS

WEIGHT = 65_535  # the largest


class Refused(L7lbError):
    """What an operator asked for can't be done; the text says why."""


class ProtocolRow(msgspec.Struct, kw_only=True):
    """A protocol of a server, where these are checked one by one; ``state`` is ``up`` or ``down``."""

    state: str
    why: str


class ServerRow(msgspec.Struct, kw_only=True):
    """One server as ``l7lb servers`` shows it; ``state`` is ``up``, ``down``, ``draining`` or ``disabled``. One that is
    up may be down for some of its ``protocols``.
    """

    pool: str
    name: str
    address: str
    state: str
    weight: int
    sessions: int
    requests: int = 0  # so far
    errors: int = 0  # so far: connections and answers that failed
    why: str = ""
    backup: bool = False
    max_connections: int = 0
    healthy: bool = True
    checked: bool = False
    ejected: bool = False
    ports: dict[str, int] = {}
    protocols: dict[str, ProtocolRow] = {}


class Operator:
    """The verbs, on a node's state."""

    def __init__(self, node: NodeState) -> None:
        self.node = node

    def drain(self, target: str, rate: float = 0.0) -> str:
        """New users go elsewhere, those it has stay until they end; with a rate its mailboxes move away, so many in a
        second.
        """
        if not rate:
            return self._set_state(target, "draining", "drains: it keeps the users it has and gets no new ones")
        pool = self.pool(self.find(target)[0])
        if not any(isinstance(key, MailboxKey) for key in pool.persistence):
            raise Refused(f"pool {pool.name} does not keep mailboxes on one server: there is nothing to move at a rate")
        words = f"drains: it gets no new users, and its mailboxes move away, {format_rate(rate)}"
        return self._set_state(target, "draining", words, rate)

    def undrain(self, target: str) -> str:
        """The reverse of drain; refused for a disabled server."""
        pool, name, servers = self.find(target)
        if any(server.state == "disabled" for server in servers):
            raise Refused(f"{pool}/{name} is disabled, not draining; `l7lb enable {pool}/{name}` takes it back")
        return self._set_state(target, "enabled", "takes new users")

    def disable(self, target: str) -> str:
        """Nobody is sent to it, not even its sticky users; what is in progress ends by itself."""
        return self._set_state(target, "disabled", "is disabled: nobody is sent to it, not even its sticky users")

    def enable(self, target: str) -> str:
        """The reverse of drain and disable."""
        return self._set_state(target, "enabled", "takes new users")

    def weight(self, target: str, weight: int | None) -> str:
        """Set the weight; None: the configuration's again. Raises Refused beyond 0 to 65535."""
        if weight is not None and not 0 <= weight <= WEIGHT:
            raise Refused(f"a weight is from 0 to {WEIGHT}, not {weight}")
        pool, name, _ = self.find(target)

        def change(old: Override, own: bool) -> Override:
            value, since = (weight, self.node.wall()) if own and weight is not None else (-1, "")
            return msgspec.structs.replace(old, weight=value, weight_since=since)

        self._override(pool, name, change)
        servers = self.find(f"{pool}/{name}")[2]
        now = servers[0].weight
        return self._done(f"{pool}/{name} has weight {now}" + (", as configured" if weight is None else ""))

    def add_server(self, pool_name: str, server: Server) -> str:
        """Add a server to a pool, or bring back a removed one (then only its name is given)."""
        pool = self.pool(pool_name)
        label = f"{pool.name}/{server.name}"
        overrides = self.node.overrides
        placed = bool(server.address.host or server.address.path)
        removed = overrides.removed.get(pool.name, {})
        if server.name in removed:
            if placed:
                raise Refused(f"{label} is configured and was removed at run time: give no address to bring it back")
            since = removed.pop(server.name)
            return self._tried(f"{label} is back as it is configured", lambda: removed.update({server.name: since}))
        if any(server.name == other.name for other in declared(pool, overrides)):
            raise Refused(f"pool {pool.name} already has a server {server.name}")
        if not placed:
            raise Refused(f"{label} needs an address")
        self._room()
        added = overrides.added.setdefault(pool.name, [])
        added.append(msgspec.structs.replace(server, slot=0, origin="", state="enabled"))
        plain = server.tls is None and any(other.tls is not None for other in declared(pool, overrides))
        note = "; it is spoken to without TLS, unlike others of the pool" if plain else ""
        return self._tried(f"{label} is added at {server.address}{note}", added.pop)

    def remove_server(self, target: str) -> str:
        """Take a server out of its pool; sessions in progress go on until they end."""
        pool, name, _ = self.find(target)
        overrides = self.node.overrides
        added = overrides.added.get(pool, [])
        if any(server.name == name for server in added):
            overrides.added[pool] = [server for server in added if server.name != name]
        elif any(server.name == name for server in self.pool(pool, configured=True).servers):
            self._room()
            overrides.removed.setdefault(pool, {})[name] = self.node.wall()
        else:
            origin = name.rpartition("@")[0]
            raise Refused(f"{pool}/{name} is one address of a host name: remove {pool}/{origin}, or disable {name}")
        for one in self._family(pool, name):
            overrides.put(pool, one, Override())
        return self._done(f"{pool}/{name} is removed; sessions in progress go on until they end")

    # --- names ----------------------------------------------------------------------------------------------------

    def pool(self, name: str, configured: bool = False) -> Pool:
        """The pool of that name, as it is in force or as it is in the file. Raises UnknownName."""
        pools = self.node.configured.pools if configured else self.node.effective().pools
        for pool in pools:
            if pool.name == name:
                return pool
        raise UnknownName(f"no pool {name}: {suggestion(name, [pool.name for pool in pools])}")

    def find(self, target: str) -> tuple[str, str, list[Server]]:
        """The pool's name, the server's, and the servers in force: several for a host name, or one.

        A host name without an address gives the server as it is declared. Raises UnknownName with the nearest name,
        or with the candidates where the server's name alone is ambiguous.
        """
        pool_name, slash, name = target.rpartition("/")
        if slash:
            self.pool(pool_name)
        else:
            pool_name, name = "", target
        found: list[tuple[str, list[Server]]] = []
        elsewhere: list[str] = []
        known: list[str] = []
        for pool in self.node.configured.pools:
            servers = self._candidates(pool)
            if pool_name not in ("", pool.name):
                elsewhere += [f"{pool.name}/{name}"] if name in servers else []
                continue
            known.extend(servers)
            if name in servers:
                found.append((pool.name, servers[name]))
        if not found:
            where = f" in pool {pool_name}" if pool_name else ""
            hint = f"did you mean {elsewhere[0]}?" if elsewhere else suggestion(name, known)
            raise UnknownName(f"no server {name or 'without a name'}{where}: {hint}")
        if len(found) > 1:
            names = [f"{pool}/{name}" for pool, _ in found]
            raise UnknownName(f"{name} is a server of several pools: say {', '.join(names[:-1])} or {names[-1]}")
        return found[0][0], name, found[0][1]

    def _candidates(self, configured: Pool) -> dict[str, list[Server]]:
        """What can be named in a pool, and the servers that it means."""
        servers: dict[str, list[Server]] = {server.name: [] for server in declared(configured, self.node.overrides)}
        for server in self.pool(configured.name).servers:
            servers[server.name] = [server]
            if server.origin:
                servers[server.origin].append(server)
        for absent in self.node.absent:
            if absent.pool == configured.name:
                servers[absent.server.name] = [absent.server]
        return servers

    # --- the servers ----------------------------------------------------------------------------------------------

    def rows(self) -> list[ServerRow]:
        """Every server, also those without an address, and those removed that still have sessions."""
        node = self.node
        order = {pool.name: number for number, pool in enumerate(node.effective().pools)}
        found = [self.row(pool, server) for pool in node.effective().pools for server in pool.servers]
        for absent in node.absent:
            state = "disabled" if absent.server.state == "disabled" else "down"
            row = self._plain(absent.pool, absent.server, state, absent.why)
            row.healthy = False
            found.append(row)
        for pool_name, server in node.leaving():
            row = self._plain(pool_name, server, "draining", "removed: its sessions go on until they end")
            if row.sessions:
                found.append(row)
        return sorted(found, key=lambda row: order.get(row.pool, len(order)))

    def row(self, pool: Pool, server: Server) -> ServerRow:
        """One server in force."""
        node = self.node
        key = pool.name, server.name
        verdict, ejection = node.verdict(*key), node.ejection(*key)
        reasons = self._operator_says(pool.name, server)
        if ejection is not None:
            reasons.append(f"{ejection.why}, {max(0.0, ejection.until - node.clock()):.0f} s left")
        if verdict is not None:
            reasons.append(verdict.why)
        elif pool.health is not None:
            reasons.append("never checked yet")
        if server.origin:
            reasons.append(node.answer(pool.name, server.origin).why)
        if server.state == "disabled":
            state = "disabled"
        elif not node.healthy(*key) or ejection is not None:
            state = "down"
        else:
            state = "draining" if server.state == "draining" else "up"
        row = self._plain(pool.name, server, state, "; ".join(reason for reason in reasons if reason))
        row.healthy, row.checked, row.ejected = node.healthy(*key), verdict is not None, ejection is not None
        if verdict is not None:
            row.protocols = {
                protocol: ProtocolRow(state="up" if part.healthy else "down", why=part.why)
                for protocol, part in verdict.parts.items()
            }
        return row

    def _operator_says(self, pool: str, server: Server) -> list[str]:
        state = weight = None
        for name in (server.origin, server.name):
            override = self.node.overrides.of(pool, name) if name else None
            if override is not None:
                state = override if override.state else state
                weight = override if override.weight >= 0 else weight
        words = []
        if state is not None and (server.state != "enabled"):
            words.append(f"{server.state} by operator since {_spaced(state.state_since)}")
        elif server.state != "enabled":
            words.append(f"{server.state} in the configuration")
        if weight is not None:
            words.append(f"weight {weight.weight} by operator since {_spaced(weight.weight_since)}")
        elif server.weight == 0:
            words.append("weight 0: no new users")
        return words

    def _plain(self, pool: str, server: Server, state: str, why: str) -> ServerRow:
        cells = self.node.cells(server.slot)
        return ServerRow(
            pool=pool,
            name=server.name,
            address=str(server.address),
            state=state,
            weight=server.weight,
            sessions=cells[ACTIVE],
            requests=cells[REQUESTS],
            errors=cells[CONNECT_ERRORS] + cells[RESPONSE_ERRORS],
            why=why,
            backup=server.backup,
            max_connections=server.max_connections,
            ports=server.ports,
        )

    # --- inside ---------------------------------------------------------------------------------------------------

    def _set_state(self, target: str, state: str, words: str, rate: float = 0.0) -> str:
        pool, name, servers = self.find(target)
        old = self.node.overrides.of(pool, name)
        if all(server.state == state for server in servers) and rate == (old.drain_rate if old is not None else 0.0):
            return f"{pool}/{name} {words} (as before)"

        def change(old: Override, own: bool) -> Override:
            value, since = (state, self.node.wall()) if own else ("", "")
            return msgspec.structs.replace(old, state=value, state_since=since, drain_rate=rate if own else 0.0)

        self._override(pool, name, change)
        return self._done(f"{pool}/{name} {words}")

    def _family(self, pool: str, name: str) -> list[str]:
        """The name and, for a host name's server, those of its addresses that have an override."""
        known = self.node.overrides.servers.get(pool, {})
        return [name] + [one for one in known if one.rpartition("@")[0] == name]

    def _override(self, pool: str, name: str, change: Callable[[Override, bool], Override]) -> None:
        """Change one server's override, and take the same word back from its single addresses."""
        overrides = self.node.overrides
        if overrides.of(pool, name) is None:
            self._room()
        for one in self._family(pool, name):
            overrides.put(pool, one, change(overrides.of(pool, one) or Override(), one == name))
        self.node.changed()

    def _room(self) -> None:
        if self.node.overrides.size() >= ENTRIES:
            raise Refused(f"there are {ENTRIES} changes at run time already: put them into the configuration")

    def _tried(self, words: str, undo: Callable[[], object]) -> str:
        try:
            self.node.changed()
        except NoRowLeft:
            undo()
            raise
        return self._done(words)

    def _done(self, words: str) -> str:
        self.node.changed()
        self.node.overrides.tidy()
        return "; ".join([words, *self.node.save()])


def _spaced(time: str) -> str:
    """RFC 3339 with a space (section 5.6 allows it), where a narrow table may break the line."""
    return time.replace("T", " ", 1)
