"""Canonical addresses: one name for one mailbox, whatever was typed, in every protocol alike."""

from __future__ import annotations

from typing import Final

from l7lb.core.snapshot import Addresses

# Their servers speak first, and both sides can ask for TLS when the connection is there.
MAIL_PROTOCOLS: Final = frozenset({"imap4", "pop3", "managesieve", "smtp", "submission", "lmtp"})


def canonical(typed: bytes, rules: Addresses) -> bytes:
    """The canonical form of an address or login name: in lower case, with the default domain, without detail.

    ``user+detail@Example.com`` becomes ``user@example.com``. The domain is always in lower case (RFC 5321 section
    2.4), the local part where the rules say so. A domain is what stands behind the last ``@``. What can't be an address
    comes back as it is, but for its case: servers refuse it.
    """
    local, at, domain = typed.rpartition(b"@")
    if not at:
        local, domain = typed, rules.default_domain.encode()
    if rules.lower_case:
        local = local.lower()
    delimiter = rules.recipient_delimiter.encode()
    if delimiter:
        # A delimiter in the first place is part of the name: there would be none left.
        where = min((place for each in delimiter if (place := local.find(each, 1)) > 0), default=-1)
        if where > 0:
            local = local[:where]
    domain = domain.lower().rstrip(b".")
    return local + b"@" + domain if domain else local


def short_name(address: bytes, rules: Addresses) -> bytes:
    """The canonical address without its domain where that is the default domain, else the whole address."""
    local, at, domain = address.rpartition(b"@")
    if at and rules.default_domain and domain == rules.default_domain.lower().encode():
        return local
    return address
