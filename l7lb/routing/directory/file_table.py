"""A text file as a hash table that costs eight bytes a line beside the text itself.

The text stays as it was read. Beside it stands a sorted array with a number for each line: 32 bits of the key's hash
over the 32 bits of the line's place. A look-up is a binary search and a look at the line. Keys are compared in lower
case unless the question has capitals, which it has only where the addresses' rules keep them.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

from l7lb.core.contracts import Entry

LARGEST = 2**32 - 1  # bytes
BUCKETS = 256  # the array is sorted in so many parts, so that no step takes long
NOTHING = b"-"  # a field that says nothing
COLUMNS = ("address", "mailbox", "server", "user", "password", "master_user", "master_password")


class BadFile(ValueError):
    """The text can't be used; says which line, and why."""


def check_columns(columns: Sequence[str]) -> None:
    """Raises ValueError for columns that can't be."""
    named = [column for column in columns if column != "-"]
    unknown = [column for column in named if column not in COLUMNS]
    if unknown:
        raise ValueError(f"no column {unknown[0]!r}; there are {', '.join(COLUMNS)}, and - for what is of no interest")
    if "address" not in named or len(set(named)) != len(named):
        raise ValueError("columns name the address, and each no more than once")


class FileTable:
    """See the module. ``separator`` empty: white space. Raises BadFile; takes some seconds for a million lines."""

    def __init__(self, text: bytes, columns: Sequence[str], separator: str = "") -> None:
        check_columns(columns)
        if len(text) > LARGEST:
            raise BadFile(f"more than {LARGEST} bytes")
        self._text = text
        self._columns = tuple(columns)
        self._address = self._columns.index("address")
        self._separator = separator.encode() or None
        self._index = self._sorted(self._numbers())
        self._check_twice()

    def __len__(self) -> int:
        return len(self._index)

    def _numbers(self) -> list[list[int]]:
        """A number for each line, in buckets by its highest bits."""
        found: list[list[int]] = [[] for _ in range(BUCKETS)]
        count, address, separator = len(self._columns), self._address, self._separator
        text, start, line = self._text, 0, 0
        while start < len(text):
            line += 1
            end = text.find(b"\n", start)
            if end < 0:
                end = len(text)
            row = text[start:end]
            if row and row[0] != 0x23 and not row.isspace():  # a comment begins with a number sign
                words = row.split(separator)
                if len(words) != count:
                    raise BadFile(f"line {line} has {len(words)} columns, not {count}")
                key = words[address].strip()
                if not key or key == NOTHING:
                    raise BadFile(f"line {line} has no address")
                number = xxh3_64_intdigest(key.lower()) >> 32
                found[number >> 24].append(number << 32 | start)
            start = end + 1
        return found

    @staticmethod
    def _sorted(buckets: list[list[int]]) -> array[int]:
        index: array[int] = array("Q")
        for bucket in buckets:
            bucket.sort()
            index.extend(bucket)
            bucket.clear()
        return index

    def _check_twice(self) -> None:
        """Two lines for one address must say the same: neither could be believed."""
        index = self._index
        run: dict[bytes, int] = {}
        before = -1
        for number in index:
            if number >> 32 != before >> 32:
                if len(run) > 0:
                    run.clear()
                before = number
                continue
            if not run:
                run[self._words(before & LARGEST)[self._address]] = before & LARGEST
            place = number & LARGEST
            key = self._words(place)[self._address]
            other = run.setdefault(key, place)
            if other != place and self._words(other) != self._words(place):
                lines = sorted(self._text.count(b"\n", 0, one) + 1 for one in (other, place))
                raise BadFile(f"lines {lines[0]} and {lines[1]} say different things of one address")

    def _words(self, place: int) -> list[bytes]:
        end = self._text.find(b"\n", place)
        row = self._text[place : end if end >= 0 else len(self._text)]
        return [word.strip() for word in row.split(self._separator)]

    def find(self, key: bytes) -> Entry | None:
        """The entry of an address."""
        folded = key.lower()
        high = xxh3_64_intdigest(folded) >> 32
        at = bisect_left(self._index, high << 32)
        alike = None
        while at < len(self._index) and self._index[at] >> 32 == high:
            words = self._words(self._index[at] & LARGEST)
            written = words[self._address]
            if written == key:
                return self._entry(words)
            if folded == key and written.lower() == key and alike is None:
                alike = words
            at += 1
        return self._entry(alike) if alike is not None else None

    def _entry(self, words: list[bytes]) -> Entry:
        entry = Entry()
        for column, word in zip(self._columns, words, strict=True):
            if column in ("-", "address") or word == NOTHING:
                continue
            if column == "server":
                entry.server = word.decode("utf-8", "replace")
            else:
                setattr(entry, column, word)
        return entry
