"""Directories in files: what a line says, little memory, and files that change while they are used."""

from __future__ import annotations

import asyncio
import os
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from directory_helpers import until
from hypothesis import given
from hypothesis import strategies as st

from l7lb.core.directory import Question
from l7lb.core.snapshot import FileSource
from l7lb.routing.directory import file_table
from l7lb.routing.directory.file import FileDirectory
from l7lb.routing.directory.file_table import BadFile, FileTable

TWO = ("address", "server")


def server(table: FileTable, address: bytes) -> str | None:
    entry = table.find(address)
    return None if entry is None else entry.server


# --- what a file says ---------------------------------------------------------------------------------------------------


def test_lines_comments_and_ends() -> None:
    text = b"# who is where\n\nanna@example.com mx1\r\n   \n  bert@example.com\t\tmx2  \nlast@example.com mx3"
    table = FileTable(text, TWO)
    assert len(table) == 3
    assert [server(table, b"%b@example.com" % name) for name in (b"anna", b"bert", b"last", b"none")] == [
        "mx1",
        "mx2",
        "mx3",
        None,
    ]
    assert len(FileTable(b"", TWO)) == 0
    assert server(FileTable(b"", TWO), b"x") is None


def test_columns_say_what_stands_where() -> None:
    columns = ("server", "-", "address", "mailbox", "user", "password", "master_user", "master_password")
    entry = FileTable(b"mx1 ignored a@b anna u p mu mp\n", columns).find(b"a@b")
    assert entry is not None
    assert (entry.server, entry.mailbox, entry.user, entry.password) == ("mx1", b"anna", b"u", b"p")
    assert (entry.master_user, entry.master_password) == (b"mu", b"mp")
    entry = FileTable(b"- ignored a@b - - - - -\n", columns).find(b"a@b")
    assert entry is not None
    assert (entry.server, entry.mailbox, entry.user, entry.master_user) == ("", b"", b"", b"")


def test_a_separator_of_ones_own() -> None:
    entry = FileTable(b"a@b : a pass word:mx1\n", ("address", "password", "server"), ":").find(b"a@b")
    assert entry is not None
    assert (entry.password, entry.server) == (b"a pass word", "mx1")
    assert server(FileTable(b"a@b::mx1\n", ("address", "mailbox", "server"), ":"), b"a@b") == "mx1"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"a@b mx1\nc@d\n", "line 2 has 1 columns, not 2"),
        (b"a@b mx1 x\n", "line 1 has 3 columns, not 2"),
        (b"# x\n\n- mx1\n", "line 3 has no address"),
        (b"a@b mx1\nc@d mx1\na@b mx2\n", "lines 1 and 3 say different things of one address"),
    ],
)
def test_a_file_that_cannot_be_meant_says_where(text: bytes, why: str) -> None:
    with pytest.raises(BadFile, match=why):
        FileTable(text, TWO)


def test_the_same_line_twice_is_no_harm() -> None:
    table = FileTable(b"a@b mx1\nc@d mx2\na@b   mx1\n", TWO)
    assert server(table, b"a@b") == "mx1"


@pytest.mark.parametrize("columns", [(), ("server",), ("address", "address"), ("address", "colour")])
def test_columns_that_cannot_be(columns: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"column|columns"):
        FileTable(b"", columns)


def test_capitals_in_the_file_are_no_obstacle_and_those_of_a_question_count() -> None:
    table = FileTable(b"Anna@Example.com mx1\nBERT@example.com mx2\nbert@example.com mx3\n", TWO)
    assert server(table, b"anna@example.com") == "mx1"
    assert server(table, b"bert@example.com") == "mx3"
    assert server(table, b"BERT@example.com") == "mx2"
    assert server(table, b"BeRT@example.com") is None


def test_keys_whose_hashes_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_table, "xxh3_64_intdigest", lambda key: 7 << 32)
    table = FileTable(b"".join(b"u%d@b mx%d\n" % (number, number) for number in range(20)) + b"u3@b mx3\n", TWO)
    assert [server(table, b"u%d@b" % number) for number in range(21)] == [f"mx{number}" for number in range(20)] + [
        None
    ]
    with pytest.raises(BadFile, match="lines 2 and 4"):
        FileTable(b"a@b 1\nc@d 2\ne@f 3\nc@d 4\n", TWO)


word = st.text("abcXYZ019.@_-", min_size=1, max_size=12).filter(lambda text: text != "-").map(str.encode)


@given(st.dictionaries(word, word))
def test_the_table_says_what_a_dictionary_says(entries: dict[bytes, bytes]) -> None:
    table = FileTable(b"".join(b"%b %b\n" % pair for pair in entries.items()), TWO)
    assert len(table) == len(entries)
    for key, value in entries.items():
        assert server(table, key) == value.decode()
    assert server(table, b"somebody else") is None


