"""SMTP by recipient: what goes to which server, what the client is told, and that nothing is taken for what it is not."""

from __future__ import annotations

import pytest
from esmtp_bench import EHLO, LOSE, SILENT, STARTTLS, XCLIENT, Bench

from l7lb.core.actions import CLIENT, SERVER
from l7lb.core.errors import Failure
from l7lb.core.servers import POOLS
from l7lb.core.snapshot import ServerTls

HELLO = b"EHLO client.example\r\n"
MAIL = b"MAIL FROM:<x@y.example>\r\n"
MESSAGE = b"Subject: one\r\n\r\n..dot\r\nbody\r\n.\r\n"
TO_A = b"RCPT TO:<anna@example.com>\r\n"
TO_B = b"RCPT TO:<bert@example.com>\r\n"


def test_a_message_goes_to_its_recipients_server_as_it_came() -> None:
    bench = Bench()
    assert bench.said == b"220 proxy.example ESMTP\r\n"
    assert bench.codes(bench.send(HELLO)) == [b"250"]
    assert bench.codes(bench.send(MAIL)) == [b"250"]
    assert bench.servers == []
    assert bench.send(TO_A) == b"250 recipient\r\n"
    assert bench.codes(bench.send(b"DATA\r\n")) == [b"354"]
    assert bench.send(MESSAGE) == b"250 stored by a\r\n"
    server = bench.servers[0]
    assert server.messages == [MESSAGE[:-3]]
    assert server.commands == [
        b"EHLO proxy.example",
        b"MAIL FROM:<x@y.example>",
        b"RCPT TO:<anna@example.com>",
        b"DATA",
        b"QUIT",
    ]
    assert bench.send(b"QUIT\r\n") == b"221 2.0.0 Bye\r\n"
    assert bench.closed == "closed"
    assert [record.ended for record in bench.records] == ["ok"]


WHOLE = (
    HELLO + MAIL + TO_A + TO_B + b"RCPT TO:<anna+x@example.com>\r\n" + b"DATA\r\n" + MESSAGE + b"NOOP\r\n"
    + MAIL + TO_B + b"BDAT 5\r\nab\ncdBDAT 3 LAST\r\n.\r\nRSET\r\nVRFY anna\r\nQUIT\r\n"
)  # fmt: skip
REPLIES = [
    b"250", b"250", b"250", b"452", b"250", b"354", b"250", b"250", b"250", b"250", b"502", b"502", b"250", b"252", b"221",
]  # fmt: skip


def test_any_split_gives_the_same() -> None:
    whole = Bench()
    said = whole.send(WHOLE)
    assert whole.codes(said) == REPLIES
    for at in range(1, len(WHOLE)):
        bench = Bench()
        assert bench.split(WHOLE, (at, len(WHOLE))) == said
        assert [server.commands for server in bench.servers] == [server.commands for server in whole.servers]
        assert [server.messages for server in bench.servers] == [server.messages for server in whole.servers]
    bench = Bench()
    assert bench.split(WHOLE, (1,)) == said


def learned(bench: Bench) -> None:
    """Have all servers asked once, so that the next client is offered what they can do."""
    bench.send(HELLO + MAIL + TO_A + b"RSET\r\n" + MAIL + TO_B + b"QUIT\r\n")
    bench.begin()


def test_what_servers_offer_is_offered_when_all_are_known() -> None:
    bench = Bench(scripts={"b": {b"EHLO": b"250-b\r\n250-SIZE 500\r\n250-8BITMIME\r\n250 CHUNKING\r\n"}})
    assert bench.send(HELLO) == b"250-proxy.example\r\n250-PIPELINING\r\n250 8BITMIME\r\n"
    learned(bench)
    said = bench.send(HELLO)
    assert said == b"250-proxy.example\r\n250-PIPELINING\r\n250-SIZE 500\r\n250-8BITMIME\r\n250 CHUNKING\r\n"
    assert bench.send(b"MAIL FROM:<x@y.example> SIZE=501\r\n").startswith(b"552 5.3.4")
    assert bench.send(b"MAIL FROM:<x@y.example> SIZE=500 RET=FULL\r\n").startswith(b"555 5.5.4")


