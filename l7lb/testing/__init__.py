"""The asyncio test harness: a node inside the test, servers and clients that do what the test says.

It is what l7lb's own tests use, and it is installed with the package so that a project tests its own rules:
docs/testing.md shows how. The names are loaded at their first use, since pytest loads this package in every run.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from l7lb.testing.exchange import Browser, Exchange
    from l7lb.testing.http import Answer, Headers, HttpServer, Request, Response
    from l7lb.testing.node import Node
    from l7lb.testing.playbook import Playbook, pieces
    from l7lb.testing.rules import Rules
    from l7lb.testing.servers import ScriptedServer
    from l7lb.testing.wire import Ended, Transcript, Unexpected, Wire

HOMES = {
    "Answer": "http",
    "Browser": "exchange",
    "Ended": "wire",
    "Exchange": "exchange",
    "Headers": "http",
    "HttpServer": "http",
    "Node": "node",
    "Playbook": "playbook",
    "Request": "http",
    "Response": "http",
    "Rules": "rules",
    "ScriptedServer": "servers",
    "Transcript": "wire",
    "Unexpected": "wire",
    "Wire": "wire",
    "pieces": "playbook",
}

__all__ = [
    "Node",
    "Rules",
    "Browser",
    "Exchange",
    "Playbook",
    "pieces",
    "Answer",
    "HttpServer",
    "ScriptedServer",
    "Wire",
    "Request",
    "Response",
    "Headers",
    "Transcript",
    "Unexpected",
    "Ended",
]


def __getattr__(name: str) -> object:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
