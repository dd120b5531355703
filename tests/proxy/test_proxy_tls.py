"""TLS that ends at a listener, in one process: every split, every end, back-pressure, tunnels."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Run
from proxy_scene import GET, quiet
from tls_scene import client_context, dial, tls_config

from l7lb.testing import Node

BODY = bytes(range(256)) * 4096  # 1 MiB, in which every byte's place shows


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("cut", [0, 1])
def test_request_and_answer(run: Run, tmp_path: Path, version: str, cut: int) -> None:
    async def scene() -> None:
        async with Node(tls_config(tmp_path)) as node:
            client = await dial(node, cut=cut, context=client_context(version=version))
            for _ in range(2):
                await client.send(GET)
                head = await client.until(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                await client.read()
            client.close()
            record = await node.record()
            assert record.scheme == "https"
            await quiet(node)

    run(scene())