def test_what_checks_found_is_offered_before_any_dialogue(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    monkeypatch.setitem(POOLS, "mail", bench.pool)
    for server in bench.pool.servers:
        server.offers["smtp"] = ("8BITMIME", "SIZE 700", "VRFY")
    assert bench.send(HELLO) == b"250-proxy.example\r\n250-PIPELINING\r\n250-SIZE 700\r\n250 8BITMIME\r\n"
    bench.pool.servers[1].offers["smtp"] = ("SIZE",)
    assert bench.send(HELLO) == b"250-proxy.example\r\n250-PIPELINING\r\n250 SIZE 700\r\n"
    bench.pool.servers[1].offers.clear()
    assert bench.send(HELLO) == b"250-proxy.example\r\n250-PIPELINING\r\n250 8BITMIME\r\n"
    bench.pool.servers[1].healthy = False
    assert bench.send(HELLO) == b"250-proxy.example\r\n250-PIPELINING\r\n250-SIZE 700\r\n250 8BITMIME\r\n"


def test_the_question_where_a_mailbox_is_has_a_limit() -> None:
    bench = Bench()
    bench.send(HELLO + MAIL + TO_A)
    bench.silent = True
    assert bench.send(TO_B) == b""
    assert bench.session.deadline == bench.now + 90
    bench.run(bench.session.expired(bench.now + 90, None, 0.0))
    assert bench.said.endswith(b"451 4.3.0 This can't be done now, try again later\r\n")
    bench.silent = False
    assert bench.codes(bench.send(b"DATA\r\n" + MESSAGE)) == [b"354", b"250"]


def test_parameters_reach_the_server() -> None:
    bench = Bench()
    learned(bench)
    bench.send(HELLO + b"MAIL FROM:<x@y.example> size=10 BODY=8BITMIME ENVID=a+2Bb RET=HDRS\r\n")
    bench.send(b"RCPT TO:<anna@example.com> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;anna@example.com\r\n")
    assert bench.servers[0].commands[1:] == [
        b"MAIL FROM:<x@y.example> SIZE=10 BODY=8BITMIME ENVID=a+2Bb RET=HDRS",
        b"RCPT TO:<anna@example.com> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;anna@example.com",
    ]


def test_a_server_that_cant_do_what_was_offered_has_the_client_come_again() -> None:
    bench = Bench(scripts={"a": {b"EHLO": b"250 a\r\n"}})
    bench.send(HELLO)
    bench.send(b"MAIL FROM:<x@y.example> BODY=8BITMIME\r\n")
    assert bench.send(TO_A).startswith(b"451 4.3.5")
    assert bench.servers[0].commands == [b"EHLO proxy.example", b"QUIT"]


def test_an_old_server_gets_helo() -> None:
    bench = Bench(scripts={"a": {b"EHLO": b"502 what?\r\n"}})
    assert bench.codes(bench.send(HELLO + MAIL + TO_A + b"DATA\r\n" + MESSAGE)) == [b"250"] * 3 + [b"354", b"250"]
    assert bench.servers[0].commands[:2] == [b"EHLO proxy.example", b"HELO proxy.example"]


def test_chunks_are_counted_and_passed_on() -> None:
    bench = Bench()
    learned(bench)
    bench.send(HELLO + MAIL + TO_A)
    assert bench.send(b"BDAT 5\r\na\nb\r\r") == b"250 chunk\r\n"
    assert bench.send(b"BDAT 4 LAST\r\n\n.\r\n") == b"250 stored by a\r\n"
    assert bench.servers[0].messages == [b"a\nb\r\r\n.\r\n"]
    assert bench.send(b"BDAT 2 LAST\r\nab").startswith(b"503")


def test_rset_between_chunks_discards_the_message() -> None:
    bench = Bench()
    learned(bench)
    bench.send(HELLO + MAIL + TO_A + b"BDAT 5\r\nhello")
    assert bench.send(b"RSET\r\n").startswith(b"250")
    assert bench.servers[0].messages == []
    assert bench.servers[0].end == "reset"


def test_a_refused_chunk_refuses_those_behind_it() -> None:
    bench = Bench(scripts={"a": {b"BDAT": b"552 too big\r\n"}})
    learned(bench)
    said = bench.send(HELLO + MAIL + TO_A + b"BDAT 2\r\nabBDAT 2 LAST\r\ncdNOOP\r\n")
    assert bench.codes(said)[3:] == [b"552", b"552", b"250"]
    assert bench.servers[0].messages == []


def test_a_malformed_chunk_ends_the_session() -> None:
    bench = Bench()
    learned(bench)
    assert bench.send(HELLO + MAIL + TO_A + b"BDAT x\r\nMAIL FROM:<>\r\n").endswith(
        b"501 5.5.4 Expected BDAT size [LAST]\r\n"
    )
    assert bench.closed


# --- which server ---------------------------------------------------------------------------------------------------


def test_recipients_of_another_server_come_again() -> None:
    bench = Bench()
    said = bench.send(HELLO + MAIL + TO_A + TO_B + b"RCPT TO:<axel@example.com>\r\n")
    assert bench.codes(said)[2:] == [b"250", b"452", b"250"]
    assert b"452 4.5.3" in said
    assert bench.claims == [b"axel@example.com"]  # beside the first's, which its server's stream has
    said = bench.send(b"DATA\r\n" + MESSAGE + MAIL + TO_B + b"DATA\r\n" + MESSAGE)
    assert bench.codes(said) == [b"354", b"250", b"250", b"250", b"354", b"250"]
    assert [server.name for server in bench.servers] == ["a", "b"]
    assert bench.claims == []


def test_the_first_server_takes_all_where_the_configuration_says_so() -> None:
    bench = Bench(settings={"recipients": "first"})
    said = bench.send(HELLO + MAIL + TO_A + TO_B + b"DATA\r\n" + MESSAGE)
    assert bench.codes(said)[2:] == [b"250", b"250", b"354", b"250"]
    assert [server.name for server in bench.servers] == ["a"]


def test_a_recipient_that_was_refused_does_not_decide_the_server() -> None:
    bench = Bench(scripts={"a": {b"RCPT": b"550 5.1.1 nobody\r\n"}})
    said = bench.send(HELLO + MAIL + TO_A + TO_B + b"DATA\r\n" + MESSAGE)
    assert bench.codes(said)[2:] == [b"550", b"250", b"354", b"250"]
    assert bench.servers[0].commands[-1] == b"QUIT"
    assert bench.servers[1].messages


def test_both_ways_to_write_an_address_are_the_same_mailbox() -> None:
    seen: list[bytes] = []

    def where(mailbox: bytes) -> str:
        seen.append(mailbox)
        return "a"

    bench = Bench(where=where)
    bench.send(HELLO + MAIL + b'RCPT TO:<"an\\na"@EXAMPLE.com>\r\nRSET\r\n' + MAIL + b"RCPT TO:<@r.example:Anna+x>\r\n")
    assert seen == [b"anna@example.com"] * 2
    assert bench.servers[1].commands[-1] == b"RCPT TO:<Anna+x>"


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (Failure.NO_MAILBOX, b"550 5.1.1"),
        (Failure.DIRECTORY, b"451 4.4.3"),
        (Failure.MAILBOX_SERVER, b"451 4.3.2"),
        (Failure.MAILBOX_MOVING, b"451 4.3.2"),
        (Failure.SESSION_LIMIT, b"451 4.3.2"),
        (Failure.NO_SERVER, b"451 4.3.2"),
        (Failure.CONNECT_REFUSED, b"451 4.4.1"),
        (Failure.RATE_LIMITED, b"451 4.7.0"),
        (Failure.NO_STATE, b"451 4.3.0"),
        (Failure.BUG, b"451 4.3.0"),
    ],
)
def test_every_failure_has_its_answer(failure: Failure, code: bytes) -> None:
    bench = Bench(where=lambda mailbox: failure if mailbox.startswith(b"x") else "a")
    bench.send(HELLO + MAIL)
    assert bench.send(b"RCPT TO:<x1@example.com>\r\n").startswith(code)
    assert bench.send(TO_A).startswith(b"250")
    assert bench.send(b"RCPT TO:<x2@example.com>\r\n").startswith(code)
    assert bench.codes(bench.send(b"DATA\r\n" + MESSAGE)) == [b"354", b"250"]


