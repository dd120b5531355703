"""Reading a file that a configuration names, or the configuration itself."""

from __future__ import annotations

import os
import stat

SECRET_BYTES = 4096  # the longest password in a file


class Unreadable(ValueError):
    """A file that can't be read; the text says why. ``directory``: it is one."""

    def __init__(self, message: str, directory: bool = False) -> None:
        super().__init__(message)
        self.directory = directory


def read_file(file: str, most: int) -> bytes:
    """The bytes of a regular file, at most that many, whole mebibytes. Raises Unreadable."""
    content = _read(file, most + 1)
    if len(content) > most:
        raise Unreadable(f"is larger than {most // 1024**2} MiB")
    return content


def check_file(file: str) -> None:
    """Raises Unreadable where a file can't be read, however large it is."""
    _read(file, 1)


def _read(file: str, size: int) -> bytes:
    """The file's first bytes. Raises Unreadable."""
    try:
        # Not to wait for the other end of a pipe, in a process that serves.
        with open(file, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise Unreadable("is not a file but a pipe, a device or the like")
            return stream.read(size)
    except Unreadable:
        raise
    except FileNotFoundError:
        raise Unreadable("there is no such file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Unreadable(f"can't be read: {reason}", isinstance(error, IsADirectoryError)) from None


def read_secret(file: str) -> bytes:
    """A password that stands in a file, alone in its one line. Raises ValueError."""
    secret = read_file(file, SECRET_BYTES).removesuffix(b"\n").removesuffix(b"\r")
    if not secret:
        raise ValueError("is empty; it must hold the password")
    if b"\n" in secret or b"\0" in secret:
        raise ValueError("must hold the password alone, in one line")
    return secret
