"""The three formats: where things stand, what YAML 1.2 means, and the mistakes of each."""

from __future__ import annotations

import datetime
import itertools
from typing import Any

import pytest
from config_marking import unmark
from hypothesis import given
from hypothesis import strategies as st

from l7lb.config.document import Items, Mapping, describe_path, locate, plain
from l7lb.config.formats import json_text, toml_text, yaml_text
from l7lb.core.errors import ConfigurationError

PARSERS = {"yaml": yaml_text.parse, "json": json_text.parse, "toml": toml_text.parse}


def read(text: str, kind: str = "yaml") -> Any:
    root = PARSERS[kind](text, "x")
    return None if root is None else plain(root, "x")


def fails(text: str, kind: str, message: str) -> None:
    """One problem, at the mark."""
    text, places = unmark(text)
    with pytest.raises(ConfigurationError) as caught:
        read(text, kind)
    shown = str(caught.value)
    assert [(problem.line, problem.column) for problem in caught.value.problems] == places, shown
    assert message in shown, shown


TREE = {"a": {"b": [1, "x", {"c": True}], "d e": "t"}, "f": [[2]]}
WRITTEN = {
    "yaml": """\
# comment
①a:
  ②b: ③
    - ④1
    - ⑤'x'
    - ⑥c: ⑦true
  ⑧"d e": ⑨|
    t
⑩f: ⑪[⑫[⑬2]]
""",
    "json": """\
{①"a":
  {②"b": ③[④1, ⑤"x", ⑥{"c": ⑦true}],
   ⑧"d e": ⑨"t"},
\t⑩"f"  :  ⑪[
  ⑫[⑬2]]}
""",
    "toml": """\
⑩f = ⑪[⑫[⑬2]] # comment
[①a]
②b = ③[
  ④1,
  ⑤'x', # comment ]
  ⑥{c = ⑦true},
]
⑧"d e" = ⑨'''t'''
""",
}
SIGNS = "①②③④⑤⑥⑦⑧⑨⑩⑪⑫⑬"
PLACES = [
    (("a",), True),
    (("a", "b"), True),
    (("a", "b"), False),
    (("a", "b", 0), False),
    (("a", "b", 1), False),
    (("a", "b", 2), False),
    (("a", "b", 2, "c"), False),
    (("a", "d e"), True),
    (("a", "d e"), False),
    (("f",), True),
    (("f",), False),
    (("f", 0), False),
    (("f", 0, 0), False),
]


@pytest.mark.parametrize("kind", PARSERS)
def test_every_key_and_value_has_its_place(kind: str) -> None:
    text = WRITTEN[kind]
    # A block list's place in YAML is that of its first dash.
    expected = {}
    bare = ""
    for character in text:
        if character in SIGNS:
            expected[character] = (bare.count("\n") + 1, len(bare) - bare.rfind("\n"))
        else:
            bare += character
    if kind == "yaml":
        expected["③"] = (4, 5)
    data = read(bare, kind)
    assert {**data, "a": {**data["a"], "d e": data["a"]["d e"].strip()}} == TREE
    for sign, (path, key) in zip(SIGNS, PLACES, strict=True):
        assert locate(data, path, key) == (path, expected[sign]), (sign, path)


def test_a_path_that_is_not_there_ends_where_it_leaves_the_file() -> None:
    data = read("a: {b: [1]}\n")
    assert locate(data, ("a", "x", "y"))[0] == ("a",)
    assert locate(data, ("a", "b", 7))[0] == ("a", "b")
    assert locate(data, ("a", 0, "b", 0))[0] == ("a", "b", 0)
    assert describe_path(("a", "b", 0, "c")) == "a.b[0].c"
    assert describe_path(()) == ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("on", "on"),
        ("True", True),
        ("false", False),
        ("~", None),
        ("null", None),
        ("010", 10),
        ("0o10", 8),
        ("0xfF", 255),
        ("+1", 1),
        ("-1", -1),
        ("1_000", "1_000"),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("12:30", "12:30"),
        ("2001-01-01", "2001-01-01"),
        ("!!str 5", "5"),
        ("! 5", "5"),
        ("!!int 5", 5),
        ("!!float 5", 5),
        ("!!bool true", True),
        ("!!null ~", None),
        ("'5'", "5"),
        ('"\\u00e9\\x41"', "éA"),
        (">-\n  a\n  b", "a b"),
        ("!!map {a: 1}", {"a": 1}),
        ("!!seq [1]", [1]),
        ("=", "="),
        ("-", [None]),
    ],
)
def test_yaml_1_2(text: str, value: object) -> None:
    found = read(f"k: {text}\n" if text != "-" else "k:\n -\n")["k"]
    assert found == value
    assert type(found) is type(value) or isinstance(found, Mapping | Items)


