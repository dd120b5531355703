"""How the demo's stories are performed: in a directory that goes afterwards, with one answer to what ends them."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from l7lb import __version__
from l7lb.demo.screen import Screen


def interrupted(*_: object) -> None:
    """A signal ends the demo as ^C does, so that everything is cleaned up."""
    raise KeyboardInterrupt


def perform(screen: Screen, kind: str, failures: tuple[type[Exception], ...], play: Callable[[str, Path], None]) -> int:
    """Have ``play`` tell its story with the configuration of that kind of cluster (the text of its file), in an empty
    directory. Returns the exit code: 0, 1 where it raised one of ``failures``, 130 where it was interrupted.
    """
    began = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    screen.line(screen.styled(f"l7lb {__version__}: a {kind} cluster on this machine, in some 20 seconds", "1"))
    text = (resources.files("l7lb.demo") / f"{kind}.yaml").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="l7lb-demo-") as directory:
        try:
            play(text, Path(directory))
        except failures as error:
            screen.line()
            screen.bad(str(error) or type(error).__name__)
            return 1
        except KeyboardInterrupt:
            screen.line()
            screen.line("interrupted: everything that was started has been ended")
            return 130
    screen.line()
    screen.good(f"all is as it should be ({time.monotonic() - began:.0f} s); nothing was left behind")
    return 0
