"""HTTP's own health check: does it speak HTTP? Any well-formed answer below 500 to `OPTIONS *` will do."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from l7lb.core.contracts import ProbeTls
from l7lb.core.errors import ProbeFailed
from l7lb.core.snapshot import Address
from l7lb.protocols.http.message import read_response
from l7lb.protocols.http.syntax import SyntaxFault, find_end
from l7lb.protocols.probing import explain, open_server

LIMIT = 32 * 1024


async def probe(address: Address, settings: dict[str, Any], timeout: float) -> str:
    """Ask the server; raises ProbeFailed. ``settings`` may name the ``host`` to ask for."""
    host = str(settings.get("host") or address.host or "localhost")
    request = f"OPTIONS * HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nUser-Agent: l7lb-health\r\n\r\n"
    try:
        async with asyncio.timeout(timeout):
            data = await _ask(address, request.encode("latin-1"), settings)
        response = read_response(data, 100, b"OPTIONS")
    except TimeoutError:
        raise ProbeFailed(f"no answer within {timeout:g} s") from None
    except ssl.SSLError as problem:
        raise ProbeFailed(f"TLS: {getattr(problem, 'verify_message', '') or problem.reason or problem}") from None
    except OSError as problem:
        raise ProbeFailed(explain(problem)) from None
    except SyntaxFault as fault:
        raise ProbeFailed(f"not HTTP: {fault.reason}") from None
    if response.status >= 500 and response.status != 501:
        raise ProbeFailed(f"status {response.status}")
    return f"status {response.status}"


async def _ask(address: Address, request: bytes, settings: dict[str, Any]) -> bytes:
    reader, writer = await open_server(address, settings)
    try:
        tls = settings.get("tls")
        if isinstance(tls, ProbeTls):
            await writer.start_tls(tls.context, server_hostname=tls.name or "")
        writer.write(request)
        data = b""
        while (end := find_end(data, LIMIT)) < 0:
            more = await reader.read(LIMIT)
            if not more:
                raise ProbeFailed("closed without an answer")
            data += more
        return data[:end]
    finally:
        writer.close()
