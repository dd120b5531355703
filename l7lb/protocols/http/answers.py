"""How HTTP words what l7lb itself answers: a status, one plain line, and a Retry-After where waiting helps."""

from __future__ import annotations

from http.client import responses
from math import ceil

from l7lb.core.errors import Failure

# 499 and 0 never reach a client; they stand in the record of one that left.
STATUS = {
    Failure.CLIENT_PROTOCOL: 400,
    Failure.CLIENT_TIMEOUT: 408,
    Failure.CLIENT_CLOSED: 499,
    Failure.CLIENT_LIMIT: 413,
    Failure.NO_ROUTE: 404,
    Failure.NO_SERVER: 503,
    Failure.QUEUE_FULL: 503,
    Failure.QUEUE_TIMEOUT: 503,
    Failure.CONNECTION_LIMIT: 503,
    Failure.RATE_LIMITED: 429,
    Failure.NO_MAILBOX: 404,
    Failure.MAILBOX_SERVER: 503,
    Failure.MAILBOX_MOVING: 503,
    Failure.SESSION_LIMIT: 429,
    Failure.LOGIN_REFUSED: 403,
    Failure.ENDED_HERE: 503,
    Failure.DIRECTORY: 503,
    Failure.NO_STATE: 503,
    Failure.SHUTDOWN: 503,
    Failure.CONNECT_REFUSED: 503,
    Failure.CONNECT_TIMEOUT: 504,
    Failure.CONNECT_TLS: 502,
    Failure.SERVER_CLOSED: 502,
    Failure.SERVER_CLOSED_INSIDE: 502,
    Failure.SERVER_TIMEOUT: 504,
    Failure.SERVER_STALLED: 504,
    Failure.SERVER_PROTOCOL: 502,
    Failure.BUG: 500,
}
RETRY_AFTER = frozenset(
    [
        Failure.NO_SERVER,
        Failure.QUEUE_FULL,
        Failure.QUEUE_TIMEOUT,
        Failure.RATE_LIMITED,
        Failure.MAILBOX_SERVER,
        Failure.MAILBOX_MOVING,
        Failure.SESSION_LIMIT,
        Failure.DIRECTORY,
        Failure.NO_STATE,
        Failure.SHUTDOWN,
    ]
)
REASONS = {
    **{int(status): reason for status, reason in responses.items()},
    413: "Content Too Large",
    418: "I'm a teapot",
}


def start_line(status: int) -> bytes:
    """``HTTP/1.1 404 Not Found``."""
    return b"HTTP/1.1 %d %b" % (status, REASONS.get(status, "").encode())


def answer(
    status: int,
    body: bytes,
    date: bytes = b"",
    *,
    headers: tuple[tuple[str, str], ...] = (),
    content_type: str = "text/plain; charset=utf-8",
    close: bool = False,
    keep: bool = False,
    head_only: bool = False,
) -> bytes:
    """A whole answer. 1xx, 204 and 304 carry no body, HEAD gets the head of one. ``date`` is a complete line.

    ``close`` tells that the connection ends, ``keep`` that it does not, which an HTTP/1.0 client would not suppose.
    """
    lines = [start_line(status)]
    given = {name.lower() for name, _ in headers}
    if date and "date" not in given:
        lines.append(date[:-2])
    bodiless = status < 200 or status in (204, 304)
    if not bodiless:
        lines.append(b"Content-Length: %d" % len(body))
        if body and "content-type" not in given:
            lines.append(b"Content-Type: " + content_type.encode("latin-1"))
    lines += [name.encode("latin-1") + b": " + value.encode("latin-1") for name, value in headers]
    if close:
        lines.append(b"Connection: close")
    elif keep:
        lines.append(b"Connection: keep-alive")
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    return head if bodiless or head_only else head + body


def refusal(
    failure: Failure,
    date: bytes,
    identity: bytes,
    *,
    close: bool,
    status: int = 0,
    reason: str = "",
    keep: bool = False,
    head_only: bool = False,
    wait: float = 1.0,
) -> bytes:
    """The answer to a failure: its status and, in one line, what happened and what would help.

    ``wait`` is the seconds after which another try may help, where one can.

    It carries the request's ``identity``, by which an operator finds in the log what a user complains of.
    """
    status = status or STATUS[failure]
    text = f"{status} {REASONS.get(status, '')}: {reason or failure.meaning}\n"
    headers: tuple[tuple[str, str], ...] = (
        ("Cache-Control", "no-store"),
        ("X-Request-ID", identity.decode("latin-1")),
    )
    if failure in RETRY_AFTER:
        headers = (*headers, ("Retry-After", str(ceil(wait))))
    return answer(status, text.encode(), date, headers=headers, close=close, keep=keep, head_only=head_only)
