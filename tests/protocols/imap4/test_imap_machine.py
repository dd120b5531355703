"""The IMAP machine: what a client may say before its login, and what becomes of it."""

from __future__ import annotations

import base64

import pytest
from imap_rig import Imap, Rig

from l7lb.core.actions import CLIENT, SERVER, NeedServer
from l7lb.core.contracts import ClientCertificate, Entry, Handshake
from l7lb.core.errors import Failure

OWN = b"IMAP4rev1 SASL-IR LITERAL+ ID"
BEHIND = b"IMAP4rev1 SASL-IR ID ENABLE IDLE SORT LITERAL+ QUOTA"
MECHANISMS = b" AUTH=PLAIN AUTH=LOGIN AUTH=XOAUTH2 AUTH=OAUTHBEARER"
WELCOME = b"a1 OK [CAPABILITY " + BEHIND + b"] Logged in.\r\n"
REFUSED = b"a1 NO [AUTHENTICATIONFAILED] Authentication failed.\r\n"


def b64(data: bytes) -> bytes:
    return base64.b64encode(data)


def plain(user: bytes = b"anna", password: bytes = b"secret", authorization: bytes = b"") -> bytes:
    return b64(b"\0".join((authorization, user, password)))


# --- before the login -----------------------------------------------------------------------------------------


def test_the_greeting_says_what_can_be_done() -> None:
    assert Rig().said == b"* OK [CAPABILITY " + OWN + MECHANISMS + b"] lb1 ready.\r\n"
    assert Rig(mode="starttls").said == b"* OK [CAPABILITY " + OWN + b" STARTTLS LOGINDISABLED] lb1 ready.\r\n"
    assert b" STARTTLS AUTH=PLAIN" in Rig(mode="starttls", cleartext="always").said
    assert b"STARTTLS" not in Rig(mode="", cleartext="always").said
    assert b"[CAPABILITY IMAP4rev1 X AUTH=PLAIN]" in Rig(capabilities=["IMAP4rev1", "X"], mechanisms=["plain"]).said


def test_what_needs_no_login() -> None:
    rig = Rig()
    assert rig.client(b"a1 noop\r\n") == b"a1 OK Noop completed.\r\n"
    assert rig.client(b"]x.1 Capability\r\n") == (
        b"* CAPABILITY " + OWN + MECHANISMS + b"\r\n]x.1 OK Capability completed.\r\n"
    )
    assert rig.client(b'a3 ID ("name" "mutt")\r\n') == b'* ID ("name" "l7lb")\r\na3 OK Id completed.\r\n'
    assert rig.client(b"a4 ID NIL\r\n") == b'* ID ("name" "l7lb")\r\na4 OK Id completed.\r\n'
    assert rig.client(b"a5 LOGOUT\r\n") == b"* BYE Logging out.\r\na5 OK Logout completed.\r\n"
    assert rig.seen[-1][0] == "close"
    assert rig.finished is not None
    assert rig.finished.ended == "ok"
    assert rig.client(b"a6 NOOP\r\n") == b""


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b"a SELECT INBOX\r\n", b"a BAD Log in first, or there is no such command.\r\n"),
        (b"a UNAUTHENTICATE\r\n", b"a BAD Log in first, or there is no such command.\r\n"),
        (b"a\r\n", b"a BAD There is no command.\r\n"),
        (b"\r\n", b"* BAD A command begins with a tag.\r\n"),
        (b"+ NOOP\r\n", b"* BAD A command begins with a tag.\r\n"),
        (b"a NOOP x\r\n", b"a BAD There is more than expected.\r\n"),
        (b"a LOGIN anna\r\n", b"a BAD A space is missing.\r\n"),
        (b"a LOGIN anna secret x\r\n", b"a BAD There is more than expected.\r\n"),
        (b'a LOGIN "anna secret\r\n', b"a BAD A string is missing.\r\n"),
        (b'a LOGIN anna ""\r\n', b"a BAD The password is empty.\r\n"),
        (b'a LOGIN "" secret\r\n', b"a BAD There is no usable name.\r\n"),
        (b"a LOGIN {2+}\r\n\r\n secret\r\n", b"a BAD There is no usable name.\r\n"),
        (b"a AUTHENTICATE CRAM-MD5\r\n", b"a NO There is no such mechanism here.\r\n"),
        (b"a AUTHENTICATE EXTERNAL\r\n", b"a NO There is no such mechanism here.\r\n"),
        (b"a AUTHENTICATE PLAIN !!\r\n", b"a BAD This is not base64: "),
        (b"a AUTHENTICATE PLAIN =\r\n", b"a BAD PLAIN has three parts.\r\n".replace(b"PLAIN", b"Plain")),
        (b"a STARTTLS\r\n", b"a BAD TLS is on already, or there is none here.\r\n"),
        (b'a ID ("x")\r\n', b"a BAD A space is missing.\r\n"),
        (b'a ID ("x" "y" "x" "z")\r\n', b"a BAD The list is too long, or has a name twice.\r\n"),
    ],
)
def test_what_is_refused(line: bytes, answer: bytes) -> None:
    rig = Rig()
    assert rig.client(line).startswith(answer)
    assert rig.client(b"b NOOP\r\n") == b"b OK Noop completed.\r\n"


