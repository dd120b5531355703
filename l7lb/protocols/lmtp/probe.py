"""LMTP's own health check: a greeting, LHLO, and TLS where it is wanted (RFC 2033)."""

from __future__ import annotations

from typing import Any

from l7lb.core.snapshot import Address
from l7lb.protocols.mail.esmtp_probing import ask
from l7lb.protocols.mail.probing import Talk, check


async def probe(address: Address, settings: dict[str, Any], timeout: float) -> str:
    """Ask the server; raises ProbeFailed. Nobody logs in to LMTP: a ``user`` in ``settings`` is of no concern."""
    return await check(address, {**settings, "user": ""}, timeout, _ask)


async def _ask(talk: Talk) -> str:
    return await ask(talk, b"LHLO")
