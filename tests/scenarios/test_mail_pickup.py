"""POP3 and ManageSieve through a node to real Dovecots, with real clients: curl, fetchmail, poplib."""

from __future__ import annotations

import base64
import contextlib
import json
import poplib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from scenario_node import Node, find, free_port, l7lb, wait_for

from l7lb.demo import mailservers, secure
from l7lb.demo.mailclients import Lmtp, Pop, Sieve, SieveError, Target, message
from l7lb.demo.mailcluster import PEOPLE
from l7lb.demo.mailservers import MAIL_PROTOCOLS, MailServer, Site, token

pytestmark = [
    pytest.mark.scenario,
    pytest.mark.timeout(120),
    pytest.mark.skipif(bool(mailservers.missing()), reason=mailservers.missing()),
]
ALICE, BOB = PEOPLE[:2]
TEXT = """
addresses: {lower_case: true, recipient_delimiter: "+", default_domain: example.com}
directories:
  masters: {file: {path: masters.txt, columns: [address, master_user, master_password]}}
x-tls: &tls [{cert: node.pem, key: node.key}]
x-routes: &routes
  - {match: {address: "bob@example.com"}, pool: plain}
  - {match: {address: "carol@example.com"}, pool: found}
  - {match: {address: "dave@example.com"}, directory: masters, pool: asked}
  - {pool: asked}
x-pool: &pool
  balance: {hash: mailbox}
  persistence: {mailbox: {expire: 15m}}
  client_address: {pop3: xclient, managesieve: xclient}
listeners:
  - {name: pop3, protocol: pop3, bind: ["127.0.0.1:PORT"], tls: {mode: starttls, certificates: *tls}, routes: *routes}
  - {name: pop3s, protocol: pop3, bind: ["127.0.0.1:POP3S"], routes: *routes,
     tls: {mode: implicit, certificates: *tls, client_ca: ca.pem, client_certificate: optional},
     login: {mechanisms: [plain, login, xoauth2, oauthbearer, external]}}
  - {name: sieve, protocol: managesieve, bind: ["127.0.0.1:SIEVE"], tls: {mode: starttls, certificates: *tls}, routes: *routes}
pools:
  plain: {<<: *pool, servers: [{name: mx1, host: 127.0.0.1, ports: {MX1}}]}
  asked: {<<: *pool, servers: [{name: mx1, host: 127.0.0.1, ports: {MX1}, tls: {mode: starttls, ca: servers.pem}}]}
  found: {<<: *pool, servers: [{name: mx1, host: 127.0.0.1, ports: {MX1}, tls: {mode: auto, ca: servers.pem}}]}
"""


# Who knows this password logs in on behalf of anybody.
MASTER = """
passdb {
  driver = static
  master = yes
  mechanisms = plain
  args = password=hush
}
"""


