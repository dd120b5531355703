from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_helpers import PlainFacts, first_match, glob_captures, glob_matches, listener, route

from l7lb.core.snapshot import Listener, Match, Redirect, Respond, Rewrite, ToPool, ToSplit
from l7lb.routing import Router


def number(config: Listener, facts: PlainFacts) -> int | None:
    choice = Router(config, seed=1).route(facts)
    return choice.route.number if choice else None


# --- the key property: the index changes nothing ---------------------------------------------------------------------

hosts = st.lists(st.sampled_from(["a", "b", "ab", "example", "org"]), max_size=4).map(".".join)
segments = st.sampled_from(["", "a", "b", "A", "ab", "api", "v1", "x.php"])
paths = st.lists(segments, max_size=4).map(lambda found: "/" + "/".join(one for one in found if one))


def globs_of(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Values with some of their pieces replaced by stars."""

    @st.composite
    def draw_glob(draw: st.DrawFn) -> str:
        text = draw(values)
        for _ in range(draw(st.integers(0, 2))):
            start = draw(st.integers(0, len(text)))
            text = text[:start] + "*" + text[draw(st.integers(start, len(text))) :]
        return text

    return draw_glob()


host_globs = st.one_of(
    hosts.filter(bool),
    hosts.map(lambda host: f"*.{host}").filter(lambda glob: glob != "*."),
    globs_of(hosts).filter(bool),
)
path_globs = st.one_of(paths, paths.map(lambda path: path + "*"), globs_of(paths)).filter(
    lambda glob: glob.startswith(("/", "*")) and "//" not in glob
)
names = st.sampled_from(["x", "y"])
values = st.sampled_from(["", "1", "12", "yes"])
conditions = st.lists(st.tuples(names, st.lists(globs_of(values), min_size=1, max_size=2).map(tuple)), max_size=1).map(
    tuple
)
networks = st.sampled_from(["10.0.0.0/8", "10.1.0.0/16", "192.0.2.1", "2001:db8::/32", "::1", "0.0.0.0/0", "unix:"])


def some(values: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.one_of(st.just(()), st.lists(values, min_size=1, max_size=3).map(tuple))


def rules(inner: st.SearchStrategy[Match | None]) -> st.SearchStrategy[Match]:
    return st.builds(
        Match,
        host=some(host_globs),
        path=some(path_globs),
        path_regex=some(st.sampled_from(["^/a", "b$", "/v[0-9]+", "a.?b"])),
        method=some(st.sampled_from(["GET", "POST", "get"])),
        header=conditions,
        cookie=conditions,
        query=conditions,
        source=some(networks),
        not_=inner,
    )


host_and_path = st.builds(Match, host=some(host_globs), path=some(path_globs))
matches = st.one_of(
    st.none(), host_and_path, host_and_path, rules(st.none()), rules(st.one_of(host_and_path, rules(st.none())))
)
listeners = st.builds(
    lambda found, exact: listener(*found, exact_case=exact), st.lists(matches, max_size=12), st.booleans()
)
named = st.dictionaries(names.map(str.encode), st.lists(values.map(str.encode), min_size=1, max_size=2), max_size=2)
requests = st.builds(
    PlainFacts,
    host=hosts.map(str.encode),
    path=paths.map(str.encode),
    method=st.sampled_from([b"GET", b"POST"]),
    source=st.sampled_from(["10.1.2.3", "10.200.0.1", "192.0.2.1", "::ffff:10.1.0.1", "2001:db8::5", "::1", "unix:"]),
    headers=named,
    cookies=named,
    parameters=named,
)


@settings(max_examples=120, deadline=None)
@given(listeners, st.lists(requests, min_size=1, max_size=8))
def test_the_router_finds_the_rule_that_a_walk_from_the_first_to_the_last_finds(
    config: Listener, asked: list[PlainFacts]
) -> None:
    router = Router(config, seed=1)
    for facts in asked + asked:  # the second time from memory
        choice = router.route(facts)
        assert (choice.route.number if choice else None) == first_match(config, facts)
        explained = router.explain(facts)
        found = [explanation.number for explanation in explained if explanation.matched]
        assert found == ([choice.route.number] if choice else [])
        assert len(explained) == (choice.route.number if choice else len(config.routes))


@given(globs_of(paths).filter(lambda glob: glob.startswith(("/", "*")) and "//" not in glob), paths)
def test_captures_are_what_each_star_stands_for(glob: str, path: str) -> None:
    rewritten = route(1, Match(path=(glob,)), rewrite=Rewrite("/{path.1}"))
    choice = Router(listener(rewritten)).route(PlainFacts(path=path.encode()))
    assert (choice is not None) == glob_matches(glob, path.encode(), True)
    if choice is not None:
        assert choice.captures == glob_captures(glob, path.encode(), True)


# --- cases that operators meet ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("glob", "host", "expected"),
    [
        ("example.org", b"example.org", True),
        ("Example.ORG", b"example.org", True),
        ("example.org.", b"example.org", True),
        ("example.org", b"www.example.org", False),
        ("*.example.org", b"www.example.org", True),
        ("*.example.org", b"a.b.example.org", True),
        ("*.example.org", b"example.org", False),
        ("*.example.org", b"badexample.org", False),
        ("*example.org", b"badexample.org", True),
        ("a*b.com", b"axb.com", True),
        ("a*b.com", b"ax.yb.com", True),
        ("www.*", b"www.example.net", True),
        ("bücher.example", b"xn--bcher-kva.example", True),
        ("::1", b"[::1]", True),
        ("[::1]", b"[::1]", True),
        ("*", b"", True),
        ("example.org", b"", False),
    ],
)
def test_host_globs(glob: str, host: bytes, expected: bool) -> None:
    assert (number(listener(Match(host=(glob,))), PlainFacts(host=host)) == 1) is expected


@pytest.mark.parametrize(
    ("glob", "path", "expected"),
    [
        ("/api/*", b"/api/", True),
        ("/api/*", b"/api/a/b.c", True),
        ("/api/*", b"/api", False),
        ("/api*", b"/apis", True),
        ("/API/*", b"/api/x", True),
        ("/api/*", b"/API/x", True),
        ("*.php", b"/a/b.php", True),
        ("*.php", b"/a/b.php5", False),
        ("/a/*/z", b"/a/b/c/z", True),
        ("/a/*/z", b"/a/z", False),
        ("/a b", b"/a%20b", True),
        ("/caf\u00e9", b"/caf%C3%A9", True),
        ("/%7euser", b"/~user", True),
        ("/a%2fb", b"/a%2Fb", True),
        ("/a%2fb", b"/a/b", False),
    ],
)
def test_path_globs(glob: str, path: bytes, expected: bool) -> None:
    assert (number(listener(Match(path=(glob,))), PlainFacts(path=path)) == 1) is expected


def test_case_counts_where_the_listener_says_so() -> None:
    config = listener(Match(path=("/Api/*",)), Match(path_regex=("^/Img",)), exact_case=True)
    assert number(config, PlainFacts(path=b"/Api/x")) == 1
    assert number(config, PlainFacts(path=b"/api/x")) is None
    assert number(config, PlainFacts(path=b"/Img")) == 2
    assert number(config, PlainFacts(path=b"/img")) is None


def test_the_first_rule_wins_whatever_the_index_finds_first() -> None:
    config = listener(
        Match(path=("/a/*",), header=(("x", ("1",)),)),
        Match(path_regex=("^/a/b",)),
        Match(host=("h",), path=("/a/b",)),
        Match(path=("/a/*",)),
        Match(host=("h",)),
    )
    assert number(config, PlainFacts(b"h", b"/a/b", headers={b"x": [b"1"]})) == 1
    assert number(config, PlainFacts(b"h", b"/a/b")) == 2
    assert number(config, PlainFacts(b"h", b"/a/c")) == 4
    assert number(config, PlainFacts(b"h", b"/c")) == 5
    assert number(config, PlainFacts(b"i", b"/c")) is None


def test_nested_prefixes_are_all_found() -> None:
    config = listener(*(Match(path=(f"/{'a' * length}*",), method=(f"M{length}",)) for length in range(8)))
    for length in range(8):
        assert number(config, PlainFacts(path=b"/aaaaaaab", method=b"M%d" % length)) == length + 1
        assert number(config, PlainFacts(path=b"/" + b"a" * length, method=b"M%d" % length)) == length + 1
    assert number(config, PlainFacts(path=b"/ab", method=b"M2")) is None


def test_a_rule_with_more_pairs_of_hosts_and_paths_than_the_index_takes() -> None:
    many_hosts = tuple(f"h{one}.example" for one in range(40))
    many_paths = tuple(f"/p{one}/*" for one in range(40))
    config = listener(Match(host=many_hosts, path=many_paths))
    assert number(config, PlainFacts(b"h39.example", b"/p39/x")) == 1
    assert number(config, PlainFacts(b"h39.example", b"/p40/x")) is None
    assert number(config, PlainFacts(b"h40.example", b"/p39/x")) is None


def test_what_is_remembered_is_bounded() -> None:
    config = listener(Match(host=("*.example.org",)), Match(path=("/a*b",)))
    router = Router(config)
    for one in range(10_000):
        assert router.route(PlainFacts(b"h%d.example.org" % one, b"/%d" % one)).route.number == 1  # type: ignore[union-attr]
    long_host = b"a." * 20_000 + b"example.org"
    assert router.route(PlainFacts(long_host)).route.number == 1  # type: ignore[union-attr]
    assert router.route(PlainFacts(long_host + b"x")) is None
    assert 0 < len(router._memory) <= 2048
    assert len(router._index._tables) <= 2049
    assert max(len(host) for host in router._index._tables) < 300


def test_a_path_too_long_for_a_regular_expression_matches_no_rule() -> None:
    config = listener(Match(host=("h",)), Match(path_regex=("[0-9]+/x",)), None)
    assert number(config, PlainFacts(path=b"/1/x")) == 2
    assert number(config, PlainFacts(path=b"/a")) == 3
    long_path = b"/" + b"a" * 1024
    assert number(config, PlainFacts(path=long_path)) is None
    assert number(config, PlainFacts(b"h", long_path)) == 1  # decided before
    explained = Router(config).explain(PlainFacts(path=long_path))
    assert [explanation.matched for explanation in explained] == [False, False]
    assert "1025 bytes" in explained[-1].why
    forbidden = listener(Match(path=("/a*",), not_=Match(path_regex=("[0-9]+/x",))), None)
    assert number(forbidden, PlainFacts(path=long_path)) is None
    # A rule before it decides even where the index looks at the regular expression first.
    before = listener(Match(method=("GET",)), Match(path=("/a*",), path_regex=("[0-9]+/x",)))
    assert number(before, PlainFacts(path=long_path)) == 1


def test_a_regular_expression_may_tell_cases_apart_itself() -> None:
    config = listener(Match(path_regex=("^/(?-i:Abc)$",)))
    assert number(config, PlainFacts(path=b"/Abc")) == 1
    assert number(config, PlainFacts(path=b"/abc")) is None


def test_headers_are_compared_by_name_without_case_and_by_value_with_it() -> None:
    config = listener(Match(header=(("X-Canary", ("Yes*",)),)))
    assert number(config, PlainFacts(headers={b"x-canary": [b"no", b"Yes please"]})) == 1
    assert number(config, PlainFacts(headers={b"x-canary": [b"yes"]})) is None
    assert number(config, PlainFacts()) is None


# --- what a rule leads to -----------------------------------------------------------------------------------------------


def test_a_split_follows_its_weights() -> None:
    split = route(1, action=ToSplit((("web", 90), ("canary", 10), ("off", 0))))
    router = Router(listener(split), seed=7)
    drawn = [router.route(PlainFacts()).pool for _ in range(10_000)]  # type: ignore[union-attr]
    assert drawn.count("off") == 0
    assert 9000 - 3.3 * 30 < drawn.count("web") < 9000 + 3.3 * 30  # 3.3 standard deviations
    again = Router(listener(split), seed=7)
    assert drawn == [again.route(PlainFacts()).pool for _ in range(10_000)]  # type: ignore[union-attr]


def test_a_split_without_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="weight 0"):
        Router(listener(route(3, action=ToSplit((("web", 0),)))))


def test_captures_are_taken_only_where_a_template_names_them() -> None:
    plain = Router(listener(Match(path=("/a/*",)))).route(PlainFacts(path=b"/a/b"))
    assert plain is not None
    assert plain.captures == ()
    moved = route(1, Match(path=("/x/*", "/A/*/*")), Redirect("/{path.2}"))
    choice = Router(listener(moved)).route(PlainFacts(path=b"/a/Bc/D"))
    assert choice is not None
    assert choice.captures == (b"Bc", b"D")
    assert choice.pool is None
    assert choice.answer == Redirect("/{path.2}")


def test_without_a_glob_the_groups_of_the_regular_expression_are_captured() -> None:
    moved = route(1, Match(path_regex=("^/v([0-9]+)/(x)?",)), Redirect("/new/{path.1}"))
    choice = Router(listener(moved)).route(PlainFacts(path=b"/v12/y"))
    assert choice is not None
    assert choice.captures == (b"12", b"")


def test_a_choice_that_gets_templates_expanded_is_new_each_time() -> None:
    router = Router(
        listener(
            route(1, Match(path=("/old",)), Redirect("/new")),
            route(2, Match(path=("/app/*",)), rewrite=Rewrite("/x")),
            route(3, Match(path=("/teapot",)), Respond(418)),
            route(4, action=ToPool("web")),
        )
    )
    for path, shared in ((b"/old", False), (b"/app/1", False), (b"/teapot", True), (b"/", True)):
        facts = PlainFacts(path=path)
        assert (router.route(facts) is router.route(facts)) is shared


def test_more_candidates_than_are_remembered() -> None:
    config = listener(*(Match(header=(("x", (str(one),)),)) for one in range(100)), Match(path=("/a*b",)))
    router = Router(config)
    for _ in range(2):
        assert router.route(PlainFacts(headers={b"x": [b"99"]})).route.number == 100  # type: ignore[union-attr]
        assert router.route(PlainFacts(path=b"/ab")).route.number == 101  # type: ignore[union-attr]
        assert router.route(PlainFacts(path=b"/b")) is None
    assert not router._memory


def test_what_host_and_prefix_decide_is_not_remembered() -> None:
    router = Router(listener(Match(host=("a",), path=("/x/*",)), Match(path=("/x/y",), method=("GET",)), None))
    for path, expected in ((b"/x/y", 2), (b"/x/z", 3), (b"/", 3)):
        assert router.route(PlainFacts(b"b", path, method=b"GET")).route.number == expected  # type: ignore[union-attr]
    assert router.route(PlainFacts(b"a", b"/x/y", method=b"GET")).route.number == 1  # type: ignore[union-attr]
    assert not router._memory


def test_memory_does_not_mix_requests_that_differ_elsewhere() -> None:
    config = listener(Match(path=("/a*b",), method=("POST",)), Match(path=("/a*",), header=(("x", ("1",)),)), None)
    router = Router(config)
    for _ in range(2):
        assert router.route(PlainFacts(path=b"/ab")).route.number == 3  # type: ignore[union-attr]
        assert router.route(PlainFacts(path=b"/ab", method=b"POST")).route.number == 1  # type: ignore[union-attr]
        assert router.route(PlainFacts(path=b"/ab", headers={b"x": [b"1"]})).route.number == 2  # type: ignore[union-attr]
