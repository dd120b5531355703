"""Runs a command that ends when the process that started it does, however that one ends.

    python -m l7lb.demo.leash PARENT PROGRAM ARGUMENT...

PARENT is the number of the process that must live. The command gets SIGTERM (prctl(2), PR_SET_PDEATHSIG, which execve
keeps), so that a demo that is killed leaves nothing behind.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(words: list[str]) -> None:
    """Become the command; ends instead where the parent has ended already."""
    parent, command = int(words[0]), words[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - that is the purpose


if __name__ == "__main__":
    main(sys.argv[1:])