def test_yaml_keys_are_text() -> None:
    assert read("1: a\ntrue: b\nnull: c\n? d\n: e\n") == {"1": "a", "true": "b", "null": "c", "d": "e"}
    assert read("a: &x k\n*x : v\n") == {"a": "k", "k": "v"}


def test_aliases_and_merge_keys() -> None:
    data = read(
        """\
x: &x {a: 1, b: {c: 2}}
y: {<<: *x, a: 3}
z: {<<: [{a: 4}, *x]}
w: [*x, *x]
"""
    )
    assert data["y"] == {"a": 3, "b": {"c": 2}}
    assert data["z"] == {"a": 4, "b": {"c": 2}}
    assert data["w"] == [{"a": 1, "b": {"c": 2}}] * 2
    # Each use has its own path; the place is where it is written.
    assert data["y"]["b"].path == ("y", "b")
    assert data["w"][1]["b"].path == ("w", 1, "b")
    assert locate(data, ("y", "b", "c"))[1] == (1, 21)
    assert read("'<<': 1\n") == {"<<": 1}


YAML_MISTAKES = [
    ("a: [1▸", "expected ',' or ']'"),
    ("a: b▸: c", 'a ":" where no key can be'),
    ("a:\n▸\tb: 1", "a tab can't indent, use spaces"),
    ("a: ▸*x", 'no anchor "&x" stands before this alias'),
    ("a: &x [▸*x]", "or the alias is inside it"),
    ("a: 1\n▸a: 2", "a: this key is written twice, first in line 1: keep one"),
    ("a: {b: 1, c: 2, ▸b: 3}", "a.b: this key is written twice"),
    ("a: 1\n▸---\nb: 1", "a second document begins here"),
    ("%YAML 1.1\n▸---\na: 1", "this is read as YAML 1.2: remove the %YAML line"),
    ("a: ▸!!int x", "the value is not what its tag int says"),
    ("a: ▸!!bool 1", "the value is not what its tag bool says"),
    ("a: ▸!mine x", "the tag !mine is not known: tags are not used here"),
    ("a: ▸!!set {a}", "tags are not used here"),
    ("a: ▸!!map [1]", "tags are not used here"),
    ("a: ▸!!python/object:os.system x", "tags are not used here"),
    ("? ▸[1]\n: 2", "a key must be text, not a mapping or a list"),
    ("a: &x [1]\n▸*x : 2", "a key must be text"),
    ("a: x▸\x01", "this character is not allowed in YAML"),
    ("a:\n  <<: ▸5", "a merge key takes a mapping"),
    ("a:\n  <<: ▸[{}, 5]", "a merge key takes a mapping"),
    ('a: ▸"\\ud800"', "half of a surrogate pair is not a character"),
    ("a: ▸@b", "found character '@' that cannot start any token"),
    ("a: b\n c▸: d", "is the line above indented right"),
    ("a: 'b▸", "end of stream"),
]


@pytest.mark.parametrize(("text", "message"), YAML_MISTAKES)
def test_mistakes_in_yaml(text: str, message: str) -> None:
    fails(text, "yaml", message)


JSON_MISTAKES = [
    ('{"a": 1,▸}', "a key in double quotes is expected"),
    ("{▸a: 1}", "a key in double quotes is expected"),
    ('{"a" ▸1}', 'a ":" is expected after the key'),
    ('{"a": 1\n ▸"b": 2}', 'a "," or "}" is expected'),
    ("[1, 2▸", 'a "," or "]" is expected'),
    ('{"a": ▸NaN}', "NaN is not a number that JSON knows"),
    ('{"a": ▸-Infinity}', "-Infinity is not a number"),
    ('{"a": ▸tru}', "a value is expected"),
    ('{"a": ▸}', "a value is expected"),
    ('{"a": ▸"x}', "unterminated string"),
    ('{"a": "x▸\n"}', "invalid control character"),
    ('{"a": "▸\\x"}', "invalid \\escape"),
    ('{"a": 1} ▸{}', "more follows after the end of the value"),
    ('{"a": 1, ▸"a": 2}', "this key is written twice"),
    ('{"a": ▸"\\ud800"}', "half of a surrogate pair"),
    ('{▸"\\ud800": 1}', "half of a surrogate pair"),
    (f'{{"a": ▸{"9" * 5000}}}', "the number is too long"),
    ("{▸// comment\n}", "a key in double quotes is expected"),
]


