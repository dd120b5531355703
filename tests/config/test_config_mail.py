"""Mail in the configuration: what a whole cluster compiles to, and what can be wrong with each of its keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
from config_marking import check, check_warnings

from l7lb.config import MoveHook, load
from l7lb.core.errors import ConfigurationError
from l7lb.core.snapshot import (
    Address,
    Addresses,
    Balance,
    Directory,
    FactName,
    FileSource,
    Health,
    HttpSource,
    LdapSource,
    MailboxKey,
    Match,
    Route,
    Snapshot,
    ToPool,
    decode,
    encode,
)
from l7lb.protocols.mail.settings import MailSettings

LEAF = trustme.CA(key_type=trustme.KeyType.ECDSA).issue_cert("mail.example.com", key_type=trustme.KeyType.ECDSA)
CLUSTER = (Path(__file__).parent / "mail.yaml").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("certs", "secrets"):
        (tmp_path / name).mkdir()
    (tmp_path / "certs/mail.pem").write_bytes(b"".join(part.bytes() for part in LEAF.cert_chain_pems))
    (tmp_path / "certs/mail.key").write_bytes(LEAF.private_key_pem.bytes())
    (tmp_path / "certs/ca.pem").write_bytes(b"".join(part.bytes() for part in LEAF.cert_chain_pems))
    (tmp_path / "secrets/ldap").write_text("geheim\n")
    (tmp_path / "users.txt").write_text("a@example.com mx1\n")
    return tmp_path


@pytest.fixture
def cluster(folder: Path) -> Snapshot:
    return load(folder / "mail.yaml", text=CLUSTER).snapshot


# --- a whole cluster ----------------------------------------------------------------------------------------------


def test_directories(cluster: Snapshot, folder: Path) -> None:
    people, legacy = cluster.directories
    assert people == Directory(
        name="people",
        source=LdapSource(
            urls=("ldap://127.0.0.1:3890", "ldap://127.0.0.1:3891"),
            base="ou=people,dc=example,dc=com",
            filter="(|(uid={user})(mail={address})(mailAlternateAddress={address}))",
            attributes={"mailbox": "uid", "server": "mailHost"},
            bind_dn="cn=reader,dc=example,dc=com",
            bind_password=b"geheim",
        ),
    )
    assert legacy.source == FileSource(path=str(folder / "users.txt"), columns=("address", "server"))
    assert (legacy.missing, legacy.unknown_server, legacy.server_down) == ("pool", "refuse", "refuse")


def test_secrets_do_not_show(cluster: Snapshot) -> None:
    assert "geheim" not in repr(cluster)


def test_listeners(cluster: Snapshot) -> None:
    assert [(one.name, one.protocol, one.client_first) for one in cluster.listeners] == [
        ("imap", "imap4", False),
        ("imaps", "imap4", True),
        ("pop3", "pop3", False),
        ("sieve", "managesieve", False),
        ("submission", "submission", False),
        ("mx", "smtp", False),
        ("lmtp", "lmtp", False),
    ]
    modes = [one.tls.mode if one.tls is not None else "" for one in cluster.listeners]
    assert modes == ["starttls", "implicit", "starttls", "starttls", "starttls", "starttls", ""]
    assert {one.addresses for one in cluster.listeners} == {Addresses(True, "+", "example.com")}
    assert [one.tls.alpn for one in cluster.listeners[:3] if one.tls is not None] == [("imap",), ("imap",), ("pop3",)]
    vip, rest = cluster.listeners[0].routes
    assert vip == Route(number=1, where=vip.where, match=Match(address=("*@vip.example.com",)), action=ToPool("vip"))
    assert (rest.directory, rest.match, rest.action) == (("people", "legacy"), None, ToPool("mail"))


def test_settings(cluster: Snapshot) -> None:
    by_name = {one.name: one.settings for one in cluster.listeners}
    assert by_name["imap"] == {
        "hostname": "lb1",
        "trusted": [],
        "capabilities": [],
        "login": 60.0,
        "greeting": 30.0,
        "answer": 60.0,
        "tunnel": 1860.0,
        "half_closed": 60.0,
        "bad_commands": 10,
        "hops": 5,
        "line_bytes": 16384,
        "literal_bytes": 65536,
        "cleartext": "after-tls",
        "mechanisms": ["plain", "login", "xoauth2", "oauthbearer"],
        "failures_per_address": 10,
        "failures_window": 60.0,
        "sessions_per_mailbox": 50,
        "sessions_per_address": 200,
        "login_attempts": 3,
    }
    assert by_name["pop3"]["tunnel"] == 660.0
    assert (by_name["mx"]["recipients"], by_name["mx"]["data_answer"]) == ("split", 660.0)
    assert "recipients" not in by_name["lmtp"]
    assert "sessions_per_mailbox" not in by_name["mx"]  # deliveries wait in the sender's queue, not here


def test_settings_are_those_that_the_protocols_know(cluster: Snapshot) -> None:
    for listener in cluster.listeners:
        known = MailSettings.of(listener)
        told = msgspec.json.decode(msgspec.json.encode(known))
        assert {key: told[key] for key in listener.settings} == listener.settings, listener.name


def test_pools(cluster: Snapshot) -> None:
    mail, vip = cluster.pools
    assert mail.balance == Balance("hash", FactName("mailbox"))
    assert mail.persistence == (MailboxKey(900.0),)
    assert mail.login_as == "typed"
    assert mail.client_address == {"imap4": "id", "submission": "xclient", "smtp": "xclient"}
    assert mail.health == Health(
        kind="protocol",
        interval=1.0,
        timeout=1.0,
        rise=2,
        fall=2,
        protocol="imap4",
        scope="protocol",
        protocols=("imap4", "pop3", "managesieve", "submission", "smtp", "lmtp"),
    )
    first = mail.servers[0]
    assert first.address == Address("127.0.0.1", 2143)
    assert first.address_for("lmtp") == Address("127.0.0.1", 2024)
    assert first.address_for("http") == Address("127.0.0.1", 2080)
    assert first.tls is None
    tls = vip.servers[0].tls
    assert tls is not None
    assert (tls.mode, tls.server_name, bool(tls.ca)) == ("auto", "127.0.0.1", True)


def test_the_snapshot_travels(cluster: Snapshot) -> None:
    assert decode(encode(cluster)) == cluster


def test_an_open_relay_in_waiting_is_told(folder: Path) -> None:
    warnings = load(folder / "mail.yaml", text=CLUSTER).warnings
    assert [(one.path, "takes this node for all its clients" in one.message) for one in warnings] == [
        ("pools.vip", True)
    ]


# --- one key at a time --------------------------------------------------------------------------------------------

SERVERS = "{name: a, host: 127.0.0.1, ports: {imap4: 143, smtp: 25, http: 80}}"


def mail(
    listener: str = "",
    pool: str = "",
    *,
    protocol: str = "imap4",
    rule: str = "{pool: mail}",
    servers: str = SERVERS,
    top: str = "",
) -> str:
    """A file with one listener of mail and one pool, with these further keys."""
    if "login" not in listener and protocol in ("imap4", "pop3", "managesieve", "submission"):
        listener += ", login: {cleartext: always}"
    return f"""\
{top}
listeners:
  - {{name: in, protocol: {protocol}, bind: ["127.0.0.1:143"], routes: [{rule}]{listener}}}
