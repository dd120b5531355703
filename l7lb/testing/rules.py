"""A node for tests that are plain functions: the same words, without ``await``."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

from l7lb.core.record import AccessRecord
from l7lb.testing.exchange import Exchange, HeaderLines
from l7lb.testing.node import Node
from l7lb.testing.playbook import Playbook, Split
from l7lb.testing.wire import Transcript

Result = TypeVar("Result")


class Rules:
    """A started :class:`Node` on an event loop of its own, which runs only while one of these methods does."""

    def __init__(self, config: object, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        try:
            self.node = self._run(_make(config, options))
        except BaseException:
            self._loop.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the node; does nothing a second time."""
        if not self._loop.is_closed():
            self._run(self.node.__aexit__())
            self._run(self._loop.shutdown_asyncgens())
            self._loop.close()

    def request(
        self,
        method: str,
        url: str,
        headers: HeaderLines = (),
        body: bytes = b"",
        *,
        listener: str = "",
        source: str = "",
    ) -> Exchange:
        """One request over a connection of its own."""
        return self._run(self.node.request(method, url, headers, body, listener=listener, source=source))

    def get(self, url: str, headers: HeaderLines = (), *, listener: str = "", source: str = "") -> Exchange:
        """A GET request."""
        return self.request("GET", url, headers, listener=listener, source=source)

    def post(
        self, url: str, body: bytes = b"", headers: HeaderLines = (), *, listener: str = "", source: str = ""
    ) -> Exchange:
        """A POST request."""
        return self.request("POST", url, headers, body, listener=listener, source=source)

    def play(self, playbook: str | Playbook, split: Split | None = None) -> Transcript:
        """Perform a playbook."""
        return self._run(self.node.play(playbook, split))

    def record(self, number: int = -1) -> AccessRecord:
        """The access record of that number, or the newest."""
        return self._run(self.node.record(number))

    def _run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return self._loop.run_until_complete(coroutine)


async def _make(config: object, options: dict[str, Any]) -> Node:
    return await Node(config, **options).__aenter__()