# --- faults of servers at every step --------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [LOSE, b"421 4.3.2 full\r\n", b"what is this\r\n", b"250-a\r\n251 b\r\n"])
@pytest.mark.parametrize("step", [b"", b"EHLO", b"MAIL", b"RCPT", b"DATA", b"."])
def test_a_fault_at_any_step_is_temporary(step: bytes, fault: bytes) -> None:
    bench = Bench(scripts={"a": {step: fault}})
    said = bench.send(HELLO + MAIL + TO_A + b"DATA\r\n" + (MESSAGE if step == b"." else b"") + b"NOOP\r\n")
    codes = bench.codes(said)
    assert b"451" in codes
    assert not {b"421", b"550", b"554"} & set(codes) - ({b"554"} if step in (b"", b"EHLO", b"MAIL", b"RCPT") else set())
    assert codes[-1] == b"250"
    assert not bench.closed
    assert bench.codes(bench.send(b"RSET\r\n" + MAIL + TO_B + b"DATA\r\n" + MESSAGE))[-1] == b"250"


def test_a_server_lost_before_the_dot_has_not_taken_it() -> None:
    bench = Bench()
    bench.send(HELLO + MAIL + TO_A + b"DATA\r\nSubject: one\r\n")
    bench.lose(0)
    assert bench.send(b"more\r\n") == b""
    assert bench.send(b".\r\n").startswith(b"451 4.4.2")
    assert bench.servers[0].end == "reset"
    assert bench.send(b"NOOP\r\n").startswith(b"250")


