"""The packets that the keeper exchanges with the supervisor and with its workers.

A packet is one JSON object on a SOCK_SEQPACKET unix socket, with descriptors beside it (SCM_RIGHTS, unix(7)). The
kernel keeps the boundaries, so that a packet arrives whole or not at all, and neither side keeps a parser's state over
a crash of the other. What is big (the snapshot) travels as a memfd. Standard library only.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

PACKET = 65_536  # bytes of JSON
DESCRIPTORS = 128  # beside one packet; the kernel's limit is 253

Packet = dict[str, Any]


class BrokenChannel(Exception):
    """The other side is gone, or what it sent is not a packet."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sock: socket.socket, packet: Packet, descriptors: Sequence[int] = ()) -> None:
    """Send one packet.

    Raises BlockingIOError when a non-blocking socket's buffer is full, BrokenChannel when the other side is gone and
    ValueError when the packet is too big.
    """
    data = json.dumps(packet, separators=(",", ":")).encode()
    if len(data) > PACKET or len(descriptors) > DESCRIPTORS:
        raise ValueError(f"a packet of {len(data)} bytes and {len(descriptors)} descriptors is too big")
    try:
        socket.send_fds(sock, [data], descriptors)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOBUFS, errno.ETOOMANYREFS):  # passing, as a full buffer is
            raise BlockingIOError(error.errno, str(error)) from error
        raise BrokenChannel(str(error)) from error


def receive(sock: socket.socket) -> tuple[Packet, list[int]]:
    """Receive one packet and the descriptors beside it, which the caller then owns.

    Raises BlockingIOError or TimeoutError when there is none, BrokenChannel at the end.
    """
    try:
        # Not socket.recv_fds, which ignores its flags: the descriptors would be inherited by every child.
        space = socket.CMSG_LEN(DESCRIPTORS * array("i").itemsize)
        data, ancillary, flags, _ = sock.recvmsg(PACKET, space, socket.MSG_CMSG_CLOEXEC)
    except (BlockingIOError, TimeoutError):
        raise
    except OSError as error:
        raise BrokenChannel(str(error)) from error
    passed = array("i")
    for level, kind, body in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            passed.frombytes(body[: len(body) - len(body) % passed.itemsize])
    descriptors = list(passed)
    try:
        if not data:
            raise BrokenChannel("the other side has closed")
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise BrokenChannel("a packet was cut: too big, or no descriptors are left")
        packet = json.loads(data)
        if not isinstance(packet, dict):
            raise BrokenChannel("a packet is not an object")
    except (ValueError, RecursionError) as error:
        close_all(descriptors)
        raise BrokenChannel(f"not a packet: {error}") from error
    except BrokenChannel:
        close_all(descriptors)
        raise
    return packet, descriptors


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors that nobody wants."""
    for descriptor in descriptors:
        os.close(descriptor)


def memory(name: str, data: bytes) -> int:
    """A memfd that holds ``data``, to send beside a packet."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    return descriptor


def content(descriptor: int, limit: int) -> bytes:
    """All bytes of a memfd, from its beginning; ValueError beyond ``limit``."""
    size = os.fstat(descriptor).st_size
    if size > limit:
        raise ValueError(f"{size} bytes are more than {limit}")
    parts = []
    position = 0
    while position < size:
        part = os.pread(descriptor, size - position, position)
        if not part:
            break
        parts.append(part)
        position += len(part)
    return b"".join(parts)


def peer(sock: socket.socket) -> tuple[int, int]:
    """The process and user at the other end when it connected (SO_PEERCRED, unix(7))."""
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid
