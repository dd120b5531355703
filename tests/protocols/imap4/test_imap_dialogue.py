"""The login at IMAP servers: every kind of server, and every fault at every step."""

from __future__ import annotations

import base64

import pytest
from imap_rig import BEFORE, Imap, Rig

from l7lb.core.actions import SERVER
from l7lb.core.errors import Failure

LOGIN = b'a1 LOGIN "anna" "secret"\r\n'
LATER = b"a1 NO [UNAVAILABLE] The mailbox's server is not available, try again later.\r\n"
REFUSED = b"a1 NO [AUTHENTICATIONFAILED] Authentication failed.\r\n"
STEPS = (1, 5, 1 << 30)


@pytest.mark.parametrize("step", STEPS)
def test_plain_in_one_go(step: int) -> None:
    rig = Rig(Imap(), step=step)
    rig.client(LOGIN)
    assert rig.tunnel
    address = b'("x-originating-ip" "192.0.2.7" "x-originating-port" "5000" "x-connected-ip" "192.0.2.1"'
    proof = base64.b64encode(b"\0anna\0secret")
    assert rig.told == (
        b"l7lb1 ID " + address + b' "x-connected-port" "143" "x-proxy-ttl" "5")\r\n'
        b"l7lb2 AUTHENTICATE PLAIN " + proof + b"\r\n"
    )


@pytest.mark.parametrize("step", STEPS)
def test_starttls_before_anything_of_worth(step: int) -> None:
    server = Imap(before=BEFORE + " STARTTLS")
    rig = Rig(server, step=step, server_tls="starttls")
    rig.client(LOGIN)
    assert rig.tunnel
    assert server.tls
    assert [line.split()[1] for line in server.got] == [b"STARTTLS", b"CAPABILITY", b"ID", b"AUTHENTICATE"]


def test_servers_without_sasl_ir() -> None:
    server = Imap(before="IMAP4rev1 AUTH=PLAIN")
    rig = Rig(server)
    rig.client(LOGIN)
    assert rig.tunnel
    assert server.got == [b"l7lb2 AUTHENTICATE PLAIN", base64.b64encode(b"\0anna\0secret")]


@pytest.mark.parametrize(
    ("able", "user", "password", "said"),
    [
        ("IMAP4rev1", b"anna", b"sec ret", b'l7lb2 LOGIN "anna" "sec ret"'),
        ("IMAP4rev1", b"anna", b's\\e"', b'l7lb2 LOGIN "anna" "s\\\\e\\""'),
        ("IMAP4rev1", b"anna", b"p\xc3\xa4ss", b'l7lb2 LOGIN "anna" {5}\r\np\xc3\xa4ss'),
        ("IMAP4rev1", b"\xc3\xa4", b"p\xc3\xa4ss", b"l7lb2 LOGIN {2}\r\n\xc3\xa4 {5}\r\np\xc3\xa4ss"),
        ("IMAP4rev1 LITERAL-", b"\xc3\xa4", b"p\xc3\xa4ss", b"l7lb2 LOGIN {2+}\r\n\xc3\xa4 {5+}\r\np\xc3\xa4ss"),
    ],
)
@pytest.mark.parametrize("step", STEPS)
def test_servers_that_know_login_alone(able: str, user: bytes, password: bytes, said: bytes, step: int) -> None:
    server = Imap(before=able, password=b"")
    rig = Rig(server, step=step)
    rig.client(b"a1 LOGIN {%d+}\r\n%b {%d+}\r\n%b\r\n" % (len(user), user, len(password), password))
    assert rig.tunnel
    assert server.got == [said]


OAUTH = base64.b64encode(b"n,a=anna,\x01auth=Bearer x\x01\x01")
BERT = base64.b64encode(b"bert\0anna\0secret")


