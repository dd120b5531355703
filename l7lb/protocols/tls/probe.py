"""The health check of TLS passed through: does the server answer a handshake?

Its certificate is not judged: users do that. Nor can the check know a name to ask for, so that an alert of a server
that has no certificate for a client without one is an answer like others.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from l7lb.core.errors import ProbeFailed
from l7lb.core.snapshot import Address
from l7lb.protocols.probing import explain, open_server

# Alerts of a server that is well, but wants a name, a version or a cipher that this client does not offer.
WELL = ("UNRECOGNIZED_NAME", "HANDSHAKE_FAILURE", "PROTOCOL_VERSION", "MISSING_EXTENSION", "INSUFFICIENT_SECURITY")


async def probe(address: Address, settings: dict[str, Any], timeout: float) -> str:
    """Make a handshake; raises ProbeFailed. ``settings`` may give the ``server_name`` to ask for."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    name = str(settings.get("server_name") or "")
    try:
        async with asyncio.timeout(timeout):
            _, writer = await open_server(address, settings)
            try:
                await writer.start_tls(context, server_hostname=name)
            except BaseException:
                writer.transport.abort()
                raise
    except TimeoutError:
        raise ProbeFailed(f"no answer within {timeout:g} s") from None
    except ssl.SSLError as problem:
        reason = str(problem.reason or "")
        if any(word in reason for word in WELL):
            return f"answers TLS: {reason.lower().replace('_', ' ')}"
        raise ProbeFailed(f"not TLS: {reason.lower().replace('_', ' ') or problem}") from None
    except OSError as problem:
        raise ProbeFailed(explain(problem)) from None
    found: ssl.SSLObject = writer.get_extra_info("ssl_object")
    version = found.version() or "TLS"
    writer.transport.abort()  # what follows a handshake is none of its business
    return version