def test_too_many_mistakes_end_it() -> None:
    rig = Rig(bad_commands=2)
    assert rig.client(b"a X\r\n" * 9).count(b"a BAD") == 3
    assert rig.said.endswith(b"* BYE This is not the protocol spoken here.\r\n")
    assert rig.closed


@pytest.mark.parametrize(
    "start", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"POST /a HTTP/1.1\r\n", b"\x16\x03\x01\x02\0"]
)
@pytest.mark.parametrize("step", [1, 1 << 30])
def test_another_protocol_is_cut_off(start: bytes, step: int) -> None:
    rig = Rig(step=step)
    assert rig.client(start + b"\r\na LOGIN anna secret\r\n") == b""
    assert rig.seen[-1][0] == "abort"
    assert not rig.facts


def test_endless_lines_and_literals() -> None:
    for wire in (b"a" * 20_000, b"a LOGIN {2000000+}\r\n", b"a LOGIN {4294967296+}\r\n", b"a X {60+}\r\n" * 20_000):
        rig = Rig()
        rig.client(wire)
        assert rig.said.endswith(b"* BYE What was sent exceeds a limit.\r\n") or b"* BYE" in rig.said
        assert rig.closed
    rig = Rig()
    for part in (b"a X {1+}\r\n", *[b"x" + b"y" * 100 + b" {1+}\r\n"] * 400):
        rig.client(part)
        assert len(rig.session.buffer) < 20_000
    assert rig.closed


def test_time_to_log_in() -> None:
    rig = Rig()
    rig.later(59)
    assert not rig.closed
    rig.client(b"a NOOP\r\n")
    rig.later(2)
    assert rig.said.endswith(b"* BYE Timed out.\r\n")
    assert rig.finished is not None
    assert rig.finished.ended == "client-timeout@login"


# --- literals -------------------------------------------------------------------------------------------------


def test_a_literal_waits_for_consent() -> None:
    rig = Rig()
    assert rig.client(b"a1 LOGIN {4}\r\n") == b"+ Go on.\r\n"
    assert rig.client(b"anna {6}\r\n") == b"+ Go on.\r\n"
    assert rig.client(b"secret\r\n") == WELCOME
    assert rig.facts[0].user == b"anna"


def test_a_refused_command_gets_no_literal() -> None:
    rig = Rig(mode="starttls")
    privacy = b"a NO [PRIVACYREQUIRED] Ask for STARTTLS first: this connection is in the clear.\r\n"
    assert rig.client(b"a LOGIN {4}\r\n") == privacy
    assert rig.client(b"a LOGIN anna secret\r\n") == privacy
    assert rig.client(b"a AUTHENTICATE PLAIN\r\n") == privacy
    assert rig.client(b"a APPEND INBOX {400000}\r\n") == b"a BAD Log in first, or there is no such command.\r\n"
    assert Rig().client(b"a LOGIN {400000}\r\n") == b"a BAD [TOOBIG] The command's literals are too long.\r\n"


def test_a_refused_commands_literal_is_never_a_command() -> None:
    rig = Rig()
    inside = b"x LOGOUT\r\nx LOGIN a b\r\n"
    wire = b"a APPEND INBOX {%d+}\r\n%b\r\nb NOOP\r\n" % (len(inside), inside)
    assert rig.client(wire) == b"a BAD Log in first, or there is no such command.\r\nb OK Noop completed.\r\n"
    wire = b"a LOGIN {70000+}\r\n%b x\r\nb NOOP\r\n" % (b"x LOGOUT\r\n" * 7000)
    assert rig.client(wire) == b"a BAD [TOOBIG] The command's literals are too long.\r\nb OK Noop completed.\r\n"


