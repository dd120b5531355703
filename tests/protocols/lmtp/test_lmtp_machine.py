"""LMTP: a message to several servers, with a reply for each recipient in the recipients' order."""

from __future__ import annotations

import pytest
from esmtp_bench import LOSE, SILENT, Bench

from l7lb.core.errors import Failure

HELLO = b"LHLO client.example\r\n"
MAIL = b"MAIL FROM:<x@y.example>\r\n"
MESSAGE = b"Subject: one\r\n\r\n..dot\r\nbody\r\n.\r\n"
TO_A = b"RCPT TO:<anna@example.com>\r\n"
TO_B = b"RCPT TO:<bert@example.com>\r\n"
TO_A2 = b"RCPT TO:<axel>\r\n"


def test_each_recipient_has_its_reply() -> None:
    bench = Bench("lmtp")
    assert bench.said == b"220 proxy.example LMTP\r\n"
    said = bench.send(HELLO + MAIL + TO_A + TO_B + TO_A2 + b"DATA\r\n")
    assert bench.codes(said) == [b"250"] * 5 + [b"354"]
    assert bench.send(MESSAGE) == b"250 stored by a\r\n250 stored by b\r\n250 stored by a\r\n"
    assert [server.messages for server in bench.servers] == [[MESSAGE[:-3]]] * 2
    assert bench.servers[0].commands == [
        b"LHLO proxy.example",
        b"MAIL FROM:<x@y.example>",
        b"RCPT TO:<anna@example.com>",
        b"RCPT TO:<axel>",
        b"DATA",
        b"QUIT",
    ]
    assert bench.claims == []
    assert bench.codes(bench.send(MAIL + TO_B + b"DATA\r\n" + MESSAGE + b"QUIT\r\n")) == [
        b"250",
        b"250",
        b"354",
        b"250",
        b"221",
    ]


def test_replies_come_in_the_recipients_order_whoever_is_first() -> None:
    bench = Bench("lmtp")
    bench.send(HELLO + MAIL + TO_A + TO_B + TO_A2 + b"DATA\r\n")
    bench.held.add("a")
    assert bench.send(MESSAGE + b"NOOP\r\n") == b""
    bench.release("a")
    assert bench.said.endswith(b"250 stored by a\r\n250 stored by b\r\n250 stored by a\r\n250 2.0.0 OK\r\n")


def test_any_split_gives_the_same() -> None:
    whole = HELLO + MAIL + TO_A + TO_B + TO_A2 + b"DATA\r\n" + MESSAGE + MAIL + TO_B + b"RSET\r\nQUIT\r\n"
    usual = Bench("lmtp")
    said = usual.send(whole)
    for at in range(1, len(whole)):
        bench = Bench("lmtp")
        assert bench.split(whole, (at, len(whole))) == said
        assert [server.commands for server in bench.servers] == [server.commands for server in usual.servers]


@pytest.mark.parametrize("fault", [LOSE, b"421 4.3.2 full\r\n", b"451 4.3.0 not now\r\n", b"what is this\r\n"])
@pytest.mark.parametrize("step", [b"DATA", b"."])
def test_a_servers_fault_is_its_recipients_alone(step: bytes, fault: bytes) -> None:
    bench = Bench("lmtp", scripts={"a": {step: fault}})
    said = bench.send(HELLO + MAIL + TO_A + TO_B + TO_A2 + b"DATA\r\n" + MESSAGE)
    assert bench.codes(said)[5:] == [b"354", b"451", b"250", b"451"]
    assert bench.codes(bench.send(MAIL + TO_B + b"DATA\r\n" + MESSAGE))[-1] == b"250"


def test_one_recipient_refused_behind_the_message() -> None:
    bench = Bench("lmtp", scripts={"a": {b".": [b"250 one\r\n", b"552 5.2.2 full\r\n"]}})
    said = bench.send(HELLO + MAIL + TO_A + TO_B + TO_A2 + b"DATA\r\n" + MESSAGE)
    assert bench.codes(said)[6:] == [b"250", b"250", b"552"]