@pytest.mark.parametrize(("text", "message"), JSON_MISTAKES)
def test_mistakes_in_json(text: str, message: str) -> None:
    fails(text, "json", message)


TOML_MISTAKES = [
    ("a = ▸", "invalid value"),
    ("a = 1▸ b = 2", "expected newline or end of document after a statement"),
    ("a = 1\na = 2▸", "cannot overwrite a value"),
    ("[a]\n[a▸]", "cannot declare"),
    ("a = [1,▸", "unclosed array"),
    ('a = "x▸\n', "illegal character"),
]


@pytest.mark.parametrize(("text", "message"), TOML_MISTAKES)
def test_mistakes_in_toml(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(text.replace("▸", ""), "toml")
    (problem,) = caught.value.problems
    assert problem.message.lower().startswith("not valid toml: ")
    assert problem.line == text[: text.index("▸")].count("\n") + 1
    assert problem.column > 0


def test_dates_of_toml_are_no_text() -> None:
    assert read("a = 1979-05-27 07:32:00\nb = [1979-05-27, 07:32:00]\nc = 1\n", "toml") == {
        "a": datetime.datetime(1979, 5, 27, 7, 32),  # noqa: DTZ001
        "b": [datetime.date(1979, 5, 27), datetime.time(7, 32)],
        "c": 1,
    }


def test_toml_keys_in_every_writing() -> None:
    text = """\
a.b.c = 1
"d e"."f" = 2
'g.h' = 3
[[i.j]]
k = {l = {m = 4}, n.o = 5}
[i.j.p]
q = '''
x = [ # "
'''
[[i.j]]
r = \"\"\"a\\\"\"\" \"\"\"
[ s . t ]
u = [[1, [2]], [], {}]
"""
    data = read(text, "toml")
    places = {
        ("a", "b", "c"): (1, 9),
        ("d e", "f"): (2, 13),
        ("g.h",): (3, 9),
        ("i", "j", 0, "k", "l", "m"): (5, 15),
        ("i", "j", 0, "k", "n", "o"): (5, 25),
        ("i", "j", 0, "p", "q"): (7, 5),
        ("i", "j", 1, "r"): (11, 5),
        ("s", "t", "u", 0, 1, 0): (13, 11),
        ("s", "t", "u", 2): (13, 20),
    }
    for path, place in places.items():
        assert locate(data, path) == (path, place)


@given(st.text(" ab=.[]{}\"'\n,#1\\", max_size=30))
def test_toml_places_are_found_for_whatever_is_valid(text: str) -> None:
    try:
        data = read(text, "toml")
    except ConfigurationError:
        return
    if data is not None:
        for key, place in data.keys_at.items():
            assert place.line >= 1, (text, key)


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("yaml", "a: " + "[" * 300),
        ("yaml", "- " * 5000),
        ("yaml", "\n".join(" " * depth + "a:" for depth in range(100))),
        ("json", "[" * 5000),
        ("json", '{"a":' * 5000),
        ("toml", "a = " + "[" * 5000),
        ("toml", "a = " + "{a = " * 5000),
        ("toml", "a = " + "[" * 40 + "]" * 40),
        ("toml", ".".join("a" * 20000) + " = 1"),
        ("toml", "[" + ".".join("a" * 20000) + "]"),
        ("toml", "a = {" + ".".join("a" * 20000) + " = 1}"),
    ],
)
def test_depth_is_limited(kind: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match="nested more than 32 deep"):
        read(text, kind)


def test_depth_by_aliases_is_limited() -> None:
    text = "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 100))
    with pytest.raises(ConfigurationError, match="nested more than 32 deep"):
        read(text)


@pytest.mark.parametrize(
    "line",
    [
        "{this}: &{this} [{nine}]",
        "{this}: &{this} {{<<: [{nine}], k{this}: 1}}",
        "{this}: &{this} {{p: *{last}, q: *{last}}}",
    ],
)
def test_aliases_can_not_unfold_without_end(line: str) -> None:
    names = "abcdefghijklmnopqrstuvwxyz"
    text = "a: &a {v: 1, w: 2}\n"
    for last, this in itertools.pairwise(names):
        text += line.format(this=this, last=last, nine=", ".join([f"*{last}"] * 9)) + "\n"
    with pytest.raises(ConfigurationError, match="aliases repeat more than 100,000 values"):
        read(text)
