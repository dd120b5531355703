"""ManageSieve up to its login: what clients may say, what they are told, and what comes of faults at every step."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
from login_bench import Bench, Step, splits

from l7lb.core.contracts import Entry
from l7lb.core.errors import Failure
from l7lb.protocols.mail.login import CLOSED, COMMANDS, DIALOGUE, EXCUSE, RESPONSES, ROUTING, SECURED, SECURING, TUNNEL
from l7lb.protocols.mail.sasl import INVALID_TOKEN
from l7lb.protocols.managesieve.capabilities import COMMON
from l7lb.protocols.managesieve.spec import SPEC

PLAIN = '"PLAIN LOGIN XOAUTH2 OAUTHBEARER"'
SIEVE = COMMON[b"SIEVE"].decode()


def told(mechanisms: str = PLAIN, starttls: bool = False, sieve: str = SIEVE) -> str:
    """The lines of capabilities."""
    tls = '"STARTTLS"|' if starttls else ""
    return f'"IMPLEMENTATION" "l7lb"|"SASL" {mechanisms}|{tls}"SIEVE" "{sieve}"|"VERSION" "1.0"|'


AUTH_FAILED = 'NO "Authentication failed."|'
UNAVAILABLE = 'NO (TRYLATER) "The mailbox\'s server is not available, try again later."|'
SERVER = (
    b'"SIEVE" "fileinto body"\r\n"SASL" "PLAIN XOAUTH2 OAUTHBEARER"\r\n"VERSION" "1.0"\r\n"XCLIENT" "ADDR"\r\nOK\r\n'
)


def bench(tls: str = "", **options: Any) -> Bench:
    made = Bench(SPEC, tls, **options)
    assert made.seen() == ["C: " + told(starttls=tls == "starttls") + 'OK "l7lb ready."|']
    return made


def b64(data: bytes) -> bytes:
    return base64.b64encode(data)


PROOF = b64(b"\0a\0b").decode()
LOGIN: tuple[Step, ...] = (
    ("client", b'Authenticate "PLAIN" {8+}\r\nAGEAYg==\r\nLISTSCRIPTS\r\n'),
    ("connect",),
    ("server", SERVER),
    ("server", b"OK {2}\r\nin\r\n"),
)
CONVERSATIONS: dict[str, tuple[tuple[Step, ...], list[str]]] = {
    "a login": (
        LOGIN,
        [
            *["need a@example.com", f'S: AUTHENTICATE "PLAIN" "{PROOF}"|'],
            *['C: OK "Logged in."|', "S: LISTSCRIPTS|", "Tunnel"],
        ],
    ),
    "a wrong password, and what was sent behind it": (
        (
            ("client", b'AUTHENTICATE "PLAIN" "AGEAYg=="\r\nNOOP "x"\r\n'),
            ("connect",),
            ("server", SERVER),
            ("server", b"NO (AUTH-TOO-WEAK) {6}\r\nwho?\r\n\r\n"),
        ),
        [
            *["need a@example.com", f'S: AUTHENTICATE "PLAIN" "{PROOF}"|', "release", "LoginFailed"],
            "C: " + AUTH_FAILED + 'OK (TAG "x") "Done."|',
        ],
    ),
    "base64 when it is asked for": (
        (("client", b'AUTHENTICATE "login"\r\n"YQ=="\r\n{4+}\r\nYg==\r\n'),),
        [f'C: "{b64(b"Username:").decode()}"|"{b64(b"Password:").decode()}"|', "need a@example.com"],
    ),
    "an empty challenge": ((("client", b'AUTHENTICATE "PLAIN"\r\n"AGEAYg=="\r\n'),), ['C: ""|', "need a@example.com"]),
    "a token that is refused": (
        (
            ("client", b'AUTHENTICATE "OAUTHBEARER" "' + b64(b"n,a=a,\x01auth=Bearer t\x01\x01") + b'"\r\n'),
            ("connect",),
            ("server", SERVER),
            ("server", b'"e30="\r\nNO\r\n'),
            ("client", b'"AQ=="\r\nNOOP\r\n'),
        ),
        [
            "need a@example.com",
            f'S: AUTHENTICATE "OAUTHBEARER" "{b64(b"n,a=a," + bytes([1]) + b"auth=Bearer t" + bytes([1, 1])).decode()}"|"AQ=="|',
            *["release", "LoginFailed", f'C: "{b64(INVALID_TOKEN).decode()}"|{AUTH_FAILED}OK "Done."|'],
        ],
    ),
    "a cancelled and some broken exchanges": (
        (
            (
                "client",
                b'AUTHENTICATE "PLAIN"\r\n"*"\r\nAUTHENTICATE "PLAIN"\r\nAGEAYg==\r\nAUTHENTICATE "PLAIN"\r\n"x\r\n',
            ),
            ("client", b'AUTHENTICATE "PLAIN" "\\"!"\r\nNOOP\r\n'),
        ),
        [
            (
                'C: ""|NO "Authentication cancelled."|""|NO "this is not base64: Only base64 data is allowed"|'
                '""|NO "this is not base64: Only base64 data is allowed"|'
                'NO "this is not base64: Only base64 data is allowed"|OK "Done."|'
            )
        ],
    ),
    "what needs no login": (
        (("client", b'CAPABILITY\r\nNOOP {3+}\r\n"\r\n\r\nlogout\r\n'),),
        [
            "C: " + told() + 'OK "That is all."|OK (TAG {3}|"|) "Done."|OK "Bye."|',
            *["finished ok", "close"],
        ],
    ),
    "what is no command": (
        (
            ("client", b'\r\n"NOOP"\r\nPUTSCRIPT "a" {4+}\r\nNOOP\r\nUNAUTHENTICATE\r\nNOOP NOOP\r\nAUTHENTICATE\r\n'),
            ("client", b'AUTHENTICATE PLAIN\r\nAUTHENTICATE "GSSAPI"\r\nSTARTTLS\r\nLOGOUT "x"\r\nNOOP "\r\n'),
        ),
        [
            'C: NO "A command begins with a word."|NO "A command begins with a word."|NO "Log in first."|'
            + 'NO "Unknown command or arguments."|' * 4
            + 'NO "This mechanism is not offered."|NO "TLS is not offered."|NO "Unknown command or arguments."|'
            'NO "a quoted string that doesn\'t end"|BYE "This is not the protocol spoken here."|',
            *["finished client-protocol@login", "close"],
        ],
    ),
    "a script of a million bytes": (
        (("client", b'PUTSCRIPT "a" {1000000+}\r\nNOOP\r\n'),),
        ['C: BYE "What was sent exceeds a limit."|', "finished client-limit@login", "close"],
    ),
    "a literal that waits for consent": (
        (("client", b'AUTHENTICATE "PLAIN" {8}\r\n'),),
        ['C: BYE "This is not the protocol spoken here."|', "finished client-protocol@login", "close"],
    ),
    "a response that is too long": (
        (("client", b'AUTHENTICATE "PLAIN"\r\n{1000000+}\r\n'),),
        ['C: ""|BYE "What was sent exceeds a limit."|', "finished client-limit@login", "close"],
    ),
    "a line without end": (
        (("client", b"NOOP " + b"x" * 300),),
        ['C: BYE "What was sent exceeds a limit."|', "finished client-limit@login", "close"],
    ),
    "a browser": (
        (("client", b"POST / HTTP/1.1\r\nHost: x\r\n\r\nNOOP\r\n"),),
        ["finished client-protocol@login", "abort"],
    ),
    "three wrong passwords": (
        tuple(
            step
            for _ in range(3)
            for step in (
                ("client", b'AUTHENTICATE "PLAIN" "AGEAYg=="\r\n'),
                *[("connect",), ("server", b'"SASL" "PLAIN"\r\nOK\r\n'), ("server", b"NO\r\n")],
            )
        ),
        [
            *[
                "need a@example.com",
                f'S: AUTHENTICATE "PLAIN" "{PROOF}"|',
                "release",
                "LoginFailed",
                "C: " + AUTH_FAILED,
            ]
            * 2,
            *["need a@example.com", f'S: AUTHENTICATE "PLAIN" "{PROOF}"|', "release", "LoginFailed"],
            *["C: " + AUTH_FAILED + 'BYE "Authentication failed."|', "finished login-refused@login", "close"],
        ],
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations_at_every_split(name: str) -> None:
    steps, expected = CONVERSATIONS[name]
    options = {"line_bytes": 200, "literal_bytes": 1000}
    assert bench(**options).run(*steps).seen() == expected
    for each in splits(steps):
        again = bench(**options)
        for step in each:
            if again.session.state != CLOSED:
                again.run(step)
        assert again.seen() == expected


def test_what_is_known_when_it_is_routed() -> None:
    facts = bench().client(b'AUTHENTICATE "PLAIN" "' + b64(b"c@x.org\0Anna\0b b") + b'"\r\n').facts
    assert facts is not None
    assert (facts.user, facts.authorization, facts.password, facts.mechanism) == (b"Anna", b"c@x.org", b"b b", "plain")
    assert (facts.mailbox, facts.protocol) == (b"c@x.org", "managesieve")


@pytest.mark.parametrize("literal", [False, True])
def test_a_token_of_ten_thousand_bytes(literal: bool) -> None:
    response = b64(b"n,a=a,\x01auth=Bearer " + b"t" * 10_000 + b"\x01\x01")
    string = b"{%d+}\r\n%b" % (len(response), response) if literal else b'"' + response + b'"'
    made = bench(line_bytes=16_384).client(b'AUTHENTICATE "OAUTHBEARER" ' + string + b"\r\n")
    assert made.facts is not None
    assert made.facts.password == b"t" * 10_000
    made.connect().server(SERVER)
    assert made.seen()[-1] == f'S: AUTHENTICATE "OAUTHBEARER" {{{len(response)}+}}|{response.decode()}|'


def test_external_is_the_certificates_name_and_needs_a_master_user_at_the_server() -> None:
    made = Bench(SPEC, "implicit").certified("anna@example.com").open(tls=True)
    assert '"PLAIN LOGIN XOAUTH2 OAUTHBEARER EXTERNAL"' in made.seen()[0]
    made.client(b'AUTHENTICATE "EXTERNAL" ""\r\n').connect()
    assert made.seen() == ["need anna@example.com", "release", "C: " + UNAVAILABLE]
    made.entry = Entry()
    made.entry.master_user, made.entry.master_password = b"l7lb", b"secret"
    made.client(b'AUTHENTICATE "EXTERNAL"\r\n""\r\n').connect().server(SERVER)
    assert (
        made.seen()[-1]
        == f'S: AUTHENTICATE "PLAIN" "{b64(b"anna@example.com" + bytes(1) + b"l7lb" + bytes(1) + b"secret").decode()}"|'
    )


# --- TLS ----------------------------------------------------------------------------------------------------------


def test_no_password_in_the_clear_and_capabilities_again_behind_tls() -> None:
    made = Bench(SPEC, "starttls", cleartext="after-tls")
    assert made.seen() == ["C: " + told('""', starttls=True) + 'OK "l7lb ready."|']
    made.client(b'AUTHENTICATE "PLAIN" "AGEAYg=="\r\nSTARTTLS\r\n').secured().client(b"STARTTLS\r\n")
    assert made.seen() == [
        'C: NO (ENCRYPT-NEEDED) "No logins in the clear: use STARTTLS first."|OK "Begin TLS."|',
        "StartTls",
        "C: " + told() + 'OK "TLS is active."|NO "TLS is active already."|',
    ]


@pytest.mark.parametrize("behind", [b"NOOP\r\n", b"\r\n", b"x"])
def test_bytes_behind_starttls_end_the_connection(behind: bytes) -> None:
    made = bench("starttls").client(b"STARTTLS\r\n" + behind)
    assert made.seen() == ["finished client-protocol@login", "abort"]
    made = bench("starttls").client(b"STARTTLS\r\n").client(behind)
    assert made.seen() == ['C: OK "Begin TLS."|', "StartTls", "finished client-protocol@tls", "close"]


def test_starttls_to_the_server() -> None:
    made = bench()
    made.server_tls = "starttls"
    made.client(b'AUTHENTICATE "PLAIN" "AGEAYg=="\r\n').connect()
    made.server(b'"SIEVE" "injected"\r\n"STARTTLS"\r\nOK\r\n').server(b"OK\r\n").server_secured().server(
        SERVER + b"OK\r\n"
    )
    assert made.seen() == [
        *["need a@example.com", "S: STARTTLS|", "StartServerTls", f'S: AUTHENTICATE "PLAIN" "{PROOF}"|'],
        *['C: OK "Logged in."|', "Tunnel"],
    ]
    assert made.open().seen() == ["C: " + told(sieve="fileinto body") + 'OK "l7lb ready."|']


def test_a_server_that_speaks_behind_its_consent_to_tls_is_given_up() -> None:
    for parts in ([b"OK\r\n" + SERVER], [b"OK\r\n", SERVER]):
        made = bench()
        made.server_tls = "starttls"
        made.client(b'AUTHENTICATE "PLAIN" "AGEAYg=="\r\n').connect().server(b'"STARTTLS"\r\nOK\r\n')
        for part in parts:
            made.server(part)
        assert made.seen()[-2:] == ["release server-protocol", "C: " + UNAVAILABLE]
        assert made.session.state == COMMANDS


# --- the server ---------------------------------------------------------------------------------------------------


def logging_in(**options: Any) -> Bench:
    made = bench(**options).client(b'AUTHENTICATE "PLAIN" "AGEAYg=="\r\n').connect().server(SERVER)
    made.seen()
    return made


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (b"NO", AUTH_FAILED),
        (b'NO "no such user"', AUTH_FAILED),
        (b'NO (TRYLATER) "disk"', UNAVAILABLE),
        (b"NO (ENCRYPT-NEEDED)", UNAVAILABLE),
        (b"BYE", UNAVAILABLE),
        (b'BYE (REFERRAL "http://x")', UNAVAILABLE),
        (b"BYE (REFERRAL {10}\r\nsieve://\r\n)", UNAVAILABLE),
        (b"* OK", UNAVAILABLE),
    ],
)
def test_a_servers_refusal_in_our_own_words(reply: bytes, answer: str) -> None:
    made = logging_in().server(reply + b"\r\n")
    did = made.seen()
    assert did[-1] == "C: " + answer
    own = answer == AUTH_FAILED or b"REFERRAL" in reply  # of the client or its mailbox, and no fault of the server
    assert did[0] == ("release" if own else "release server-protocol" if reply[:1] == b"*" else "release server-error")
    assert made.session.state == COMMANDS


def test_a_client_that_is_sent_elsewhere() -> None:
    made = logging_in().server(b'BYE (REFERRAL "sieve://b.example.org:4190") "Go there"\r\n')
    assert made.seen() == [
        'C: BYE (REFERRAL "sieve://b.example.org:4190") "The mailbox is on another server."|',
        *["finished server-error@server-login", "release", "close"],
    ]
    # From a server that doesn't even begin.
    made = bench().client(b'AUTHENTICATE "PLAIN" "AGEAYg=="\r\n').connect().server(b'BYE (REFERRAL "sieve://b")\r\n')
    assert made.seen()[1] == 'C: BYE (REFERRAL "sieve://b") "The mailbox is on another server."|'


@pytest.mark.parametrize("failure", list(Failure))
def test_every_failure_has_its_answer_and_only_two_are_permanent(failure: Failure) -> None:
    made = bench().client(b'AUTHENTICATE "PLAIN" "AGEAYg=="\r\n').failed(failure)
    lost = failure in (Failure.NO_MAILBOX, Failure.LOGIN_REFUSED)
    did = made.seen()
    assert did[-1].startswith("C: " + AUTH_FAILED if lost else "C: NO (TRYLATER) ")
    assert ("LoginFailed" in did) is lost
    assert made.session.state == COMMANDS


def test_the_clients_address_goes_to_servers_that_take_it() -> None:
    made = bench(pool={"client_address": {"managesieve": "xclient"}})
    made.client(b'AUTHENTICATE "PLAIN" "AGEAYg=="\r\n').connect().server(SERVER + b"OK\r\n")
    assert made.seen()[-1] == f'S: XCLIENT ADDR=192.0.2.1 PORT=4711 TTL=5|AUTHENTICATE "PLAIN" "{PROOF}"|'


def test_a_trusted_proxy_tells_of_its_client() -> None:
    made = Bench(SPEC, trusted=["192.0.2.0/24"], pool={"client_address": {"managesieve": "xclient"}})
    assert '"XCLIENT" "ADDR PORT TTL SESSION"|OK' in made.seen()[0]
    made.client(
        b'XCLIENT ADDR=no\r\nxclient Addr=2001:db8::7 PORT=99 TTL=2 SESSION=aB\r\nAUTHENTICATE "PLAIN" "AGEAYg=="\r\n'
    )
    assert made.seen() == ['C: NO "This is no address."|OK "Updated."|', "need a@example.com"]
    assert made.facts is not None
    assert made.facts.source == "2001:db8::7"
    made.connect().server(SERVER)
    assert made.seen()[-1] == "S: XCLIENT ADDR=2001:db8::7 PORT=99 TTL=1 SESSION=aB|"
    assert bench().client(b"XCLIENT ADDR=198.51.100.1\r\n").seen() == ['C: NO "Unknown command or arguments."|']


# --- faults at every step ---------------------------------------------------------------------------------------


def in_state(state: int) -> Bench:
    made = bench("starttls")
    if state == SECURING:
        made.client(b"STARTTLS\r\n")
    elif state == RESPONSES:
        made.client(b'AUTHENTICATE "PLAIN"\r\n')
    elif state == EXCUSE:
        made.client(b'AUTHENTICATE "XOAUTH2" "' + b64(b"user=a\x01auth=Bearer t\x01\x01") + b'"\r\n')
        made.failed(Failure.NO_MAILBOX)
    elif state == CLOSED:
        made.client(b"LOGOUT\r\n")
    elif state != COMMANDS:
        made.client(b'AUTHENTICATE "PLAIN" "AGEAYg=="\r\n')
        if state == SECURED:
            made.server_tls = "starttls"
        if state != ROUTING:
            made.connect()
        if state == SECURED:
            made.server(b'"STARTTLS"\r\nOK\r\n').server(b"OK\r\n")
        if state == TUNNEL:
            made.server(SERVER).server(b"OK\r\n")
    assert made.session.state == state
    made.seen()
    return made


EVENTS: dict[str, Callable[[Bench], object]] = {
    "client ends": lambda made: made.ended("client"),
    "client resets": lambda made: made.ended("client", True),
    "server ends": lambda made: made.ended("server"),
    "server resets": lambda made: made.ended("server", True),
    "time": lambda made: made.late(),
    "dismissed": lambda made: made.dismissed('It "moves"\r\n.'),
    "drain": lambda made: made.draining(),
}
TIMED = ['C: BYE "Timed out."|', "finished client-timeout@login", "close"]
MOVED = 'C: BYE (TRYLATER) "It \\"moves\\"."|'
TALKING_TABLE: dict[str, tuple[int, list[str]]] = {
    "client ends": (CLOSED, ["finished client-closed@login", "close"]),
    "client resets": (CLOSED, ["finished client-closed@login", "close"]),
    "time": (CLOSED, TIMED),
    "dismissed": (CLOSED, [MOVED, "finished ended-here@login", "close"]),
    "drain": (CLOSED, ['C: BYE (TRYLATER) "Shutting down."|', "finished shutdown@login", "close"]),
}
TABLE: dict[int, dict[str, tuple[int, list[str]]]] = {
    COMMANDS: TALKING_TABLE,
    RESPONSES: TALKING_TABLE,
    EXCUSE: TALKING_TABLE,
    SECURING: {
        "client ends": (CLOSED, ["finished client-closed@tls", "close"]),
        "time": (CLOSED, ["finished client-timeout@tls", "close"]),
        "drain": (SECURING, []),
    },
    ROUTING: {
        "client ends": (ROUTING, []),
        "client resets": (CLOSED, ["finished client-closed@queue", "release", "close"]),
        "time": (ROUTING, []),
        "dismissed": (CLOSED, [MOVED, "finished ended-here@queue", "release", "close"]),
        "drain": (ROUTING, []),
    },
    DIALOGUE: {
        "client ends": (DIALOGUE, []),
        "client resets": (CLOSED, ["finished client-closed@server-login", "release", "close"]),
        "server ends": (COMMANDS, ["release server-closed", "C: " + UNAVAILABLE]),
        "server resets": (COMMANDS, ["release server-closed", "C: " + UNAVAILABLE]),
        "time": (COMMANDS, ["release server-timeout", "C: " + UNAVAILABLE]),
        "dismissed": (CLOSED, [MOVED, "finished ended-here@server-login", "release", "close"]),
        "drain": (DIALOGUE, []),
    },
    SECURED: {
        "client resets": (CLOSED, ["finished client-closed@server-tls", "release", "close"]),
        "server ends": (COMMANDS, ["release server-closed", "C: " + UNAVAILABLE]),
        "time": (COMMANDS, ["release server-timeout", "C: " + UNAVAILABLE]),
    },
    TUNNEL: {
        "client ends": (CLOSED, ["finished ok", "release", "close"]),
        "server ends": (CLOSED, ["finished ok", "release", "close"]),
        "client resets": (CLOSED, ["finished client-closed@tunnel", "release reset", "abort"]),
        "time": (CLOSED, ["finished client-timeout@tunnel", "release reset", "abort"]),
        "dismissed": (CLOSED, [MOVED, "finished ended-here@tunnel", "release", "close"]),
        "drain": (TUNNEL, []),
    },
    CLOSED: dict.fromkeys(EVENTS, (CLOSED, [])),
}


@pytest.mark.parametrize(("state", "event"), [(state, event) for state in TABLE for event in TABLE[state]])
def test_the_table(state: int, event: str) -> None:
    made = in_state(state)
    after, expected = TABLE[state][event]
    EVENTS[event](made)
    assert (made.session.state, made.seen()) == (after, expected)
    assert len(made.finished) == (after == CLOSED)


@pytest.mark.parametrize("heard", [b"", b'"SIEVE" ', b'"SIEVE" "x"\r\n', SERVER, SERVER + b"NO {2}\r\nab"])
@pytest.mark.parametrize("fault", ["ended", "late", "garbage", "endless"])
def test_a_server_that_fails_at_any_step_is_no_fault_of_the_client(heard: bytes, fault: str) -> None:
    made = bench().client(b'AUTHENTICATE "PLAIN" "AGEAYg=="\r\nNOOP\r\n').connect()
    if heard:
        made.server(heard)
    made.seen()
    if fault == "ended":
        made.ended("server")
    elif fault == "late":
        made.late()
    else:
        made.server(b"\xff{\r\nc \r\n" if fault == "garbage" else b"x" * 20_000)
    label = {"ended": "server-closed", "late": "server-timeout"}.get(fault, "server-protocol")
    assert made.seen() == [f"release {label}", f'C: {UNAVAILABLE}OK "Done."|']