@pytest.mark.parametrize(
    ("how", "able", "answer", "blamed"),
    [
        (LOGIN, "IMAP4rev1 LOGINDISABLED", LATER, True),
        (b"a1 AUTHENTICATE OAUTHBEARER " + OAUTH + b"\r\nAQ==\r\n", "IMAP4rev1", REFUSED, False),
        (b"a1 AUTHENTICATE PLAIN " + BERT + b"\r\n", "IMAP4rev1", LATER, False),
    ],
)
def test_servers_that_can_not_take_it(how: bytes, able: str, answer: bytes, blamed: bool) -> None:
    server = Imap(before=able)
    rig = Rig(server)
    assert rig.client(how).endswith(answer)
    assert not server.credentials
    assert (rig.released[0].failure is not None) is blamed


CLOSES = None
FAULTS: dict[str, dict[str, bytes | None]] = {
    "GREETING": {
        "closes": CLOSES,
        "bye": b"* BYE overloaded\r\n",
        "preauth": b"* PREAUTH [CAPABILITY IMAP4rev1] welcome\r\n",
        "garbage": b"\xff\xfe\0\r\n",
        "another protocol": b"220 mail ESMTP\r\n",
        "endless": b"* OK " + b"x" * 70_000,
        "tagged": b"l7lb0 OK hello\r\n",
        "asks": b"+ hello\r\n",
    },
    "CAPABILITY": {
        "closes": CLOSES,
        "no": b"% NO no\r\n",
        "bad": b"% BAD bad\r\n",
        "bye": b"* BYE going down\r\n",
        "none": b"% OK done\r\n",
        "another tag": b"* CAPABILITY IMAP4rev1\r\nx OK done\r\n",
        "asks": b"+ go on\r\n",
        "endless literal": b"* X {4000000}\r\n" + b"x" * 5000 + b"\r\n",
    },
    "STARTTLS": {
        "closes": CLOSES,
        "no": b"% NO no\r\n",
        "bad": b"% BAD bad\r\n",
        "bye": b"* BYE going down\r\n",
        "injected": b"% OK begin\r\n* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n",
        "injected more": b"% OK begin\r\nx",
    },
    "AUTHENTICATE": {
        "closes": CLOSES,
        "bad": b"% BAD bad\r\n",
        "bye": b"* BYE going down\r\n",
        "unavailable": b"% NO [UNAVAILABLE] directory down\r\n",
        "bug": b"% NO [SERVERBUG] oops\r\n",
        "in use": b"% NO [INUSE] locked\r\n",
        "privacy": b"% NO [PRIVACYREQUIRED] use TLS\r\n",
        "asks": b"+ eA==\r\n",
        "another tag": b"x OK done\r\n",
        "garbage": b"OK\r\n",
    },
}
CASES = [(step, name) for step, faults in FAULTS.items() for name in faults]


@pytest.mark.parametrize(("where", "name"), CASES, ids=[f"{where}-{name}" for where, name in CASES])
@pytest.mark.parametrize("step", [1, 1 << 30])
def test_faults_are_temporary_and_never_the_clients(where: str, name: str, step: int) -> None:
    fault = FAULTS[where][name]
    server = Imap(before=BEFORE + " STARTTLS", told=where != "CAPABILITY", **{where: fault})
    rig = Rig(server, Imap(), step=step, server_tls="starttls" if where == "STARTTLS" else "")
    said = rig.client(LOGIN)
    if name == "endless literal":
        assert said == b""
        rig.later(61)
        said = rig.said[rig.said.index(b"a1") :]
    assert said == LATER
    assert len(rig.released) == 1
    # What a mailbox or a client can bring about by itself takes no server out.
    mine = (where, name) in (("AUTHENTICATE", "in use"), ("AUTHENTICATE", "bad"))
    assert (rig.released[0].failure is None) is mine
    assert ("LoginFailed", b"") not in rig.seen
    assert b"BYE" not in said
    if where == "STARTTLS":
        assert not server.credentials
        assert not server.tls
    rig.server_tls = ""
    rig.client(LOGIN)  # another login may go well
    assert rig.tunnel


