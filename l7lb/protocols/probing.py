"""How a protocol's health check connects to a server: as users' connections do, with what these begin with."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from l7lb.core.proxy_protocol.writing import write_own
from l7lb.core.snapshot import Address


async def open_server(address: Address, settings: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect, and send the PROXY header that ``settings`` ask for (``send_proxy``). Raises OSError."""
    if address.path:
        reader, writer = await asyncio.open_unix_connection(address.path)
    else:
        reader, writer = await asyncio.open_connection(address.host, address.port)
    version = settings.get("send_proxy")
    if version:
        writer.write(write_own(version, writer.get_extra_info("sockname"), writer.get_extra_info("peername")))
    return reader, writer


def explain(problem: OSError) -> str:
    """What a system call's error means, without the address, which stands beside it."""
    if problem.errno:
        return os.strerror(problem.errno).lower()
    return problem.strerror or str(problem) or "closed without an answer"
