"""Where the parts are joined: the entries of the node's processes.

``l7lb serve`` comes to :func:`serve`. The keeper starts the others, each as ``python -m l7lb.app KIND ...``:

    worker      the data path, with the protocols that there are
    state       the sticky tables' keeper of the node
    supervisor  a new supervisor that takes over from a running one

A worker must not import the configuration library nor the web stack, so each entry imports what it runs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def serve(config: Path) -> int:
    """Run a node until it is told to end; returns the exit code.

    Raises ConfigurationError, or another L7lbError where the node can't start.
    """
    from l7lb.control.launch import run
    from l7lb.protocols import PROTOCOLS

    return run(config, PROTOCOLS)


def supervisor(words: list[str]) -> int:
    """A supervisor that replaces the running one; what is wrong is one plain line, as `l7lb serve` prints it."""
    parser = argparse.ArgumentParser(prog="l7lb supervisor")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--user", default="")
    parser.add_argument("--replace", action="store_true", required=True)
    options = parser.parse_args(words)
    from l7lb.control.launch import drop, run
    from l7lb.core.errors import L7lbError
    from l7lb.protocols import PROTOCOLS
    from l7lb.proxy.workers.privileges import User

    if options.user:
        drop(User.parse(options.user))
    try:
        return run(options.config, PROTOCOLS, replace=True)
    except L7lbError as error:
        print(f"l7lb: {error}", file=sys.stderr)  # noqa: T201 - before there is a log
        return 1


def worker(words: list[str]) -> int:
    """A worker process."""
    from l7lb.protocols import PROTOCOLS
    from l7lb.proxy.workers import worker as shell

    return shell.main(words, PROTOCOLS)


def state(words: list[str]) -> int:
    """The state process."""
    parser = argparse.ArgumentParser(prog="l7lb state")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--user", default="")
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format", default="text")
    parser.add_argument("--size", required=True)
    parser.add_argument("--save", default="")
    options = parser.parse_args(words)
    from l7lb.persistence import state as process
    from l7lb.proxy.workers import logs, privileges
    from l7lb.proxy.workers.children import STATE_SOCKET

    logs.configure("state", options.log_level, options.log_format)
    if options.user:
        privileges.drop(privileges.User.parse(options.user))
    save = ["--save", options.save] if options.save else []
    return process.main(["--socket", str(options.directory / STATE_SOCKET), "--size", options.size, *save])


def directories(words: list[str]) -> int:
    """The directory process."""
    parser = argparse.ArgumentParser(prog="l7lb directories")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--user", default="")
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format", default="text")
    options = parser.parse_args(words)
    # All of it, since the program may be where the node's user can't read it.
    from l7lb.proxy.workers import logs, privileges
    from l7lb.proxy.workers.children import DIRECTORIES_SOCKET
    from l7lb.routing.directory import file, http, ldap, process  # noqa: F401

    logs.configure("directories", options.log_level, options.log_format)
    process.load_late()
    if options.user:
        privileges.drop(privileges.User.parse(options.user))
    return process.main(["--socket", str(options.directory / DIRECTORIES_SOCKET)])


ENTRIES = {"worker": worker, "state": state, "directories": directories, "supervisor": supervisor}


def main(words: list[str]) -> int:
    """The process that the first word names."""
    if not words or words[0] not in ENTRIES:
        print(f"l7lb: this starts one of {', '.join(ENTRIES)}; a node starts by `l7lb serve`", file=sys.stderr)  # noqa: T201
        return 2
    return ENTRIES[words[0]](words[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
