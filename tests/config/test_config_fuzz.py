"""Whatever a file holds, loading it gives a configuration or ConfigurationError, and nothing else."""

from __future__ import annotations

import copy
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from config_writing import to_json, to_toml, to_yaml
from hypothesis import example, given
from hypothesis import strategies as st

from l7lb.config import Loaded, load
from l7lb.config.document import plain
from l7lb.config.formats import json_text, toml_text, yaml_text
from l7lb.core.errors import ConfigurationError
from l7lb.core.servers import PoolState
from l7lb.core.snapshot import decode, encode
from l7lb.routing.balance import make_balancer
from l7lb.routing.router import Router

TEXT = (Path(__file__).parent / "web.yaml").read_text().replace(", key_file: cookie.key", "")
MAIL = (Path(__file__).parent / "mail.yaml").read_text()
for written, instead in (
    # What stands in files is tried elsewhere.
    (r", tls: \{mode: (starttls|implicit), certificates: \*certificates\}", ""),
    (r", tls: \{ca: certs/ca.pem\}", ""),
    (r" +bind_.*\n", ""),
    (r"\{file: .*\}\n", "{http: {url: 'http://127.0.0.1/auth'}}\n"),
    ("after-tls", "always"),
):
    MAIL = re.sub(written, instead, MAIL)
FORMATS = ["yaml", "json", "toml"]
SIGNS = [*"{}[]:,-#&*!|>'\"%@`\\\n\t \r\0", "<<", "---", "...", "\u2028", "\ufeff", "é", "1", "a", "~", "=", "[["]


def survives(text: str | bytes, kind: str) -> Loaded | None:
    try:
        return load("dir/x", text=text, format=kind)
    except ConfigurationError as error:
        problems = error.problems
    assert problems
    for problem in problems:
        assert problem.message
        assert problem.line >= 0
        assert problem.column >= 0
        assert str(problem).isprintable()
        assert str(problem).encode()
    return None


def works(loaded: Loaded) -> None:
    """What compiles can be sent, and taken by the parts that it is for."""
    assert decode(encode(loaded.snapshot)) == loaded.snapshot
    for listener in loaded.snapshot.listeners:
        Router(listener)
    for pool in loaded.snapshot.pools:
        make_balancer(PoolState(pool, []), 1)


@pytest.mark.parametrize("kind", FORMATS)
@given(text=st.one_of(st.binary(max_size=200), st.text(max_size=200)))
@example(text="!!float ''")
@example(text="a: !!int ~")
@example(text="? a\n: !<tag:yaml.org,2002:str> b")
@example(text="&a [*a]")
@example(text="%YAML 1.1\n---\n010")
@example(text="%TAG ! tag:x,2000:\n---\n!a b")
@example(text='"\\ud800": 1')
@example(text="a: 0x" + "f" * 5000)
@example(text="9" * 5000)
@example(text='{"a": 1e999}')
@example(text="a = 1e999")
@example(text="a = 1979-05-27")
def test_any_text(kind: str, text: str | bytes) -> None:
    survives(text, kind)


@pytest.mark.parametrize("kind", FORMATS)
@given(pieces=st.lists(st.one_of(st.sampled_from(SIGNS), st.text("ab01", max_size=3)), max_size=40))
def test_signs_of_the_formats(kind: str, pieces: list[str]) -> None:
    survives("".join(pieces), kind)


@given(seed=st.integers(0, 2**32))
def test_a_valid_file_with_some_characters_changed(seed: int) -> None:
    chance = random.Random(seed)
    text = list(chance.choice([TEXT, MAIL]))
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(text))
        match chance.randrange(3):
            case 0:
                text[place] = chance.choice(SIGNS)
            case 1:
                text.insert(place, chance.choice(SIGNS))
            case _:
                del text[place : place + chance.randint(1, 20)]
    loaded = survives("".join(text), "yaml")
    if loaded is not None:
        works(loaded)


def original(text: str) -> dict[str, Any]:
    root = yaml_text.parse(text, "x")
    assert root is not None
    data = json.loads(json.dumps(plain(root, "x")))
    return {key: value for key, value in data.items() if key != "user" and not key.startswith("x-")}


DATA = [original(TEXT), original(MAIL)]
STRANGE: list[Any] = [None, True, False, 0, -1, 2**70, 1.5, float("inf"), "", "a", "1", "10s", "5KiB", "50%", "é", "\0"]
STRANGE += [
    "\r\n",
    "*",
    "/",
    "unix:a",
    ":80",
    "1.2.3.4:5",
    [],
    {},
    [1],
    ["a"],
    {"a": "b"},
    {"a": None},
    [[]],
    {"a": {}},
]


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(place for key, value in items for place in places(value, (*path, key)))]


PLACES = [places(data)[1:] for data in DATA]


@pytest.mark.parametrize("data", DATA, ids=["web", "mail"])
def test_the_files_that_are_changed_are_right(data: dict[str, Any]) -> None:
    works(load("dir/x.json", text=json.dumps(data)))


@given(st.data())
def test_a_valid_file_with_some_values_changed(data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(DATA) - 1))
    changed = copy.deepcopy(DATA[number])
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(PLACES[number]))
        value = copy.deepcopy(data.draw(st.sampled_from(STRANGE)))
        here: Any = changed
        try:
            for step in path[:-1]:
                here = here[step]
            match data.draw(st.integers(0, 3)):
                case 0:
                    del here[path[-1]]
                case 1 if isinstance(here, dict):
                    here[data.draw(st.sampled_from(["a", "pool", "match", "", "1", "é"]))] = value
                case _:
                    here[path[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue  # the first change took the place of the second away
    loaded = survives(to_json(changed), "json")
    if loaded is not None:
        works(loaded)


# --- the formats among themselves -----------------------------------------------------------------------------------

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
LEAVES = st.one_of(st.booleans(), st.integers(-(2**40), 2**40), TEXTS)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=20,
)
DOCUMENTS = st.dictionaries(TEXTS, TREES, min_size=1, max_size=5)


def every_place(node: Any) -> list[tuple[int, int]]:
    if isinstance(node, dict):
        own = [*node.keys_at.values(), *node.values_at.values()]  # type: ignore[attr-defined]
        return own + [place for value in node.values() for place in every_place(value)]
    if isinstance(node, list):
        return [*node.items_at, *(place for value in node for place in every_place(value))]  # type: ignore[attr-defined]
    return []


@given(DOCUMENTS)
def test_formats_read_what_was_written(document: dict[str, Any]) -> None:
    for parse, write in ((json_text.parse, to_json), (toml_text.parse, to_toml), (yaml_text.parse, to_yaml)):
        text = write(document)
        root = parse(text, "x")
        assert root is not None
        data = plain(root, "x")
        assert data == document
        lines = text.split("\n")
        for line, column in every_place(data):
            assert 1 <= line <= len(lines), write
            assert 1 <= column <= len(lines[line - 1]), write
