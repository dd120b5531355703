"""Opening the sockets that clients connect to.

An IP address gets one SO_REUSEPORT socket a worker (socket(7)): the kernel spreads connections over them, and each
worker waits at its own queue. A unix socket is single, all workers accept from it. Standard library only: this runs
in the process that keeps privileges.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

from l7lb.core.unixpath import short_path

MODE = 0o666  # of a unix socket: who may reach it is up to its directory, as a port's reach is up to the firewall


class BindProblem(Exception):
    """An address can't be listened at; the text says why, for an operator."""


def describe(host: str, port: int, path: str, error: OSError) -> str:
    """The error in an operator's words."""
    where = f"unix:{path}" if path else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return f"{where}: another process listens there"
    if error.errno in (errno.EACCES, errno.EPERM):
        if path:
            return f"{where}: no permission to make the socket in that directory"
        return f"{where}: no permission; a port below 1024 needs root or CAP_NET_BIND_SERVICE"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{where}: this machine doesn't have that address"
    return f"{where}: {error.strerror or error}"


def open_sockets(
    host: str,
    port: int,
    path: str,
    *,
    backlog: int,
    count: int,
    beside: bool = False,
    owner: tuple[int, int] | None = None,
) -> list[socket.socket]:
    """Listening, non-blocking sockets: ``count`` for an IP address, one for a unix socket's ``path``.

    ``beside`` accepts that others of this user listen at the address already, with SO_REUSEPORT; otherwise that is an
    error, since the kernel would split the clients between two nodes. ``owner`` is the user and group that a unix
    socket's file is given to. Raises BindProblem.
    """
    opened: list[socket.socket] = []
    try:
        if path:
            opened.append(_unix(path, backlog, owner))
            return opened
        if port and not beside:
            _ip(host, port, reuse=False).close()
        for _ in range(count):
            sock = _ip(host, port, reuse=True)
            opened.append(sock)
            sock.listen(backlog)
            port = sock.getsockname()[1]
        return opened
    except OSError as error:
        for sock in opened:
            sock.close()
        raise BindProblem(describe(host, port, path, error)) from error


def another(like: socket.socket, backlog: int) -> socket.socket:
    """One more socket at the address of an open one, for one more worker. Raises BindProblem."""
    host, port = like.getsockname()[:2]
    sock = socket.socket(like.family, socket.SOCK_STREAM)
    try:
        _prepare(sock, reuse=True)
        if like.family == socket.AF_INET6:
            only = like.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        sock.bind(like.getsockname())
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise BindProblem(describe(host, port, "", error)) from error
    return sock


def _ip(host: str, port: int, *, reuse: bool) -> socket.socket:
    """A bound socket. No host, or ``*``, means both families, or IPv4 alone where the machine has no IPv6."""
    both = host in ("", "*")
    if both and not _has_ipv6():
        both, host = False, "0.0.0.0"
    family, _, _, _, address = socket.getaddrinfo(
        "::" if both else host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        _prepare(sock, reuse=reuse)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def _prepare(sock: socket.socket, *, reuse: bool) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
    if reuse:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def _unix(path: str, backlog: int, owner: tuple[int, int] | None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        remove_stale(path)
        with short_path(path) as short:
            sock.bind(short)
        if owner is not None:
            os.chown(path, *owner)
        os.chmod(path, MODE)
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


def remove_stale(path: str) -> None:
    """Remove a unix socket that nobody listens at any more.

    Raises OSError: EADDRINUSE where somebody does, EEXIST where the file is something else.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "a file that is not a socket is in the way", path)
    if answers(path):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def answers(path: str) -> bool:
    """Whether somebody listens at a unix socket, of either kind."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as probe:
            probe.setblocking(False)
            try:
                with short_path(path) as short:
                    probe.connect(short)
            except BlockingIOError:
                return True  # its queue is full: somebody has it open
            except OSError:
                continue
            return True
    return False
