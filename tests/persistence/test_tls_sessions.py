"""Keeping users by the TLS session that they resume: what is learned, and what is not."""

from __future__ import annotations

from collections.abc import Sequence

from sticky_helpers import pool

from l7lb.core.contracts import Stickiness
from l7lb.core.facts import Facts
from l7lb.core.snapshot import PersistenceKey, SourceKey, TlsSessionKey
from l7lb.core.snapshot import Tables as Limits
from l7lb.persistence import Tables, make_stickiness

KEY = TlsSessionKey(expire=60.0)


class Shown(Facts):
    """A client that shows these sessions."""

    def __init__(self, *sessions: bytes, source: str = "192.0.2.1") -> None:
        super().__init__("tls-passthrough", "in", source)
        self.sessions = sessions

    def tls_sessions(self) -> Sequence[bytes]:
        return self.sessions


def make(*keys: PersistenceKey, tables: Tables | None = None) -> Stickiness:
    made = make_stickiness(pool(*keys), tables or Tables(Limits(1000)))
    assert made is not None
    return made


def test_a_session_is_learned_from_who_issued_it() -> None:
    sticky = make(KEY)
    assert sticky.learns
    assert sticky.find(Shown(b"id"), 1.0) is None
    sticky.issued([b"id", b"ticket"], "web2", 1.0)
    assert sticky.find(Shown(b"ticket"), 2.0) == ("web2", "tls_session")
    assert sticky.find(Shown(b"made up", b"id"), 2.0) == ("web2", "tls_session")


def test_what_a_client_makes_up_is_not_learned() -> None:
    tables = Tables(Limits(1000))
    sticky = make(KEY, tables=tables)
    sticky.chosen(Shown(b"made up"), "web1", 1.0)
    assert sticky.find(Shown(b"made up"), 2.0) is None
    table = tables.get("web/tls_session")
    assert table is not None
    assert len(table) == 0


def test_a_dead_server_gives_its_users_up() -> None:
    sticky = make(KEY)
    sticky.issued([b"id"], "web2", 1.0)
    assert sticky.find(Shown(b"id"), 2.0, {"web2"}) is None
    sticky.chosen(Shown(b"id"), "web3", 2.0)
    assert sticky.find(Shown(b"id"), 3.0) == ("web3", "tls_session")


def test_use_keeps_it_and_disuse_forgets_it() -> None:
    sticky = make(KEY)
    sticky.issued([b"id"], "web2", 0.0)
    for now in (40.0, 80.0, 120.0):
        assert sticky.find(Shown(b"id"), now) == ("web2", "tls_session")
        sticky.chosen(Shown(b"id"), "web2", now)
    assert sticky.find(Shown(b"id"), 190.0) is None


def test_the_next_key_where_nothing_is_shown() -> None:
    sticky = make(KEY, SourceKey(expire=60.0))
    sticky.chosen(Shown(b"hidden"), "web1", 1.0)
    assert sticky.find(Shown(b"another"), 2.0) == ("web1", "source")
    # Many users behind one address: one that resumes does not move the others.
    sticky.issued([b"id"], "web3", 2.0)
    assert sticky.find(Shown(b"id"), 3.0) == ("web3", "tls_session")
    sticky.chosen(Shown(b"id"), "web3", 3.0)
    assert sticky.find(Shown(), 4.0) == ("web1", "source")


def test_the_table_holds_digests() -> None:
    tables = Tables(Limits(1000))
    sticky = make(KEY, tables=tables)
    sticky.issued([b"s" * 32], "web1", 1.0)
    table = tables.get("web/tls_session")
    assert table is not None
    assert table.get(b"s" * 32, 1.0) is None