class Mail:
    """One Dovecot, and a node in front that speaks to it in three ways."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("servers", "node"):
            secure.make_certificate(folder, name, ["127.0.0.1"])
        ports = {name: free_port() for name in MAIL_PROTOCOLS}
        self.pop3s, self.sieve = free_port(), free_port()
        certificate, key = (folder / f"servers.{kind}" for kind in ("pem", "key"))
        self.site = Site(PEOPLE, f"127.0.0.1:{ports['lmtp']}", certificate.read_bytes(), key.read_bytes())
        self.server = MailServer(self.site, "mx1", ports)
        with (self.server.own / "dovecot.conf").open("a") as file:
            file.write(MASTER)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        dave = authority.issue_cert("dave@example.com", common_name="dave@example.com")
        dave.private_key_and_cert_chain_pem.write_to_path(str(folder / "dave.pem"))
        (folder / "masters.txt").write_text("dave@example.com l7lb hush\n")
        mx1 = f"pop3: {ports['pop3']}, managesieve: {ports['managesieve']}"
        self.text = TEXT.replace("POP3S", str(self.pop3s)).replace("SIEVE", str(self.sieve)).replace("MX1}", mx1 + "}")
        self.lmtp = ports["lmtp"]
        self.direct = ports["pop3"]
        self.node = Node(folder, self.text, workers=1)

    def target(self, port: int = 0, **options: Any) -> Target:
        return Target(f"127.0.0.1:{port or self.node.port}", self.folder / "node.pem", **options)

    def pop(self, **options: Any) -> contextlib.closing[Pop]:
        return contextlib.closing(Pop(self.target(**options)))


@pytest.fixture(scope="module")
def mail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mail]:
    made = Mail(tmp_path_factory.mktemp("mail"))
    try:
        made.server.start()
        made.server.until_listening()
        with made.node:
            yield made
    finally:
        made.server.terminate()
        made.site.close()


@pytest.fixture(scope="module")
def letters(mail: Mail) -> list[bytes]:
    """Three messages in Alice's mailbox, as her server gives them to who asks it directly."""
    with contextlib.closing(Lmtp(Target(f"127.0.0.1:{mail.lmtp}"))) as lmtp:
        for number in range(3):
            text = f"{number}\r\n" + ("..dots\r\n" + "x" * 70 + "\r\n") * 5000 * number
            made = message("x@elsewhere.example", ALICE.address, f"letter {number}")
            made.set_content(text)
            assert lmtp.deliver("x@elsewhere.example", [ALICE.address], made.as_bytes())[0][0] == 250
    return fetched(Pop(Target(f"127.0.0.1:{mail.direct}")))


def fetched(pop: poplib.POP3, login: Callable[[poplib.POP3], object] | None = None) -> list[bytes]:
    """All of Alice's messages."""
    with contextlib.closing(pop):
        if login is None:
            pop.user("alice")
            pop.pass_(ALICE.password)
        else:
            login(pop)
        count, _ = pop.stat()
        found = [b"\r\n".join(pop.retr(number + 1)[1]) for number in range(count)]
        pop.quit()
    return found


def by_sasl(*lines: str) -> Callable[[poplib.POP3], object]:
    """Log in by these lines."""

    def login(pop: poplib.POP3) -> None:
        for line in lines:
            pop._putcmd(line)  # type: ignore[attr-defined]
            pop._getresp()  # type: ignore[attr-defined]

    return login


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


LOGINS = {
    "user and pass": None,
    "plain": by_sasl("AUTH PLAIN " + b64(f"\0alice\0{ALICE.password}")),
    "plain, asked for": by_sasl("AUTH PLAIN", b64(f"\0Alice@Example.com\0{ALICE.password}")),
    "login": by_sasl("AUTH LOGIN", b64("alice"), b64(ALICE.password)),
    "xoauth2": by_sasl("AUTH XOAUTH2 " + b64(f"user=alice\1auth=Bearer {token('alice')}\1\1")),
    "oauthbearer": by_sasl("AUTH OAUTHBEARER", b64(f"n,a=alice,\1auth=Bearer {token('alice')}\1\1")),
}


@pytest.mark.parametrize("name", LOGINS)
def test_every_login_gives_the_mailbox_as_it_is(mail: Mail, letters: list[bytes], name: str) -> None:
    assert len(letters) == 3
    assert fetched(Pop(mail.target()), LOGINS[name]) == letters
    assert fetched(Pop(mail.target(mail.pop3s, implicit=True)), LOGINS[name]) == letters


def test_the_server_learns_the_clients_address(mail: Mail) -> None:
    for person, source in ((ALICE, "127.0.0.7"), (BOB, "127.0.0.8"), (PEOPLE[2], "127.0.0.9")):
        with mail.pop(source=source) as pop:
            pop.user(person.name)
            pop.pass_(person.password)
            pop.quit()
        wait_for(lambda: mail.server.served(person.name)[-1].client == source, "the address in the log")  # noqa: B023


