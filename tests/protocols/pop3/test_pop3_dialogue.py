"""The login at a POP3 server: what it gets, and what each of its faults at each step comes to."""

from __future__ import annotations

import base64

import pytest

from l7lb.core.errors import Failure
from l7lb.protocols.mail.credentials import Credentials
from l7lb.protocols.pop3.dialogue import Pop3Dialogue


def talk(dialogue: Pop3Dialogue, *lines: bytes) -> list[bytes]:
    """What the server gets for each of its lines; the handshake is done at once where it is wanted."""
    said = []
    for line in lines:
        said.append(dialogue.received(bytearray(line + b"\r\n")))
        if dialogue.outcome == "tls":
            said[-1] = dialogue.secured()
    return said


def plain(secure: bool = False, announce: bytes = b"", ask: bool = False) -> Pop3Dialogue:
    return Pop3Dialogue(Credentials(b"anna", b" my pass "), secure, announce, ask)


def master(password: bytes = b"secret") -> Pop3Dialogue:
    return Pop3Dialogue(Credentials(b"master", password, authorization=b"anna"))


def token(mechanism: str = "oauthbearer") -> Pop3Dialogue:
    return Pop3Dialogue(Credentials(b"anna", b"t" * 3000, mechanism))


def test_user_and_pass() -> None:
    dialogue = plain()
    assert talk(dialogue, b"+OK hi", b"+OK", b"+OK 3 messages") == [b"USER anna\r\n", b"PASS  my pass \r\n", b""]
    assert dialogue.outcome == "accepted"


def test_tls_first_then_the_clients_address() -> None:
    dialogue = plain(True, b"ADDR=192.0.2.1")
    said = talk(dialogue, b"+OK [XCLIENT] hi", b"+OK", b"+OK", b"+OK", b"+OK")
    assert said == [b"STLS\r\n", b"XCLIENT ADDR=192.0.2.1\r\n", b"USER anna\r\n", b"PASS  my pass \r\n", b""]
    assert dialogue.outcome == "accepted"


def test_a_server_that_takes_no_address_gets_none() -> None:
    assert talk(plain(announce=b"ADDR=192.0.2.1"), b"+OK hi") == [b"USER anna\r\n"]


def test_what_the_server_can_do_is_asked_for() -> None:
    dialogue = plain(announce=b"ADDR=192.0.2.1", ask=True)
    said = talk(dialogue, b"+OK [XCLIENT]", b"+OK", b"+OK", b"TOP", b"SASL PLAIN", b".", b"+OK", b"+OK")
    assert said == [
        b"XCLIENT ADDR=192.0.2.1\r\n",
        *[b"CAPA\r\n", b"", b"", b""],
        *[b"USER anna\r\n", b"PASS  my pass \r\n", b""],
    ]
    assert dialogue.capabilities == [b"TOP", b"SASL PLAIN"]
    dialogue = plain(ask=True)
    assert talk(dialogue, b"+OK", b"-ERR what?")[1] == b"USER anna\r\n"
    assert dialogue.capabilities == []


def test_a_list_without_end() -> None:
    dialogue = plain(ask=True)
    talk(dialogue, b"+OK", b"+OK", *[b"X"] * 65)
    assert (dialogue.outcome, dialogue.failure) == PROTOCOL


def test_auth_with_its_proof_at_once_where_the_line_is_short_enough() -> None:
    dialogue = master()
    proof = base64.b64encode(b"anna\0master\0secret")
    assert talk(dialogue, b"+OK", b"+OK") == [b"AUTH PLAIN " + proof + b"\r\n", b""]
    assert dialogue.outcome == "accepted"
    for size in range(140, 190):
        dialogue = master(b"x" * size)
        said = talk(dialogue, b"+OK")[0]
        assert len(said) <= 255
        if said == b"AUTH PLAIN\r\n":
            said += talk(dialogue, b"+ ")[0]
        assert said.split()[-1] == base64.b64encode(b"anna\0master\0" + b"x" * size)


@pytest.mark.parametrize(("mechanism", "answer"), [("oauthbearer", b"AQ==\r\n"), ("xoauth2", b"\r\n")])
def test_a_token_that_is_refused_in_two_steps(mechanism: str, answer: bytes) -> None:
    dialogue = token(mechanism)
    start = b"AUTH " + mechanism.upper().encode() + b"\r\n"
    said = talk(dialogue, b"+OK", b"+ ", b"+ eyJzdGF0dXMi", b"-ERR [AUTH] no")
    assert base64.b64decode(said.pop(1)).endswith(b"\x01auth=Bearer " + b"t" * 3000 + b"\x01\x01")
    assert said == [start, answer, b""]
    assert (dialogue.outcome, dialogue.code) == ("refused", b"AUTH")


