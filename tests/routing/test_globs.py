from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_helpers import glob_captures, glob_matches

from l7lb.routing.globs import Glob, any_of, check_host, check_path, host_glob, path_glob

texts = st.text("ab/*", max_size=8)
values = st.text("ab/", max_size=10).map(str.encode)


@given(texts, values)
def test_a_glob_matches_what_the_same_regular_expression_matches(text: str, value: bytes) -> None:
    glob = Glob(text.encode())
    assert glob.matches(value) == glob_matches(text, value)
    if glob.matches(value):
        assert glob.captures(value, value) == glob_captures(text, value)
    else:
        assert glob.captures(value, value) is None


@given(texts, values)
def test_captures_put_back_into_the_glob_give_the_value(text: str, value: bytes) -> None:
    captures = Glob(text.encode()).captures(value, value)
    if captures is not None:
        pieces = text.encode().split(b"*")
        assert b"".join(piece + capture for piece, capture in zip(pieces, (*captures, b""), strict=True)) == value


@given(st.lists(texts, max_size=4), values)
def test_any_of_several(globs: list[str], value: bytes) -> None:
    matcher = any_of([Glob(text.encode()) for text in globs])
    assert matcher(value) == any(glob_matches(text, value) for text in globs)


def test_captures_keep_the_case_that_came() -> None:
    glob = path_glob("/Old/*/x*")
    assert glob.captures(b"/old/abc/xyz", b"/OLD/AbC/XyZ") == (b"AbC", b"yZ")


def test_no_value_makes_a_glob_slow() -> None:
    glob = Glob(b"*a*a*a*a*a*a*a*b")
    began = time.process_time()
    assert not glob.matches(b"a" * 32_768)
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "missing"),
        ("https://example.org", "URL"),
        ("example.org/a", "path"),
        ("example.org:8080", "port"),
        ("exa mple.org", "space"),
        ("b\u00fc*.example", None),
        ("\u2603" * 70 + ".example", "international"),
        ("a" * 5000, "at most"),
        ("*.example.org", None),
        ("2001:DB8::1", None),
    ],
)
def test_what_is_wrong_with_a_host(text: str, word: str | None) -> None:
    problem = check_host(text)
    assert problem is None if word is None else word in str(problem)


def test_hosts_get_the_form_that_facts_have() -> None:
    assert host_glob("2001:DB8:0::1").text == b"[2001:db8::1]"
    assert host_glob("WWW.Example.Org.").text == b"www.example.org"
    assert host_glob("*.b\u00fccher.example").text == b"*.xn--bcher-kva.example"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("api/*", "begins neither"),
        ("", "begins neither"),
        ("/a?b=c", "query"),
        ("/a#b", "#"),
        ("/a/../b", "dot segments"),
        ("/a/%2e%2e/b", "dot segments"),
        ("//a", "empty"),
        ("/" + "a" * 5000, "at most"),
        ("*.php", None),
        ("/a/.hidden/..x", None),
    ],
)
def test_what_is_wrong_with_a_path(text: str, word: str | None) -> None:
    problem = check_path(text)
    assert problem is None if word is None else word in str(problem)
