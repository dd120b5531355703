"""Tables in a file: whole or not at all, through restarts and reboots."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from sticky_helpers import everything

from l7lb.persistence.save import MAGIC, Clock, CorruptFile, load, save
from l7lb.persistence.table import TICKS, Table

NOW = Clock("boot-1", 1_700_000_000.0, 5000.0)


class Loaded(dict[str, Table]):
    """Makes tables as a state process does."""

    def give(self, name: str, ttl: float) -> Table:
        return self.setdefault(name, Table(name, ttl, 10_000, origin=99, relay=True))


def filled(entries: int = 3000) -> list[Table]:
    first, second = Table("web/source", 600.0, 10_000, origin=1), Table("api/header/x", 60.0, 10_000, origin=1)
    for number in range(entries):
        first.put(b"%d" % number, f"web{number % 5}", NOW.monotonic - 100.0 + number / 100)
    second.put(b"k", "api1", NOW.monotonic - 10.0)
    second.put(b"gone", "api1", NOW.monotonic - 10.0)
    second.delete(b"gone", NOW.monotonic - 5.0)
    return [first, second]


def write(path: Path, tables: list[Table], clock: Clock = NOW) -> int:
    return asyncio.run(save(path, tables, clock))


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "tables"
    tables = filled()
    assert write(path, tables) == 3002
    loaded = Loaded()
    assert load(path, loaded.give, NOW) == 3002
    assert {name: table.ttl for name, table in loaded.items()} == {"web/source": 600.0, "api/header/x": 60.0}
    for table in tables:
        assert everything(loaded[table.name]) == everything(table)


def test_the_order_of_use_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "tables"
    write(path, filled())
    loaded = Loaded()
    load(path, loaded.give, NOW)
    table = loaded["web/source"]
    for index in range(table.parts):
        times = [delta[2] for delta in table.part(index)]
        assert times == sorted(times)


def test_no_tables_are_a_file_too(tmp_path: Path) -> None:
    assert write(tmp_path / "tables", []) == 0
    assert load(tmp_path / "tables", Loaded().give, NOW) == 0


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    write(tmp_path / "tables", filled())
    assert stat.S_IMODE(os.stat(tmp_path / "tables").st_mode) == 0o600
    assert os.listdir(tmp_path) == ["tables"]


def test_a_later_restart_leaves_out_what_has_expired(tmp_path: Path) -> None:
    write(tmp_path / "tables", filled())
    loaded = Loaded()
    load(tmp_path / "tables", loaded.give, Clock("boot-1", NOW.wall + 300.0, NOW.monotonic + 300.0))
    assert len(loaded["web/source"]) == 3000
    assert len(loaded["api/header/x"]) == 0


def test_a_reboot_counts_by_the_wall_clock(tmp_path: Path) -> None:
    write(tmp_path / "tables", filled())
    loaded = Loaded()
    after = Clock("boot-2", NOW.wall + 40.0, 7.0)  # forty seconds later, seven after the boot
    load(tmp_path / "tables", loaded.give, after)
    table = loaded["api/header/x"]
    assert table.get(b"k", 7.0) == "api1"  # used 50 s before, of 60
    assert everything(table)[-1][2] == pytest.approx((7.0 - 50.0) * TICKS, abs=2)
    assert table.get(b"k", 7.0 + 13.0) is None


def test_a_wall_clock_that_was_set_does_not_matter_within_a_boot(tmp_path: Path) -> None:
    write(tmp_path / "tables", filled())
    loaded = Loaded()
    load(tmp_path / "tables", loaded.give, Clock("boot-1", 0.0, NOW.monotonic + 1.0))
    assert len(loaded["web/source"]) == 3000


def test_a_wall_clock_that_went_back_leaves_nothing_in_the_future(tmp_path: Path) -> None:
    write(tmp_path / "tables", filled())
    loaded = Loaded()
    load(tmp_path / "tables", loaded.give, Clock("boot-2", NOW.wall - 1e8, 7.0))
    assert len(loaded["web/source"]) == 3000
    assert max(delta[2] for delta in everything(loaded["web/source"])) <= 7 * TICKS


def test_without_a_boot_id_the_wall_clock_counts(tmp_path: Path) -> None:
    write(tmp_path / "tables", filled(), NOW._replace(boot=""))
    loaded = Loaded()
    load(tmp_path / "tables", loaded.give, Clock("", NOW.wall, 7.0))
    assert len(loaded["web/source"]) == 3000


def test_the_real_clock_is_read() -> None:
    clock = Clock.read()
    assert clock.monotonic > 0.0
    assert clock.wall > 1e9


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "tables", Loaded().give, NOW)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "tables"
    write(path, filled(10))
    before = path.read_bytes()
    (tmp_path / "tables.new").mkdir()
    with pytest.raises(OSError, match="directory"):
        write(path, filled(20))
    assert path.read_bytes() == before


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "tables.new").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        write(tmp_path / "tables", filled(1))
    assert victim.read_text() == "precious"


def cut(data: bytes) -> bytes:
    return data[:-1]


def cut_frame(data: bytes) -> bytes:
    return data[:-20]


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def empty(data: bytes) -> bytes:
    return b""


def other(data: bytes) -> bytes:
    return b"#!/bin/sh\n"


def later_format(data: bytes) -> bytes:
    return data.replace(b"format 1", b"format 2", 1)


def only_magic(data: bytes) -> bytes:
    return MAGIC


def huge_frame(data: bytes) -> bytes:
    return MAGIC + b"\xff\xff\xff\xff" + bytes(100)


def without_first_frame(data: bytes) -> bytes:
    rest = data[len(MAGIC) :]
    return MAGIC + rest[8 + int.from_bytes(rest[:4], "big") :]


def frame_lost(data: bytes) -> bytes:
    first = len(MAGIC) + 8 + int.from_bytes(data[len(MAGIC) : len(MAGIC) + 4], "big")
    second = first + 8 + int.from_bytes(data[first : first + 4], "big")
    return data[:first] + data[second:]


def frame_twice(data: bytes) -> bytes:
    first = len(MAGIC) + 8 + int.from_bytes(data[len(MAGIC) : len(MAGIC) + 4], "big")
    second = first + 8 + int.from_bytes(data[first : first + 4], "big")
    return data[:second] + data[len(MAGIC) : first] + data[second:]


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        cut_frame,
        flip,
        empty,
        other,
        later_format,
        only_magic,
        huge_frame,
        without_first_frame,
        frame_lost,
        frame_twice,
    ],
)
def test_damage_is_noticed(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "tables"
    write(path, filled())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CorruptFile):
        load(path, Loaded().give, NOW)


def test_a_table_that_can_not_be_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "tables"
    write(path, filled())

    def refuse(name: str, ttl: float) -> Table:
        raise ValueError("there are 4096 tables already")

    with pytest.raises(CorruptFile, match="already"):
        load(path, refuse, NOW)