pools:
  mail: {{servers: [{servers}], persistence: mailbox{pool}}}
"""


def directory(keys: str) -> str:
    """A file with a directory of these keys."""
    return mail(rule="{pool: mail, directory: people}", top=f"directories: {{people: {keys}}}")


def ldap(keys: str, without: str = "") -> str:
    """A file with an LDAP directory: what is needed, with these keys instead or besides."""
    usual = {
        "urls": '["ldap://127.0.0.1"]',
        "base": '"dc=example"',
        "filter": '"(mail={address})"',
        "attributes": "{server: host}",
    }
    plain = keys.replace("▸", "")
    needed = [f"{key}: {value}" for key, value in usual.items() if f"{key}: " not in plain and key != without]
    return directory(f"{{ldap: {{{', '.join([*needed, keys] if keys else needed)}}}}}")


LDAP = [
    ("urls: ▸[]", "is empty: give at least one"),
    ("urls: [▸'http://a']", "is not a URL of a server: write one such as ldap://192.0.2.1:389"),
    ("urls: [▸'ldap://a:99999']", "is not a URL"),
    ("urls: [▸'ldapi://']", "is not a URL of a server"),
    ("urls: [▸'ldap://me:secret@a']", "has a user name or a password"),
    ("urls: [▸'ldap://a/dc=x?uid']", "is said by base and filter"),
    ("urls: ['ldaps://a'], start_tls: ▸true", "ldaps:// is TLS already"),
    ("base: ▸''", "has no visible character"),
    ("filter: ▸'(mail={adress})'", 'the place "{adress}" is not known; did you mean "{address}"?'),
    ("filter: ▸'(mail=a)'", "has no place for the address"),
    ("filter: ▸'mail={address}'", "it begins and ends with brackets"),
    ("filter: ▸'((mail={address})'", "a bracket is not closed"),
    ("filter: ▸'(mail={address}))('", "begins and ends with brackets"),
    ("filter: ▸'(a={address})(b={user})'", "a bracket is closed too early"),
    ("filter: ▸'(&(a={address})())'", "each pair of brackets holds a comparison"),
    ("filter: ▸'(a{address})'", "each pair of brackets holds a comparison"),
    ("attributes: ▸{}", "is empty: give at least mailbox or server"),
    ("attributes: {server: ▸'a b'}", "is not the name of an attribute"),
    ("attributes: {▸sever: a}", 'did you mean "server"?'),
    ("attributes: {server: a, master_user: ▸b}", "master_user does nothing without master_password"),
    ("bind_dn: ▸cn=a", "a name without a password is no login at all (RFC 4513, 5.1.2)"),
    ("bind_password_file: ▸▸none", "whose password is it?", "none: there is no such file"),
    ("ca: ▸none.pem", "none.pem: there is no such file"),
    ("timeout: ▸2", "has no unit"),
    ("connections: ▸0", "too small"),
]


@pytest.mark.parametrize("case", LDAP, ids=[case[0][:50] for case in LDAP])
def test_ldap(case: tuple[str, ...]) -> None:
    check(ldap(case[0]), *case[1:])


@pytest.mark.parametrize("key", ["urls", "base", "filter", "attributes"])
def test_what_ldap_needs(key: str) -> None:
    with pytest.raises(ConfigurationError, match=f'"{key}" is missing'):
        load("x.yaml", text=ldap("", without=key))


@pytest.mark.parametrize(
    "filter_",
    [
        "(mail={address})",
        "(|(uid={user})(mail={address}))",
        "(&(objectClass=mailUser)(!(status=off))(|(mail={address})(alias={address})))",
        "(&(age>=3)(n~={user})(cn:caseExactMatch:={user})(x=a*b*)(:dn:2.4.6.8.10:={user}))",
    ],
)
def test_filters_that_are_right(filter_: str) -> None:
    load("x.yaml", text=ldap(f"filter: '{filter_}'"))


DIRECTORIES = [
    ("▸{}", "says nothing to ask: give one of ldap, file, http"),
    ("{file: {path: ▸none, columns: [address, server]}}", "none: there is no such file"),
    ("{file: {path: ▸/dev/null, columns: [address, server]}}", "is not a file"),
    ("{file: {path: /etc/passwd, columns: ▸[]}}", "is empty"),
    ("{file: {path: /etc/passwd, columns: ▸[server]}}", "lacks address"),
    ("{file: {path: /etc/passwd, columns: ▸[address, '-']}}", "says nothing of an address"),
    ("{file: {path: /etc/passwd, columns: ▸[address, host]}}", 'the column "host" is not known'),
    ("{file: {path: /etc/passwd, columns: ▸[address, server, server]}}", "server is there twice"),
    ("{file: {path: /etc/passwd, columns: ▸[address, master_password]}}", "does nothing without master_user"),
    ("{file: {path: /etc/passwd, columns: [address, server], separator: ▸'::'}}", "is not a separator"),
    ("{http: {url: ▸'ldap://a'}}", "is not a URL of a server: write one such as http://"),
    ("{http: {url: 'http://127.0.0.1', headers: {▸'a b': c}}}", "is not a header name"),
    ("{http: {url: 'https://a', ca: ▸none.pem}}", "none.pem: there is no such file"),
    ("{http: {url: 'http://127.0.0.1', connections: ▸0}}", "too small"),
    ("{http: ▸{url: 'http://127.0.0.1'}, file: {path: /etc/passwd, columns: [address, server]}}", "two directories"),
    ("{http: {url: 'http://127.0.0.1'}, cache: {ttl: ▸5}}", "has no unit"),
    ("{http: {url: 'http://127.0.0.1'}, cache: {negative_ttl: ▸5, size: ▸-1}}", "has no unit", "too small"),
    ("{http: {url: 'http://127.0.0.1'}, missing: ▸no}", "pool, refuse"),
    ("{http: {url: 'http://127.0.0.1'}, unknown_server: ▸no, server_down: ▸no}", "pool, refuse", "pool, refuse"),
]


@pytest.mark.parametrize("case", DIRECTORIES, ids=[case[0][:60] for case in DIRECTORIES])
def test_directories_one_by_one(case: tuple[str, ...]) -> None:
    check(directory(case[0]), *case[1:])


def test_a_directory_over_http() -> None:
    keys = "{http: {url: 'http://127.0.0.1:8080/auth', headers: {X-Auth-Key: geheim}, timeout: 3s}, cache: {ttl: 0s}}"
    found = load("x.yaml", text=directory(keys)).snapshot.directories[0]
    assert found.source == HttpSource(
        url="http://127.0.0.1:8080/auth", headers=(("x-auth-key", "geheim"),), timeout=3.0
    )
    assert found.ttl == 0.0


LISTENER = [
    (", login: {cleartext: ▸yes}", "after-tls, always"),
    (", login: {cleartext: always, mechanisms: [▸cram-md5]}", "is not known"),
    (", login: {cleartext: always, failures: {per_address: ▸0, window: ▸1}}", "too small", "has no unit"),
    (", login: {cleartext: always, sessions: {per_mailbox: ▸0, per_address: ▸0}}", "too small", "too small"),
    (", login: {cleartext: always, attempts: ▸0}", "too small"),
    (", timeouts: {login: ▸1, greeting: ▸1, answer: ▸1}", "has no unit", "has no unit", "has no unit"),
    (", timeouts: {tunnel: ▸1, half_closed: ▸1}", "has no unit", "has no unit"),
    (", limits: {line_bytes: ▸1KiB, literal_bytes: ▸10B}".replace("▸1KiB", "1KiB"), "is not between"),
    (", limits: {bad_commands: ▸0, hops: ▸0}", "too small", "too small"),
    (", hostname: ▸'a b'", "is not a host name"),
    (", trust: [▸a]", "is not a network"),
    (", capabilities: ▸IDLE", "must be a list"),
    (", capabilities: [IDLE, ▸'ID  E', ▸é, ▸'']", "is not a cap", "is not a cap", "is not a cap"),
    (", tls: ▸{certificates: [▸{cert: none}]}", '"mode" is missing: when TLS begins', '"key" is missing'),
    (", limit: {key: ▸path, rate: 1/s}", "the path is not known of imap4 logins: source, mailbox, listener"),
    (", limit: {key: source, of: ▸requests, rate: 1/s}", "imap4 has no requests"),
    (", ▸recipients: split", '"recipients" is not known here'),
]


@pytest.mark.parametrize("case", LISTENER, ids=[case[0][:60] for case in LISTENER])
def test_listeners_one_by_one(case: tuple[str, ...]) -> None:
    check(mail(case[0]), *case[1:])


SMTP = [
    (", recipients: ▸all", "split, first"),
    (", timeouts: {command: ▸1, data_answer: ▸1}", "has no unit", "has no unit"),
    (", ▸login: {}", '"login" is not known here'),
    (", limit: {key: source, of: ▸logins, rate: 1/s}", "smtp has no logins"),
]


def test_what_smtp_has_of_its_own() -> None:
    for keys, *messages in SMTP:
        check(mail(keys, protocol="smtp"), *messages)
    found = load("x.yaml", text=mail(", recipients: first", protocol="smtp")).snapshot.listeners[0]
    assert found.settings["recipients"] == "first"


def test_nobody_could_log_in() -> None:
    text = mail(", login: {}").replace("- {name: in", "- ▸{name: in")
    check(text, "nobody can log in, since passwords are taken after TLS")
    load("x.yaml", text=mail(", login: {}, proxy_protocol: {from: [192.0.2.1]}"))  # which may have ended TLS


def test_passwords_that_anybody_can_read() -> None:
    text = mail(", login: {cleartext: ▸always}").replace("127.0.0.1:143", "*:143")
    check_warnings(text, "anybody who is in between can read passwords")
    check_warnings(mail(", login: {cleartext: always}"))


RULES = [
    ("{pool: mail, match: {address: ▸''}}", "is not a glob of addresses"),
    ("{pool: mail, match: {address: ▸'a**'}}", "write it once"),
    ("{pool: mail, match: {address: ▸'<a@b>'}}", "write it bare"),
    (
        "{pool: mail, match: {▸path: /a}}",
        "a rule for imap4 can't see this, which belongs to HTTP; it sees address, source",
    ),
    ("{▸respond: {status: 200}}", "a rule for imap4 can't do this, which belongs to HTTP"),
    ("{pool: mail, directory: ▸legacy}", 'the directory "legacy" is not known: there are none'),
    ("{pool: mail, directory: [▸legacy]}", 'the directory "legacy" is not known: there are none'),
]


@pytest.mark.parametrize(("rule", "message"), RULES, ids=[rule for rule, _ in RULES])
def test_rules_one_by_one(rule: str, message: str) -> None:
    check(mail(rule=rule), message)


def test_a_directory_is_named_once_and_by_its_name() -> None:
    top = "directories: {people: {http: {url: 'http://127.0.0.1'}}}"
    check(mail(rule="{pool: mail, directory: [people, ▸people]}", top=top), '"people" has been asked already')
    check(mail(rule="{pool: mail, directory: ▸peple}", top=top), 'did you mean "people"?')


def test_only_what_has_a_mailbox_asks_a_directory() -> None:
    top = "directories: {people: {http: {url: 'http://127.0.0.1'}}}"
    rule = "{pool: mail, ▸directory: people}"
    web = mail(protocol="http", rule=rule, top=top).replace(", persistence: mailbox", "")
    check(web, "a rule for http has no mailbox to ask a directory for")
    found = load(
        "x.yaml", text=mail(", mailbox: {header: X-User}", protocol="http", rule=rule.replace("▸", ""), top=top)
    )
    assert found.snapshot.listeners[0].settings["mailbox"] == {"kind": "header", "name": "x-user"}
    assert found.snapshot.listeners[0].routes[0].directory == ("people",)
    check(mail(", mailbox: ▸{}", protocol="http"), "must name one place, such as {header: x-user}")
    check(mail(", mailbox: {cookie: a, query: b}".replace("{c", "▸{c"), protocol="http"), "must name one place")


SERVER = [
    ("{name: a, host: ▸127.0.0.1}", "a host needs ports"),
    ("{name: a, ports: ▸{imap4: 1}}", "ports of which host?"),
    ("{name: a, host: a, ports: ▸{}}", "is empty"),
    ("{name: a, host: a, ports: {imap4: ▸0}}", "too small"),
    ("{name: a, host: a, ports: {imap4: 1, ▸imap: 1}}", 'the protocol "imap" is not known; did you mean "imap4"?'),
    ("{name: a, address: 'a:1', host: ▸a, ports: ▸{imap4: 1}}", "exclude one another", "exclude one another"),
    ("{name: a, host: a, ports: ▸{lmtp: 24}}", "has no port for imap4, which a listener leads here: add imap4: PORT"),
    ("{name: a, address: 'a:1', tls: {mode: ▸always}}", "implicit, starttls, auto"),
]


@pytest.mark.parametrize("case", SERVER, ids=[case[0] for case in SERVER])
def test_servers_one_by_one(case: tuple[str, ...]) -> None:
    check(mail(servers=case[0]), *case[1:])


def two_protocols(server: str) -> str:
    return mail(servers=server, rule="{pool: mail}").replace(
        "pools:", '  - {name: mx, protocol: smtp, bind: ["127.0.0.1:25"], routes: [{pool: mail}]}\npools:'
    )


def test_two_protocols_have_two_ports() -> None:
    check(two_protocols("{name: a, ▸address: '127.0.0.1:143'}"), "imap4 and smtp lead here and can't have one address")
    load("x.yaml", text=two_protocols(SERVERS))


def test_tls_begins_as_the_protocol_has_it() -> None:
    web = mail(protocol="http", servers="{name: a, address: 'a:1', tls: {mode: ▸starttls}}")
    check(web.replace(", persistence: mailbox", ""), "http has no such thing")
    found = load("x.yaml", text=mail(servers="{name: a, address: 'a:1', tls: {mode: implicit}}")).snapshot
    tls = found.pools[0].servers[0].tls
    assert tls is not None
    assert tls.mode == "implicit"


POOL = [
    (", login_as: ▸user", "typed, mailbox"),
    (", client_address: {imap4: ▸xclient}", "none, id, proxy-v1, proxy-v2"),
    (", client_address: {pop3: ▸id, managesieve: ▸id}", "is not known", "is not known"),
    (", client_address: {submission: ▸id, smtp: ▸id, lmtp: ▸id}", "is not known", "is not known", "is not known"),
    (", client_address: {▸imap: id}", 'did you mean "imap4"?'),
    (", health: {protocol: {}, scope: ▸listener}", "server, protocol"),
]


@pytest.mark.parametrize("case", POOL, ids=[case[0] for case in POOL])
def test_pools_one_by_one(case: tuple[str, ...]) -> None:
    check(mail(pool=case[0]), *case[1:])


def test_persistence_by_mailbox() -> None:
    text = mail().replace("persistence: mailbox", "persistence: ▸[source, mailbox]")
    check(text, "put mailbox first")
    text = mail().replace("persistence: mailbox", "persistence: {mailbox: {expire: ▸1}}")
    check(text, "has no unit")
    found = load("x.yaml", text=mail()).snapshot.pools[0]
    assert found.persistence == (MailboxKey(900.0),)


ADDRESSES = [
    ("lower_case: ▸'no'", "must be true or false"),
    ("recipient_delimiter: ▸''", "is not a delimiter"),
    ("recipient_delimiter: ▸'@'", "is not a delimiter"),
    ("default_domain: ▸'@example.com'", "write it without @"),
    ("default_domain: ▸'a b'", "is not a host name"),
    ("▸domain: a", '"domain" is not known here'),
]


MAILBOXES = [
    ("move_hook: ▸[]", "at least"),
    ("move_hook: [/bin/true, ▸'{who}']", '"{who}" is nothing that a move knows'),
    ("move_hook: [/bin/true], move_hook_timeout: ▸2m", "must be at most 60s"),
    ("▸hook: [a]", '"hook" is not known here'),
]


@pytest.mark.parametrize(("keys", "message"), MAILBOXES, ids=[keys for keys, _ in MAILBOXES])
def test_mailboxes(keys: str, message: str) -> None:
    check(mail(top=f"mailboxes: {{{keys}}}"), message)


def test_a_move_s_hook() -> None:
    assert load("x.yaml", text=mail()).settings.move_hook is None
    text = mail(top="mailboxes: {move_hook: [/bin/true, '{mailbox}:{to}'], move_hook_timeout: 5s}")
    assert load("x.yaml", text=text).settings.move_hook == MoveHook(("/bin/true", "{mailbox}:{to}"), 5.0)


@pytest.mark.parametrize(("keys", "message"), ADDRESSES, ids=[keys for keys, _ in ADDRESSES])
def test_addresses(keys: str, message: str) -> None:
    check(mail(top=f"addresses: {{{keys}}}"), message)


def test_scope_is_of_protocols() -> None:
    check_warnings(mail(pool=", health: {tcp: {}, scope: ▸protocol}"), "tcp is not the check of a protocol")


# --- doubts -------------------------------------------------------------------------------------------------------


def test_a_directory_that_nobody_asks() -> None:
    check_warnings(mail(top="directories: {▸people: {http: {url: 'http://127.0.0.1'}}}"), "no rule asks this directory")


def test_a_glob_that_no_address_matches() -> None:
    top = "addresses: {default_domain: example.com}"
    rule = "{pool: mail, match: {address: [a@b, ▸info]}}"
    check(mail(rule=rule, top=top), "write info@example.com")
    load("x.yaml", text=mail(rule=rule.replace("▸", "")))  # without a default domain there may be such logins
    load("x.yaml", text=mail(rule=rule.replace("▸info", "info*"), top=top))


def test_mailboxes_that_several_servers_write() -> None:
    servers = f"{SERVERS}, {SERVERS.replace('name: a', 'name: b').replace('127.0.0.1', '127.0.0.2')}"
    check_warnings(mail(servers=servers))
    text = mail(servers=servers).replace(", persistence: mailbox", "").replace("  mail: {s", "  ▸mail: {s")
    check_warnings(text, "nothing keeps a mailbox on one of these servers")
    relays = mail(servers=servers, protocol="smtp", pool=", client_address: {smtp: xclient}")
    check_warnings(relays.replace(", persistence: mailbox", ""))


def test_smtp_servers_that_take_the_node_for_all_clients() -> None:
    text = mail(protocol="smtp").replace("  mail: {s", "  ▸mail: {s")
    check_warnings(text, "an SMTP server here takes this node for all its clients")
    for way in ("xclient", "proxy-v1", "proxy-v2"):
        check_warnings(mail(protocol="smtp", pool=f", client_address: {{smtp: {way}}}"))
    check_warnings(mail(protocol="smtp", servers="{name: a, address: 'a:25', send_proxy: v2}"))


def test_a_proxy_header_is_sent_once() -> None:
    servers = "{name: a, address: 'a:25', send_proxy: ▸v2}"
    check(mail(protocol="smtp", servers=servers, pool=", client_address: {smtp: proxy-v2}"), "keep one")


def test_passwords_on_their_way_to_a_server() -> None:
    check_warnings(mail(servers="{name: a, address: ▸'8.8.8.8:143'}"), "passwords travel to 8.8.8.8 in the clear")
    check_warnings(mail(servers="{name: a, host: ▸8.8.8.8, ports: {imap4: 143}}"), "in the clear")
    check_warnings(mail(servers="{name: a, address: '8.8.8.8:143', tls: {}}"))
    check_warnings(mail(servers="{name: a, address: '192.168.0.1:143'}"))


def test_external_needs_certificates() -> None:
    check_warnings(mail(", login: {cleartext: always, mechanisms: ▸[plain, external]}"), "external needs certificates")


def test_ldap_in_the_clear(folder: Path) -> None:
    usual = "bind_dn: cn=a, bind_password_file: secrets/ldap"
    for url, warnings in (
        ("ldap://192.0.2.1", 1),
        ("ldap://localhost", 0),
        ("ldaps://192.0.2.1", 0),
        ("ldapi://%2Fa", 0),
    ):
        loaded = load(folder / "x.yaml", text=ldap(f"urls: ['{url}'], {usual}"))
        assert len([one for one in loaded.warnings if "in the clear" in one.message]) == warnings, url


def test_directories_and_their_tls() -> None:
    check_warnings(ldap("verify: ▸false"), "has no effect without TLS")
    check_warnings(ldap("start_tls: true, verify: ▸false"), "anybody who is in between")
    check_warnings(directory("{http: {url: ▸'http://192.0.2.1'}}"), "users' passwords travel to it in the clear")
    check_warnings(directory("{http: {url: 'https://192.0.2.1', verify: ▸false}}"), "anybody who is in between")
    check_warnings(directory("{http: {url: 'http://localhost', verify: ▸false}}"), "has no effect")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"\n", "is empty"), (b"a\nb\n", "alone, in one line"), (b"a" * 5000, "is larger")],
)
def test_passwords_in_files(folder: Path, content: bytes, message: str) -> None:
    (folder / "secrets/ldap").write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"secrets/ldap: .*{message}"):
        load(folder / "mail.yaml", text=CLUSTER)


def test_the_password_of_a_check_does_not_show(folder: Path) -> None:
    keys = ", health: {protocol: {user: probe, password_file: secrets/ldap}}"
    health = load(folder / "x.yaml", text=mail(pool=keys)).snapshot.pools[0].health
    assert health is not None
    assert health.settings == {"user": "probe", "password": "geheim"}
    assert "geheim" not in repr(health)


def test_a_check_of_several_protocols_has_their_ports() -> None:
    check(mail(pool=", health: {protocol: {}, port: ▸143}"), "at its own of the server's ports")


def cases() -> list[tuple[Any, ...]]:
    """All that are tried one by one here."""
    return [*LDAP, *DIRECTORIES, *LISTENER, *SMTP, *RULES, *SERVER, *POOL, *ADDRESSES, *MAILBOXES]


def test_the_guide_works_as_it_stands(folder: Path) -> None:
    guide = Path(__file__).parent.parent.parent / "docs" / "mail.md"
    block = re.findall(r"^```yaml\n(.*?)^```$", guide.read_text(), re.MULTILINE | re.DOTALL)[0]
    loaded = load(folder / "l7lb.yaml", text=block)
    assert loaded.warnings == []
    assert len(loaded.snapshot.listeners) == 6