def test_a_server_lost_between_dot_and_reply_has_the_client_come_again() -> None:
    bench = Bench(scripts={"a": {b".": SILENT}})
    bench.send(HELLO + MAIL + TO_A + b"DATA\r\n")
    assert bench.send(MESSAGE) == b""
    bench.lose(0)
    assert bench.said.endswith(b"451 4.4.2 The connection to the server was lost, try again later\r\n")
    assert bench.records[-1].failure is Failure.SERVER_CLOSED


def test_the_last_reply_has_eleven_minutes() -> None:
    bench = Bench(scripts={"a": {b".": SILENT}})
    bench.send(HELLO + MAIL + TO_A + b"DATA\r\n" + MESSAGE)
    stream = next(iter(bench.streams.values()))
    assert stream.deadline == bench.now + 660
    bench.on_stream(1, stream.expired(bench.now + 660, None, 0.0))
    bench.settle()
    assert bench.said.endswith(b"451 4.4.2 The server did not answer in time, try again later\r\n")


def test_a_refusal_inside_the_message_is_the_reply_to_it() -> None:
    bench = Bench()
    bench.send(HELLO + MAIL + TO_A + b"DATA\r\nSubject: one\r\n")
    bench.on_stream(1, bench.streams[1].received(SERVER, b"552 5.3.4 too big\r\n", bench.now))
    bench.settle()
    assert bench.send(b"more\r\n.\r\n") == b"552 5.3.4 too big\r\n"
    assert bench.servers[0].messages == []


def test_an_acceptance_inside_the_message_is_no_acceptance() -> None:
    bench = Bench()
    bench.send(HELLO + MAIL + TO_A + b"DATA\r\nSubject: one\r\n")
    bench.on_stream(1, bench.streams[1].received(SERVER, b"250 fine\r\n", bench.now))
    bench.settle()
    assert bench.send(b"more\r\n.\r\n").startswith(b"451")


def test_a_lost_server_loses_none_of_its_recipients() -> None:
    bench = Bench()
    bench.send(HELLO + MAIL + TO_A)
    bench.lose(0)
    assert bench.send(b"RCPT TO:<axel@example.com>\r\n").startswith(b"451 4.4.2")
    assert bench.send(b"DATA\r\n").startswith(b"451 4.4.2")
    assert len(bench.servers) == 1


def test_a_client_lost_inside_the_message_resets_the_server() -> None:
    for error in (True, False):
        bench = Bench()
        bench.send(HELLO + MAIL + TO_A + b"DATA\r\nSubject: one\r\n.\r")
        bench.gone(error)
        assert bench.servers[0].messages == []
        assert bench.servers[0].end == "reset"
        assert bench.closed
        assert bench.records[-1].ended == "client-closed@message"


def test_a_client_that_only_ends_its_half_gets_its_reply() -> None:
    bench = Bench()
    bench.held.add("a")
    bench.send(HELLO + MAIL + TO_A + b"DATA\r\n" + MESSAGE + b"QUIT\r\n")
    bench.gone(error=False)
    assert not bench.closed
    bench.release("a")
    assert bench.codes(bench.said)[-4:] == [b"250", b"354", b"250", b"221"]
    assert bench.closed


