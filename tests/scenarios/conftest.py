"""Scenarios need real programs; what is missing is named in the skip."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The process helper of the supervisor's tests serves the scenarios too.
sys.path.append(str(Path(__file__).parent.parent / "control"))
sys.path.append(str(Path(__file__).parent.parent / "routing" / "directory"))  # slapd's

from scenario_node import Nginx, find


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Nginx]]:
    """Two real servers."""
    with Nginx(tmp_path, "web1") as one, Nginx(tmp_path, "web2") as two:
        yield [one, two]


def pytest_configure(config: pytest.Config) -> None:
    """Know the marker."""
    config.addinivalue_line("markers", "needs(program, ...): skipped where one of these is not installed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a program that is not installed."""
    for item in items:
        for mark in item.iter_markers("needs"):
            missing = [name for name in mark.args if find(name) is None]
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"not installed: {', '.join(missing)}"))
