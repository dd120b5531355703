"""Bad luck at random: whatever an operator or a fault does to supervisor, keeper and state process, clients are served."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from node_process import Load, NodeProcess, wait_for

pytestmark = [pytest.mark.scenario, pytest.mark.slow, pytest.mark.timeout(600)]

SECONDS = float(os.environ.get("L7LB_SOAK_SECONDS", "60"))


class BadLuck:
    """What may happen to a node."""

    def __init__(self, node: NodeProcess, seed: int) -> None:
        self.node = node
        self.random = random.Random(seed)
        self.said: list[str] = []

    def strike(self) -> None:
        """Something happens, and the node is well again before the next."""
        before = self.node.serving()
        event = self.random.choice(
            (self.kill_supervisor, self.kill_keeper, self.kill_state, self.hang_up, self.reload, self.count, self.renew)
        )
        self.said.append(event.__name__)
        event(before)
        if self.random.random() < 0.5:
            time.sleep(self.random.random())

    def kill_supervisor(self, before: dict[str, Any]) -> None:
        os.kill(before["supervisor"]["pid"], signal.SIGKILL)
        self.node.wait()
        self.node.start(group=self.node.groups[0])

    def kill_keeper(self, before: dict[str, Any]) -> None:
        os.kill(before["keeper"]["pid"], signal.SIGKILL)
        wait_for(lambda: self.node.serving()["keeper"] != before["keeper"], "another keeper")
        wanted = self.node.values["workers"]
        wait_for(lambda: sum(row["ready"] for row in self.node.serving()["workers"]) >= wanted, "its workers")

    def kill_state(self, before: dict[str, Any]) -> None:
        if before["state_process"]["pid"]:
            os.kill(before["state_process"]["pid"], signal.SIGKILL)

    def hang_up(self, before: dict[str, Any]) -> None:
        self.node.write(body=f"{self.random.random()}\\n")
        self.node.signal(signal.SIGHUP)

    def reload(self, before: dict[str, Any]) -> None:
        self.node.admin.post("reload")

    def count(self, before: dict[str, Any]) -> None:
        self.node.write(workers=self.random.randint(1, 4))
        self.node.admin.post("reload")

    def renew(self, before: dict[str, Any]) -> None:
        self.node.signal(signal.SIGUSR2)

        def another() -> bool:
            status = self.node.status()
            return bool(status) and status["state"] == "serving" and status["supervisor"] != before["supervisor"]

        wait_for(another, "another supervisor")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_request_fails_whatever_happens(tmp_path: Path, seed: int) -> None:
    with NodeProcess(tmp_path) as node:
        luck = BadLuck(node, seed)
        end = time.monotonic() + SECONDS
        with Load(node.port, clients=6) as load:
            while time.monotonic() < end and not load.failures:
                luck.strike()
            load.more()
        assert load.failures == [], luck.said
        assert "fault" not in node.output()
        assert "Traceback" not in node.output()
        node.signal(signal.SIGTERM)
        assert node.wait() == 0
        wait_for(lambda: not node.members(), "the end of all")