def test_replies_of_pipelined_commands_come_in_order() -> None:
    bench = Bench()
    bench.held.add("a")
    said = bench.send(HELLO + MAIL + TO_A + b"RCPT TO:<@>\r\n" + TO_B + b"DATA\r\n" + MESSAGE + b"NOOP\r\n")
    assert bench.codes(said) == [b"250", b"250"]
    bench.release("a")
    assert bench.codes(bench.said)[3:] == [b"250", b"501", b"452", b"354", b"250", b"250"]


# --- smuggling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end",
    [
        b"\n.\n",
        b"\n.\r\n",
        b"\r\n.\n",
        b"\r.\r",
        b"\r\n.\r",
        b"\r.\r\n",
        b"\r\r\n.\r\r\n",
        b"\n\r\n.\n",
        b"\r\n\r.\r\n",
    ],
)
def test_nothing_but_the_end_ends_a_message(end: bytes) -> None:
    evil = (
        b"Subject: one\r\n\r\nbody"
        + end
        + b"MAIL FROM:<evil@example.com>\r\nRCPT TO:<a@example.com>\r\nDATA\r\nevil\r\n.\r\n"
    )
    for size in (len(evil), 1, 2, 3):
        bench = Bench()
        bench.send(HELLO + MAIL + TO_A + b"DATA\r\n")
        assert bench.split(evil, (size,)).startswith(b"521 5.5.2")
        assert bench.closed == "closed"
        server = bench.servers[0]
        assert server.messages == []
        assert server.end == "reset"
        assert len(server.commands) == 4


@pytest.mark.parametrize("line", [b"NOOP\n", b"NOOP\r", b"NO\rOP\r\n", b"NOOP\r\r\n"])
def test_a_command_ends_in_crlf(line: bytes) -> None:
    bench = Bench()
    said = bench.send(HELLO + line + b"NOOP\r\n")
    assert b"521 5.5.2" in said
    assert bench.closed


def test_dots_stay_as_they_are() -> None:
    bench = Bench()
    bench.send(HELLO + MAIL + TO_A + b"DATA\r\n.\r\n")
    assert bench.servers[0].messages == [b""]
    bench.send(MAIL + TO_A + b"DATA\r\n..\r\n...x\r\n.\r\n")
    assert bench.servers[1].messages == [b"..\r\n...x\r\n"]


# --- the client's words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (b"FOO", b"500"),
        (b"", b"500"),
        (b"EHLO", b"501"),
        (b"EHLO a b", b"501"),
        (b"LHLO x", b"500"),
        (b"MAIL FROM:x@y.example", b"501"),
        (b"MAIL FROM:<x@y.example>x", b"501"),
        (b"MAIL FROM:<x@y..example>", b"501"),
        (b"MAIL FROM:<x@y.example> FOO=1", b"555"),
        (b"MAIL FROM:<x@y.example> SIZE=1", b"555"),
        (b"MAIL FROM:<x@y.example> BODY=FOO", b"555"),
        (b"MAIL FROM:<x@y.example> BODY=7BIT BODY=7BIT", b"501"),
        (b"MAIL FROM:<x\x00@y.example>", b"500"),
        (b"MAIL FROM:<\xc3\xa4@y.example>", b"553"),
        (b"MAIL TO:<x@y.example>", b"501"),
        (b"RCPT TO:<x@y.example>", b"503"),
        (b"DATA", b"503"),
        (b"DATA x", b"501"),
        (b"RSET x", b"501"),
        (b"STARTTLS", b"502"),
        (b"AUTH PLAIN", b"500"),
        (b"XCLIENT ADDR=1.2.3.4", b"550"),
        (b"EXPN x", b"502"),
        (b"HELP", b"214"),
        (b"VRFY x", b"252"),
        (b"NOOP " + b"x" * 520, b"500"),
        (b"NOOP " + b"x" * 50_000, b"500"),
    ],
)
def test_a_command_that_cant_be_has_its_answer(command: bytes, code: bytes) -> None:
    bench = Bench()
    bench.send(HELLO)
    assert bench.codes(bench.send(command + b"\r\nNOOP\r\n")) == [code, b"250"]


