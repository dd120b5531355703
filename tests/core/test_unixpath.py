"""Paths of unix sockets beyond 107 bytes."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from l7lb.core.unixpath import LIMIT, short_path


def test_a_path_that_fits_is_left_alone(tmp_path: Path) -> None:
    with short_path("/run/x.sock") as short:
        assert short == "/run/x.sock"


def test_the_limit_is_the_kernels(tmp_path: Path) -> None:
    fits = "/" + "a" * (LIMIT - 1)
    with short_path(fits) as short:
        assert short == fits
    with pytest.raises(OSError, match="AF_UNIX path too long"), socket.socket(socket.AF_UNIX) as sock:
        sock.bind(fits + "a")


@pytest.mark.parametrize("depth", [1, 8])
def test_a_long_path_binds_and_connects(tmp_path: Path, depth: int) -> None:
    directory = tmp_path.joinpath(*["d" * 120] * depth)
    directory.mkdir(parents=True)
    path = directory / "a.sock"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        with short_path(path) as short:
            assert len(short) <= LIMIT
            server.bind(short)
        server.listen()
        assert path.is_socket()
        with short_path(str(path)) as short:
            client.connect(short)


def test_characters_count_as_bytes(tmp_path: Path) -> None:
    directory = tmp_path / ("é" * 60)
    directory.mkdir()
    with short_path(directory / "x") as short:
        assert short.startswith("/proc/self/fd/")


def test_the_descriptor_is_closed(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    (tmp_path / ("d" * 120)).mkdir()
    with short_path(tmp_path / ("d" * 120) / "x"):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_missing_directory_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), short_path(tmp_path / ("d" * 120) / "x"):
        pass


def test_a_name_that_no_descriptor_shortens(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long") as caught, short_path(tmp_path / ("n" * 120)):
        pass
    assert caught.value.errno == errno.ENAMETOOLONG
