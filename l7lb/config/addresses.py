"""Addresses and networks as the configuration writes them.

A listener binds an IP address: ``127.0.0.1:80``, ``[::1]:80``, ``*:80`` or ``:80`` (IPv4 and IPv6); or a unix socket:
``unix:run/x.sock``. A server may also be named: ``app.internal:80``.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

from l7lb.config.wording import describe, quoted
from l7lb.core.snapshot import Address

ANY = "*"  # Address.host of a bind to every address of both families

_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)\Z")
_PORT = re.compile(r"[0-9]{1,5}\Z", re.ASCII)
_DIGITS = re.compile(r"[0-9.]+\Z", re.ASCII)


def parse_bind(text: str) -> Address:
    """Where a listener listens; port 0 lets the kernel choose. Raises ValueError."""
    path = _unix(text)
    if path:
        return Address(path=path)
    host, port = _split(text, "127.0.0.1:8080", lowest=0)
    if host in ("", ANY):
        return Address(host=ANY, port=port)
    try:
        return Address(host=str(ipaddress.ip_address(host)), port=port)
    except ValueError:
        pass
    raise ValueError(f"{quoted(host)} is not an IP address, which a listener needs: write 127.0.0.1:{port} or *:{port}")


def parse_server(text: str) -> Address:
    """Where a server is; a name stays a name. Raises ValueError."""
    path = _unix(text)
    if path:
        return Address(path=path)
    host, port = _split(text, "192.0.2.1:8080", lowest=1)
    return Address(host=parse_host(host), port=port)


def parse_host(host: str) -> str:
    """An IP address in its canonical form, or a host name in lower case. Raises ValueError."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not host:
        raise ValueError("the host is missing: write host:port")
    if _DIGITS.match(host) or ":" in host:
        raise ValueError(f"{quoted(host)} is not an IP address")
    name = host.removesuffix(".")
    if len(name) > 253 or not all(_LABEL.match(label) for label in name.split(".")):
        hint = "" if host.isascii() else ": write its xn-- form"
        raise ValueError(f"{quoted(host)} is not a host name{hint}")
    return name.lower()


def parse_network(text: str) -> str:
    """A network in CIDR form, or one address, in canonical form. Raises ValueError."""
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        pass
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            f"{quoted(text)} is not a network: write an address or a prefix, such as 192.0.2.0/24 or 2001:db8::/32"
        ) from None
    raise ValueError(f"{quoted(text)} has bits set behind its prefix: write {network}, or the address without prefix")


def resolve(address: Address, base: Path) -> Address:
    """A unix socket's path made absolute, from the configuration's directory."""
    return Address(path=str(base / address.path)) if address.path else address


def _unix(text: str) -> str:
    """The path of ``unix:path``, "" for other addresses."""
    if not text.startswith("unix:"):
        return ""
    path = text.removeprefix("unix:")
    if not path.strip("/"):
        raise ValueError("the socket's path is missing: write unix:run/name.sock")
    if not path.isprintable():
        raise ValueError(f"{quoted(path)} has a character that a path can't have")
    return path


def _split(text: str, example: str, lowest: int) -> tuple[str, int]:
    host, separator, digits = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise ValueError(f"{quoted(host)} is not an IPv6 address, which is what brackets are for")
    elif ":" in host or (not separator and text.startswith("[")):
        raise ValueError(f"{quoted(text)}: write an IPv6 address in brackets and with a port, such as [::1]:8080")
    if not separator or not digits:
        raise ValueError(f"{describe(text)} has no port: write host:port, such as {example}")
    if not _PORT.match(digits) or not lowest <= int(digits) <= 65535:
        raise ValueError(f"{quoted(digits)} is not a port: ports are {lowest or 1} to 65535")
    return host, int(digits)