# --- logins ---------------------------------------------------------------------------------------------------

OAUTH = b64(b"n,a=anna,\x01auth=Bearer secret\x01\x01")
XOAUTH = b64(b"user=anna\x01auth=Bearer secret\x01\x01")
LOGINS = {
    "atoms": (b"a1 LOGIN anna secret\r\n",),
    "quoted": (b'a1 login "anna" "secret"\r\n',),
    "literals": (b"a1 LOGIN {4+}\r\nanna {6+}\r\nsecret\r\n",),
    "waiting": (b"a1 LOGIN {4}\r\n", b"anna secret\r\n"),
    "plain": (b"a1 AUTHENTICATE PLAIN\r\n", plain() + b"\r\n"),
    "plain at once": (b"a1 AUTHENTICATE PLAIN " + plain() + b"\r\n",),
    "login": (b"a1 AUTHENTICATE LOGIN\r\n", b64(b"anna") + b"\r\n", b64(b"secret") + b"\r\n"),
    "login at once": (b"a1 AUTHENTICATE LOGIN " + b64(b"anna") + b"\r\n", b64(b"secret") + b"\r\n"),
    "xoauth2": (b"a1 AUTHENTICATE XOAUTH2 " + XOAUTH + b"\r\n",),
    "oauthbearer": (b"a1 AUTHENTICATE OAUTHBEARER\r\n", OAUTH + b"\r\n"),
}


@pytest.mark.parametrize("how", LOGINS)
@pytest.mark.parametrize("told", [True, False])
def test_every_way_to_log_in_in_every_piece(how: str, told: bool) -> None:
    runs = []
    for step in (1, 2, 3, 7, 1 << 30):
        rig = Rig(Imap(told=told), step=step)
        for part in LOGINS[how]:
            rig.client(part)
        assert rig.tunnel
        assert rig.said.endswith(WELCOME)
        facts = rig.facts[0]
        assert (facts.user, facts.address, facts.mailbox) == (b"anna", b"anna@example.com", b"anna@example.com")
        assert facts.password == b""  # it is needed no longer
        runs.append(rig.seen)
    assert all(run == runs[0] for run in runs)


def test_every_split_in_two() -> None:
    wire = b'a0 NOOP\r\na1 LOGIN {4+}\r\nanna "sec\\"ret"\r\na2 SELECT INBOX\r\na3 IDLE\r\n'
    whole = Rig(Imap(password=b'sec"ret'))
    whole.client(wire)
    assert whole.tunnel
    assert whole.told.endswith(b"\r\na2 SELECT INBOX\r\na3 IDLE\r\n")
    for at in range(1, len(wire)):
        if b"a2" in wire[:at]:
            continue  # from there on bytes go past the machine
        rig = Rig(Imap(password=b'sec"ret'))
        rig.client(wire[:at])
        rig.client(wire[at:]) if not rig.tunnel else None
        assert rig.tunnel
        assert rig.said == whole.said


