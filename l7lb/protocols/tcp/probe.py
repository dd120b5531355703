"""TCP's own health check: is a connection accepted, and not closed at once?"""

from __future__ import annotations

import asyncio
from typing import Any

from l7lb.core.errors import ProbeFailed
from l7lb.core.snapshot import Address
from l7lb.protocols.probing import explain, open_server

SETTLE_SECONDS = 0.05  # a server without room accepts and closes: it is given so long to do that


async def probe(address: Address, settings: dict[str, Any], timeout: float) -> str:
    """Connect; raises ProbeFailed. What the server says first, if anything, is not judged."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await open_server(address, settings)
    except TimeoutError:
        raise ProbeFailed(f"no connection within {timeout:g} s") from None
    except OSError as problem:
        raise ProbeFailed(explain(problem)) from None
    try:
        async with asyncio.timeout(min(SETTLE_SECONDS, timeout)):
            first = await reader.read(1)
        if not first:
            raise ProbeFailed("accepted, and closed at once")
    except TimeoutError:
        pass  # it waits for the client to speak
    except OSError:
        raise ProbeFailed("accepted, and reset at once") from None
    finally:
        writer.close()
    return "connected"
