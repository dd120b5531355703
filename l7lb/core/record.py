"""The one access record that every request or session leaves behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from l7lb.core.contracts import Assignment, Choice


class AccessRecord(msgspec.Struct, omit_defaults=True):
    """What an operator reads of one request. Times are milliseconds, -1 where the step was not reached.

    ``ended`` says who ended it and where: ``ok``, or a failure's label and the phase it happened in, such as
    ``server-timeout@response-header``. The phases are connection, request-header, request-body, queue, connect,
    response-header, response-body, client-hello, tunnel.
    """

    time: str  # RFC 3339, UTC
    listener: str
    protocol: str
    client: str
    request_id: str = ""
    method: str = ""
    scheme: str = ""
    sni: str = ""
    alpn: str = ""  # what a client offers whose TLS is passed through, with commas
    host: str = ""
    path: str = ""
    version: str = ""
    status: int = 0
    route: int = 0
    pool: str = ""
    server: str = ""
    sticky: str = ""  # which persistence key chose the server, or "" where the balancer did
    retries: int = 0
    ended: str = "ok"
    closed_by: str = ""  # of a tunnel: client or server, whoever ended it first
    received: int = 0  # bytes from the client
    sent: int = 0  # bytes to the client
    request_ms: float = -1.0  # first byte of the request to its end of header
    queue_ms: float = -1.0
    connect_ms: float = -1.0
    response_ms: float = -1.0  # request sent to the response's header
    total_ms: float = -1.0
    tls_version: str = ""  # such as TLSv1.3; "" without TLS
    tls_cipher: str = ""
    tls_resumed: bool = False
    user_agent: str = ""
    referer: str = ""
    mailbox: str = ""  # of mail: the canonical name
    user: str = ""  # as the client typed it
    mechanism: str = ""  # of its login: plain, login, xoauth2 ...

    def went(self, choice: Choice | None, assignment: Assignment | None) -> None:
        """Note the way that it took: the rule that matched and the server that it got, as far as it came."""
        if choice is not None:
            self.route = choice.route.number
            self.pool = choice.pool or ""
        if assignment is not None:
            self.server = assignment.server.name
            self.retries = assignment.attempt
            self.sticky = assignment.sticky
            self.queue_ms = round(assignment.queue_time * 1000, 3)
            self.connect_ms = round(assignment.connect_time * 1000, 3)
