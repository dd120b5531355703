#!/usr/bin/env python3
"""Starts this example: its web servers and a node, on loopback, until ^C. See README.md for what to try.

    examples/web/run.py [--directory DIRECTORY] [--free-ports]

The node runs with a copy of l7lb.yaml in DIRECTORY (default: here, in work/), whose ports are others where those of the
file are taken, or all of them with --free-ports. That copy is the one to change and to reload.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from contextlib import closing
from pathlib import Path

HERE = Path(__file__).resolve().parent

try:
    from l7lb.core.errors import L7lbError
    from l7lb.demo.cluster import Cluster, Unexpected
except ImportError:
    made = HERE.parent.parent / ".venv" / "bin" / "python"
    if made.exists() and Path(sys.executable) != made:
        os.execv(made, [str(made), *sys.argv])
    sys.exit("l7lb is not installed for this Python: `make demo` makes .venv with it, or `pip install .`")


def main() -> int:
    parser = argparse.ArgumentParser(description="Starts web servers and a node in front of them, until ^C.")
    parser.add_argument("--directory", type=Path, default=HERE / "work", help="for the copy of l7lb.yaml and all files")
    parser.add_argument("--free-ports", action="store_true", help="choose all ports anew")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        cluster = Cluster((HERE / "l7lb.yaml").read_text(), options.directory.resolve(), not options.free_ports)
        with closing(cluster):
            print("starting ...", flush=True)
            cluster.start()
            for name, process in cluster.servers.items():
                print(f"  {name:6} 127.0.0.1:{cluster.ports[name]}, process {process.pid}")
            print(f"  l7lb   {cluster.address}, metrics at {cluster.metrics}")
            print(f"l7lb's commands take --config {cluster.config}; ^C ends everything", flush=True)
            signal.pause()
    except (Unexpected, L7lbError, OSError) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ended")
    return 0


if __name__ == "__main__":
    sys.exit(main())