def many(count: int) -> bytes:
    return b"".join(b"user%d@example.com mx%d\n" % (number, number % 7) for number in range(count))


def test_a_line_costs_eight_bytes_beside_the_text() -> None:
    text = many(50_000)
    tracemalloc.start()
    table = FileTable(text, TWO)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(table) == 50_000
    assert used / 50_000 < 12


@pytest.mark.serial
def test_a_million_lines_are_read_and_found() -> None:
    table = FileTable(many(1_000_000), TWO)
    assert len(table) == 1_000_000
    began = time.perf_counter()
    for number in range(0, 1_000_000, 100):
        assert server(table, b"user%d@example.com" % number) == f"mx{number % 7}"
    assert (time.perf_counter() - began) / 10_000 < 100e-6


# --- files that change --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def watched(path: Path, columns: tuple[str, ...] = TWO) -> AsyncIterator[FileDirectory]:
    directory = FileDirectory("people", FileSource(path=str(path), columns=columns), look=0.02)
    try:
        yield directory
    finally:
        await directory.close()


async def where(directory: FileDirectory, address: bytes, user: bytes = b"") -> str:
    result = await directory.find(Question(address, user))
    return result.entry.server if result.entry is not None else result.status


def replace(path: Path, text: str) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(text)
    os.replace(beside, path)


@pytest.mark.asyncio
async def test_an_address_its_short_name_or_its_domain(tmp_path: Path) -> None:
    path = tmp_path / "users.txt"
    path.write_text("anna@example.com mx1\nbert mx2\n@example.org mx3\nspecial@example.org mx4\n")
    async with watched(path) as directory:
        assert await where(directory, b"anna@example.com", b"anna") == "mx1"
        assert await where(directory, b"bert@example.com", b"bert") == "mx2"
        assert await where(directory, b"bert@example.net", b"bert@example.net") == "missing"
        assert await where(directory, b"anybody@example.org") == "mx3"
        assert await where(directory, b"special@example.org") == "mx4"
        assert await where(directory, b"noat") == "missing"


@pytest.mark.asyncio
async def test_a_new_file_takes_effect_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "users.txt"
    path.write_text("a@b mx1\n")
    async with watched(path) as directory:
        assert await where(directory, b"a@b") == "mx1"
        replace(path, "a@b mx2\n")
        await until(lambda: directory.table is not None and server(directory.table, b"a@b") == "mx2")
        with path.open("a") as file:
            file.write("c@d mx3\n")
        await until(lambda: directory.table is not None and server(directory.table, b"c@d") == "mx3")


@pytest.mark.asyncio
async def test_a_broken_new_file_leaves_the_old_one_in_use_and_says_why_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "users.txt"
    path.write_text("a@b mx1\n")
    async with watched(path) as directory:
        assert await where(directory, b"a@b") == "mx1"
        replace(path, "a@b mx2\nbroken\n")
        await until(lambda: "line 2 has 1 columns" in caplog.text)
        assert "what was read before goes on" in caplog.text
        assert await where(directory, b"a@b") == "mx1"
        path.unlink()
        await until(lambda: "No such file" in caplog.text)
        await asyncio.sleep(0.1)
        assert caplog.text.count("No such file") == 1
        assert await where(directory, b"a@b") == "mx1"
        path.write_text("a@b mx3\n")
        await until(lambda: directory.table is not None and server(directory.table, b"a@b") == "mx3")


@pytest.mark.asyncio
async def test_a_file_that_is_not_there_yet_is_a_failure_until_it_is(tmp_path: Path) -> None:
    path = tmp_path / "users.txt"
    async with watched(path) as directory:
        assert await where(directory, b"a@b") == "failed"
        assert directory.known(Question(b"a@b")) is not None
        path.write_text("a@b mx1\n")
        await until(lambda: directory.table is not None)
        assert await where(directory, b"a@b") == "mx1"


@pytest.mark.asyncio
async def test_a_file_that_is_being_written_is_not_read_half(tmp_path: Path) -> None:
    path = tmp_path / "users.txt"
    path.write_text("a@b mx1\n")
    async with watched(path) as directory:
        assert await where(directory, b"a@b") == "mx1"
        with path.open("w") as file:
            for number in range(30):
                file.write(f"u{number}@b mx1\n")
                file.flush()
                await asyncio.sleep(0.005)
                assert directory.table is not None
                assert len(directory.table) == 1
        await until(lambda: directory.table is not None and len(directory.table) == 30)
