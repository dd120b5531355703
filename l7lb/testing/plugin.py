"""The pytest plugin: installed with the package, so that a project tests its own rules without further set-up.

Fixtures (all of them plain functions: they need no asyncio plugin, and work with any)::

    l7lb_config   the configuration that --l7lb-config or the ini option l7lb_config names
    l7lb_node     makes in-process nodes: ``async with l7lb_node() as node``; the configuration may be given
    l7lb_rules    the same for tests that are not coroutines: ``rules = l7lb_rules(); rules.get("http://...")``
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # the imports wait for the first use: every pytest run in the environment loads this file
    from l7lb.testing.node import Node
    from l7lb.testing.rules import Rules

OPTION = "l7lb_config"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a project name its configuration once."""
    parser.addini(OPTION, "configuration file of l7lb that the l7lb_* fixtures use, relative to the ini file", "string")
    parser.addoption("--l7lb-config", metavar="FILE", help="configuration file that the l7lb_* fixtures use")


@pytest.fixture
def l7lb_config(request: pytest.FixtureRequest) -> Path:
    """The project's configuration file."""
    given = request.config.getoption("--l7lb-config")
    if given:
        return Path(str(given)).resolve()
    named = request.config.getini(OPTION)
    if not named:
        raise pytest.UsageError(f"no configuration: set {OPTION} in the ini file, give --l7lb-config, or pass one")
    return request.config.rootpath / str(named)


@pytest.fixture
def l7lb_node(request: pytest.FixtureRequest) -> Callable[..., Node]:
    """Makes nodes; without a configuration they take the project's."""
    from l7lb.testing.node import Node

    def make(config: object = None, **options: Any) -> Node:
        return Node(config if config is not None else request.getfixturevalue("l7lb_config"), **options)

    return make


@pytest.fixture
def l7lb_rules(request: pytest.FixtureRequest) -> Iterator[Callable[..., Rules]]:
    """Makes started nodes for plain functions, and ends them after the test."""
    from l7lb.testing.rules import Rules

    made: list[Rules] = []

    def make(config: object = None, **options: Any) -> Rules:
        rules = Rules(config if config is not None else request.getfixturevalue("l7lb_config"), **options)
        made.append(rules)
        return rules

    yield make
    for rules in reversed(made):
        rules.close()
