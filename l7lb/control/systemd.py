"""What systemd and a service tell one another: readiness, the watchdog, sockets that it opened before.

Own code, since it is three environment variables and a datagram: sd_notify(3), sd_watchdog_enabled(3),
sd_listen_fds(3). Without systemd everything here does nothing.
"""

from __future__ import annotations

import os
import socket
import time

FIRST = 3  # SD_LISTEN_FDS_START


class Notifier:
    """Tells systemd how the service is. ``inherited``: it was started by another process of the service."""

    def __init__(self, inherited: bool = False) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        self._watched = inherited or os.environ.get("WATCHDOG_PID", "") in ("", str(os.getpid()))

    def send(self, **fields: str) -> bool:
        """Send such fields as ``READY="1"``; returns whether somebody was told."""
        if not self._address.startswith(("/", "@")):
            return False
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        message = "\n".join(f"{name}={value}" for name, value in fields.items()).encode()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            try:
                sock.sendto(message, address)
            except OSError:  # systemd is busy or gone; a service must not fail for that
                return False
        return True

    def ready(self, status: str) -> None:
        """The service serves."""
        self.send(READY="1", STATUS=status)

    def reloading(self) -> None:
        """A reload begins; it ends by ``ready``."""
        self.send(RELOADING="1", MONOTONIC_USEC=str(time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000))

    def stopping(self, status: str) -> None:
        """The service drains and ends."""
        self.send(STOPPING="1", STATUS=status)

    def alive(self) -> None:
        """Content the watchdog."""
        self.send(WATCHDOG="1")

    def interval(self) -> float:
        """Seconds between two calls of ``alive``: half of what the watchdog allows; 0.0 without one."""
        text = os.environ.get("WATCHDOG_USEC", "")
        if not self._watched or not (text.isascii() and text.isdigit()):
            return 0.0
        return int(text) / 2_000_000


def activated() -> list[socket.socket]:
    """The listening sockets that systemd opened for this process, which owns them from now on."""
    number = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID", "") != str(os.getpid()) or not (number.isascii() and number.isdigit()):
        return []
    found = []
    for descriptor in range(FIRST, FIRST + int(number)):
        os.set_inheritable(descriptor, False)
        try:
            sock = socket.socket(fileno=descriptor)
        except OSError:
            continue  # no socket: a FIFO or a file of the same unit
        if sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.setblocking(False)
            found.append(sock)
        else:
            sock.close()
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    return found
