"""A TCP listener's section."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from l7lb.config.listeners import Listener, ListenerLimits, TunnelTimeouts
from l7lb.config.routes import HTTP_ONLY
from l7lb.config.section import Reading
from l7lb.core import snapshot


class TcpListener(Listener):
    """Clients of any protocol over TCP; nothing of what they say is looked at."""

    kind: ClassVar[str] = "tcp"
    client_first: ClassVar[bool] = False
    conditions: ClassVar[tuple[str, ...]] = ("source",)
    impossible: ClassVar[tuple[str, ...]] = HTTP_ONLY
    because: ClassVar[str] = ", since nothing of the connection is read"

    protocol: Literal["tcp"] = Field(description="What clients speak there.")
    timeouts: TunnelTimeouts = Field(default=TunnelTimeouts(), description="How long a client may take.")
    limits: ListenerLimits = Field(default=ListenerLimits(), description="How many clients may come.")

    def compiled(self, reading: Reading) -> snapshot.Listener:
        return snapshot.Listener(
            **self.common(reading),
            connections=self.limits.connections,
            backlog=self.limits.backlog,
            settings={"tunnel": self.timeouts.tunnel, "half_closed": self.timeouts.half_closed},
        )
