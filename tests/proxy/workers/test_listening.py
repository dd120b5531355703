"""Opening listening sockets, and why one can't be opened."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from l7lb.proxy.workers import listening
from l7lb.proxy.workers.listening import BindProblem, another, open_sockets


@pytest.fixture
def close():
    opened: list[socket.socket] = []
    yield opened.extend
    for sock in opened:
        sock.close()


def test_each_worker_gets_a_socket_at_the_same_port(close) -> None:
    sockets = open_sockets("127.0.0.1", 0, "", backlog=5, count=3)
    close(sockets)
    close([another(sockets[0], 5)])
    assert len({sock.getsockname() for sock in sockets}) == 1
    for sock in sockets:
        assert not sock.getblocking()
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert not sock.get_inheritable()


def test_ipv6_alone_or_both_families(close) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    (only,) = open_sockets("::1", 0, "", backlog=5, count=1)
    (both,) = open_sockets("*", 0, "", backlog=5, count=1)
    more = another(both, 5)
    close([only, both, more])
    assert only.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    assert not more.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    port = both.getsockname()[1]
    for host in ("127.0.0.1", "::1"):
        socket.create_connection((host, port)).close()


def test_without_ipv6_both_families_are_one(monkeypatch, close) -> None:
    monkeypatch.setattr(listening, "_has_ipv6", lambda: False)
    (sock,) = open_sockets("", 0, "", backlog=5, count=1)
    close([sock])
    assert sock.getsockname()[0] == "0.0.0.0"


def test_an_address_in_use_is_refused_also_where_the_kernel_would_share_it(close) -> None:
    first = open_sockets("127.0.0.1", 0, "", backlog=5, count=2)
    close(first)
    port = first[0].getsockname()[1]
    with pytest.raises(BindProblem, match=f"127.0.0.1:{port}: another process listens there"):
        open_sockets("127.0.0.1", port, "", backlog=5, count=2)
    close(open_sockets("127.0.0.1", port, "", backlog=5, count=2, beside=True))


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("192.0.2.1", "192.0.2.1:8080: this machine doesn't have that address"),
        ("not an address", "not an address:8080:"),
    ],
)
def test_an_impossible_address_is_named(host: str, words: str) -> None:
    with pytest.raises(BindProblem) as problem:
        open_sockets(host, 8080, "", backlog=5, count=1)
    assert words in str(problem.value)


def test_a_unix_socket_is_open_to_all_who_reach_its_directory(tmp_path: Path, close) -> None:
    path = tmp_path / ("d" * 100) / "web.sock"
    path.parent.mkdir()
    (sock,) = open_sockets("", 0, str(path), backlog=5, count=3, owner=(os.getuid(), os.getgid()))
    close([sock])
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert listening.answers(str(path))


def test_a_unix_socket_that_nobody_serves_any_more_is_replaced(tmp_path: Path, close) -> None:
    path = str(tmp_path / "web.sock")
    open_sockets("", 0, path, backlog=5, count=1)[0].close()
    assert not listening.answers(path)
    close(open_sockets("", 0, path, backlog=5, count=1))
    with pytest.raises(BindProblem, match="another process listens there"):
        open_sockets("", 0, path, backlog=5, count=1)


def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(BindProblem, match="a file that is not a socket is in the way"):
        open_sockets("", 0, str(path), backlog=5, count=1)
    assert path.read_text() == "data"


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(BindProblem, match="No such file or directory"):
        open_sockets("", 0, str(tmp_path / "none" / "web.sock"), backlog=5, count=1)
