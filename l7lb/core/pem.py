"""PEM held in memory, for functions of OpenSSL that read files only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def in_file(content: bytes) -> Iterator[str]:
    """A path that gives this content while the context lasts: a key never touches a disk. Raises OSError."""
    descriptor = os.memfd_create("l7lb-pem", os.MFD_CLOEXEC)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