def test_the_order_of_commands() -> None:
    bench = Bench()
    assert bench.send(MAIL).startswith(b"503 5.5.1")
    bench.send(b"HELO client.example\r\n")
    assert bench.send(b"MAIL FROM:<x@y.example> BODY=8BITMIME\r\n").startswith(b"555")
    assert bench.send(MAIL).startswith(b"250")
    assert bench.send(MAIL).startswith(b"503 5.5.1")
    assert bench.send(b"DATA\r\n").startswith(b"554")
    bench.send(HELLO)
    assert bench.send(TO_A).startswith(b"503 5.5.1")


def test_another_protocols_words_end_the_session() -> None:
    for words in (b"GET / HTTP/1.1\r\n", b"POST /x HTTP/1.0\r\n", b"\x16\x03\x01\x00\x00"):
        bench = Bench()
        said = bench.send(words + b"Host: x\r\n\r\n" + HELLO)
        assert said.startswith(b"554 5.7.0")
        assert bench.closed
        assert said.count(b"\r\n") == 1


def test_too_many_errors_end_the_session() -> None:
    bench = Bench(settings={"bad_commands": 2})
    assert bench.codes(bench.send(b"A\r\nB\r\nC\r\nD\r\n")) == [b"500", b"500", b"421"]
    assert bench.closed


def test_an_idle_client_is_told_and_left() -> None:
    bench = Bench()
    bench.send(HELLO)
    assert bench.session.deadline == bench.now + 300
    bench.run(bench.session.expired(bench.now + 300, None, 0.0))
    assert bench.said.endswith(b"421 4.4.2 The connection was idle for too long\r\n")
    assert bench.closed


def test_a_client_that_reads_nothing_is_left() -> None:
    bench = Bench()
    bench.run(bench.session.expired(bench.now + 300, CLIENT, 0.0))
    assert bench.closed


def test_a_drain_waits_for_the_message() -> None:
    bench = Bench()
    bench.send(HELLO + MAIL + TO_A + b"DATA\r\n")
    bench.run(bench.session.draining(bench.now, False))
    assert not bench.closed
    said = bench.send(MESSAGE)
    assert bench.codes(said) == [b"250", b"421"]
    assert bench.closed
    idle = Bench()
    idle.run(idle.session.draining(idle.now, True))
    assert idle.said.endswith(b"421 4.3.2 This node is going down, try again later\r\n")


def test_a_dismissal_leaves_no_half_a_message() -> None:
    bench = Bench()
    bench.send(HELLO + MAIL + TO_A + b"DATA\r\nSubject: one\r\n")
    bench.run(bench.session.dismissed("the mailbox moves", bench.now))
    assert bench.said.endswith(b"421 4.3.2 The session was ended: try again later\r\n")
    assert bench.servers[0].end == "reset"
    assert bench.closed


def test_a_server_that_does_not_read_holds_the_client_back() -> None:
    bench = Bench()
    bench.send(HELLO + MAIL + TO_A + b"DATA\r\n")
    leg = bench.streams[1]
    leg.taking(False)  # type: ignore[attr-defined]
    bench.send(b"x\r\n")
    assert not bench.session.wants_client
    leg.taking(True)  # type: ignore[attr-defined]
    bench.settle()
    assert bench.session.wants_client
    leg.taking(False)  # type: ignore[attr-defined]
    bench.run(bench.session.expired(bench.now + 300, None, 0.0))
    leg.taking(True)  # type: ignore[attr-defined]
    assert bench.send(b".\r\n").startswith(b"451 4.4.2")


# --- TLS and XCLIENT ------------------------------------------------------------------------------------------------


def test_tls_forgets_what_came_before_it() -> None:
    bench = Bench(starttls=True)
    assert b"250 STARTTLS\r\n" in bench.send(HELLO)
    bench.send(MAIL)
    assert bench.send(b"STARTTLS\r\n") == b"220 2.0.0 Go on\r\n"
    assert bench.securing
    bench.securing = False
    bench.peer.tls = True
    bench.run(bench.session.secured(bench.now))
    assert bench.send(MAIL).startswith(b"503 5.5.1")
    assert b"STARTTLS" not in bench.send(HELLO)
    assert bench.send(b"STARTTLS\r\n").startswith(b"503")