def test_a_wrong_password_and_then_the_right_one(mail: Mail) -> None:
    with mail.pop() as pop:
        pop.user("alice")
        with pytest.raises(poplib.error_proto, match=r"-ERR \[AUTH\] Authentication failed"):
            pop.pass_("wrong")
        pop.user("alice")
        assert pop.pass_(ALICE.password).startswith(b"+OK")
        assert "TOP" in pop.capa()


def test_a_token_that_has_expired(mail: Mail) -> None:
    with mail.pop() as pop, pytest.raises(poplib.error_proto, match=r"-ERR \[AUTH\]"):
        by_sasl("AUTH XOAUTH2 " + b64(f"user=alice\1auth=Bearer {token('alice', -60)}\1\1"), "")(pop)


def test_no_password_without_tls(mail: Mail) -> None:
    with contextlib.closing(poplib.POP3("127.0.0.1", mail.node.port, 30)) as pop:
        assert b"<" not in pop.welcome
        assert "STLS" in pop.capa()
        assert {"USER", "SASL"}.isdisjoint(pop.capa())
        with pytest.raises(poplib.error_proto, match="STLS first"):
            pop.user("alice")


@pytest.mark.parametrize("options", ["AUTH=*", "AUTH=PLAIN", "AUTH=LOGIN"])
def test_curl(mail: Mail, letters: list[bytes], options: str) -> None:
    command = ["curl", "-sS", "--ssl-reqd", "--cacert", str(mail.folder / "node.pem"), "--login-options", options]
    command += ["-u", f"alice:{ALICE.password}", f"pop3://127.0.0.1:{mail.node.port}/3"]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert (done.stderr, done.stdout.removesuffix(b"\r\n")) == (b"", letters[2])


