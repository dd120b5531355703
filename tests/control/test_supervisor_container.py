"""As process 1 of a container: it gets the signals, and reaps what is orphaned."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from node_process import NodeProcess, get, wait_for

UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


def can_unshare() -> bool:
    return (
        shutil.which("unshare") is not None and subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0
    )


pytestmark = [
    pytest.mark.scenario,
    pytest.mark.skipif(not can_unshare(), reason="needs unshare and the right to use it"),
]


def with_word(node: NodeProcess, word: bytes) -> set[int]:
    """The node's processes whose command line has that word, as this process counts them."""
    found = set()
    for pid in node.members():
        with contextlib.suppress(OSError):
            if word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.add(pid)
    return found


def zombies(node: NodeProcess) -> int:
    """Processes of the node's group that have ended and that nobody has taken note of."""
    number = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            number += int(fields[2]) in node.groups and fields[0] == "Z"
    return number


def test_process_1_leads_and_reaps(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path, starts=False)
    with node:
        node.before = UNSHARE
        node.start(wait=False)
        assert node.serving()["supervisor"]["pid"] == 1
        (keeper,) = with_word(node, b"l7lb.proxy.workers.keeper")
        workers = with_word(node, b"worker")
        os.kill(keeper, signal.SIGKILL)
        wait_for(lambda: len(with_word(node, b"worker") - workers) == 2, "new workers")
        wait_for(lambda: not with_word(node, b"worker") & workers, "the end of the old ones")
        wait_for(lambda: zombies(node) == 0, "that somebody takes note of their end")
        assert get(("127.0.0.1", node.port)).endswith(b"hello\n")
        (supervisor,) = with_word(node, b"serve") - {node.process.pid}
        os.kill(supervisor, signal.SIGTERM)
        assert node.wait() == 0
