"""examples/mail, run by its one command: what its README promises."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from l7lb.config import load
from l7lb.demo import mailservers
from l7lb.demo.mailcluster import prepare

pytestmark = [
    pytest.mark.scenario,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(mailservers.missing()), reason=mailservers.missing()),
]
EXAMPLE = Path(__file__).parents[2] / "examples" / "mail"
RUN = [sys.executable, str(EXAMPLE / "run.py"), "--free-ports"]


def left(folder: Path) -> list[str]:
    """Processes that still have to do with that directory for temporary files."""
    found = []
    for name in os.listdir("/proc"):
        try:
            command = Path(f"/proc/{name}/cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in command:
            found.append(command.decode(errors="replace"))
    return found


def test_the_show(tmp_path: Path) -> None:
    temporary = Path(os.path.realpath(os.environ.get("TMPDIR", "/tmp")))
    before = set(temporary.glob("l7lb-mail-*"))
    done = subprocess.run(
        [*RUN, "--once", "--directory", str(tmp_path)], cwd="/", capture_output=True, text=True, timeout=120
    )
    log = tmp_path / "run" / "l7lb.log"
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + (log.read_text()[-3000:] if log.exists() else "")
    said = " ".join(done.stdout.split())  # its lines are wrapped
    assert "lost: 0, doubled: 0" in said
    assert "no mailbox was on two servers at once" in said
    assert "WRONG" not in done.stdout
    assert set(temporary.glob("l7lb-mail-*")) <= before
    assert left(tmp_path) == []


def test_an_interrupt_ends_everything(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*RUN, "--quiet", "--directory", str(tmp_path)], cwd="/", stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if "^C ends everything" in line:
            break
    assert "^C ends everything" in said, (tmp_path / "run" / "l7lb.log").read_text()[-3000:]
    process.send_signal(signal.SIGINT)
    assert process.stdout.read() == "ended\n"
    process.stdout.close()
    assert process.wait(30) == 0
    assert left(tmp_path) == []


def test_the_file_works_as_it_stands(tmp_path: Path) -> None:
    prepare(tmp_path)
    (tmp_path / "l7lb.yaml").write_text((EXAMPLE / "l7lb.yaml").read_text())
    loaded = load(tmp_path / "l7lb.yaml")
    assert loaded.warnings == []
    assert {pool.name for pool in loaded.snapshot.pools} == {"mail"}
