"""What can only be told of a pool of mail by the protocols that lead to it; looked for once all else is right."""

from __future__ import annotations

import ipaddress

from l7lb.config.mailboxes import address_rules
from l7lb.config.model import Configuration
from l7lb.config.pools import Pool, Server
from l7lb.config.protocols import LISTENERS
from l7lb.config.routes import Match
from l7lb.config.section import Reading
from l7lb.config.wording import choice
from l7lb.core import snapshot
from l7lb.core.mailbox import MAIL_PROTOCOLS

STORES = frozenset({"imap4", "pop3", "managesieve", "lmtp"})  # whose servers write a mailbox
LOGINS = frozenset({"imap4", "pop3", "managesieve", "submission"})  # whose servers get passwords


def check_mail(configuration: Configuration, reading: Reading) -> None:
    """Ports, TLS, health, addresses, and what servers see of clients."""
    if reading.problems:
        return
    _check_addresses(reading)
    for name, pool in configuration.pools.items():
        protocols = configuration.protocols(name)
        _check_relay(name, pool, protocols, reading)
        _check_affinity(name, pool, protocols, reading)
        _check_announcing(pool, reading)
        _check_health(pool, reading)
        for server in pool.servers:
            _check_ports(server, protocols, reading)
            _check_tls(server, protocols, reading)


def _check_addresses(reading: Reading) -> None:
    """Globs that no canonical address matches."""
    domain = address_rules(reading).default_domain
    for match in reading.each(Match):
        for number, glob in enumerate(match.address or ()):
            if domain and "@" not in glob and "*" not in glob:
                message = f"never matches, since addresses without a domain get {domain}: write {glob}@{domain}"
                reading.problem((*match.place, "address", number), message)


def _check_relay(name: str, pool: Pool, protocols: tuple[str, ...], reading: Reading) -> None:
    """Warn of SMTP servers that don't learn who their clients are."""
    if "smtp" not in protocols or "smtp" in pool.client_address.compiled():
        return
    if all(server.send_proxy for server in pool.servers):
        return
    message = (
        "an SMTP server here takes this node for all its clients: if it relays mail for this node, anybody "
        "can send through it; write client_address: {smtp: xclient}, or proxy-v2"
    )
    reading.warning(("pools", name), message, key=True)


def _check_affinity(name: str, pool: Pool, protocols: tuple[str, ...], reading: Reading) -> None:
    """Warn of mailboxes that several servers write at the same time."""
    if STORES.isdisjoint(protocols) or len(pool.servers) == 1:
        return
    if not any(isinstance(key.compiled(), snapshot.MailboxKey) for key in pool.keys_in_order()):
        message = "nothing keeps a mailbox on one of these servers: write persistence: {mailbox: {}}"
        reading.warning(("pools", name), message, key=True)


def _check_announcing(pool: Pool, reading: Reading) -> None:
    """A PROXY header is sent once."""
    ways = pool.client_address.compiled()
    protocol = next((protocol for protocol, way in ways.items() if way.startswith("proxy-")), None)
    for server in pool.servers:
        if protocol is not None and server.send_proxy:
            message = f"client_address has a PROXY header sent for {protocol} already: keep one"
            reading.problem((*server.place, "send_proxy"), message)


def _check_health(pool: Pool, reading: Reading) -> None:
    """The check of a protocol goes to the protocol's port."""
    health = pool.health
    if health is None or health.protocol is None or health.port is None:
        return
    if any(server.ports for server in pool.servers):
        message = "each protocol is checked at its own of the server's ports: leave it out"
        reading.problem((*health.place, "port"), message)


def _check_ports(server: Server, protocols: tuple[str, ...], reading: Reading) -> None:
    """Each protocol that leads to a server has a port there."""
    if server.ports is None:
        if len(protocols) > 1 and not MAIL_PROTOCOLS.isdisjoint(protocols):
            message = f"{' and '.join(protocols)} lead here and can't have one address: give host and ports"
            reading.problem((*server.place, "address"), message, key=True)
        return
    for protocol in server.ports:
        if protocol not in LISTENERS:
            reading.problem((*server.place, "ports", protocol), choice("the protocol", protocol, LISTENERS), key=True)
    missing = [protocol for protocol in protocols if protocol not in server.ports]
    if missing:
        message = f"has no port for {', '.join(missing)}, which a listener leads here: add {missing[0]}: PORT"
        reading.problem((*server.place, "ports"), message)


def _check_tls(server: Server, protocols: tuple[str, ...], reading: Reading) -> None:
    """How TLS to a server begins, and whether passwords travel without it."""
    if server.tls is not None:
        if server.tls.mode not in (None, "implicit") and protocols and MAIL_PROTOCOLS.isdisjoint(protocols):
            message = f"{protocols[0]} has no such thing: its servers speak TLS from the first byte"
            reading.problem((*server.tls.place, "mode"), message)
        return
    key, address = server.addresses()[0]
    if not LOGINS.isdisjoint(protocols) and _is_public(address.host):
        message = f"passwords travel to {address.host} in the clear: add tls: {{}}"
        reading.warning((*server.place, "host" if key == "ports" else key), message)


def _is_public(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return False
