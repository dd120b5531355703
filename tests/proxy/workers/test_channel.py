"""Packets with descriptors between the keeper and those it talks to."""

from __future__ import annotations

import os
import socket

import pytest

from l7lb.proxy.workers import channel


@pytest.fixture
def ends():
    ours, theirs = channel.pair()
    with ours, theirs:
        yield ours, theirs


def test_a_packet_arrives_with_its_descriptors(ends) -> None:
    ours, theirs = ends
    memory = channel.memory("test", b"x" * 100_000)
    channel.send(ours, {"op": "take", "text": "é"}, [memory, memory])
    os.close(memory)
    packet, descriptors = channel.receive(theirs)
    assert packet == {"op": "take", "text": "é"}
    assert [channel.content(descriptor, 200_000) for descriptor in descriptors] == [b"x" * 100_000] * 2
    assert not any(os.get_inheritable(descriptor) for descriptor in descriptors)
    channel.close_all(descriptors)


def test_content_has_a_limit() -> None:
    memory = channel.memory("test", b"12345")
    with pytest.raises(ValueError, match="5 bytes are more than 4"):
        channel.content(memory, 4)
    os.close(memory)


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff", b"[" * 50_000, b"1"])
def test_what_is_no_packet_is_refused_and_its_descriptors_closed(ends, data: bytes) -> None:
    ours, theirs = ends
    read, write = os.pipe()
    socket.send_fds(ours, [data], [write])
    os.close(write)
    with pytest.raises(channel.BrokenChannel):
        channel.receive(theirs)
    assert os.read(read, 1) == b""  # nobody holds the other end any more
    os.close(read)


def test_a_packet_that_was_cut_is_refused(ends) -> None:
    ours, theirs = ends
    ours.send(b'{"a":"' + b"x" * channel.PACKET + b'"}')
    with pytest.raises(channel.BrokenChannel, match="cut"):
        channel.receive(theirs)


def test_a_packet_that_is_too_big_is_not_sent(ends) -> None:
    with pytest.raises(ValueError, match="too big"):
        channel.send(ends[0], {"text": "x" * channel.PACKET})
    with pytest.raises(ValueError, match="too big"):
        channel.send(ends[0], {}, [0] * (channel.DESCRIPTORS + 1))


def test_the_end_is_told_apart_from_nothing_yet(ends) -> None:
    ours, theirs = ends
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        channel.receive(theirs)
    ours.close()
    with pytest.raises(channel.BrokenChannel):
        channel.receive(theirs)
    with pytest.raises(channel.BrokenChannel):
        channel.send(theirs, {})


def test_a_full_channel_blocks(ends) -> None:
    ours, _ = ends
    ours.setblocking(False)
    sent = 0
    while sent < 10_000:
        try:
            channel.send(ours, {"text": "x" * 1000})
        except BlockingIOError:
            break
        sent += 1
    assert 0 < sent < 10_000


def test_the_peer_is_who_the_kernel_says(ends) -> None:
    assert channel.peer(ends[0]) == (os.getpid(), os.getuid())
