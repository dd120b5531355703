"""The login at a ManageSieve server: what it gets, and what each of its faults at each step comes to."""

from __future__ import annotations

import base64

import pytest

from l7lb.core.errors import Failure
from l7lb.protocols.mail.credentials import Credentials
from l7lb.protocols.managesieve.dialogue import SieveDialogue

GREETING = (
    b'"IMPLEMENTATION" "Pigeonhole"\r\n"SIEVE" "fileinto"\r\n"SASL" "PLAIN XOAUTH2 OAUTHBEARER"\r\n"STARTTLS"\r\n'
    b'"XCLIENT" "ADDR PORT"\r\n"VERSION" "1.0"\r\nOK {5}\r\nready\r\n'
)


def talk(dialogue: SieveDialogue, data: bytes) -> bytes:
    """What the server gets; the handshake is done at once where it is wanted."""
    buffer = bytearray(data)
    said = dialogue.received(buffer)
    while dialogue.outcome == "tls":
        said += b"(handshake)" + dialogue.secured() + dialogue.received(buffer)
    return said


def made(
    secure: bool = False, announce: bytes = b"", mechanism: str = "plain", password: bytes = b"b"
) -> SieveDialogue:
    return SieveDialogue(Credentials(b"a", password, mechanism), secure, announce)


def test_a_login() -> None:
    dialogue = made()
    assert talk(dialogue, GREETING) == b'AUTHENTICATE "PLAIN" "AGEAYg=="\r\n'
    assert talk(dialogue, b'OK "Logged in."\r\n') == b""
    assert dialogue.outcome == "accepted"
    assert dialogue.capabilities[b"SIEVE"] == b"fileinto"


def test_tls_first_and_only_what_is_told_behind_it_counts() -> None:
    dialogue = made(True, b"ADDR=192.0.2.1")
    assert talk(dialogue, GREETING) == b"STARTTLS\r\n"
    assert talk(dialogue, b"OK\r\n") == b"(handshake)"
    assert talk(dialogue, b'"SASL" "PLAIN"\r\n"SIEVE" "envelope"\r\n"XCLIENT" "ADDR"\r\nOK\r\n') == (
        b"XCLIENT ADDR=192.0.2.1\r\n"
    )
    assert talk(dialogue, b"OK\r\n") == b'AUTHENTICATE "PLAIN" "AGEAYg=="\r\n'
    assert talk(dialogue, b'OK (SASL "cnNw")\r\n') == b""
    assert (dialogue.outcome, dialogue.capabilities[b"SIEVE"]) == ("accepted", b"envelope")


def test_a_long_token_is_a_literal() -> None:
    dialogue = made(mechanism="oauthbearer", password=b"t" * 3000)
    proof = base64.b64encode(b"n,a=a,\x01auth=Bearer " + b"t" * 3000 + b"\x01\x01")
    assert talk(dialogue, GREETING) == b'AUTHENTICATE "OAUTHBEARER" {%d+}\r\n%b\r\n' % (len(proof), proof)
    assert talk(dialogue, b"{4}\r\ne30=\r\n") == b'"AQ=="\r\n'
    assert talk(dialogue, b'NO "no"\r\n') == b""
    assert dialogue.outcome == "refused"


def test_the_other_token_is_answered_with_nothing() -> None:
    dialogue = made(mechanism="xoauth2")
    talk(dialogue, GREETING)
    assert talk(dialogue, b'"e30="\r\n') == b'""\r\n'
    talk(dialogue, b'"e30="\r\n')
    assert (dialogue.outcome, dialogue.failure) == ("failed", Failure.SERVER_PROTOCOL)


