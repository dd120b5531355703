"""SMTP's and submission's own health check: a greeting, EHLO, TLS and a login where these are wanted."""

from __future__ import annotations

from typing import Any

from l7lb.core.snapshot import Address
from l7lb.protocols.mail.esmtp_probing import ask
from l7lb.protocols.mail.probing import Talk, check


async def probe(address: Address, settings: dict[str, Any], timeout: float) -> str:
    """Ask the server; raises ProbeFailed. ``settings`` may have a ``user`` and a ``password`` to log in with."""
    return await check(address, settings, timeout, _ask)


async def _ask(talk: Talk) -> str:
    return await ask(talk, b"EHLO")
