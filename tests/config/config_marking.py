"""Checks problems against marks in the text: a ``▸`` stands before the place of each, in the file's order."""

from __future__ import annotations

import pytest

from l7lb.config import load
from l7lb.core.errors import ConfigurationError, Problem

MARK = "▸"


def unmark(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without marks, and their places."""
    places = []
    pieces = text.split(MARK)
    plain = pieces[0]
    for piece in pieces[1:]:
        places.append((plain.count("\n") + 1, len(plain) - plain.rfind("\n")))
        plain += piece
    return plain, places


def check(text: str, *messages: str, ending: str = "yaml") -> list[Problem]:
    """Each mark has its problem, whose message contains the text given for it."""
    text, places = unmark(text)
    with pytest.raises(ConfigurationError) as caught:
        load(f"dir/file.{ending}", text=text)
    problems = list(caught.value.problems)
    shown = "\n".join(map(str, problems))
    assert [(problem.line, problem.column) for problem in problems] == places, shown
    assert len(problems) == len(messages), shown
    for problem, message in zip(problems, messages, strict=True):
        assert message in problem.message, shown
        assert problem.file == f"dir/file.{ending}"
        assert "\n" not in str(problem)
        for jargon in ("Input should", "validation", "Extra inputs", "Field required", "Value error"):
            assert jargon not in problem.message, shown
    return problems


def check_warnings(text: str, *messages: str) -> None:
    """The same for what works and is doubtful."""
    text, places = unmark(text)
    problems = load("dir/file.yaml", text=text).warnings
    shown = "\n".join(map(str, problems))
    assert [(problem.line, problem.column) for problem in problems] == places, shown
    assert len(problems) == len(messages), shown
    for problem, message in zip(problems, messages, strict=True):
        assert message in problem.message, shown


def listener(keys: str) -> str:
    """A file with one listener of these further keys."""
    return f"""\
listeners:
  - {{name: web, protocol: http, bind: ["127.0.0.1:80"], routes: [{{pool: web}}], {keys}}}
pools:
  web: {{servers: [{{name: a, address: "192.0.2.1:80"}}]}}
"""


def routes(*rules: str) -> str:
    """A file with these rules."""
    lines = "\n".join(f"      - {rule}" for rule in rules)
    return f"""\
listeners:
  - name: web
    protocol: http
    bind: ["127.0.0.1:80"]
    routes:
{lines}
pools:
  web: {{servers: [{{name: a, address: "192.0.2.1:80"}}]}}
  api: {{servers: [{{name: a, address: "192.0.2.2:80"}}]}}
  spare: {{servers: [{{name: a, address: "192.0.2.3:80"}}]}}
"""


def pool(keys: str, servers: str = '{name: a, address: "192.0.2.1:80"}') -> str:
    """A file with one pool of these further keys."""
    return f"""\
listeners: [{{name: web, protocol: http, bind: ["127.0.0.1:80"], routes: [{{pool: web}}]}}]
pools:
  web: {{servers: [{servers}], {keys}}}
"""


def node(keys: str) -> str:
    """A file with these keys at the top."""
    return f"""\
listeners: [{{name: web, protocol: http, bind: ["127.0.0.1:80"], routes: [{{respond: {{status: 200}}}}]}}]
{keys}
"""
