"""Globs: ``*`` stands for any run of characters, ``/`` and ``.`` included, the empty one too. Nothing else is special.

A glob is cut into its literal pieces, and each piece is looked for once, from left to right: no backtracking, so that
no value can make a match slow (a regular expression made of several ``.*`` could). Each ``*`` therefore takes as
little as it can, and the last one what is left; ``/a/*/b/*`` gives ``x`` and ``y/b/z`` for ``/a/x/b/y/b/z``.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable

Matcher = Callable[[bytes], bool]

UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
# What a request target can't hold as it is (RFC 3986 section 2); everything else stays as the operator wrote it.
ENCODED = re.compile(rb'[\x00-\x20"<>\\^`\x7f-\xff]')
SPACE = re.compile(r"\s")
MAX_LENGTH = 4096


class Glob:
    """One compiled glob."""

    __slots__ = ("_first", "_last", "_least", "_middle", "literal", "stars", "text")

    def __init__(self, text: bytes) -> None:
        self.text = text
        pieces = text.split(b"*")
        self.stars = len(pieces) - 1
        self.literal = self.stars == 0
        self._first = pieces[0]
        self._last = pieces[-1]
        self._middle = pieces[1:-1]
        self._least = len(text) - self.stars

    @property
    def prefix(self) -> bytes:
        """What every match begins with."""
        return self._first

    @property
    def is_prefix(self) -> bool:
        """Whether the glob is its prefix and then anything."""
        return self.stars > 0 and not self._last and not any(self._middle)

    def matches(self, value: bytes) -> bool:
        """Whether the whole value matches."""
        if self.literal:
            return value == self.text
        if len(value) < self._least or not value.startswith(self._first) or not value.endswith(self._last):
            return False
        position = len(self._first)
        end = len(value) - len(self._last)
        for piece in self._middle:
            found = value.find(piece, position, end)
            if found < 0:
                return False
            position = found + len(piece)
        return True

    def captures(self, value: bytes, original: bytes) -> tuple[bytes, ...] | None:
        """What each ``*`` stands for, cut from ``original``, which differs from ``value`` in case only.

        None where the value doesn't match.
        """
        if not self.matches(value):
            return None
        if self.literal:
            return ()
        found = []
        position = len(self._first)
        for piece in self._middle:
            start = value.find(piece, position)
            found.append(original[position:start])
            position = start + len(piece)
        found.append(original[position : len(value) - len(self._last)])
        return tuple(found)


def anything(_value: bytes) -> bool:
    """The matcher of ``*``."""
    return True


def any_of(globs: Iterable[Glob]) -> Matcher:
    """A function that tells whether a value matches any of the globs, as cheap as they allow."""
    literals = frozenset(glob.text for glob in globs if glob.literal)
    others = [glob for glob in globs if not glob.literal]
    if any(glob.is_prefix and not glob.prefix for glob in others):
        return anything
    if not others:
        return literals.__contains__
    if not literals and all(glob.is_prefix for glob in others):
        prefixes = tuple(glob.prefix for glob in others)
        return lambda value: value.startswith(prefixes)
    if not literals and len(others) == 1:
        return others[0].matches
    matchers = tuple(glob.matches for glob in others)

    def matches(value: bytes) -> bool:
        if value in literals:
            return True
        for matcher in matchers:  # noqa: SIM110 - a generator would cost more
            if matcher(value):
                return True
        return False

    return matches


# --- what operators write, in the form that facts have ---------------------------------------------------------------


def host_glob(text: str) -> Glob:
    """A host glob in the form of hosts: lower case, international labels as IDNA, IPv6 in brackets, no final dot.

    Raises ValueError, in words for the operator, for what no host can match.
    """
    if not text:
        raise ValueError("a host is missing")
    if len(text) > MAX_LENGTH:
        raise ValueError(f"a host has at most {MAX_LENGTH} characters")
    plain = text.lower()
    if ":" in plain:
        try:
            return Glob(b"[" + ipaddress.IPv6Address(plain.strip("[]")).compressed.encode() + b"]")
        except ValueError:
            pass
    if "://" in plain or "/" in plain:
        raise ValueError(f'"{text}" is a URL or has a path; a host alone is wanted, the path goes into path:')
    if ":" in plain and not plain.startswith("["):
        raise ValueError(f'"{text}" has a port; hosts are compared without it')
    if SPACE.search(plain):
        raise ValueError(f'"{text}" has a space, which no host has')
    if len(plain) > 1:
        plain = plain.removesuffix(".")
    if plain.isascii():
        return Glob(plain.encode())
    try:
        return Glob(b".".join(label.encode("idna") if label else b"" for label in plain.split(".")))
    except UnicodeError:
        raise ValueError(f'"{text}" has a label that is not an international domain name') from None


def _normal_escape(match: re.Match[bytes]) -> bytes:
    value = int(match[1], 16)
    return bytes([value]) if value in UNRESERVED else match[0].upper()


def path_glob(text: str, exact_case: bool = False) -> Glob:
    """A path glob in the form of normalised paths, which in lower case (not with ``exact_case``).

    Characters that a request can't hold as they are become percent-encoded. Raises ValueError, in words for the
    operator, for what no normalised path can match.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"a path has at most {MAX_LENGTH} characters")
    if not text.startswith(("/", "*")):
        raise ValueError(f'"{text}" begins neither with "/" nor with "*", so that no path matches it')
    for mark in "?#":
        if mark in text:
            raise ValueError(f'"{text}" has a "{mark}", which no path has; parameters go into query:')
    data = ENCODED.sub(lambda match: b"%%%02X" % match[0][0], text.encode())
    data = ESCAPE.sub(_normal_escape, data)
    if b"//" in data or any(segment in (b".", b"..") for segment in data.split(b"/")):
        raise ValueError(f'"{text}" has empty or dot segments, which are removed from paths before rules see them')
    return Glob(data if exact_case else data.lower())


def value_glob(text: str) -> Glob:
    """A glob for values of headers, cookies and parameters, which are compared byte by byte."""
    return Glob(text.encode())


def check_host(text: str) -> str | None:
    """What is wrong with a host glob, or None."""
    try:
        host_glob(text)
    except ValueError as problem:
        return str(problem)
    return None


def check_path(text: str) -> str | None:
    """What is wrong with a path glob, or None."""
    try:
        path_glob(text)
    except ValueError as problem:
        return str(problem)
    return None
