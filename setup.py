"""Builds the package, with the hot path compiled by mypyc where a compiler is at hand.

The modules listed here are what a request passes through. They are ordinary Python and run as such where they are not
compiled; compiled they take about a third of the time. ``L7LB_COMPILE=0`` leaves them as they are, ``1`` makes a
failure to compile an error instead of a line of warning. An editable installation is never compiled: the compiled
modules would hide later changes of the source.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from shutil import which
from typing import Any

from setuptools import setup

HOT = [
    "l7lb/core/actions.py",
    "l7lb/core/contracts.py",
    "l7lb/core/dates.py",
    "l7lb/core/facts.py",
    "l7lb/core/servers.py",
    "l7lb/core/tally.py",
    "l7lb/limits/gate.py",
    "l7lb/persistence/stickiness.py",
    "l7lb/protocols/http/answering.py",
    "l7lb/protocols/http/answers.py",
    "l7lb/protocols/http/body.py",
    "l7lb/protocols/http/ending.py",
    "l7lb/protocols/http/facts.py",
    "l7lb/protocols/http/forward.py",
    "l7lb/protocols/http/http2/connection.py",
    "l7lb/protocols/http/http2/fields.py",
    "l7lb/protocols/http/http2/guard.py",
    "l7lb/protocols/http/http2/server.py",
    "l7lb/protocols/http/http2/stream.py",
    "l7lb/protocols/http/machine.py",
    "l7lb/protocols/http/message.py",
    "l7lb/protocols/http/session.py",
    "l7lb/protocols/http/syntax.py",
    "l7lb/protocols/http/target.py",
    "l7lb/protocols/tcp/machine.py",
    "l7lb/protocols/tls/facts.py",
    "l7lb/protocols/tls/flight.py",
    "l7lb/protocols/tls/hello.py",
    "l7lb/protocols/tls/machine.py",
    "l7lb/protocols/tunnel.py",
    "l7lb/proxy/connection.py",
    "l7lb/proxy/dispatch.py",
    "l7lb/proxy/endpoint.py",
    "l7lb/proxy/listener.py",
    "l7lb/proxy/queueing.py",
    "l7lb/proxy/relay.py",
    "l7lb/proxy/streams.py",
    "l7lb/proxy/tickets.py",
    "l7lb/proxy/timers.py",
    "l7lb/proxy/upstream.py",
    "l7lb/routing/balance/common.py",
    "l7lb/routing/balance/first.py",
    "l7lb/routing/balance/hash.py",
    "l7lb/routing/balance/latency.py",
    "l7lb/routing/balance/least_connections.py",
    "l7lb/routing/balance/random_of_two.py",
    "l7lb/routing/balance/round_robin.py",
    "l7lb/routing/globs.py",
    "l7lb/routing/index.py",
    "l7lb/routing/matchers.py",
    "l7lb/routing/router.py",
]


def extensions() -> list[Any]:
    """The compiled modules; none where they are not wanted or can't be made."""
    wish = os.environ.get("L7LB_COMPILE", "")
    if wish == "0" or not {"build", "build_ext", "bdist_wheel"} & set(sys.argv):
        return []
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    missing = [] if which("cc") or which("gcc") else ["a C compiler"]
    if not headers.exists():
        missing.append("Python's headers")
    try:
        from mypyc.build import mypycify
    except ImportError:
        missing.append("mypy")
    if missing:
        text = f"l7lb: not compiled, since {' and '.join(missing)} is missing; it runs all the same, but slower"
        if wish == "1":
            sys.exit(text)
        sys.stderr.write(text + "\n")
        return []
    try:
        modules: list[Any] = mypycify(HOT, opt_level="2")
    except SystemExit:  # what mypy found was printed; another version of it may be stricter
        if wish == "1":
            raise
        sys.stderr.write("l7lb: not compiled, since mypy refuses it; it runs all the same, but slower\n")
        return []
    for module in modules:
        module.optional = wish != "1"
    return modules


setup(ext_modules=extensions())
