"""The cache, one flight for the same question, chains, and limits."""

from __future__ import annotations

import asyncio
import tracemalloc
from pathlib import Path

import pytest
from directory_helpers import Scripted, file_directory, found
from hypothesis import given
from hypothesis import strategies as st

from l7lb.core.contracts import Entry
from l7lb.core.directory import FAILED, FOUND, MISSING, REFUSED, Question
from l7lb.core.snapshot import HttpSource, LdapSource
from l7lb.routing.directory import lookup as lookup_module
from l7lb.routing.directory import messages
from l7lb.routing.directory.cache import Cache
from l7lb.routing.directory.lookup import Lookup, chain_find, chain_known
from l7lb.routing.directory.messages import budget
from l7lb.routing.directory.source import Result, digest, failed


def lookup(source: Scripted, name: str = "people", **settings: object) -> Lookup:
    clock = settings.pop("clock", lambda: 0.0)
    return Lookup(file_directory(Path("unused"), name, **settings), source, clock)  # type: ignore[arg-type]


def ask(address: bytes = b"a@b") -> Question:
    return Question(address)


# --- the cache ----------------------------------------------------------------------------------------------------------


def test_entries_and_what_is_missing_live_as_long_as_they_may() -> None:
    cache = Cache(300.0, 30.0, 100, 1000.0)
    cache.put(b"a", found("mx1", b"anna"), 1000.0)
    cache.put(b"b", Result(MISSING), 1000.0)
    one = cache.get(b"a", 1299.0)
    assert one is not None
    assert one.entry is not None
    assert (one.entry.mailbox, one.entry.server) == (b"anna", "mx1")
    assert cache.get(b"a", 1300.1) is None
    none = cache.get(b"b", 1029.0)
    assert none is not None
    assert none.status == MISSING
    assert cache.get(b"b", 1030.1) is None


def test_an_entry_is_remembered_whole() -> None:
    entry = Entry(b"m", "s")
    entry.user, entry.password, entry.master_user, entry.master_password = b"u", b"p", b"mu", b"mp"
    entry.proven = True
    cache = Cache(300.0, 30.0, 100, 0.0)
    cache.put(b"a", Result(FOUND, entry), 0.0)
    got = cache.get(b"a", 1.0)
    assert got is not None
    assert messages.fields(got.entry or Entry()) == messages.fields(entry)


@pytest.mark.parametrize("result", [failed("no"), Result(REFUSED), Result(FOUND, Entry(), lasting=False)])
def test_what_may_change_at_once_is_not_remembered(result: Result) -> None:
    cache = Cache(300.0, 30.0, 100, 0.0)
    cache.put(b"a", result, 0.0)
    assert len(cache) == 0


@pytest.mark.parametrize(("seconds", "size"), [(0.0, 100), (300.0, 0)])
def test_without_a_time_or_room_nothing_is_remembered(seconds: float, size: int) -> None:
    cache = Cache(seconds, seconds, size, 0.0)
    cache.put(b"a", found(), 0.0)
    cache.put(b"b", Result(MISSING), 0.0)
    assert len(cache) == 0


def test_addresses_at_random_do_not_drive_out_those_of_people() -> None:
    cache = Cache(300.0, 30.0, 100, 0.0)
    for number in range(75):
        cache.put(b"person %d" % number, found(), 0.0)
    for number in range(10_000):
        cache.put(b"nobody %d" % number, Result(MISSING), 0.0)
    assert len(cache) == 100
    assert all(cache.get(b"person %d" % number, 1.0) is not None for number in range(75))
    assert cache.get(b"nobody 9999", 1.0) is not None
    assert cache.get(b"nobody 0", 1.0) is None


def test_who_moves_from_missing_to_found_is_there_once() -> None:
    cache = Cache(300.0, 30.0, 100, 0.0)
    cache.put(b"a", Result(MISSING), 0.0)
    cache.put(b"a", found(), 1.0)
    assert len(cache) == 1
    got = cache.get(b"a", 2.0)
    assert got is not None
    assert got.status == FOUND
    cache.put(b"a", Result(MISSING), 3.0)
    got = cache.get(b"a", 4.0)
    assert got is not None
    assert got.status == MISSING


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.floats(0, 100)), max_size=60))
def test_the_cache_never_outgrows_its_size_nor_outlives_its_time(steps: list[tuple[int, bool, float]]) -> None:
    cache = Cache(50.0, 20.0, 8, 0.0)
    now, latest = 0.0, {}
    for key, there, pause in steps:
        now += pause
        cache.put(b"%d" % key, found() if there else Result(MISSING), now)
        latest[key] = there, now
        assert len(cache) <= 8
        for one, (was, when) in latest.items():
            got = cache.get(b"%d" % one, now)
            if got is not None:
                assert (got.status == FOUND) == was
                assert now - when <= (50.0 if was else 20.0) + 0.1