STEPS = {
    "greeting": (b'"SIEVE" "x"\r\n', made),
    "tls": (GREETING, lambda: made(True)),
    "second greeting": (GREETING + b'OK\r\n"SIEVE" "x"\r\n', lambda: made(True)),
    "address": (GREETING, lambda: made(announce=b"ADDR=192.0.2.1")),
    "proof": (GREETING, made),
}
PROTOCOL = ("failed", Failure.SERVER_PROTOCOL)
ERROR = ("failed", Failure.SERVER_ERROR)
NO_TLS = ("failed", Failure.CONNECT_TLS)
REFUSED = ("refused", Failure.LOGIN_REFUSED)
FAULTS: dict[bytes, dict[str, tuple[str, Failure]]] = {
    b"* OK\r\n": dict.fromkeys(STEPS, PROTOCOL),
    b"\r\n": dict.fromkeys(STEPS, PROTOCOL),
    b'"A" "B" "C"\r\n': dict.fromkeys(STEPS, PROTOCOL),
    b"OK OK\r\n": dict.fromkeys(STEPS, PROTOCOL),
    b"NO\r\n": dict.fromkeys(STEPS, ERROR) | {"tls": NO_TLS, "proof": REFUSED},
    b"NO (TRYLATER)\r\n": dict.fromkeys(STEPS, ERROR) | {"tls": NO_TLS},
    b"BYE\r\n": dict.fromkeys(STEPS, ERROR) | {"tls": NO_TLS},
    b'BYE (REFERRAL "sieve://b")\r\n': dict.fromkeys(STEPS, ERROR) | {"tls": NO_TLS},
}


@pytest.mark.parametrize(("fault", "step"), [(fault, step) for fault in FAULTS for step in FAULTS[fault]])
def test_a_fault_at_every_step(fault: bytes, step: str) -> None:
    data, new = STEPS[step]
    dialogue = new()
    talk(dialogue, data)
    assert dialogue.outcome == ""
    assert talk(dialogue, fault) == b""
    assert (dialogue.outcome, dialogue.failure) == FAULTS[fault][step]


def test_a_server_without_tls_or_without_the_mechanism() -> None:
    dialogue = made(True)
    assert talk(dialogue, b'"SASL" "PLAIN"\r\nOK\r\n') == b""
    assert (dialogue.outcome, dialogue.failure) == NO_TLS
    for greeting in (b'"SASL" "LOGIN PLAIN-CLIENTTOKEN"\r\nOK\r\n', b'"SASL" ""\r\nOK\r\n', b"OK\r\n"):
        dialogue = made()
        assert talk(dialogue, greeting) == b""
        assert (dialogue.outcome, dialogue.failure) == PROTOCOL


def test_a_client_can_not_have_a_server_blamed_by_its_choice_of_mechanism() -> None:
    dialogue = made(mechanism="oauthbearer")
    assert talk(dialogue, b'"SASL" "PLAIN"\r\nOK\r\n') == b""
    assert (dialogue.outcome, dialogue.failure) == REFUSED


def test_a_greeting_without_end() -> None:
    dialogue = made()
    talk(dialogue, b"".join(b'"X%d"\r\n' % number for number in range(65)))
    assert (dialogue.outcome, dialogue.failure) == PROTOCOL


def test_the_referral_is_kept_for_the_client() -> None:
    dialogue = made()
    talk(dialogue, GREETING + b'BYE (REFERRAL "sieve://b.example.org") "there"\r\n')
    assert dialogue.result is not None
    assert (dialogue.result.code, dialogue.result.about) == (b"REFERRAL", b"sieve://b.example.org")


def test_any_split_is_the_same() -> None:
    data = GREETING + b"OK\r\n" + b"OK (SASL {4}\r\ncnNw) {2}\r\nin\r\nbehind"
    for cut in range(len(data)):
        dialogue, buffer = made(announce=b"ADDR=192.0.2.1"), bytearray(data[:cut])
        said = dialogue.received(buffer)
        buffer += data[cut:]
        said += dialogue.received(buffer)
        assert said == b'XCLIENT ADDR=192.0.2.1\r\nAUTHENTICATE "PLAIN" "AGEAYg=="\r\n'
        assert (dialogue.outcome, buffer) == ("accepted", b"behind")


def test_what_stands_behind_the_consent_to_tls_is_left_for_the_session_to_see() -> None:
    dialogue, buffer = made(True), bytearray(GREETING + b'OK\r\n"SASL" "PLAIN"\r\nOK\r\n')
    dialogue.received(buffer)
    assert (dialogue.outcome, buffer) == ("tls", b'"SASL" "PLAIN"\r\nOK\r\n')


def test_a_master_user() -> None:
    dialogue = SieveDialogue(Credentials(b"master", b"secret", authorization=b"anna"))
    proof = base64.b64encode(b"anna\0master\0secret")
    assert talk(dialogue, GREETING) == b'AUTHENTICATE "PLAIN" "' + proof + b'"\r\n'
