"""Dot segments, wherever a path comes from."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7lb.core.paths import plain_path
from l7lb.protocols.http.target import normal_path
from l7lb.routing.templates import tidy_path


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        (b"/", b"/"), (b"/a/b", b"/a/b"), (b"/a/../b", b"/b"), (b"/a/./b", b"/a/b"), (b"/a/..", b"/"), (b"/a/b/..", b"/a/"),
        (b"/a/.", b"/a/"), (b"/..", b"/"), (b"/../../a", b"/a"), (b"//a///b//", b"/a/b/"), (b"/.a/..b/...", b"/.a/..b/..."),
        (b"/a/../", b"/"), (b"/a//../b", b"/b"),
    ],
)  # fmt: skip
def test_dot_segments(path: bytes, plain: bytes) -> None:
    assert plain_path(path) == normal_path(path) == tidy_path(path) == plain


@given(st.lists(st.sampled_from([b"/", b".", b"..", b"a", b"b."])).map(lambda parts: b"/" + b"".join(parts)))
def test_it_names_what_the_system_would_name(path: bytes) -> None:
    plain = plain_path(path)
    assert plain.rstrip(b"/") == posixpath.normpath(path).replace(b"//", b"/").rstrip(b"/")
    assert plain_path(plain) == plain