def test_what_comes_behind_a_login_waits_and_goes_first() -> None:
    class Slow(Imap):
        def greet(self) -> bytes | None:
            return b""

    rig = Rig(Slow())
    rig.client(b"a1 LOGIN anna secret\r\na2 SELECT INBOX\r\n")
    rig.client(b"a3 FETCH 1 BODY[]\r\n")
    assert b"a2" not in rig.told
    assert rig.session.wants_client
    rig.client(b"x" * 20_000)
    assert not rig.session.wants_client
    assert rig.server is not None
    rig.serve(rig.server, [b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] ready\r\n"])
    assert rig.told.endswith(b"\r\na2 SELECT INBOX\r\na3 FETCH 1 BODY[]\r\n" + b"x" * 20_000)
    assert rig.session.wants_client
    kinds = [what for what, _ in rig.seen]
    assert kinds[-3:] == ["client", "server", "tunnel"]


def test_after_a_refusal_it_is_the_next_command() -> None:
    rig = Rig()
    said = rig.client(b"a1 LOGIN anna wrong\r\na2 NOOP\r\na1 LOGIN anna secret\r\n")
    assert said == REFUSED + b"a2 OK Noop completed.\r\n" + WELCOME
    assert [what for what, _ in rig.seen if what == "LoginFailed"] == ["LoginFailed"]


def test_asked_before_the_client_is_told_beside_the_answer() -> None:
    rig = Rig()
    rig.client(b"a0 CAPABILITY\r\n")
    assert rig.client(b"a1 LOGIN anna secret\r\n") == b"* CAPABILITY " + BEHIND + b"\r\na1 OK Logged in.\r\n"


def test_a_server_that_can_not_say_what_it_can() -> None:
    server = Imap(told=False, CAPABILITY=b"% NO no\r\n", GREETING=b"* OK [CAPABILITY IMAP4rev1] hello\r\n")
    assert Rig(server).client(b"a1 LOGIN anna secret\r\n") == b"a1 OK Logged in.\r\n"


@pytest.mark.parametrize("how", ["xoauth2", "oauthbearer"])
def test_a_refused_token_has_one_step_more(how: str) -> None:
    for step in (1, 1 << 30):
        rig = Rig(Imap(password=b"another"), step=step)
        for part in LOGINS[how]:
            rig.client(part)
        found = rig.said.rpartition(b"+ ")[2]
        assert b'"status":"invalid_token"' in base64.b64decode(found)
        server = rig.servers[0]
        assert isinstance(server, Imap)
        assert server.got[-1] == (b"AQ==" if how == "oauthbearer" else b"")
        assert rig.client(b"AQ==\r\n" if how == "oauthbearer" else b"\r\n") == REFUSED
        assert rig.client(b"a2 NOOP\r\n") == b"a2 OK Noop completed.\r\n"


def test_cancelling() -> None:
    rig = Rig()
    assert rig.client(b"a1 AUTHENTICATE PLAIN\r\n") == b"+ \r\n"
    assert rig.client(b"*\r\n") == b"a1 BAD Authentication cancelled.\r\n"
    assert rig.client(b"a1 AUTHENTICATE LOGIN\r\n") == b"+ VXNlcm5hbWU6\r\n"
    assert rig.client(b"YW5uYQ==\r\n") == b"+ UGFzc3dvcmQ6\r\n"
    assert rig.client(b"*\r\n") == b"a1 BAD Authentication cancelled.\r\n"
    assert not rig.facts


def test_three_refusals_end_it() -> None:
    rig = Rig()
    said = rig.client(b"a1 LOGIN anna wrong\r\n" * 4)
    assert said == REFUSED * 3 + b"* BYE Authentication failed.\r\n"
    assert rig.finished is not None
    assert rig.finished.failure is Failure.LOGIN_REFUSED
    assert rig.record().record(rig.finished.ended, 1.0).user == "anna"


def test_a_certificate_logs_in_where_a_master_user_does() -> None:
    handshake = Handshake()
    handshake.certificate = ClientCertificate("anna", "CN=anna", True)
    entry = Entry()
    entry.master_user, entry.master_password = b"proxy", b"secret"
    rig = Rig(handshake=handshake, entry=entry)
    assert b"AUTH=EXTERNAL" in rig.said
    assert rig.client(b"a1 AUTHENTICATE EXTERNAL =\r\n") == WELCOME
    assert rig.facts[0].user == b"anna"
    server = rig.servers[0]
    assert isinstance(server, Imap)
    assert server.credentials == [b"anna\0proxy\0secret"]
    handshake.certificate.verified = False
    assert b"EXTERNAL" not in Rig(handshake=handshake).said


def test_the_authorization_is_whose_mailbox_it_is() -> None:
    rig = Rig(Imap(), login_as="mailbox")
    rig.client(b"a1 AUTHENTICATE PLAIN " + plain(b"admin", b"secret", b"Anna+x@Example.com") + b"\r\n")
    assert rig.facts[0].mailbox == b"anna@example.com"
    server = rig.servers[0]
    assert isinstance(server, Imap)
    assert server.credentials == [b"anna@example.com\0admin\0secret"]


# --- TLS ------------------------------------------------------------------------------------------------------


def test_tls_makes_all_things_new() -> None:
    rig = Rig(mode="starttls")
    rig.client(b'a0 CAPABILITY\r\na0 ID ("name" "before")\r\n')
    assert rig.client(b"a1 STARTTLS\r\n") == b"a1 OK Begin TLS now.\r\n"
    assert rig.seen[-1][0] == "StartTls"
    assert rig.client(b"a1 LOGIN anna secret\r\n") == WELCOME  # not as if it had been asked before
    assert b"before" not in rig.told


@pytest.mark.parametrize("behind", [b"a2 LOGIN eve evil\r\n", b"\r\n", b"x"])
def test_what_somebody_put_in_behind_starttls_ends_it(behind: bytes) -> None:
    rig = Rig(mode="starttls")
    rig.client(b"a1 STARTTLS\r\n" + behind)
    assert [what for what, _ in rig.seen[-2:]] == ["client", "abort"]
    assert b"a1" not in rig.said


def test_bytes_in_the_clear_while_tls_begins() -> None:
    rig = Rig(mode="starttls")
    session = rig.session
    rig.seen.clear()
    session.received(CLIENT, b"a1 STARTTLS\r\n", 0.0)
    rig.run(session.received(CLIENT, b"a2 NOOP\r\n", 0.0))
    assert rig.closed


# --- what the proxy tells -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "answer"),
    [
        (Failure.NO_SERVER, b"a1 NO [UNAVAILABLE] The mailbox's server is not available, try again later.\r\n"),
        (Failure.MAILBOX_MOVING, b"a1 NO [UNAVAILABLE] The mailbox is being moved, try again in a moment.\r\n"),
        (Failure.DIRECTORY, b"a1 NO [UNAVAILABLE] The mailbox's server is not available, try again later.\r\n"),
        (Failure.CONNECT_REFUSED, b"a1 NO [UNAVAILABLE] The mailbox's server is not available, try again later.\r\n"),
        (Failure.SESSION_LIMIT, b"a1 NO [LIMIT] Too many sessions of this mailbox or from this address.\r\n"),
        (Failure.RATE_LIMITED, b"a1 NO [LIMIT] Too many requests, try again later.\r\n"),
        (Failure.NO_MAILBOX, REFUSED),
        (Failure.LOGIN_REFUSED, REFUSED),
        (Failure.BUG, b"a1 NO [UNAVAILABLE] The mailbox's server is not available, try again later.\r\n"),
    ],
)
def test_failures_in_imaps_words(failure: Failure, answer: bytes) -> None:
    rig = Rig(failure, Imap())
    assert rig.client(b"a1 LOGIN anna secret\r\n") == answer
    assert ("LoginFailed", b"") in rig.seen or answer != REFUSED
    assert rig.client(b"a1 LOGIN anna secret\r\n") == WELCOME


