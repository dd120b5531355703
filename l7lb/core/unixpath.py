"""Unix sockets whose path is longer than the kernel's address holds.

``sockaddr_un`` has room for 108 bytes, the closing zero included (unix(7)); a path in a deep directory has more.
The directory is opened and named by its descriptor instead: ``/proc/self/fd/N/name`` is short and leads to the same
file. Standard library only, so that the smallest process can import it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIMIT = 107  # bytes of a path in sockaddr_un, without the closing zero


@contextmanager
def short_path(path: str | Path) -> Iterator[str]:
    """A name of ``path`` that bind and connect accept, while the context lasts.

    A path that fits is yielded as it is. Raises OSError where the directory can't be opened, or with ENAMETOOLONG
    where the last component alone is too long.
    """
    name = os.fspath(path)
    if len(os.fsencode(name)) <= LIMIT:
        yield name
        return
    directory, last = os.path.split(name)
    descriptor = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{descriptor}/{last}"
        if not last or len(os.fsencode(short)) > LIMIT:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), name)
        yield short
    finally:
        os.close(descriptor)
