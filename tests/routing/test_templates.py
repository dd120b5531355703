from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_helpers import PlainFacts

from l7lb.routing.templates import check_template, compile_template, expand

FACTS = PlainFacts(b"www.example.org", b"/a/b.c", b"GET", "192.0.2.1", query=b"?x=1&y=/2")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/new/{path.1}", b"/new/one"),
        ("/{path.2}/{path.1}", b"/two/one"),
        ("/{path.3}", b"/"),
        ("{path}", b"/a/b.c"),
        ("/x{path}", b"/x/a/b.c"),
        ("/x/{path}", b"/x/a/b.c"),
        ("https://{host}{path}", b"https://www.example.org/a/b.c"),
        ("{scheme}://other.example:8443/{path.1}", b"http://other.example:8443/one"),
        ("https://{host}/?from={path}&{query}", b"https://www.example.org/?from=/a/b.c&x=1&y=/2"),
        ("/{method}/{source}", b"/GET/192.0.2.1"),
        ("/{{x}}/{path.1}", b"/{x}/one"),
        ("/caf\u00e9", "/caf\u00e9".encode()),
    ],
)
def test_expansion(text: str, expected: bytes) -> None:
    assert expand(text, FACTS, (b"one", b"two")) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/{", "without its partner"),
        ("/}", "without its partner"),
        ("/{a{b}}", "without its partner"),
        ("/{}", "there is no {}"),
        ("/{pth}", "{path} may be meant"),
        ("/{path.0}", "{path.1}"),
        ("/{path.x}", "{path.1}"),
        ("/a\r\nb", "control characters"),
        ("x" * 5000, "at most"),
        ("https://{path.1}/", "part of the host"),
        ("https://{path.1}.example.org/", "part of the host"),
        ("https://www.example.org{path.1}", 'write a "/" before it'),
        ("https://{host}{path.1}", "part of the host"),
        ("https://{host}{query}", "part of the host"),
        ("https://{path}", "part of the host"),
        ("{scheme}://{source}/", "part of the host"),
        ("//{host}/x", 'begins with "//"'),
        ("{query}", "begins with {query}"),
        ("{scheme}{query}", "begins with {scheme}"),
    ],
)
def test_what_is_wrong_with_a_template(text: str, words: str) -> None:
    assert words in str(check_template(text))
    with pytest.raises(ValueError, match=re.escape(words)):
        compile_template(text)


def test_a_star_that_the_rule_does_not_have() -> None:
    assert check_template("/{path.2}", 2) is None
    assert check_template("/{path.2}", 1) == "{path.2} stands for nothing: the rule's path has only 1 *"
    assert check_template("/{path.1}", 0) == "{path.1} stands for nothing: the rule's path has no *"


@pytest.mark.parametrize(
    "capture",
    [
        b"/evil.example",
        b"//evil.example",
        b"/\\evil.example",
        b"\\/evil.example",
        b"\\\\evil.example",
        b"/%09/evil.example",
    ],
)
@pytest.mark.parametrize("text", ["/{path.1}", "{path.1}", "/{path.1}{path.1}", "{path}"])
def test_no_redirection_to_another_host(text: str, capture: bytes) -> None:
    location = expand(text, PlainFacts(path=b"/" + capture), (capture,))
    assert location.startswith(b"/")
    assert location[1:2] not in (b"/", b"\\")


@pytest.mark.parametrize(
    ("capture", "expected"),
    [(b"../etc", b"/etc"), (b"a/../../b", b"/b"), (b"./x", b"/x"), (b"..", b"/"), (b"a/..", b"/"), (b"...", b"/...")],
)
def test_a_rewritten_path_has_no_dot_segments(capture: bytes, expected: bytes) -> None:
    assert expand("/{path.1}", FACTS, (capture,)) == expected


def test_the_query_of_a_template_is_left_alone() -> None:
    assert expand("/{path.1}?next=//x/../y", FACTS, (b"/a",)) == b"/a?next=//x/../y"
    assert compile_template("/a?b").has_query
    assert compile_template("/a?{query}").has_query
    assert not compile_template("/{path.1}").has_query


def test_a_host_gets_only_what_a_host_can_have() -> None:
    template = compile_template("{path.1}.internal", host=True)
    assert template(FACTS, (b"shop",)) == b"shop.internal"
    assert template(FACTS, (b"a/b@c:1",)) == b"a%2Fb%40c:1.internal"
    assert check_template("a/b", host=True) == 'a host can\'t have "/"'
    assert check_template("example.org:8080", host=True) is None


@given(
    st.sampled_from(["/{path.1}", "{path.1}", "/a{path.1}b?{query}", "https://{host}/{path.1}?{query}", "x-{path.1}"]),
    st.binary(max_size=12),
    st.binary(max_size=12),
    st.binary(max_size=12),
)
def test_nothing_that_a_client_sends_ends_a_line(text: str, capture: bytes, host: bytes, query: bytes) -> None:
    result = expand(text, PlainFacts(host=host, query=b"?" + query), (capture,))
    assert not set(result) & {*range(0x21), 0x7F}
    assert result.isascii()
    if text.startswith("https://"):
        authority = result.split(b"/")[2]
        assert not set(authority) & set(b"@?#\\")


@given(st.binary(max_size=16))
def test_a_path_template_gives_a_plain_path(capture: bytes) -> None:
    path = expand("/x/{path.1}", FACTS, (capture,))
    assert path.startswith(b"/")
    assert b"//" not in path
    assert not {b".", b".."} & set(path.split(b"/"))
