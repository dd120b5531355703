"""Scenarios need real programs; what is missing is named in the skip."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The process helper of the supervisor's tests serves the scenarios too.
sys.path.append(str(Path(__file__).parent.parent / "control"))
sys.path.append(str(Path(__file__).parent.parent / "routing" / "directory"))  # slapd's

from mail_site import Contract
from scenario_node import Nginx, find

from l7lb.demo import mailservers


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Nginx]]:
    """Two real servers."""
    with Nginx(tmp_path, "web1") as one, Nginx(tmp_path, "web2") as two:
        yield [one, two]


@pytest.fixture(scope="session")
def contract(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Contract]:
    """The mail cluster of the contract's file. Whoever kills one of its servers starts it again."""
    if why := mailservers.missing():
        pytest.skip(why)
    with contextlib.closing(Contract(tmp_path_factory.mktemp("contract"))) as made:
        made.start()
        yield made


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
