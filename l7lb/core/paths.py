"""Paths as URLs have them: the one removal of empty and dot segments (RFC 3986 section 5.2.4)."""

from __future__ import annotations

import re
from typing import Final

SPLIT: Final = re.compile(rb"/+")


def plain_path(path: bytes) -> bytes:
    """A path that begins with a slash, without empty and dot segments; it never climbs above its beginning."""
    if path.find(b"//") < 0 and path.find(b"/.") < 0:
        return path
    segments: list[bytes] = []
    parts = SPLIT.split(path)
    for part in parts[1:]:
        if part == b"..":
            if segments:
                segments.pop()
        elif part != b".":
            segments.append(part)
    # A path that ended in a dot segment names a directory: its slash stays.
    if parts[-1] in (b".", b"..") and (not segments or segments[-1]):
        segments.append(b"")
    return b"/" + b"/".join(segments)