def test_fetchmail(mail: Mail, letters: list[bytes], tmp_path: Path) -> None:
    if find("fetchmail") is None:
        pytest.skip("fetchmail is not installed")
    control = tmp_path / "fetchmailrc"
    control.write_text(
        f'poll 127.0.0.1 protocol pop3 port {mail.node.port} user alice password "{ALICE.password}" '
        f'sslproto tls1.2+ no sslcertck keep fetchall mda "cat >> {tmp_path}/got"\n'
    )
    control.chmod(0o600)
    command = ["fetchmail", "-f", str(control), "--idfile", str(tmp_path / "ids"), "--pidfile", str(tmp_path / "pid")]
    done = subprocess.run(
        command, capture_output=True, timeout=60, env={"HOME": str(tmp_path), "FETCHMAILHOME": str(tmp_path)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "got").read_bytes().count(b"Subject: letter") == 3


def test_a_certificate_opens_a_mailbox_by_way_of_a_master_user(mail: Mail) -> None:
    context = mail.target().context()
    context.load_cert_chain(mail.folder / "dave.pem")
    with contextlib.closing(poplib.POP3_SSL("127.0.0.1", mail.pop3s, timeout=30, context=context)) as pop:
        assert "EXTERNAL" in pop.capa()["SASL"]
        by_sasl("AUTH EXTERNAL =")(pop)
        pop.quit()
    wait_for(lambda: mail.server.served("dave"), "the login in the server's log")


def test_nobody_gets_in_by_the_master_users_password(mail: Mail) -> None:
    dave = PEOPLE[3]
    with mail.pop() as pop:
        for password in ("wrong", "hush"):
            pop.user("dave")
            with pytest.raises(poplib.error_proto, match=r"-ERR \[AUTH\]"):
                pop.pass_(password)
        pop.user("dave")
        assert pop.pass_(dave.password).startswith(b"+OK")


SCRIPT = 'require ["fileinto"];\r\n' + "".join(f'if header "x" "{number}" {{ keep; }}\r\n' for number in range(2000))


def test_scripts(mail: Mail) -> None:
    for person, source in ((ALICE, "127.0.0.17"), (BOB, "127.0.0.18"), (PEOPLE[2], "127.0.0.19")):
        with Sieve(mail.target(mail.sieve, source=source)) as sieve:
            sieve.login(person.name, person.password)
            sieve.put("main", SCRIPT)
            assert sieve.server() == "mx1"
            sieve._sock.sendall(b'GETSCRIPT "main"\r\n')
            assert sieve._file.readline() == b"{%d}\r\n" % len(SCRIPT)
            assert sieve._file.read(len(SCRIPT)).decode() == SCRIPT
            assert (sieve._file.readline(), sieve._file.readline()[:2]) == (b"\r\n", b"OK")
            sieve.logout()
        wait_for(lambda: mail.server.served(person.name)[-1].client == source, "the address in the log")  # noqa: B023


def test_capabilities_are_the_servers_once_one_is_known(mail: Mail) -> None:
    with Sieve(mail.target(mail.sieve)) as sieve:
        assert '"SASL" "PLAIN LOGIN XOAUTH2 OAUTHBEARER"' in sieve.capabilities
        sieve.login("alice", ALICE.password)
        theirs = {line for line in sieve.command("CAPABILITY") if line.startswith(('"SIEVE"', '"NOTIFY"'))}
    with Sieve(mail.target(mail.sieve)) as sieve:
        assert {line for line in sieve.capabilities if line.startswith(('"SIEVE"', '"NOTIFY"'))} == theirs


def test_a_wrong_password_for_scripts(mail: Mail) -> None:
    with Sieve(mail.target(mail.sieve)) as sieve:
        with pytest.raises(SieveError, match=r'^NO "Authentication failed\."'):
            sieve.login("alice", "wrong")
        sieve.login("alice", ALICE.password)
        sieve.command("LISTSCRIPTS")


def test_an_operator_ends_the_sessions_of_a_mailbox(mail: Mail) -> None:
    with mail.pop() as pop, Sieve(mail.target(mail.sieve)) as sieve:
        pop.user("Alice@Example.com")
        pop.pass_(ALICE.password)
        sieve.login("alice", ALICE.password)
        rows = json.loads(l7lb(mail.node, "sessions", "--mailbox", ALICE.address, "--json"))
        assert sorted((row["protocol"], row["server"], row["mailbox"]) for row in rows) == [
            ("managesieve", "mx1", ALICE.address),
            ("pop3", "mx1", ALICE.address),
        ]
        l7lb(mail.node, "kick", ALICE.address)
        # A goodbye where nothing was in between, as far as the node can see, and an end in any case.
        for file, word in ((pop.file, b"-ERR [SYS/TEMP]"), (sieve._file, b"BYE (TRYLATER)")):
            with contextlib.suppress(ConnectionResetError):
                said = file.readline()
                assert said == b"" or said.startswith(word)
                assert file.readline() == b""
    with mail.pop() as pop:
        pop.user("alice")
        pop.pass_(ALICE.password)


def test_a_client_that_injects_commands_behind_starttls(mail: Mail) -> None:
    for port, words in ((mail.node.port, b"STLS\r\nQUIT\r\n"), (mail.sieve, b"STARTTLS\r\nLOGOUT\r\n")):
        with Target(f"127.0.0.1:{port}").connect() as sock:
            sock.recv(4096)
            sock.sendall(words)
            said = b""
            with contextlib.suppress(ConnectionResetError):
                while data := sock.recv(4096):
                    said += data
            assert b"Bye" not in said


def test_a_server_that_is_gone_is_a_temporary_error(mail: Mail) -> None:
    mail.server.kill()
    try:
        with mail.pop() as pop:
            pop.user("alice")
            with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\]"):
                pop.pass_(ALICE.password)
        with Sieve(mail.target(mail.sieve)) as sieve, pytest.raises(SieveError, match=r"^NO \(TRYLATER\)"):
            sieve.login("alice", ALICE.password)
    finally:
        mail.server.start()
        mail.server.until_listening()
    wait_for(lambda: fetched(Pop(mail.target())), "the mailbox again")