def test_a_server_lost_inside_the_message() -> None:
    bench = Bench("lmtp")
    bench.send(HELLO + MAIL + TO_A + TO_B + TO_A2 + b"DATA\r\nSubject: one\r\n")
    bench.lose(0)
    said = bench.send(b"\r\nbody\r\n.\r\n")
    assert bench.codes(said) == [b"451", b"250", b"451"]
    assert bench.servers[0].end == "reset"
    assert bench.servers[1].messages == [b"Subject: one\r\n\r\nbody\r\n"]


def test_a_server_lost_between_dot_and_replies() -> None:
    bench = Bench("lmtp", scripts={"a": {b".": [b"250 one\r\n", SILENT]}})
    said = bench.send(HELLO + MAIL + TO_A + TO_B + TO_A2 + b"DATA\r\n" + MESSAGE)
    assert bench.codes(said)[6:] == [b"250", b"250"]
    bench.lose(0)
    assert bench.said.endswith(b"451 4.4.2 The connection to the server was lost, try again later\r\n")


def test_a_server_lost_before_data_is_its_recipients_loss_alone() -> None:
    bench = Bench("lmtp")
    bench.send(HELLO + MAIL + TO_A + TO_B)
    bench.lose(0)
    assert bench.codes(bench.send(b"DATA\r\n" + MESSAGE)) == [b"354", b"451", b"250"]


def test_all_refuse_the_message() -> None:
    script = {b"DATA": b"451 4.3.0 not now\r\n"}
    bench = Bench("lmtp", scripts={"a": script, "b": script})
    assert bench.codes(bench.send(HELLO + MAIL + TO_A + TO_B + b"DATA\r\nNOOP\r\n"))[4:] == [b"451", b"250"]


def test_no_recipient() -> None:
    bench = Bench("lmtp", where=lambda mailbox: Failure.NO_MAILBOX)
    assert bench.codes(bench.send(HELLO + MAIL + TO_A + b"DATA\r\n")) == [b"250", b"250", b"550", b"503"]


def test_a_directory_out_of_reach_is_temporary() -> None:
    bench = Bench("lmtp", where=lambda mailbox: Failure.DIRECTORY if mailbox.startswith(b"b") else "a")
    said = bench.send(HELLO + MAIL + TO_A + TO_B + b"DATA\r\n" + MESSAGE)
    assert bench.codes(said)[2:] == [b"250", b"451", b"354", b"250"]


def test_chunks_go_to_all_servers() -> None:
    bench = Bench("lmtp")
    bench.send(HELLO + MAIL + TO_A + TO_B + b"QUIT\r\n")
    bench.begin()
    said = bench.send(HELLO + MAIL + TO_A + TO_B + TO_A2 + b"BDAT 3\r\nabcBDAT 3 LAST\r\ndef")
    assert said.endswith(b"250 chunk\r\n250 stored by a\r\n250 stored by b\r\n250 stored by a\r\n")
    assert [server.messages for server in bench.servers] == [[b"abcdef"]] * 2


def test_one_server_refuses_a_chunk() -> None:
    bench = Bench("lmtp", scripts={"a": {b"BDAT": b"552 5.3.4 too big\r\n"}})
    bench.send(HELLO + MAIL + TO_A + TO_B + b"QUIT\r\n")
    bench.begin()
    said = bench.send(HELLO + MAIL + TO_A + TO_B + b"BDAT 3\r\nabcBDAT 3 LAST\r\ndef")
    assert bench.codes(said)[4:] == [b"250", b"552", b"250"]


def test_a_lone_lf_reaches_nobody_as_an_end() -> None:
    bench = Bench("lmtp")
    bench.send(HELLO + MAIL + TO_A + TO_B + b"DATA\r\n")
    assert bench.send(b"a\n.\nMAIL FROM:<>\r\n").startswith(b"521 5.5.2")
    assert [server.end for server in bench.servers] == ["reset"] * 2


def test_ehlo_is_not_lmtps() -> None:
    assert Bench("lmtp").send(b"EHLO x\r\n") == b"500 5.5.1 Say LHLO\r\n"
