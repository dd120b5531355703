#!/usr/bin/env python3
"""Starts this example: three mail servers on one store, two directories and a node, on loopback; shows what it does,
and goes on until ^C. See README.md for what to try. It needs root, because Dovecot and Postfix do.

    examples/mail/run.py [--directory DIRECTORY] [--free-ports] [--quiet] [--once]

The node runs with a copy of l7lb.yaml in DIRECTORY (default: here, in work/), whose ports are others where those of
the file are taken, or all of them with --free-ports. That copy is the one to change and to reload. --quiet starts
everything without the show; --once ends when the show is over.
"""

from __future__ import annotations

import argparse
import os
import signal
import smtplib
import sys
from contextlib import closing
from pathlib import Path

HERE = Path(__file__).resolve().parent

try:
    from l7lb.demo import mail, mailservers
    from l7lb.demo.mailcluster import MailCluster
    from l7lb.demo.screen import Screen
except ImportError:
    made = HERE.parent.parent / ".venv" / "bin" / "python"
    if made.exists() and Path(sys.executable) != made:
        os.execv(made, [str(made), *sys.argv])
    sys.exit("l7lb is not installed for this Python: `make demo` makes .venv with it, or `pip install .`")


def main() -> int:
    parser = argparse.ArgumentParser(description="Starts mail servers and a node in front of them, until ^C.")
    parser.add_argument("--directory", type=Path, default=HERE / "work", help="for the copy of l7lb.yaml and all files")
    parser.add_argument("--free-ports", action="store_true", help="choose all ports anew")
    parser.add_argument("--quiet", action="store_true", help="start everything, and show nothing")
    parser.add_argument("--once", action="store_true", help="end when the show is over")
    options = parser.parse_args()
    if why := mailservers.missing():
        print(f"run.py: {why}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    screen = Screen()
    try:
        text = (HERE / "l7lb.yaml").read_text()
        with closing(MailCluster(text, options.directory.resolve(), not options.free_ports)) as cluster:
            mail.introduce(screen, cluster)
            if not options.quiet:
                mail.MailStory(screen, cluster).run()
            print(f"l7lb's commands take --config {cluster.config}; passwords are \"NAME's secret\"")
            if not options.once:
                print("^C ends everything", flush=True)
                signal.pause()
            mail.end(screen, cluster)
    except (*mail.FAILURES, smtplib.SMTPException) as error:
        screen.bad(str(error) or type(error).__name__)
        return 1
    except KeyboardInterrupt:
        print("ended")
    return 0


if __name__ == "__main__":
    sys.exit(main())
