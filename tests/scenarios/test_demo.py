"""`l7lb demo`, as somebody sees it who runs it for the first time: in a pipe, from nowhere in particular."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from l7lb.demo import mailservers

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(180)]

DEMO = [sys.executable, "-m", "l7lb.cli", "demo", "web"]


def commands(words: bytes) -> list[int]:
    """The processes whose command line has these words."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                if words in Path(f"/proc/{name}/cmdline").read_bytes():
                    found.append(int(name))
            except OSError:
                continue
    return found


def until_none(words: bytes) -> None:
    end = time.monotonic() + 30
    while commands(words):
        assert time.monotonic() < end, f"processes are left: {commands(words)}"
        time.sleep(0.1)


def test_the_demo_shows_that_nobody_noticed(tmp_path: Path) -> None:
    found = subprocess.run(
        DEMO, cwd=tmp_path, env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=120
    )
    assert (found.returncode, found.stderr) == (0, ""), found.stdout
    lines = found.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in found.stdout
    assert "Traceback" not in found.stdout
    assert sum(line.endswith("failed: 0") for line in lines) == 6
    assert lines[-1].startswith("  ok all is as it should be")
    assert list(tmp_path.iterdir()) == []
    assert commands(os.fsencode(tmp_path)) == []


def test_what_is_not_as_it_should_be_is_one_line(tmp_path: Path) -> None:
    code = "import sys; from l7lb.demo import web; web.SAMPLES = (web.SAMPLES[0]._replace(status=404),); sys.exit(web.run())"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (found.returncode, found.stderr) == (1, "")
    assert found.stdout.splitlines()[-1].startswith("  WRONG sent: 200 from web")
    assert list(tmp_path.iterdir()) == []
    until_none(os.fsencode(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_demo_that_is_ended_leaves_no_processes(tmp_path: Path, number: int) -> None:
    demo = subprocess.Popen(
        DEMO, cwd=tmp_path, env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, text=True
    )
    assert demo.stdout is not None
    for line in demo.stdout:
        if "serves at" in line:
            break
    assert commands(os.fsencode(tmp_path))
    demo.send_signal(number)
    rest = demo.stdout.read()
    demo.stdout.close()
    assert demo.wait(30) == (-number if number == signal.SIGKILL else 130)
    until_none(os.fsencode(tmp_path))
    if number != signal.SIGKILL:
        assert rest.splitlines()[-1].startswith("interrupted")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(bool(mailservers.missing()), reason=mailservers.missing())
def test_the_mail_demo_loses_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "l7lb.cli", "demo", "mail"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (found.returncode, found.stderr) == (0, ""), found.stdout
    assert max(map(len, found.stdout.splitlines())) <= 80
    assert "lost: 0, doubled: 0" in " ".join(found.stdout.split())
    assert found.stdout.splitlines()[-1].startswith("  ok all is as it should be")
