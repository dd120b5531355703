"""Sticky tables in a file, so that they outlive a restart of the node.

The file is a first line, then frames: length and CRC-32 in four bytes each, big end first, and MessagePack. The first
frame says when it was written, the last that it is complete. It appears under its name only when it is on the disk.

Entries keep the monotonic clock's ticks. Within one boot of the machine these mean the same after a restart. After
another boot they are converted: the first frame has what the monotonic and the wall clock showed at the time.
"""

from __future__ import annotations

import asyncio
import os
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from l7lb.persistence.messages import NAME_LIMIT, chunks
from l7lb.persistence.table import TICKS, Delta, Table

MAGIC = b"l7lb sticky tables, format 1\n"
FRAME_LIMIT = 1 << 20  # bytes
BUFFER = 1 << 18  # bytes gathered before they are written
BOOT_ID = "/proc/sys/kernel/random/boot_id"


class CorruptFile(Exception):
    """The file isn't what ``save`` writes; the text says where that shows."""


class Clock(NamedTuple):
    """The boot (its id, "" if unknown), and seconds of the wall and the monotonic clock at one moment."""

    boot: str
    wall: float
    monotonic: float

    @classmethod
    def read(cls) -> Clock:
        """Now."""
        try:
            boot = Path(BOOT_ID).read_text().strip()
        except OSError:
            boot = ""
        return cls(boot, time.time(), time.monotonic())


class Written(msgspec.Struct, tag="written"):
    """The first frame: the clocks when it was written."""

    boot: str
    wall: float
    monotonic: float


class Saved(msgspec.Struct, tag="saved"):
    """Some of a table's entries, and its time to live."""

    table: str
    ttl: float
    deltas: list[Delta]


class End(msgspec.Struct, tag="end"):
    """The last frame: how many entries there were."""

    entries: int


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Written | Saved | End] = msgspec.msgpack.Decoder(Written | Saved | End)


async def save(path: Path, tables: Iterable[Table], clock: Clock) -> int:
    """Write the tables; returns how many entries. Others run between their parts. Raises OSError.

    The file names users' servers and holds digests and addresses: it is readable by its owner only.
    """
    temporary = path.with_name(f"{path.name}.new")
    with await asyncio.to_thread(_create, temporary) as file:
        entries = await _write(file, tables, clock)
        file.flush()
        await asyncio.to_thread(os.fsync, file.fileno())
    os.replace(temporary, path)
    await asyncio.to_thread(_sync_directory, path.parent)
    return entries


def _create(path: Path) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o600), "wb")


async def _write(file: BinaryIO, tables: Iterable[Table], clock: Clock) -> int:
    entries = 0
    text = bytearray(MAGIC + _frame(Written(*clock)))
    for table in tables:
        for index in range(table.parts):
            for deltas in chunks(table.part(index)):
                text += _frame(Saved(table.name, table.ttl, deltas))
                entries += len(deltas)
            if len(text) > BUFFER:
                await asyncio.to_thread(file.write, bytes(text))  # disks make one wait
                text.clear()
            else:
                await asyncio.sleep(0)
    text += _frame(End(entries))
    await asyncio.to_thread(file.write, bytes(text))
    return entries


def _frame(frame: Written | Saved | End) -> bytes:
    body = _encoder.encode(frame)
    return len(body).to_bytes(4, "big") + zlib.crc32(body).to_bytes(4, "big") + body


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(path: Path, table: Callable[[str, float], Table], clock: Clock) -> int:
    """Merge a file's entries into the tables that ``table`` gives by name and time to live; returns how many.

    What has expired meanwhile is left out. Raises FileNotFoundError, OSError, or CorruptFile, then with part of the
    entries merged.
    """
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise CorruptFile("it does not begin as such a file does")
        written = _read_frame(file)
        if not isinstance(written, Written):
            raise CorruptFile("its first frame is missing")
        shift = 0
        if not clock.boot or written.boot != clock.boot:
            shift = int(((clock.monotonic - clock.wall) - (written.monotonic - written.wall)) * TICKS)
        return _read_tables(file, table, shift, clock.monotonic)


def _read_tables(file: BinaryIO, table: Callable[[str, float], Table], shift: int, now: float) -> int:
    latest = int(now * TICKS)
    read = kept = 0
    touched: dict[str, Table] = {}
    while not isinstance(frame := _read_frame(file), End):
        if not isinstance(frame, Saved) or not 0 < len(frame.table) <= NAME_LIMIT:
            raise CorruptFile("a frame is not where it belongs")
        read += len(frame.deltas)
        moved = [(key, server, min(ticks + shift, latest), origin) for key, server, ticks, origin in frame.deltas]
        try:
            target = touched[frame.table] = table(frame.table, frame.ttl)
            kept += target.merge(moved, now)
        except ValueError as error:
            raise CorruptFile(str(error)) from None
    if frame.entries != read:
        raise CorruptFile(f"it has {read} entries and should have {frame.entries}")
    for target in touched.values():
        target.sort()
    return kept


def _read_frame(file: BinaryIO) -> Written | Saved | End:
    head = file.read(8)
    length = int.from_bytes(head[:4], "big")
    if len(head) < 8 or length > FRAME_LIMIT:
        raise CorruptFile(f"there is no frame before byte {file.tell()}")
    body = file.read(length)
    if len(body) < length or zlib.crc32(body) != int.from_bytes(head[4:], "big"):
        raise CorruptFile(f"the frame before byte {file.tell()} is damaged")
    try:
        return _decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise CorruptFile(f"the frame before byte {file.tell()}: {error}") from None
