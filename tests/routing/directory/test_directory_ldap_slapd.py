"""LDAP directories against a real slapd."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from slapd_helpers import BASE, PASSWORD, PEOPLE, READER, SLAPD, Slapd, person

from l7lb.core.directory import Question
from l7lb.core.snapshot import LdapSource
from l7lb.routing.directory.ldap import LdapDirectory
from l7lb.routing.directory.source import Result

pytestmark = [
    pytest.mark.scenario,
    pytest.mark.asyncio,
    pytest.mark.skipif(SLAPD is None, reason="slapd is not installed"),
]
FILTER = "(|(uid={user})(mail={address})(mailAlternateAddress={address}))"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Iterator[Slapd]:
    folder = tmp_path_factory.mktemp("slapd")
    issued = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    for part in issued.cert_chain_pems:
        part.write_to_path(folder / "cert.pem", append=True)
    made = Slapd(folder / "one", tls=(folder / "ca.pem", folder / "cert.pem", folder / "key.pem"))
    yield made
    made.stop()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Slapd]:
    people = PEOPLE.replace("mailHost: mx1", "mailHost: other1")
    made = Slapd(tmp_path / "other", people + person("only", "mail: only@example.com"))
    yield made
    made.stop()


def source(*urls: str, **more: object) -> LdapSource:
    settings = {
        "base": f"ou=people,{BASE}",
        "filter": FILTER,
        "attributes": {"mailbox": "uid", "server": "mailHost"},
        "bind_dn": READER,
        "bind_password": PASSWORD,
        "timeout": 5.0,
        **more,
    }
    return LdapSource(urls=urls, **settings)  # type: ignore[arg-type]


@asynccontextmanager
async def opened(config: LdapSource) -> AsyncIterator[LdapDirectory]:
    directory = LdapDirectory(config, time.monotonic)
    try:
        yield directory
    finally:
        await directory.close()


async def find(directory: LdapDirectory, address: bytes, user: bytes = b"") -> Result:
    return await directory.find(Question(address, user))


def said(result: Result) -> tuple[str, bytes, str]:
    entry = result.entry
    return result.status, entry.mailbox if entry else b"", entry.server if entry else ""


async def test_every_name_of_a_mailbox_leads_to_one_entry(server: Slapd) -> None:
    async with opened(source(server.url)) as directory:
        for address, user in [
            (b"anna@example.com", b"anna"),
            (b"a.b@example.org", b"a.b@example.org"),
            (b"ANNA@EXAMPLE.COM", b""),
        ]:
            assert said(await find(directory, address, user)) == ("found", b"anna", "mx1")
        assert said(await find(directory, b"bert@example.com")) == ("found", b"bert", "mx2")
        assert said(await find(directory, b"nohost@example.com")) == ("found", b"nohost", "")


async def test_no_entry_is_missing_and_several_are_a_failure(server: Slapd) -> None:
    async with opened(source(server.url)) as directory:
        assert (await find(directory, b"nobody@example.com")).status == "missing"
        result = await find(directory, b"twice@example.com")
        assert result.status == "failed"
        assert "several entries" in result.why


@pytest.mark.parametrize(
    "attack",
    [
        b"*",
        b"a*",
        b"anna)(uid=*",
        b"*)(objectClass=*",
        b"x))(|(uid=anna",
        b"\\2a",
        b"\x00",
        b"anna\x00",
        b"{user}",
        b"{address}",
        "ünï@example.com".encode(),
        b"\xff\xfe",
        b"(" * 500,
        b"a" * 5000,
    ],
)
async def test_what_was_typed_never_becomes_part_of_the_filter(server: Slapd, attack: bytes) -> None:
    async with opened(source(server.url)) as directory:
        assert (await find(directory, attack, attack)).status == "missing"
        assert said(await find(directory, b"anna@example.com")) == ("found", b"anna", "mx1")


async def test_a_star_in_a_name_is_that_name(server: Slapd) -> None:
    async with opened(source(server.url)) as directory:
        assert said(await find(directory, b"star*@example.com", b"star*")) == ("found", b"star*", "mx9")


async def test_many_at_once_share_a_few_connections(server: Slapd) -> None:
    async with opened(source(server.url, connections=4)) as directory:
        results = await asyncio.gather(*(find(directory, b"anna@example.com", b"anna") for _ in range(200)))
        assert {said(result) for result in results} == {("found", b"anna", "mx1")}
        assert len(directory._lanes._all) <= 4
        for _ in range(5):
            await find(directory, b"bert@example.com")
        assert len(directory._lanes._idle) == len(directory._lanes._all)


@pytest.mark.parametrize("way", ["start_tls", "ldaps"])
async def test_tls_is_verified(server: Slapd, authority: trustme.CA, way: str) -> None:
    url = server.secure_url if way == "ldaps" else server.url
    settings = {"start_tls": way == "start_tls"}
    async with opened(source(url, ca=authority.cert_pem.bytes(), **settings)) as directory:
        assert said(await find(directory, b"anna@example.com")) == ("found", b"anna", "mx1")
    stranger = trustme.CA()
    async with opened(source(url, ca=stranger.cert_pem.bytes(), **settings)) as directory:
        result = await find(directory, b"anna@example.com")
        assert result.status == "failed"
        assert "certificate verify failed" in result.why.lower()
    async with opened(source(url, verify=False, **settings)) as directory:
        assert said(await find(directory, b"anna@example.com")) == ("found", b"anna", "mx1")
    named = url.replace("127.0.0.1", "localhost")
    async with opened(source(named, ca=authority.cert_pem.bytes(), **settings)) as directory:
        assert (await find(directory, b"anna@example.com")).status == "failed"  # the certificate has another name


async def test_a_server_without_tls_is_not_spoken_to_in_the_clear(other: Slapd, authority: trustme.CA) -> None:
    async with opened(source(other.url, start_tls=True, ca=authority.cert_pem.bytes())) as directory:
        result = await find(directory, b"anna@example.com")
        assert result.status == "failed"
        assert "startTLS failed" in result.why


async def test_a_unix_socket_is_a_server_too(server: Slapd) -> None:
    async with opened(source(server.unix_url)) as directory:
        assert said(await find(directory, b"anna@example.com")) == ("found", b"anna", "mx1")


async def test_without_a_name_no_bind_is_done(tmp_path: Path) -> None:
    public = Slapd(tmp_path / "public", anonymous=True)
    try:
        async with opened(source(public.url, bind_dn="", bind_password=b"")) as directory:
            assert said(await find(directory, b"anna@example.com")) == ("found", b"anna", "mx1")
    finally:
        public.stop()


async def test_a_name_without_a_password_is_never_bound(server: Slapd) -> None:
    with pytest.raises(ValueError, match="password"):
        LdapDirectory(source(server.url, bind_password=b""), time.monotonic)


async def test_a_wrong_password_is_a_failure_that_does_not_show_it(server: Slapd) -> None:
    async with opened(source(server.url, bind_password=b"wrong")) as directory:
        result = await find(directory, b"anna@example.com")
        assert result.status == "failed"
        assert "invalidCredentials" in result.why
        assert "wrong" not in result.why


async def test_a_base_that_is_not_there_is_a_failure_and_not_a_missing_mailbox(server: Slapd) -> None:
    async with opened(source(server.url, base=f"ou=typo,{BASE}")) as directory:
        result = await find(directory, b"anna@example.com")
        assert result.status == "failed"
        assert "noSuchObject" in result.why


async def test_several_values_are_a_failure(server: Slapd) -> None:
    async with opened(source(server.url, attributes={"mailbox": "objectClass"})) as directory:
        result = await find(directory, b"anna@example.com")
        assert result.status == "failed"
        assert "several values of objectClass" in result.why


async def test_a_restart_of_the_server_is_not_noticed(server: Slapd, other: Slapd) -> None:
    async with opened(source(other.url)) as directory:
        assert said(await find(directory, b"anna@example.com")) == ("found", b"anna", "other1")
        other.stop()
        other.start()
        # The kept connection is dead; the answer comes over a new one.
        assert said(await find(directory, b"anna@example.com")) == ("found", b"anna", "other1")


async def test_the_next_server_takes_over_and_gives_back(server: Slapd, other: Slapd) -> None:
    async with opened(source(other.url, server.url)) as directory:
        assert said(await find(directory, b"anna@example.com")) == ("found", b"anna", "other1")
        other.stop()
        began = time.monotonic()
        for _ in range(50):
            assert said(await find(directory, b"anna@example.com")) == ("found", b"anna", "mx1")
        assert time.monotonic() - began < 4.0
        assert directory._rests[0].why
        other.start()
        async with asyncio.timeout(20.0):
            while said(await find(directory, b"anna@example.com"))[2] != "other1":
                await asyncio.sleep(0.05)


async def test_a_server_that_hangs_costs_its_time_once(server: Slapd, other: Slapd) -> None:
    async with opened(source(other.url, server.url, timeout=0.5)) as directory:
        assert said(await find(directory, b"anna@example.com")) == ("found", b"anna", "other1")
        assert other.process is not None
        other.process.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            results = await asyncio.gather(*(find(directory, b"anna@example.com") for _ in range(8)))
            assert {said(result) for result in results} == {("found", b"anna", "mx1")}
            assert time.monotonic() - began < 4.0
            began = time.monotonic()
            assert said(await find(directory, b"anna@example.com")) == ("found", b"anna", "mx1")
            assert time.monotonic() - began < 0.4  # it is remembered
        finally:
            other.process.send_signal(signal.SIGCONT)


async def test_all_servers_down_is_a_failure_at_once(other: Slapd) -> None:
    async with opened(source(other.url)) as directory:
        other.stop()
        assert (await find(directory, b"anna@example.com")).status == "failed"
        began = time.monotonic()
        result = await find(directory, b"anna@example.com")
        assert result.status == "failed"
        assert "is left alone" in result.why
        assert time.monotonic() - began < 0.5
