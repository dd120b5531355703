"""Real state processes: signals, files, deaths."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
from sticky_helpers import Nodes, Processes, everything, until

from l7lb.persistence.table import Table

pytestmark = pytest.mark.asyncio


def put(table: Table, key: bytes, server: str) -> None:
    table.put(key, server, time.monotonic())


def get(table: Table, key: bytes) -> str | None:
    return table.get(key, time.monotonic())


async def test_users_survive_the_state_processs_death(socket_path: Path, start_state: Processes, nodes: Nodes) -> None:
    process = start_state("--socket", socket_path)
    one, other = nodes(), nodes()
    a, b = one.table(), other.table()
    for number in range(1000):
        put(a, b"%d" % number, "web1")
    await until(lambda: len(b) == 1000)
    process.kill()
    process.wait()
    await until(lambda: not one.link.connected and not other.link.connected)
    put(a, b"meanwhile", "web2")
    assert get(a, b"1") == "web1"
    start_state("--socket", socket_path)
    await until(lambda: get(b, b"meanwhile") == "web2")
    late = nodes()
    c = late.table()
    await late.link.synced.wait()
    await until(lambda: len(c) == 1001)


async def test_users_survive_a_restart_of_the_node(
    socket_path: Path, tmp_path: Path, start_state: Processes, nodes: Nodes
) -> None:
    saved = tmp_path / "tables"
    process = start_state("--socket", socket_path, "--save", saved)
    one = nodes()
    a = one.table()
    for number in range(1000):
        put(a, b"%d" % number, f"web{number % 3}")
    await one.link.synced.wait()
    await until(lambda: a.since(999, 10) is None)  # all were seen
    await one.stop()
    process.terminate()
    assert process.wait() == 0
    assert not socket_path.exists()
    start_state("--socket", socket_path, "--save", saved)
    other = nodes()
    b = other.table()
    await other.link.synced.wait()
    assert len(b) == 1000
    assert all(get(b, b"%d" % number) == f"web{number % 3}" for number in range(1000))


async def test_what_was_just_learned_is_saved_too(
    socket_path: Path, tmp_path: Path, start_state: Processes, nodes: Nodes
) -> None:
    process = start_state("--socket", socket_path, "--save", tmp_path / "tables")
    one, other = nodes(), nodes()
    a, b = one.table(), other.table()
    put(a, b"anna", "web1")
    await until(lambda: get(b, b"anna") == "web1")
    process.terminate()
    assert process.wait() == 0
    assert b"anna" in (tmp_path / "tables").read_bytes()


async def test_replicas_agree_after_deaths_in_the_middle_of_work(
    socket_path: Path, tmp_path: Path, start_state: Processes, nodes: Nodes
) -> None:
    """Three workers write the same users while state processes die and come back: in the end all know the same."""
    workers = [nodes() for _ in range(3)]
    tables = [worker.table() for worker in workers]
    random = Random(7)
    for _ in range(4):
        process = start_state("--socket", socket_path, "--save", tmp_path / "tables")
        await until(lambda: any(worker.link.connected for worker in workers))
        for _ in range(100):
            for _ in range(10):
                table = random.choice(tables)
                key = b"%d" % random.randrange(500)
                if random.random() < 0.1:
                    table.delete(key, time.monotonic())
                else:
                    put(table, key, f"web{random.randrange(5)}")
            await asyncio.sleep(0)
        process.kill()
        process.wait()
        await until(lambda: not any(worker.link.connected for worker in workers))
    start_state("--socket", socket_path, "--save", tmp_path / "tables")
    await until(lambda: everything(tables[0]) == everything(tables[1]) == everything(tables[2]))
    late = nodes()
    table = late.table()
    await late.link.synced.wait()
    await until(lambda: everything(table) == everything(tables[0]))


async def test_a_corrupt_file_is_moved_aside_in_one_line(
    socket_path: Path, tmp_path: Path, start_state: Processes, nodes: Nodes
) -> None:
    saved = tmp_path / "tables"
    saved.write_bytes(b"\x00garbage" * 1000)
    process = start_state("--socket", socket_path, "--save", saved)
    one = nodes()
    put(one.table(), b"anna", "web1")
    await one.link.synced.wait()
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 0
    assert errors.count("\n") == 1
    assert "can't be used" in errors
    assert (tmp_path / "tables.corrupt").read_bytes() == b"\x00garbage" * 1000


async def test_what_a_terminal_sends_is_ignored(socket_path: Path, start_state: Processes, nodes: Nodes) -> None:
    process = start_state("--socket", socket_path)
    one, other = nodes(), nodes()
    a, b = one.table(), other.table()
    await one.link.synced.wait()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGHUP)
    put(a, b"anna", "web1")
    await until(lambda: get(b, b"anna") == "web1")
    assert process.poll() is None


async def test_a_second_one_for_the_same_socket_ends(socket_path: Path, start_state: Processes, nodes: Nodes) -> None:
    first = start_state("--socket", socket_path)
    await until(socket_path.exists)
    one = nodes()
    await one.link.synced.wait()
    second = start_state("--socket", socket_path)
    _, errors = second.communicate()
    assert second.returncode == 3
    assert "another state process serves" in errors
    assert first.poll() is None
    assert one.link.connected


async def test_the_path_may_be_long(tmp_path: Path, start_state: Processes) -> None:
    directory = tmp_path / ("d" * 150)
    directory.mkdir()
    process = start_state("--socket", directory / "state.sock")
    made = Nodes(directory / "state.sock")
    one, other = made(), made()
    a, b = one.table(), other.table()
    put(a, b"anna", "web1")
    await until(lambda: get(b, b"anna") == "web1")
    assert (directory / "state.sock").stat().st_mode & 0o777 == 0o600
    await one.stop()
    await other.stop()
    process.terminate()
    assert process.wait() == 0
    assert os.listdir(directory) == ["state.sock.workers"]


async def test_a_socket_that_cannot_be_is_said(tmp_path: Path, start_state: Processes) -> None:
    process = start_state("--socket", tmp_path / "missing" / "state.sock")
    _, errors = process.communicate()
    assert process.returncode == 1
    assert errors.count("\n") == 1
    assert "can't listen" in errors


async def test_a_directory_that_cannot_be_written_is_said_at_the_end(
    socket_path: Path, tmp_path: Path, start_state: Processes, nodes: Nodes
) -> None:
    process = start_state("--socket", socket_path, "--save", tmp_path / "missing" / "tables")
    one, other = nodes(), nodes()
    a, b = one.table(), other.table()
    put(a, b"anna", "web1")
    await until(lambda: get(b, b"anna") == "web1")
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "can't be saved" in errors


async def test_a_size_that_cannot_be_is_refused(socket_path: Path, start_state: Processes) -> None:
    process = start_state("--socket", socket_path, "--size", "0")
    _, errors = process.communicate()
    assert process.returncode == 2
    assert "--size must be" in errors


async def test_it_loads_no_more_than_it_needs() -> None:
    """A process that lives as long as its node must be small."""
    code = "import sys, l7lb.persistence.state, l7lb.persistence.link; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & {"pydantic", "ruamel", "aiohttp", "click", "rich", "prometheus_client", "structlog"}
