from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l7lb.routing.regex import LEAST_INPUT, Regex, check_regex


@pytest.mark.parametrize(
    "pattern",
    [
        "^/v[0-9]+/",
        r"\.php$",
        r"\.(jpe?g|png|gif)$",
        "^/(de|en|fr)/",
        "^/user/[0-9]+/post/[0-9]+/comment/[0-9]+$",
        "^/[^/]+/[^/]+/[^/]+$",
        "^.*foo.*bar",
        "(?:foo|bar)*x",
        "^(?:/[a-z]++)+$",
        "^(?!/api/).*x",
        "(?i)^/A",
        "^/x{3}$",
        "^/(?>a+b)c",
        "",
    ],
)
def test_what_operators_write_is_taken(pattern: str) -> None:
    assert check_regex(pattern) is None


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(a+)+$", "a repetition inside a repetition"),
        ("^(/[a-z]+)+$", "a repetition inside a repetition"),
        ("(a?){30}a{30}", "a repetition inside a repetition"),
        ("(a|a)*b", "alternatives that can begin alike"),
        ("(a|b|ab)+$", "alternatives that can begin alike"),
        ("(a.|.b)*x", "alternatives that can begin alike"),
        ("(?:(?=a)a)*", "looks ahead"),
        (r"(a)\1", "refers back"),
        (r"(a)?(?(1)b|c)", "refers back"),
        (".*foo.*bar", 'begin it with "^"'),
        ("^/.*/.*/.*/x", "[^/]*"),
        ("^" + "a?" * 25 + "a" * 25, "several repetitions"),
        ("[", "not a regular expression"),
        ("(" * 500 + ")" * 500, "regular expression"),
        ("caf\u00e9", "%XX"),
        ("a" * 2000, "longer"),
    ],
)
def test_what_could_be_slow_is_refused_in_words(pattern: str, words: str) -> None:
    assert words in str(check_regex(pattern))
    with pytest.raises(ValueError, match=re.escape(words)):
        Regex(pattern)


@pytest.mark.parametrize(
    ("pattern", "limit"),
    [("^/v[0-9]+/", 32_768), (r"\.php$", 32_768), ("[0-9]+/x", 1024), ("[0-9]+[a-z]*b", 768)],
)
def test_the_longest_path_depends_on_the_pattern(pattern: str, limit: int) -> None:
    assert Regex(pattern).limit == limit


atoms = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", "(?:ab)", "(?:a|b)", "(?:ab|b)", "$", "^", "(?=a)", "(a.)"])
counts = st.sampled_from(["", "", "*", "+", "?", "*?", "{2}", "{1,3}", "{2,}", "*+", "{1,40}"])
parts = st.tuples(atoms, counts).filter(lambda pair: not (pair[0] in "$^(?=a)" and pair[1])).map("".join)
patterns = st.recursive(
    st.lists(parts, min_size=1, max_size=5).map("".join),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("|".join).map(lambda text: f"(?:{text})"),
        st.tuples(inner, counts, inner).map(lambda found: f"(?:{found[0]}){found[1]}{found[2]}"),
    ),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(patterns, st.sampled_from([b"a", b"b", b"ab", b"aab", b"ba", b"abb"]), st.sampled_from([b"", b"b", b"!", b"a!"]))
def test_what_is_taken_is_not_slow(pattern: str, unit: bytes, end: bytes) -> None:
    if check_regex(pattern) is not None:
        return
    regex = Regex(pattern)
    value = (unit * regex.limit)[: regex.limit - len(end)] + end
    began = time.process_time()
    regex.search(value)
    assert time.process_time() - began < 1.0, (pattern, unit, end, LEAST_INPUT)