@pytest.mark.slow
def test_a_million_entries_cost_little() -> None:
    tracemalloc.start()
    cache = Cache(300.0, 30.0, 1_400_000, 0.0)
    secret = b"secret"
    for number in range(1_000_000):
        address = b"user%d@example.com" % number
        cache.put(digest(secret, address, address), found("mx1", b"user%d" % number), 0.0)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(cache) == 1_000_000
    assert used / 1_000_000 < 260


# --- flights ------------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_the_same_question_is_asked_once_however_many_wait() -> None:
    source = Scripted()
    source.gate.clear()
    source.answers[b"a@b"] = found()
    one = lookup(source)
    waiting = [asyncio.ensure_future(one.find(ask())) for _ in range(50)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    source.gate.set()
    results = await asyncio.gather(*waiting[1:])
    assert {result.status for result in results} == {FOUND}
    assert source.asked == [b"a@b"]
    assert (await one.find(ask())).status == FOUND
    assert source.asked == [b"a@b"]
    await one.close()
    assert source.closed


@pytest.mark.asyncio
async def test_a_source_that_never_answers_fails_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "LOADING", 0.05)
    source = Scripted()
    source.gate.clear()
    one = lookup(source)
    result = await one.find(ask())
    assert (result.status, result.why) == (FAILED, "no answer within 0.05 s")
    source.gate.set()
    assert (await one.find(ask())).status == MISSING  # a failure isn't remembered


@pytest.mark.asyncio
async def test_a_fault_is_a_failure_and_never_a_missing_mailbox(caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(Scripted):
        async def find(self, question: Question) -> Result:
            raise KeyError("oops")

    result = await lookup(Faulty()).find(ask())
    assert (result.status, result.why) == (FAILED, "KeyError: 'oops'")
    assert "a fault" in caplog.text


@pytest.mark.asyncio
async def test_more_different_questions_than_may_wait_fail_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup_module, "FLIGHTS", 2)
    source = Scripted()
    source.gate.clear()
    one = lookup(source)
    waiting = [asyncio.ensure_future(one.find(ask(b"%d@b" % number))) for number in range(2)]
    await asyncio.sleep(0)
    assert (await one.find(ask(b"3@b"))).status == FAILED
    source.gate.set()
    assert {result.status for result in await asyncio.gather(*waiting)} == {MISSING}


@pytest.mark.asyncio
async def test_failures_are_one_line_a_second(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    source = Scripted()
    source.answers = {b"%d@b" % number: failed("out of order") for number in range(10)}
    one = lookup(source, clock=lambda: now[0])
    for number in range(10):
        await one.find(ask(b"%d@b" % number))
    assert caplog.text.count("out of order") == 1
    now[0] += 1.0
    await one.find(ask(b"1@b"))
    assert caplog.text.count("out of order") == 2


# --- chains -------------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("first", "second", "status", "name"),
    [
        (found("mx1"), found("mx2"), FOUND, "one"),
        (Result(MISSING), found("mx2"), FOUND, "two"),
        (Result(MISSING), Result(MISSING), MISSING, "two"),
        (failed("no"), found("mx2"), FAILED, "one"),  # it may be in the first, and elsewhere
        (Result(REFUSED), found("mx2"), REFUSED, "one"),
        (Result(MISSING), failed("no"), FAILED, "two"),
    ],
)
async def test_the_next_directory_is_asked_only_where_one_misses_the_address(
    first: Result, second: Result, status: str, name: str
) -> None:
    sources = Scripted(), Scripted()
    sources[0].answers[b"a@b"], sources[1].answers[b"a@b"] = first, second
    chain = [lookup(sources[0], "one"), lookup(sources[1], "two")]
    assert chain_known(chain, ask()) is None
    result, who = await chain_find(chain, ask())
    assert (result.status, who) == (status, name)
    assert len(sources[1].asked) == (first.status == MISSING)
    known = chain_known(chain, ask())
    if status in (FOUND, MISSING):
        assert known is not None
        assert (known[0].status, known[1]) == (status, name)


def test_how_long_a_directory_may_take() -> None:
    file = file_directory(Path("x"))
    ldap = LdapSource(urls=("ldap://a", "ldap://b"), base="", filter="", attributes={}, timeout=2.0)
    replace = messages.msgspec.structs.replace
    assert budget(replace(file, source=ldap)) == 6.0
    assert budget(replace(file, source=HttpSource(url="http://a", timeout=3.0))) == 6.0
    assert budget(file) == messages.LOADING
