"""OpenSSL contexts for listeners and servers, made in the worker from what the snapshot holds.

**Which certificate.** The name that a client asks for (SNI) picks it: the exact name, then a wildcard of one label,
then the first certificate. Certificates with the same name and keys of different kinds (RSA, ECDSA) stand in one
context, and OpenSSL picks by what the client can do.

**Tickets.** OpenSSL makes and opens session tickets with the key of the context that a connection began with, whatever
certificate SNI picked afterwards. That context is a *base*; there is one for each ticket key. The first makes the
tickets. A client whose ClientHello carries a ticket of an older key (its first 16 bytes name it) begins with that key's
base, so that a change of keys costs nobody a handshake.
"""

from __future__ import annotations

import ssl
from typing import Any

from l7lb.core import pem
from l7lb.core.snapshot import KeyPair, ListenerTls, ServerTls
from l7lb.proxy import openssl

# Forward secrecy and authenticated encryption, the cheaper first; the server's order counts.
CIPHERS = ":".join(
    f"ECDHE-{key}-{cipher}"
    for cipher in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
    for key in ("ECDSA", "RSA")
)
GROUPS = "X25519:P-256:P-384"  # the others that OpenSSL has are slow, or weaker than the rest
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
NAME_BYTES = 16  # of a ticket key, at its beginning


class Terminator:
    """A listener's contexts. ``owner.inner`` is the ssl object that :meth:`_chosen` gives another context."""

    def __init__(self, config: ListenerTls) -> None:
        self.config = config
        self.shares_tickets = not config.session_tickets or bool(config.ticket_keys and openssl.available())
        self._kept: list[object] = []
        self._contexts: dict[tuple[KeyPair, ...], ssl.SSLContext] = {}
        self._exact: dict[str, ssl.SSLContext] = {}
        self._wildcard: dict[str, ssl.SSLContext] = {}  # by what stands behind "*"
        first = config.certificates[0]
        group = _group(config.certificates, lambda pair: pair is first or set(pair.names) >= set(first.names))
        keys = config.ticket_keys if config.session_tickets and openssl.available() else ()
        self.default = self._base(group, keys[0] if keys else b"")
        self.older = [(key[:NAME_BYTES], self._base(group, key)) for key in keys[1:]]
        self._contexts[group] = self.default
        for name in dict.fromkeys(name for pair in config.certificates for name in pair.names):
            group = _group(config.certificates, lambda pair, name=name: name in pair.names)
            context = self._contexts.get(group)
            if context is None:
                context = self._contexts[group] = self._context(group)
            if name.startswith("*."):
                self._wildcard[name[1:]] = context
            else:
                self._exact[name] = context

    def base(self, hello: bytes) -> ssl.SSLContext:
        """The context that a connection begins with, by what has come of its ClientHello."""
        for name, context in self.older:
            if name in hello:
                return context
        return self.default

    def pick(self, name: str | None) -> ssl.SSLContext:
        """The context with the certificate for a name."""
        if not name:
            return self.default
        name = name.lower().rstrip(".")
        exact = self._exact.get(name)
        if exact is not None:
            return exact
        label, dot, rest = name.partition(".")
        return self._wildcard.get(dot + rest, self.default) if label else self.default

    def _chosen(self, owner: Any, name: str | None, context: ssl.SSLContext) -> None:
        owner = getattr(owner, "l7lb_owner", owner)
        owner.sni = name
        wanted = self.pick(name)
        if wanted is not self.default:
            owner.inner.context = wanted

    def _base(self, group: tuple[KeyPair, ...], key: bytes) -> ssl.SSLContext:
        context = self._context(group)
        context.sni_callback = self._chosen
        if key:
            openssl.set_ticket_key(context, key)
        return context

    def _context(self, group: tuple[KeyPair, ...]) -> ssl.SSLContext:
        config = self.config
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _common(context, config.min_version)
        context.maximum_version = VERSIONS[config.max_version]
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_SINGLE_ECDH_USE
        context.set_ciphers(config.ciphers or CIPHERS)
        openssl.set_groups(context, GROUPS)
        if config.alpn:
            context.set_alpn_protocols(list(config.alpn))
        responses: dict[int, bytes] = {}
        for pair in group:
            _load(context, pair)
            if pair.ocsp:
                responses[openssl.certificate_pointer(context)] = pair.ocsp
        if config.client_ca:
            context.verify_mode = ssl.CERT_REQUIRED if config.client_certificate == "required" else ssl.CERT_OPTIONAL
            context.load_verify_locations(cadata=config.client_ca.decode("ascii", "replace"))
            with pem.in_file(config.client_ca) as path:
                openssl.name_client_cas(context, path)
        if not config.session_tickets:
            context.options |= ssl.OP_NO_TICKET
            context.num_tickets = 0
        openssl.forget_sessions(context)
        if responses and openssl.available():
            try:
                self._kept.append(openssl.staple(context, responses))
            except (MemoryError, OSError):
                pass  # this system forbids what a callback needs: nothing is stapled
        return context


def server_context(config: ServerTls) -> ssl.SSLContext:
    """The context for a server. Raises ssl.SSLError or OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _common(context, config.min_version)
    context.set_ciphers(f"{CIPHERS}:ECDHE+AESGCM:DHE+AESGCM:ECDHE+AES:DHE+AES:!aNULL:!SHA1:@STRENGTH")
    context.check_hostname = config.verify and bool(config.server_name)
    context.verify_mode = ssl.CERT_REQUIRED if config.verify else ssl.CERT_NONE
    if config.ca:
        context.load_verify_locations(cadata=config.ca.decode("ascii", "replace"))
    elif config.verify:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if config.certificate is not None:
        _load(context, config.certificate)
    if config.alpn:
        context.set_alpn_protocols(list(config.alpn))
    return context


def _common(context: ssl.SSLContext, min_version: str) -> None:
    context.minimum_version = VERSIONS[min_version]
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    # An end without close_notify is told from a regular one; Python lets both look the same by default.
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)


def _load(context: ssl.SSLContext, pair: KeyPair) -> None:
    with pem.in_file(pair.certificate) as certificate, pem.in_file(pair.key) as key:
        context.load_cert_chain(certificate, key)


def _group(certificates: tuple[KeyPair, ...], fits: Any) -> tuple[KeyPair, ...]:
    """Those that fit, the first of each kind of key."""
    chosen: dict[str, KeyPair] = {}
    for pair in certificates:
        if fits(pair):
            chosen.setdefault(pair.algorithm, pair)
    return tuple(chosen.values())
