"""A pool's keys: the same user on the same server, and nobody anywhere he shouldn't be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sticky_helpers import Request, pool

from l7lb.core.contracts import Stickiness
from l7lb.core.keys import address_key, digest
from l7lb.core.snapshot import HeaderKey, InsertedCookie, LearnedCookie, Pool, SourceKey
from l7lb.core.snapshot import Tables as Limits
from l7lb.persistence import Tables, make_stickiness
from l7lb.persistence.setcookie import parse_set_cookie
from l7lb.persistence.stickiness import token

COOKIE = InsertedCookie("L7LB")
SESSION = LearnedCookie("SID", expire=60.0)
USER = HeaderKey("X-User", expire=60.0)
SOURCE = SourceKey(expire=60.0)


def make(config: Pool, tables: Tables | None = None, wall: float = 1e9) -> Stickiness:
    stickiness = make_stickiness(config, tables or Tables(Limits(1000)), lambda: wall)
    assert stickiness is not None
    return stickiness


def browser(stickiness: Stickiness, server: str, request: Request | None = None) -> Request:
    """What a browser sends after it was sent to that server."""
    cookie = parse_set_cookie(stickiness.chosen(request or Request(), server, 1.0))
    assert cookie is not None
    return Request(cookies={cookie.name: [cookie.value]})


def test_no_keys_no_stickiness() -> None:
    assert make_stickiness(pool(), Tables(Limits())) is None


# --- the inserted cookie ------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [(COOKIE,), (COOKIE, SOURCE)])
def test_a_browser_comes_back_to_its_server(keys: tuple[InsertedCookie | SourceKey, ...]) -> None:
    stickiness = make(pool(*keys))
    assert stickiness.find(Request(), 1.0) is None
    for server in ("web1", "web2", "web3"):
        request = browser(stickiness, server)
        assert stickiness.find(request, 2.0) == (server, "cookie")
        assert stickiness.chosen(request, server, 2.0) == b""


def test_the_cookie_is_set_again_for_another_server() -> None:
    stickiness = make(pool(COOKIE))
    request = browser(stickiness, "web1")
    again = parse_set_cookie(stickiness.chosen(request, "web2", 2.0))
    assert again is not None
    assert stickiness.find(Request(cookies={b"L7LB": [again.value]}), 3.0) == ("web2", "cookie")


def test_of_several_cookies_the_first_valid_one_counts() -> None:
    stickiness = make(pool(COOKIE))
    one, two = (browser(stickiness, server).cookies[b"L7LB"][0] for server in ("web1", "web2"))
    request = Request(cookies={b"L7LB": [b"", b"forged", two, one]})
    assert stickiness.find(request, 1.0) == ("web2", "cookie")
    assert stickiness.chosen(request, "web2", 1.0) == b""
    assert stickiness.chosen(request, "web1", 1.0) != b""


def test_the_value_shows_neither_address_nor_name() -> None:
    for server in ("web1", "web2"):
        value = browser(make(pool(COOKIE)), server).cookies[b"L7LB"][0]
        assert len(value) == 20
        assert int(value, 16)
        assert b"web" not in value
        assert b"7f000001" not in value


def test_nodes_and_restarts_agree() -> None:
    assert token("", "web", "web1") == b"5d5f9c29c00e5c6d90d8"
    assert token("00ff" * 16, "web", "web1") == b"7c6a71d6d0818886804f"
    keyed = InsertedCookie("L7LB", key="00ff" * 16)
    request = browser(make(pool(keyed)), "web2")
    assert make(pool(keyed)).find(request, 1.0) == ("web2", "cookie")


def test_the_value_depends_on_key_pool_and_server() -> None:
    values = {
        token(key, pool_name, server)
        for key in ("", "00", "01", "00" * 64, "00" * 65, "ff" * 200)
        for pool_name in ("web", "api", "")
        for server in ("web1", "web2", "")
    }
    assert len(values) == 6 * 3 * 3
    assert token("", "ab", "c") != token("", "a", "bc")


def test_a_key_that_is_no_hexadecimal_is_refused() -> None:
    with pytest.raises(ValueError, match="hexadecimal"):
        make(pool(InsertedCookie("L7LB", key="secret")))


def test_another_pools_cookie_leads_nowhere() -> None:
    other = make(pool(COOKIE, name="other"))
    stickiness = make(pool(COOKIE))
    assert stickiness.find(browser(other, "web1"), 1.0) is None


def test_a_removed_servers_cookie_leads_nowhere() -> None:
    request = browser(make(pool(COOKIE)), "web3")
    assert make(pool(COOKIE, servers=["web1", "web2"])).find(request, 1.0) is None


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_no_forged_value_leaves_the_pool(values: list[bytes]) -> None:
    found = make(pool(COOKIE)).find(Request(cookies={b"L7LB": values}), 1.0)
    assert found is None or found[0] in ("web1", "web2", "web3")


@pytest.mark.parametrize(
    ("config", "scheme", "attributes"),
    [
        (InsertedCookie("C"), b"http", b"Path=/; HttpOnly; SameSite=Lax"),
        (InsertedCookie("C"), b"https", b"Path=/; HttpOnly; SameSite=Lax; Secure"),
        (InsertedCookie("C", secure="always"), b"http", b"Path=/; HttpOnly; SameSite=Lax; Secure"),
        (InsertedCookie("C", secure="never"), b"https", b"Path=/; HttpOnly; SameSite=Lax"),
        (InsertedCookie("C", max_age=3600.0, http_only=False, same_site=""), b"http", b"Path=/; Max-Age=3600"),
        (InsertedCookie("C", max_age=0.2, http_only=False, same_site=""), b"http", b"Path=/; Max-Age=1"),
        (
            InsertedCookie("C", path="/app", domain="example.com", same_site="strict"),
            b"",
            b"Path=/app; Domain=example.com; HttpOnly; SameSite=Strict",
        ),
    ],
)
def test_attributes(config: InsertedCookie, scheme: bytes, attributes: bytes) -> None:
    value = make(pool(config)).chosen(Request(scheme=scheme), "web1", 1.0)
    assert value == b"C=" + token("", "web", "web1") + b"; " + attributes


def test_a_server_that_is_just_gone_sets_no_cookie() -> None:
    assert make(pool(COOKIE)).chosen(Request(), "gone", 1.0) == b""


def test_the_cookie_alone_learns_nothing() -> None:
    stickiness = make(pool(COOKIE))
    assert not stickiness.learns
    stickiness.answered([b"L7LB=x"], "web1", 1.0)


# --- an application's cookie --------------------------------------------------------------------------------


def session(*values: bytes) -> Request:
    return Request(cookies={b"SID": values})


def test_an_applications_cookie_is_learned_from_the_answer() -> None:
    stickiness = make(pool(SESSION))
    assert stickiness.learns
    stickiness.answered([b"theme=dark", b"SID=abc; Path=/; HttpOnly"], "web2", 1.0)
    assert stickiness.find(session(b"abc"), 2.0) == ("web2", "application_cookie")
    assert stickiness.find(session(b'"abc"'), 2.0) == ("web2", "application_cookie")
    assert stickiness.find(session(b"unknown", b"abc"), 2.0) == ("web2", "application_cookie")
    assert stickiness.find(session(b"other"), 2.0) is None
    assert stickiness.find(session(), 2.0) is None


def test_what_a_client_makes_up_is_not_learned() -> None:
    tables = Tables(Limits(1000))
    stickiness = make(pool(SESSION), tables)
    stickiness.chosen(session(b"made-up"), "web1", 1.0)
    assert stickiness.find(session(b"made-up"), 1.0) is None
    assert len(tables.held()[0]) == 0


def test_a_known_session_moves_with_its_user() -> None:
    stickiness = make(pool(SESSION))
    stickiness.answered([b"SID=abc"], "web1", 1.0)
    stickiness.chosen(session(b"abc"), "web2", 2.0)
    assert stickiness.find(session(b"abc"), 3.0) == ("web2", "application_cookie")


def test_use_keeps_a_session_known() -> None:
    stickiness = make(pool(SESSION))
    stickiness.answered([b"SID=abc"], "web1", 0.0)
    for now in range(0, 600, 50):
        assert stickiness.find(session(b"abc"), float(now)) is not None
        stickiness.chosen(session(b"abc"), "web1", float(now))
    assert stickiness.find(session(b"abc"), 700.0) is None


@pytest.mark.parametrize("end", [b"SID=abc; Max-Age=0", b"SID=abc; Expires=Thu, 01 Jan 1970 00:00:00 GMT"])
def test_a_deleted_session_is_forgotten(end: bytes) -> None:
    stickiness = make(pool(SESSION))
    stickiness.answered([b"SID=abc"], "web1", 1.0)
    stickiness.answered([end], "web1", 2.0)
    assert stickiness.find(session(b"abc"), 3.0) is None


@pytest.mark.parametrize("text", [b"SID", b"SID=", b"XSID=abc", b"sid=abc", b"other=SID", b"SID=a b"])
def test_what_is_not_that_cookie_is_not_learned(text: bytes) -> None:
    tables = Tables(Limits(1000))
    make(pool(SESSION), tables).answered([text], "web1", 1.0)
    tables_held = tables.held()
    assert sum(len(table) for table in tables_held) == 0


def test_many_cookies_of_one_name_cost_little() -> None:
    stickiness = make(pool(SESSION))
    stickiness.answered([b"SID=abc"], "web1", 1.0)
    assert stickiness.find(session(*[b"x%d" % number for number in range(7)], b"abc"), 2.0) is not None
    assert stickiness.find(session(*[b"x%d" % number for number in range(8)], b"abc"), 2.0) is None


def test_the_table_holds_no_secrets() -> None:
    tables = Tables(Limits(1000))
    stickiness = make(pool(SESSION, USER), tables)
    request = Request(headers={b"x-user": [b"secret-user"]})
    stickiness.answered([b"SID=secret-session"], "web1", 1.0)
    stickiness.chosen(request, "web1", 1.0)
    stored = [delta for table in tables.held() for index in range(table.parts) for delta in table.part(index)]
    assert len(stored) == 2
    assert b"secret" not in repr(stored).encode()


# --- header and source --------------------------------------------------------------------------------------


def test_a_header_keeps_its_server() -> None:
    stickiness = make(pool(USER))
    request = Request(headers={b"x-user": [b"anna"]})
    assert stickiness.find(request, 1.0) is None
    assert stickiness.chosen(request, "web2", 1.0) == b""
    assert stickiness.find(request, 2.0) == ("web2", "header")
    assert stickiness.find(Request(headers={b"x-user": [b"Anna"]}), 2.0) is None
    assert stickiness.find(Request(headers={b"x-user": [b""]}), 2.0) is None
    assert stickiness.find(Request(), 2.0) is None


def test_an_address_keeps_its_server() -> None:
    stickiness = make(pool(SOURCE))
    stickiness.chosen(Request("192.0.2.1"), "web3", 1.0)
    assert stickiness.find(Request("192.0.2.1"), 2.0) == ("web3", "source")
    assert stickiness.find(Request("::ffff:192.0.2.1"), 2.0) == ("web3", "source")
    assert stickiness.find(Request("192.0.2.2"), 2.0) is None


def test_a_prefix_groups_neighbours() -> None:
    stickiness = make(pool(SourceKey(prefix4=24, prefix6=56)))
    stickiness.chosen(Request("192.0.2.1"), "web1", 1.0)
    stickiness.chosen(Request("2001:db8:0:1200::1"), "web2", 1.0)
    assert stickiness.find(Request("192.0.2.200"), 1.0) == ("web1", "source")
    assert stickiness.find(Request("192.0.3.1"), 1.0) is None
    assert stickiness.find(Request("2001:db8:0:12ff::9"), 1.0) == ("web2", "source")
    assert stickiness.find(Request("2001:db8:0:1300::9"), 1.0) is None


@pytest.mark.parametrize("source", ["unix:", "", "example.org", "1.2.3", "1.2.3.4.5", "::g", "\x00", "1.2.3.4\x00"])
def test_what_is_no_address_is_no_key(source: str) -> None:
    stickiness = make(pool(SOURCE))
    assert stickiness.chosen(Request(source), "web1", 1.0) == b""
    assert stickiness.find(Request(source), 1.0) is None


@pytest.mark.parametrize(
    ("source", "prefix4", "prefix6", "key"),
    [
        ("192.0.2.255", 32, 64, b"\xc0\x00\x02\xff"),
        ("192.0.2.255", 25, 64, b"\xc0\x00\x02\x80"),
        ("192.0.2.255", 0, 64, bytes(4)),
        ("2001:db8::1", 32, 64, b"6\x20\x01\x0d\xb8" + bytes(4)),
        ("2001:db8::1", 32, 128, b"6\x20\x01\x0d\xb8" + bytes(11) + b"\x01"),
        ("2001:dbf::1", 32, 29, b"6\x20\x01\x0d\xb8"),
        ("2001:db8::1", 32, 0, b"6"),
        ("fe80::1%eth0", 32, 16, b"6\xfe\x80"),
        ("::ffff:10.0.0.1", 8, 64, b"\x0a\x00\x00\x00"),
    ],
)
def test_address_keys(source: str, prefix4: int, prefix6: int, key: bytes) -> None:
    assert address_key(source, prefix4, prefix6) == key


def test_a_removed_servers_users_are_new_users() -> None:
    tables = Tables(Limits(1000))
    before = make(pool(SOURCE), tables)
    before.chosen(Request(), "web3", 1.0)
    after = make(pool(SOURCE, servers=["web1", "web2"]), tables)
    assert after.find(Request(), 2.0) is None
    after.chosen(Request(), "web1", 2.0)
    assert after.find(Request(), 3.0) == ("web1", "source")


def test_pools_and_keys_have_tables_of_their_own() -> None:
    tables = Tables(Limits(1000))
    kept = [make(pool(SOURCE, USER, SESSION), tables), make(pool(SOURCE, name="api"), tables)]
    names = {table.name for table in tables.held() if table.pins is not None}
    assert names == {"web/source", "web/header/x-user", "web/application_cookie/SID", "api/source"}
    assert [stickiness.learns for stickiness in kept] == [True, False]


# --- several keys -------------------------------------------------------------------------------------------


def test_the_first_key_that_knows_decides() -> None:
    stickiness = make(pool(COOKIE, SOURCE))
    request = browser(stickiness, "web1")
    stickiness.chosen(Request(), "web2", 1.0)
    assert stickiness.find(Request(), 2.0) == ("web2", "source")
    assert stickiness.find(request, 2.0) == ("web1", "cookie")
    assert stickiness.find(Request(cookies={b"L7LB": [b"forged"]}), 2.0) == ("web2", "source")


def test_a_key_that_names_a_lost_server_is_passed_over() -> None:
    stickiness = make(pool(COOKIE, SESSION, USER, SOURCE))
    stickiness.answered([b"SID=abc"], "web2", 1.0)
    stickiness.answered([b"SID=old"], "web3", 1.0)
    anna = Request(cookies={**browser(stickiness, "web1").cookies, b"SID": [b"old", b"abc"]})
    stickiness.chosen(Request(headers={b"x-user": [b"anna"]}, source="192.0.2.77"), "web1", 1.0)
    stickiness.chosen(Request(), "web2", 1.0)
    anna.headers[b"x-user"] = [b"anna"]
    lost: list[str] = []
    found = []
    while (offer := stickiness.find(anna, 2.0, lost)) is not None:
        found.append(offer)
        lost.append(offer[0])
    assert found == [("web1", "cookie"), ("web3", "application_cookie"), ("web2", "application_cookie")]
    assert stickiness.find(anna, 2.0, ["web3"]) == ("web1", "cookie")
    assert stickiness.find(Request(), 2.0, ["web1"]) == ("web2", "source")
    assert make(pool(COOKIE)).find(browser(stickiness, "web1"), 2.0, ["web1"]) is None


def test_many_browsers_behind_one_address_leave_it_where_it_is() -> None:
    stickiness = make(pool(COOKIE, SOURCE))
    first, second = browser(stickiness, "web1"), browser(make(pool(COOKIE)), "web2")
    for now in range(2, 10):
        stickiness.chosen(first, "web1", float(now))
        stickiness.chosen(second, "web2", float(now))
    assert stickiness.find(Request(), 10.0) == ("web1", "source")


def test_an_address_follows_where_no_key_before_it_is_there() -> None:
    stickiness = make(pool(COOKIE, SOURCE))
    assert stickiness.chosen(Request(), "web1", 1.0) != b""
    assert stickiness.chosen(Request(), "web2", 2.0) != b""
    assert stickiness.find(Request(), 3.0) == ("web2", "source")


def test_later_keys_learn_their_first_server() -> None:
    stickiness = make(pool(USER, SOURCE))
    stickiness.chosen(Request(headers={b"x-user": [b"anna"]}), "web3", 1.0)
    assert stickiness.find(Request(), 2.0) == ("web3", "source")


def test_a_later_key_that_names_a_removed_server_is_set_anew() -> None:
    tables = Tables(Limits(1000))
    before = make(pool(USER, SOURCE), tables)
    anna = Request(headers={b"x-user": [b"anna"]})
    before.chosen(anna, "web3", 1.0)
    after = make(pool(USER, SOURCE, servers=["web1", "web2"]), tables)
    after.chosen(anna, "web1", 2.0)
    assert after.find(Request(), 3.0) == ("web1", "source")


def test_a_session_known_by_nobody_does_not_hold_the_address() -> None:
    stickiness = make(pool(SESSION, SOURCE))
    stickiness.chosen(session(b"unknown"), "web1", 1.0)
    stickiness.chosen(session(b"unknown"), "web2", 2.0)
    assert stickiness.find(session(b"unknown"), 3.0) == ("web2", "source")


def test_digests_are_keys_of_a_table() -> None:
    assert digest(b"a") != digest(b"b")
    assert len(digest(b"a" * 10_000)) == 15