@pytest.mark.parametrize("where", ["GREETING", "CAPABILITY", "STARTTLS", "AUTHENTICATE", "CHALLENGE"])
def test_silence_at_every_step(where: str) -> None:
    able = "IMAP4rev1 STARTTLS AUTH=PLAIN" + (" SASL-IR" if where == "AUTHENTICATE" else "")
    server = Imap(before=able, told=where != "CAPABILITY", **{where: b""})
    rig = Rig(server, server_tls="starttls" if where == "STARTTLS" else "")
    assert rig.client(LOGIN) == b""
    rig.later(29)
    assert not rig.released
    rig.later(2 if where == "GREETING" else 32)
    assert rig.said.endswith(LATER)
    assert rig.released[0].failure is Failure.SERVER_TIMEOUT


def test_starttls_that_is_not_offered() -> None:
    server = Imap()
    rig = Rig(server, server_tls="starttls")
    assert rig.client(LOGIN) == LATER
    assert rig.released[0].failure is Failure.CONNECT_TLS
    assert rig.told == b""


def test_a_failed_handshake() -> None:
    server = Imap(before=BEFORE + " STARTTLS", STARTTLS=b"")
    rig = Rig(server, Imap(), server_tls="starttls")
    rig.client(LOGIN)
    rig.run(rig.session.received(SERVER, b"l7lb0 OK begin\r\n", rig.now))
    assert rig.seen[-1][0] == "StartServerTls"
    rig.run(rig.session.failed(Failure.CONNECT_TLS, None, rig.now))
    assert rig.said.endswith(LATER)
    assert not server.credentials


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"% NO nope\r\n", REFUSED),
        (b"% NO [AUTHENTICATIONFAILED] user anna is unknown here\r\n", REFUSED),
        (b"% NO [EXPIRED] old\r\n", b"a1 NO [EXPIRED] Authentication failed.\r\n"),
        (b"% NO [AUTHORIZATIONFAILED] x\r\n", b"a1 NO [AUTHORIZATIONFAILED] Authentication failed.\r\n"),
        (b"% NO [ALERT] Pay your bill.\r\n", b"a1 NO [ALERT] Pay your bill.\r\n"),
    ],
)
def test_refusals(answer: bytes, said: bytes) -> None:
    rig = Rig(Imap(AUTHENTICATE=answer))
    assert rig.client(LOGIN) == said
    assert ("LoginFailed", b"") in rig.seen
    assert rig.released[0].failure is None  # the server did nothing wrong


def test_a_servers_limit_is_passed_on() -> None:
    rig = Rig(Imap(AUTHENTICATE=b"% NO [LIMIT] too many\r\n"))
    assert rig.client(LOGIN).startswith(b"a1 NO [LIMIT] ")
    assert ("LoginFailed", b"") not in rig.seen


@pytest.mark.parametrize("answer", [b"% NO no\r\n", b"% BAD unknown\r\n", b"* ID NIL\r\n% OK done\r\n"])
def test_what_becomes_of_id_changes_nothing(answer: bytes) -> None:
    rig = Rig(Imap(ID=answer))
    rig.client(LOGIN)
    assert rig.tunnel


def test_alerts_and_what_follows_the_consent_reach_the_client() -> None:
    welcome = b"* OK [ALERT] Down at noon.\r\n* NO [NOTHING] x\r\n% OK [CAPABILITY IMAP4rev1] hi\r\n* 3 EXISTS\r\n"
    for step in STEPS:
        rig = Rig(Imap(WELCOME=welcome), step=step)
        said = rig.client(LOGIN)
        assert said.startswith(b"* OK [ALERT] Down at noon.\r\na1 OK [CAPABILITY IMAP4rev1] Logged in.\r\n")
        assert said.endswith(b"* 3 EXISTS\r\n") or step < 100  # else it goes past the machine


def test_an_untagged_capability_before_the_consent() -> None:
    rig = Rig(Imap(WELCOME=b"* CAPABILITY IMAP4rev1 X\r\n% OK hi\r\n"))
    assert rig.client(LOGIN) == b"a1 OK [CAPABILITY IMAP4rev1 X] Logged in.\r\n"