def test_bytes_behind_starttls_end_the_session() -> None:
    bench = Bench(starttls=True)
    bench.send(HELLO)
    assert bench.send(b"STARTTLS\r\n" + MAIL).startswith(b"554 5.7.0")
    assert bench.closed
    assert not bench.securing
    bench = Bench(starttls=True)
    bench.send(HELLO + b"STARTTLS\r\n")
    bench._carry_out(bench.session.received(CLIENT, MAIL, bench.now))
    assert bench.closed


def test_what_a_proxy_told_in_the_clear_counts_no_longer_behind_tls() -> None:
    bench = Bench(
        scripts={"a": {b"EHLO": XCLIENT}},
        client_address="xclient",
        starttls=True,
        settings={"trusted": ["198.51.100.0/24"]},
    )
    bench.send(HELLO + b"XCLIENT ADDR=203.0.113.9\r\n" + HELLO + b"STARTTLS\r\n")
    bench.securing = False
    bench.peer.tls = True
    bench.run(bench.session.secured(bench.now))
    bench.send(HELLO + MAIL + TO_A)
    assert b"ADDR=198.51.100.7" in bench.servers[0].commands[1]


def test_a_server_is_asked_for_tls_first() -> None:
    bench = Bench(scripts={"a": {b"EHLO": [STARTTLS, EHLO]}}, server_tls=ServerTls(mode="starttls"))
    assert bench.codes(bench.send(HELLO + MAIL + TO_A))[-1] == b"250"
    assert bench.servers[0].commands[:4] == [
        b"EHLO proxy.example", b"STARTTLS", b"EHLO proxy.example", b"MAIL FROM:<x@y.example>",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "script",
    [
        {b"EHLO": EHLO},
        {b"EHLO": STARTTLS, b"STARTTLS": b"454 not now\r\n"},
        {b"EHLO": STARTTLS, b"STARTTLS": b"220 go on\r\n250 injected\r\n"},
    ],
)
def test_without_tls_such_a_server_gets_nothing(script: dict[bytes, bytes]) -> None:
    bench = Bench(scripts={"a": script}, server_tls=ServerTls(mode="starttls"))
    assert bench.codes(bench.send(HELLO + MAIL + TO_A))[-1] == b"451"
    assert not any(command.startswith(b"MAIL") for command in bench.servers[0].commands)


def test_a_server_is_told_who_the_client_is() -> None:
    bench = Bench(scripts={"a": {b"EHLO": XCLIENT}}, client_address="xclient")
    assert bench.codes(bench.send(HELLO + MAIL + TO_A))[-1] == b"250"
    assert bench.servers[0].commands[:4] == [
        b"EHLO client.example",
        b"XCLIENT NAME=[UNAVAILABLE] ADDR=198.51.100.7 PORT=4711 PROTO=ESMTP HELO=client.example",
        b"EHLO client.example",
        b"MAIL FROM:<x@y.example>",
    ]


@pytest.mark.parametrize("script", [{}, {b"EHLO": XCLIENT, b"XCLIENT": b"550 not you\r\n"}])
def test_a_server_that_cant_be_told_gets_no_mail(script: dict[bytes, bytes]) -> None:
    bench = Bench(scripts={"a": script}, client_address="xclient")
    assert bench.codes(bench.send(HELLO + MAIL + TO_A))[-1] == b"451"
    assert not any(command.startswith(b"MAIL") for command in bench.servers[0].commands)


def test_a_trusted_proxy_is_believed() -> None:
    bench = Bench(
        scripts={"a": {b"EHLO": XCLIENT}}, client_address="xclient", settings={"trusted": ["198.51.100.0/24"]}
    )
    assert b"XCLIENT" in bench.send(HELLO)
    assert bench.send(b"XCLIENT ADDR=IPV6:2001:db8::1 PORT=99\r\n").startswith(b"220")
    bench.send(b"EHLO other.example\r\n" + MAIL + TO_A)
    assert b"ADDR=IPV6:2001:db8::1 PORT=99 PROTO=ESMTP HELO=other.example" in bench.servers[0].commands[1]
    bench.begin()
    assert bench.send(b"XCLIENT ADDR=1.2.3.4 TTL=0\r\n").startswith(b"554 5.4.6")
