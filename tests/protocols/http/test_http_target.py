"""Request targets: their forms, and the normal form of paths and hosts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7lb.protocols.http.syntax import TARGET_BYTES, SyntaxFault
from l7lb.protocols.http.target import MAX_HOSTS, _hosts, normal_host, normal_path, split_target


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        (b"/", b"/"),
        (b"/a/b", b"/a/b"),
        (b"/a/../b", b"/b"),
        (b"/a/./b", b"/a/b"),
        (b"/a/..", b"/"),
        (b"/a/b/..", b"/a/"),
        (b"/a/b/.", b"/a/b/"),
        (b"/..", b"/"),
        (b"/../../../a", b"/a"),
        (b"/a//b", b"/a/b"),
        (b"//a///b//", b"/a/b/"),
        (b"/%2e%2e/a", b"/a"),
        (b"/x/%2E%2e/a", b"/a"),
        (b"/x/.%2e/a", b"/a"),
        (b"/%41%7e%5f", b"/A~_"),
        (b"/%2f", b"/%2F"),
        (b"/a%2Fb", b"/a%2Fb"),
        (b"/%252e%252e/a", b"/%252e%252e/a"),
        (b"/%25", b"/%25"),
        (b"/%c3%a4", b"/%C3%A4"),
        (b"/%3f%23%5c", b"/%3F%23%5C"),
        (b"/...", b"/..."),
        (b"/.a/..b", b"/.a/..b"),
        (b"/a/...//b/.", b"/a/.../b/"),
        (b"/%0d%0aX", b"/%0D%0AX"),
    ],
)
def test_the_normal_form(path: bytes, normal: bytes) -> None:
    assert normal_path(path) == normal
    assert normal_path(normal) == normal
    assert split_target(b"GET", path)[0] == normal


@pytest.mark.parametrize(
    "path",
    [
        b"/%", b"/%2", b"/%zz", b"/%2g", b"/a%", b"/%00", b"/x%00y", b"/%u0041",
        # Servers that decode these before they remove dot segments would leave the rule's path.
        b"/a/..%2fb", b"/a/..%5Cb", b"/a/%2e%2e%2fb", b"/a/..;/b", b"/a/..;x=1/b", b"/a/.;/b", b"/a/x%2f../b",
        b"/a/x%2f..", b"/a%2F..%2Fb", b"/..%2f", b"/.%5c..",
    ],
)  # fmt: skip
def test_what_can_not_be_normal_is_refused(path: bytes) -> None:
    with pytest.raises(SyntaxFault) as caught:
        split_target(b"GET", path)
    assert caught.value.status == 400


@given(st.lists(st.sampled_from([b"/", b".", b"..", b"a", b"%2e", b"%2F", b"//", b"b%41", b";", b"..."]), max_size=12))
def test_a_normal_path_has_no_dot_segments_and_is_its_own_normal_form(parts: list[bytes]) -> None:
    try:
        path = normal_path(b"/" + b"".join(parts))
    except SyntaxFault:
        return
    assert path.startswith(b"/")
    assert not {b".", b".."} & set(path.split(b"/"))
    assert b"//" not in path
    assert normal_path(path) == path
    decoded = path.replace(b"%2F", b"/")
    assert b"/../" not in decoded + b"/"


@pytest.mark.parametrize(
    ("method", "target", "parts"),
    [
        (b"GET", b"/a?b=c?d", (b"/a", b"?b=c?d", b"")),
        (b"GET", b"/a?", (b"/a", b"?", b"")),
        (b"OPTIONS", b"*", (b"*", b"", b"")),
        (b"GET", b"http://a.example/x/../y?z", (b"/y", b"?z", b"a.example")),
        (b"GET", b"HTTPS://a:81", (b"/", b"", b"a:81")),
        (b"GET", b"http://a?x=/y", (b"/", b"?x=/y", b"a")),
        (b"OPTIONS", b"http://a", (b"*", b"", b"a")),
        (b"OPTIONS", b"http://a/", (b"/", b"", b"a")),
    ],
)
def test_the_forms_of_a_target(method: bytes, target: bytes, parts: tuple[bytes, bytes, bytes]) -> None:
    path, query, authority = split_target(method, target)
    assert (path, query, authority or b"") == parts


@pytest.mark.parametrize(
    ("method", "target"),
    [
        (b"GET", b"*"), (b"GET", b"a/b"), (b"GET", b"a.example:80"), (b"GET", b"ftp://a/"), (b"GET", b"http://"),
        (b"GET", b"http:///x"), (b"GET", b"http:/x"), (b"GET", b"?x"), (b"GET", b"/a#b"), (b"GET", b"/a\\b"),
        (b"GET", b'/a"b'), (b"GET", b"/a<b>"), (b"GET", b"/\x80"), (b"GET", b"/a\x00"), (b"GET", b"/a\tb"),
        (b"GET", b""), (b"GET", b"/`"), (b"GET", b"/\x7f"),
    ],
)  # fmt: skip
def test_other_targets_are_refused(method: bytes, target: bytes) -> None:
    with pytest.raises(SyntaxFault) as caught:
        split_target(method, target)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("value", "host"),
    [
        (b"A.Example.ORG", (b"a.example.org", 0)),
        (b"a.example.:80", (b"a.example", 80)),
        (b"[2001:DB8::1]:8080", (b"[2001:db8::1]", 8080)),
        (b"127.0.0.1:", (b"127.0.0.1", 0)),
        (b"a_b", (b"a_b", 0)),
    ],
)
def test_hosts(value: bytes, host: tuple[bytes, int]) -> None:
    assert normal_host(value) == host


@pytest.mark.parametrize(
    "value",
    [b"a b", b"a/b", b"a@b", b"u:p@a", b"a:80:80", b"a:x", b"a:99999", b"a:123456", b"[::1", b"::1", b"a\x00", b"\xe4",
     b"a?b", b"a#b", b"a\\b", b"[x]", b"a,b", b'"a"', b"[::1]x"],
)  # fmt: skip
def test_malformed_hosts(value: bytes) -> None:
    with pytest.raises(SyntaxFault) as caught:
        normal_host(value)
    assert caught.value.status == 400


def test_remembered_hosts_have_a_bound() -> None:
    for number in range(MAX_HOSTS + 10):
        normal_host(b"host%d" % number)
    assert len(_hosts) <= MAX_HOSTS


PARTS = [b"/", b".", b"%41", b"a", b"?", b"~", b"[", b"#", b" ", b"\xe9", b";", b"-"]


@given(st.lists(st.sampled_from(PARTS)).map(b"".join))
def test_a_target_is_refused_or_its_path_is_in_normal_form(rest: bytes) -> None:
    target = b"/" + rest
    try:
        path, query, authority = split_target(b"GET", target)
    except SyntaxFault:
        return
    assert not target.translate(None, TARGET_BYTES)
    assert authority is None
    assert query == target[len(target.partition(b"?")[0]) :]
    assert path == normal_path(target.partition(b"?")[0]) == normal_path(path)


def test_common_targets_stay_as_they_are() -> None:
    for target in (b"/", b"/a", b"/a/", b"/api/v1/users/7?x=1&y=%20", b"/a.b-c_d~/e;f=g", b"/?", b"/a?/../b"):
        path, query, _ = split_target(b"GET", target)
        assert path + query == target
