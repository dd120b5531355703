"""`l7lb directory ask`, from the admin API to the directory process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from rich.console import Console

from l7lb.control import tables
from l7lb.control.admin import AdminServer
from l7lb.control.client import AdminClient, AdminError
from l7lb.control.node import NodeState
from l7lb.core.snapshot import Directory, FileSource
from l7lb.proxy.workers.children import DIRECTORIES_SOCKET

pytestmark = pytest.mark.asyncio
Make = Callable[..., Any]


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-P", "-m", "l7lb.app", "directories", "--directory", str(tmp_path)]
    made = subprocess.Popen(command)
    yield made
    made.kill()
    made.wait()


def file(path: Path, name: str, *columns: str) -> Directory:
    return Directory(name=name, source=FileSource(path=str(path), columns=columns))


@pytest_asyncio.fixture
async def client(
    process: subprocess.Popen[bytes], make_pool: Make, make_snapshot: Make, supervisor: Any, tmp_path: Path
) -> AsyncIterator[AdminClient]:
    (tmp_path / "people").write_text("anna@example.com anna mx1 secret\nbert@example.com bert elsewhere -\n")
    (tmp_path / "legacy").write_text("anna@example.com 127.0.0.1:9002\n")
    configured = msgspec.structs.replace(
        make_snapshot(make_pool("mail", "mx1", "mx2")),
        directories=(
            file(tmp_path / "people", "people", "address", "mailbox", "server", "password"),
            file(tmp_path / "legacy", "legacy", "address", "server"),
        ),
    )
    server = AdminServer(tmp_path / "admin.sock", NodeState(configured, tmp_path / "state"), supervisor)
    await server.start()
    yield AdminClient(tmp_path / "admin.sock", 20.0)
    await server.stop()


async def get(client: AdminClient, **query: object) -> Any:
    return await asyncio.to_thread(client.get, "directory", **query)


async def test_each_directory_says_what_it_knows_and_no_password(client: AdminClient, tmp_path: Path) -> None:
    found = await get(client, address="ANNA@example.com")
    assert (found["address"], found["user"]) == ("anna@example.com", "anna@example.com")
    first, second = found["answers"]
    assert (first["directory"], first["status"], first["mailbox"], first["server"]) == (
        "people",
        "found",
        "anna",
        "mx1",
    )
    assert (first["known"], first["password"], second["known"]) == (["mail/mx1"], True, ["mail/mx2"])
    assert "secret" not in str(found)
    (only,) = (await get(client, address="bert@example.com", directory=["people"]))["answers"]
    assert (only["server"], only["known"]) == ("elsewhere", [])
    (only,) = (await get(client, address="bert@example.com", directory=["legacy"]))["answers"]
    assert only["status"] == "missing"
    assert (tmp_path / DIRECTORIES_SOCKET).exists()


async def test_what_cannot_be_asked_is_refused(client: AdminClient) -> None:
    with pytest.raises(AdminError, match="no directory peopel: did you mean people"):
        await get(client, address="a@b", directory=["peopel"])
    for address in ("", "a" * 2000):
        with pytest.raises(AdminError, match="1 to 1024 bytes"):
            await get(client, address=address)


async def test_without_directories_there_is_nothing_to_ask(
    make_pool: Make, make_snapshot: Make, supervisor: Any, tmp_path: Path
) -> None:
    configured = make_snapshot(make_pool("mail", "mx1"))
    server = AdminServer(tmp_path / "admin.sock", NodeState(configured, tmp_path / "state"), supervisor)
    await server.start()
    with pytest.raises(AdminError, match="no directories"):
        await get(AdminClient(tmp_path / "admin.sock", 20.0), address="a@b")
    await server.stop()


async def test_it_is_printed_as_a_table() -> None:
    row = {"mailbox": "", "server": "", "known": [], "user": "", "password": False, "master_user": "", "why": ""}
    found = {
        "address": "anna@example.com",
        "user": "anna",
        "answers": [
            {**row, "directory": "one", "status": "found", "server": "mx1", "known": ["mail/mx1"], "seconds": 0.0012},
            {
                **row,
                "directory": "two",
                "status": "found",
                "server": "mx9",
                "user": "a",
                "password": True,
                "seconds": 0.0,
            },
            {**row, "directory": "three", "status": "failed", "why": "no answer", "master_user": "m", "seconds": 2.0},
        ],
    }
    console = Console(width=120, record=True)
    console.print(tables.directory(found))
    text = console.export_text()
    assert "asked for anna@example.com, or anna" in text
    assert "mx1 (mail/mx1)" in text
    assert "mx9 (no pool has it)" in text
    assert "logs in as a, with a password of its own" in text
    assert "no answer, by master user m" in text