def test_whoever_refuses_a_login_may_have_it_wait() -> None:
    rig = Rig()
    *_, need = rig.session.received(CLIENT, b"a1 LOGIN anna secret\r\n", rig.now)
    assert isinstance(need, NeedServer)
    need.facts.wait = 3.0
    assert rig.session.failed(Failure.LOGIN_REFUSED, None, rig.now) == []
    rig.later(2.9)
    assert b"a1" not in rig.said
    rig.later(0.2)
    assert rig.said.endswith(REFUSED)


def test_a_proxy_tells_of_its_client_if_it_is_trusted() -> None:
    said = b'a ID ("x-originating-ip" "198.51.100.9" "x-originating-port" "77" "x-proxy-ttl" "2" "name" "mutt")\r\n'
    rig = Rig(trusted=["192.0.2.7"])
    rig.client(said + b"a1 LOGIN anna secret\r\n")
    assert rig.facts[0].source == "198.51.100.9"
    for part in (b'"x-originating-ip" "198.51.100.9"', b'"x-originating-port" "77"', b'"x-proxy-ttl" "1"', b'"mutt"'):
        assert part in rig.told
    rig = Rig(trusted=["192.0.2.8"])
    rig.client(said + b"a1 LOGIN anna secret\r\n")
    assert rig.facts[0].source == "192.0.2.7"
    assert b'"x-originating-ip" "192.0.2.7" "x-originating-port" "5000"' in rig.told
    assert b"198.51.100.9" not in rig.told


def test_proxies_that_lead_back_to_themselves() -> None:
    rig = Rig(trusted=["192.0.2.7"])
    rig.client(b'a ID ("x-proxy-ttl" "0")\r\n')
    assert rig.client(b"a1 LOGIN anna secret\r\n").startswith(b"a1 NO [UNAVAILABLE]")
    assert rig.told == b""


def test_servers_are_told_nothing_where_they_are_not_to_be() -> None:
    rig = Rig(client_address="none")
    rig.client(b"a1 LOGIN anna secret\r\n")
    assert b" ID " not in rig.told
    rig = Rig(Imap(before="IMAP4rev1 AUTH=PLAIN SASL-IR"))
    rig.client(b"a1 LOGIN anna secret\r\n")
    assert rig.tunnel
    assert b" ID " not in rig.told