STEPS = {
    "greeting": ([], plain),
    "tls": ([b"+OK"], lambda: plain(True)),
    "address": ([b"+OK [XCLIENT]"], lambda: plain(announce=b"ADDR=192.0.2.1")),
    "name": ([b"+OK"], plain),
    "password": ([b"+OK", b"+OK"], plain),
    "auth": ([b"+OK"], token),
    "proof": ([b"+OK", b"+"], token),
    "error": ([b"+OK", b"+", b"+ e30="], token),
}
PROTOCOL = ("failed", Failure.SERVER_PROTOCOL)
ERROR = ("failed", Failure.SERVER_ERROR)
NO_TLS = ("failed", Failure.CONNECT_TLS)
REFUSED = ("refused", Failure.LOGIN_REFUSED)
FAULTS: dict[bytes, dict[str, tuple[str, Failure]]] = {
    b"* OK IMAP4rev1": dict.fromkeys(STEPS, PROTOCOL),
    b"": dict.fromkeys(STEPS, PROTOCOL),
    b"-ERR": dict.fromkeys(STEPS, REFUSED) | {"greeting": ERROR, "tls": NO_TLS, "address": ERROR},
    b"-ERR [AUTH] no": dict.fromkeys(STEPS, REFUSED) | {"greeting": ERROR, "tls": NO_TLS, "address": ERROR},
    b"-ERR [SYS/TEMP] later": dict.fromkeys(STEPS, ERROR) | {"tls": NO_TLS},
    b"-ERR [IN-USE] busy": dict.fromkeys(STEPS, ERROR) | {"tls": NO_TLS},
    b"+ ": {step: PROTOCOL for step in STEPS if step not in ("auth", "proof")},
}


@pytest.mark.parametrize(("fault", "step"), [(fault, step) for fault in FAULTS for step in FAULTS[fault]])
def test_a_fault_at_every_step(fault: bytes, step: str) -> None:
    lines, made = STEPS[step]
    dialogue = made()
    talk(dialogue, *lines)
    assert dialogue.outcome == ""
    assert talk(dialogue, fault) == [b""]
    assert (dialogue.outcome, dialogue.failure) == FAULTS[fault][step]


def test_a_login_that_nobody_proved() -> None:
    dialogue = token()
    talk(dialogue, b"+OK", b"+OK logged in?")
    assert (dialogue.outcome, dialogue.failure) == PROTOCOL


def test_the_code_is_kept_for_the_client() -> None:
    dialogue = plain()
    talk(dialogue, b"+OK", b"+OK", b"-ERR [in-use] locked")
    assert (dialogue.outcome, dialogue.code) == ("failed", b"IN-USE")


def test_any_split_is_the_same() -> None:
    data = b"+OK [XCLIENT]\r\n+OK\r\n+OK\r\nTOP\r\n.\r\n+OK\r\n+OK\r\nbehind"
    for cut in range(len(data)):
        dialogue, buffer = plain(False, b"ADDR=192.0.2.1", True), bytearray(data[:cut])
        said = dialogue.received(buffer)
        buffer += data[cut:]
        said += dialogue.received(buffer)
        assert said == b"XCLIENT ADDR=192.0.2.1\r\nCAPA\r\nUSER anna\r\nPASS  my pass \r\n"
        assert (dialogue.outcome, dialogue.capabilities, buffer) == ("accepted", [b"TOP"], b"behind")


def test_what_stands_behind_the_consent_to_tls_is_left_for_the_session_to_see() -> None:
    dialogue, buffer = plain(True), bytearray(b"+OK\r\n+OK\r\n+OK injected\r\n")
    dialogue.received(buffer)
    assert (dialogue.outcome, buffer) == ("tls", b"+OK injected\r\n")


def test_a_line_without_end() -> None:
    dialogue = plain()
    dialogue.received(bytearray(b"+OK" * 2000))
    assert (dialogue.outcome, dialogue.failure) == PROTOCOL


def test_a_name_that_user_cannot_say_goes_by_auth() -> None:
    dialogue = Pop3Dialogue(Credentials(b"anna smith", b"x"))
    assert talk(dialogue, b"+OK") == [b"AUTH PLAIN " + base64.b64encode(b"\0anna smith\0x") + b"\r\n"]