# --- the end --------------------------------------------------------------------------------------------------


def test_the_end_of_a_tunnel() -> None:
    rig = Rig()
    rig.client(b"a1 LOGIN anna secret\r\n")
    assert rig.session.deadline == rig.now + 1860.0
    rig.session.moved(CLIENT, 100, rig.now + 5)
    rig.session.moved(SERVER, 200, rig.now + 9)
    assert rig.session.deadline == rig.now + 1869.0
    rig.session.half_ended(CLIENT, rig.now)
    assert rig.session.deadline == rig.now + 60.0
    rig.run(rig.session.ended(CLIENT, rig.now, False))
    assert [what for what, _ in rig.seen[-2:]] == ["tunnel", "close"]
    assert rig.finished is not None
    record = rig.record().record(rig.finished.ended, 1.0)
    assert (record.ended, record.closed_by, record.mailbox, record.user) == ("ok", "client", "anna@example.com", "anna")
    assert (record.server, record.pool, record.mechanism, record.protocol) == ("mx1", "mail", "login", "imap4")
    assert rig.finished.received == 100 + len(b"a1 LOGIN anna secret\r\n")
    assert rig.finished.sent == 200 + len(rig.said)
    assert len(rig.released) == 1


def test_a_tunnels_resets_and_silence() -> None:
    for side, word in ((CLIENT, "client-closed@tunnel"), (SERVER, "server-closed-inside@tunnel")):
        rig = Rig()
        rig.client(b"a1 LOGIN anna secret\r\n")
        rig.run(rig.session.ended(side, rig.now, True))
        assert rig.seen[-1][0] == "abort"
        assert rig.finished is not None
        assert rig.finished.ended == word
    rig = Rig()
    rig.client(b"a1 LOGIN anna secret\r\n")
    rig.later(1861)
    assert rig.finished is not None
    assert rig.finished.ended == "client-timeout@tunnel"


def test_the_node_ends_a_session() -> None:
    rig = Rig()
    rig.run(rig.session.dismissed("Your mailbox moves.", rig.now))
    assert rig.said.endswith(b"* BYE [UNAVAILABLE] Your mailbox moves.\r\n")
    rig = Rig()
    rig.client(b"a1 LOGIN anna secret\r\n")
    rig.run(rig.session.dismissed("Your mailbox moves.", rig.now))
    assert rig.said.endswith(WELCOME + b"* BYE [UNAVAILABLE] Your mailbox moves.\r\n")
    assert rig.closed
    assert rig.finished is not None
    assert rig.finished.ended == "ended-here@tunnel"
    assert rig.session.dismissed("again", rig.now) == []


def test_the_process_ends() -> None:
    rig = Rig()
    rig.run(rig.session.draining(rig.now, False))
    assert rig.said.endswith(b"* BYE [UNAVAILABLE] Shutting down.\r\n")
    rig = Rig(Failure.NO_SERVER)
    rig.run(rig.session.draining(rig.now, True))
    assert not rig.closed
    rig.client(b"a1 LOGIN anna secret\r\n")
    assert rig.said.endswith(b"* BYE [UNAVAILABLE] Shutting down.\r\n")
    rig = Rig()
    rig.run(rig.session.draining(rig.now, True))
    rig.later(6)
    assert rig.said.endswith(b"* BYE [UNAVAILABLE] Shutting down.\r\n")
    rig = Rig()
    rig.client(b"a1 LOGIN anna secret\r\n")
    assert rig.session.draining(rig.now, False) == []


def test_a_client_that_leaves() -> None:
    rig = Rig()
    rig.run(rig.session.ended(CLIENT, rig.now, False))
    assert rig.finished is not None
    assert rig.finished.ended == "client-closed@login"
    silent = Imap(GREETING=b"")
    rig = Rig(silent)
    rig.client(b"a1 LOGIN anna secret\r\na2 LOGOUT\r\n")
    rig.run(rig.session.ended(CLIENT, rig.now, False))  # it has said all, and waits
    rig.serve(silent, [b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] ready\r\n"])
    assert rig.told.endswith(b"a2 LOGOUT\r\n")
    rig = Rig(silent)
    rig.client(b"a1 LOGIN anna secret\r\n")
    rig.run(rig.session.ended(CLIENT, rig.now, True))
    assert rig.closed
    assert len(rig.released) == 1
