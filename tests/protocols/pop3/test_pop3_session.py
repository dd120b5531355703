"""POP3 up to its login: what clients may say, what they are told, and what comes of faults at every step."""

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
from l7lb.protocols.pop3.spec import SPEC

GREETING = "C: +OK l7lb ready.|"
USUAL = "TOP|UIDL|RESP-CODES|PIPELINING|AUTH-RESP-CODE"
AUTH_FAILED = "-ERR [AUTH] Authentication failed.|"
UNAVAILABLE = "-ERR [SYS/TEMP] The mailbox's server is not available, try again later.|"


def bench(tls: str = "", **options: Any) -> Bench:
    made = Bench(SPEC, tls, **options)
    made.session._capabilities.learn("mail/mx1", [b"TOP"], made.now)  # type: ignore[attr-defined]
    assert made.seen() == [GREETING]
    return made


def b64(data: bytes) -> bytes:
    return base64.b64encode(data)


LOGIN: tuple[Step, ...] = (
    ("client", b"USER Anna+x\r\nPASS  a b \r\nSTAT\r\n"),
    ("connect",),
    ("server", b"+OK hello <1.2@x>\r\n"),
    ("server", b"+OK\r\n"),
    ("server", b"+OK 3 messages\r\n"),
)
CONVERSATIONS: dict[str, tuple[tuple[Step, ...], list[str] | None]] = {
    "user and pass": (
        LOGIN,
        [
            *["C: +OK|", "need anna@example.com", "S: USER Anna+x|PASS  a b |"],
            *["C: +OK Logged in.|", "S: STAT|", "Tunnel"],
        ],
    ),
    "a wrong password, and what was sent behind it": (
        (
            ("client", b"USER a\nPASS x\nUSER b@x.org\nPASS y\n"),
            ("connect",),
            ("server", b"+OK\r\n+OK\r\n"),
            ("server", b"-ERR [AUTH] who?\r\n"),
        ),
        [
            *["C: +OK|", "need a@example.com", "S: USER a|PASS x|", "release", "LoginFailed"],
            *["C: " + AUTH_FAILED + "+OK|", "need b@x.org"],
        ],
    ),
    "plain, at once": (
        (("client", b"AUTH plain " + b64(b"\0a\0b") + b"\r\n"), ("connect",), ("server", b"+OK\r\n")),
        ["need a@example.com", "S: USER a|"],
    ),
    "plain, on behalf of another": (
        (("client", b"AUTH PLAIN\r\n" + b64(b"c\0a\0b") + b"\r\n"), ("connect",), ("server", b"+OK\r\n+OK\r\n")),
        [
            *[
                "C: + |",
                "need c@example.com",
                f"S: AUTH PLAIN {b64(b'c' + bytes(1) + b'a' + bytes(1) + b'b').decode()}|",
            ],
            *["C: +OK Logged in.|", "Tunnel"],
        ],
    ),
    "login": (
        (("client", b"AUTH LOGIN\r\n" + b64(b"a") + b"\r\n" + b64(b"b") + b"\r\n"),),
        [f"C: + {b64(b'Username:').decode()}|+ {b64(b'Password:').decode()}|", "need a@example.com"],
    ),
    "login, with the name at once": (
        (("client", b"AUTH LOGIN " + b64(b"a") + b"\r\n" + b64(b"b") + b"\r\n"),),
        [f"C: + {b64(b'Password:').decode()}|", "need a@example.com"],
    ),
    "a token that is refused": (
        (
            ("client", b"AUTH XOAUTH2 " + b64(b"user=a\x01auth=Bearer t\x01\x01") + b"\r\n"),
            ("connect",),
            ("server", b"+OK\r\n+ e30=\r\n-ERR\r\n"),
            ("client", b"\r\nNOOP\r\n"),
        ),
        [
            *[
                "need a@example.com",
                f"S: AUTH XOAUTH2 {b64(b'user=a' + bytes([1]) + b'auth=Bearer t' + bytes([1, 1])).decode()}||",
            ],
            *["release", "LoginFailed"],
            f"C: + {b64(INVALID_TOKEN).decode()}|{AUTH_FAILED}+OK|",
        ],
    ),
    "a cancelled and a broken exchange": (
        (("client", b"AUTH PLAIN\r\n*\r\nAUTH PLAIN\r\n!!\r\nAUTH PLAIN =\r\nNOOP\r\n"),),
        None,
    ),
    "capabilities": (
        (("client", b"CAPA\r\nAUTH\r\nquit\r\n"),),
        [
            (
                "C: +OK Capability list follows|TOP|USER|SASL PLAIN LOGIN XOAUTH2 OAUTHBEARER|IMPLEMENTATION l7lb|.|"
                "+OK|PLAIN|LOGIN|XOAUTH2|OAUTHBEARER|.|+OK Bye.|"
            ),
            *["finished ok", "close"],
        ],
    ),
    "what is no command": (
        (
            (
                "client",
                b"STAT\r\nAPOP a b\r\nPASS x\r\nUSER\r\nUSER a\x01\r\nPASS x\r\n\r\nAUTH GSSAPI\r\nSTLS\r\nSTLS x\r\n",
            ),
        ),
        [
            (
                "C: -ERR Unknown command.|-ERR APOP is not offered.|-ERR USER comes first.|-ERR USER needs a name.|+OK|"
                f"{AUTH_FAILED}-ERR Unknown command.|-ERR This mechanism is not offered.|-ERR TLS is not offered.|"
                "-ERR STLS has no argument.|"
            )
        ],
    ),
    "an empty password": ((("client", b"USER a\r\nPASS \r\n"),), ["C: +OK|" + AUTH_FAILED]),
    "too many that are none": (
        (("client", b"X\r\n" * 12),),
        [
            "C: " + "-ERR Unknown command.|" * 11 + "-ERR This is not the protocol spoken here.|",
            *["finished client-protocol@login", "close"],
        ],
    ),
    "a line without end": (
        (("client", b"USER " + b"x" * 300),),
        ["C: -ERR What was sent exceeds a limit.|", "finished client-limit@login", "close"],
    ),
    "a browser": (
        (("client", b"POST / HTTP/1.1\r\nHost: x\r\n\r\nUSER a\r\n"),),
        ["finished client-protocol@login", "abort"],
    ),
    "a client of another port": (
        (("client", b"\x16\x03\x01\x02\x00\x01"),),
        ["finished client-protocol@login", "abort"],
    ),
    "three wrong passwords": (
        tuple(
            step
            for _ in range(3)
            for step in (("client", b"USER a\r\nPASS x\r\n"), ("connect",), ("server", b"+OK\r\n-ERR no\r\n"))
        ),
        [
            *["C: +OK|", "need a@example.com", "S: USER a|", "release", "LoginFailed", "C: " + AUTH_FAILED + "+OK|"],
            *["need a@example.com", "S: USER a|", "release", "LoginFailed", "C: " + AUTH_FAILED + "+OK|"],
            *["need a@example.com", "S: USER a|", "release", "LoginFailed", "C: " + AUTH_FAILED],
            *["finished login-refused@login", "close"],
        ],
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations_at_every_split(name: str) -> None:
    steps, expected = CONVERSATIONS[name]
    said = bench(line_bytes=200).run(*steps).seen()
    assert expected in (None, said)
    for each in splits(steps):
        again = bench(line_bytes=200)
        for step in each:
            if again.session.state != CLOSED:
                again.run(step)
        assert again.seen() == said


def test_what_the_server_says_at_once_behind_its_consent() -> None:
    made = bench().run(*LOGIN[:4], ("server", b"+OK\r\n+OK 2 320\r\n"))
    assert made.seen()[-3:] == ["C: +OK Logged in.|+OK 2 320|", "S: STAT|", "Tunnel"]


def test_a_broken_exchange_is_answered_and_the_next_command_read() -> None:
    [said] = bench().run(*CONVERSATIONS["a cancelled and a broken exchange"][0]).seen()
    answers = said.removeprefix("C: ").split("|")
    assert [answer.split(" ")[0] for answer in answers] == ["+", "-ERR", "+", "-ERR", "-ERR", "+OK", ""]


def test_what_is_known_when_it_is_routed() -> None:
    facts = bench().client(b"USER Anna+lists\r\nPASS  a b \r\n").facts
    assert facts is not None
    assert (facts.user, facts.password, facts.mechanism) == (b"Anna+lists", b" a b ", "login")
    assert (facts.address, facts.mailbox, facts.attempt) == (b"anna@example.com", b"anna@example.com", 1)
    assert (facts.protocol, facts.source, facts.token) == ("pop3", "192.0.2.1", False)
    facts = bench().client(b"AUTH OAUTHBEARER " + b64(b"n,a=a@x.org,\x01auth=Bearer t0k\x01\x01") + b"\r\n").facts
    assert facts is not None
    assert (facts.user, facts.password, facts.mechanism, facts.token) == (b"a@x.org", b"t0k", "oauthbearer", True)


def test_a_token_of_ten_thousand_bytes() -> None:
    token = b"t" * 10_000
    response = b64(b"n,a=a,\x01auth=Bearer " + token + b"\x01\x01")
    for data in (b"AUTH OAUTHBEARER " + response, b"AUTH OAUTHBEARER\r\n" + response):
        facts = bench().client(data + b"\r\n").facts
        assert facts is not None
        assert facts.password == token


def test_external_is_the_certificates_name_and_needs_a_master_user_at_the_server() -> None:
    made = Bench(SPEC, "implicit").certified("anna@example.com").open(tls=True)
    made.seen()
    made.client(b"AUTH EXTERNAL =\r\n")
    assert made.seen() == ["need anna@example.com"]
    made.connect()
    assert made.seen() == ["release", "C: -ERR [SYS/TEMP] The mailbox's server is not available, try again later.|"]
    made.entry = Entry()
    made.entry.master_user, made.entry.master_password = b"l7lb", b"secret"
    made.client(b"AUTH EXTERNAL\r\n=\r\n").client(b"AUTH EXTERNAL =\r\n").connect().server(b"+OK\r\n")
    proof = b64(b"anna@example.com\0l7lb\0secret").decode()
    assert made.seen()[-1] in (f"S: AUTH PLAIN {proof}|", "S: CAPA|")


# --- TLS ----------------------------------------------------------------------------------------------------------


def test_no_password_in_the_clear() -> None:
    made = bench("starttls", cleartext="after-tls")
    made.client(b"CAPA\r\nUSER a\r\nPASS b\r\nAUTH\r\nAUTH PLAIN AGEAYg==\r\n")
    refused = "-ERR [AUTH] No logins in the clear: use STLS first.|"
    assert made.seen() == ["C: +OK Capability list follows|TOP|STLS|IMPLEMENTATION l7lb|.|" + refused * 4]
    made.client(b"STLS\r\n").secured().client(b"CAPA\r\nSTLS\r\nUSER a\r\n")
    assert made.seen() == [
        *["C: +OK Begin TLS.|", "StartTls"],
        (
            "C: +OK Capability list follows|TOP|USER|SASL PLAIN LOGIN XOAUTH2 OAUTHBEARER|IMPLEMENTATION l7lb|.|"
            "-ERR TLS is active already.|+OK|"
        ),
    ]


@pytest.mark.parametrize("behind", [b"USER a\r\n", b"\r\n", b"x"])
def test_bytes_behind_stls_end_the_connection(behind: bytes) -> None:
    made = bench("starttls").client(b"STLS\r\n" + behind)
    assert made.seen() == ["finished client-protocol@login", "abort"]
    made = bench("starttls").client(b"STLS\r\n").client(behind)
    assert made.seen() == ["C: +OK Begin TLS.|", "StartTls", "finished client-protocol@tls", "close"]


def test_what_was_said_before_tls_is_forgotten() -> None:
    made = bench("starttls").client(b"USER a\r\n").client(b"STLS\r\n").secured().client(b"PASS b\r\n")
    assert made.seen()[-1] == "C: -ERR USER comes first.|"


def test_stls_to_the_server() -> None:
    made = bench()
    made.server_tls = "starttls"
    made.client(b"USER a\r\nPASS b\r\n").connect().server(b"+OK\r\n").server(b"+OK\r\n").server_secured()
    made.server(b"+OK\r\n+OK\r\n")
    assert made.seen()[1:] == [
        *["need a@example.com", "S: STLS|", "StartServerTls", "S: USER a|PASS b|", "C: +OK Logged in.|", "Tunnel"]
    ]


def test_a_server_that_speaks_behind_its_consent_to_tls_is_given_up() -> None:
    for parts in ([b"+OK\r\n+OK injected\r\n"], [b"+OK\r\n", b"+OK injected\r\n"]):
        made = bench()
        made.server_tls = "starttls"
        made.client(b"USER a\r\nPASS b\r\n").connect().server(b"+OK\r\n")
        for part in parts:
            made.server(part)
        assert made.seen()[-2:] == ["release server-protocol", "C: " + UNAVAILABLE]
        assert made.session.state == COMMANDS


# --- the server ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (b"-ERR", AUTH_FAILED),
        (b"-ERR [AUTH] no such user", AUTH_FAILED),
        (b"-ERR [IN-USE] locked by 4711", "-ERR [IN-USE] The mailbox is in use by another session.|"),
        (b"-ERR [LOGIN-DELAY] 60 s", "-ERR [LOGIN-DELAY] The last login was too short ago.|"),
        (b"-ERR [SYS/PERM] disk", "-ERR [SYS/PERM] The mailbox can't be opened, ask the operator.|"),
        (b"-ERR [SYS/TEMP] disk", UNAVAILABLE),
        (b"-ERR [WHAT] ever", UNAVAILABLE),
        (b"* BYE", UNAVAILABLE),
    ],
)
def test_a_servers_refusal_in_our_own_words(reply: bytes, answer: str) -> None:
    made = bench().client(b"USER a\r\nPASS b\r\n").connect().server(b"+OK\r\n+OK\r\n")
    did = made.server(reply + b"\r\n").seen()
    assert did[-1] == "C: " + answer
    # What is wrong with a mailbox is no fault of the server: its user could take the server out.
    blamed = {b"-ERR [SYS/TEMP] disk": "release server-error", b"* BYE": "release server-protocol"}
    assert did[-3 if answer == AUTH_FAILED else -2] == blamed.get(reply, "release")
    assert made.session.state == COMMANDS
    made.client(b"USER a\r\nPASS b\r\n").failed(Failure.NO_SERVER)
    assert made.seen()[-1] == "C: " + UNAVAILABLE  # what another server said is no longer known


@pytest.mark.parametrize("failure", list(Failure))
def test_every_failure_has_its_answer_and_only_two_are_permanent(failure: Failure) -> None:
    made = bench().client(b"USER a\r\nPASS b\r\n").failed(failure)
    lost = failure in (Failure.NO_MAILBOX, Failure.LOGIN_REFUSED)
    did = made.seen()
    assert did[-1].startswith("C: " + AUTH_FAILED if lost else "C: -ERR [SYS/TEMP] ")
    assert ("LoginFailed" in did) is lost
    assert made.session.state == COMMANDS


def test_another_name_and_a_master_user() -> None:
    made = bench(pool={"login_as": "mailbox"})
    made.client(b"USER Anna+x\r\nPASS b\r\n").connect().server(b"+OK\r\n")
    assert made.seen()[-1] == "S: USER anna@example.com|"
    made = bench()
    made.entry = Entry()
    made.entry.user, made.entry.password, made.entry.proven = b"u4711", b"other", True
    made.client(b"USER a\r\nPASS b\r\n").connect().server(b"+OK\r\n+OK\r\n")
    assert made.seen()[-1] == "S: USER u4711|PASS other|"
    made.entry.master_user, made.entry.master_password = b"l7lb", b"secret"
    made.open().client(b"USER a\r\nPASS b\r\n").connect().server(b"+OK\r\n")
    assert made.seen()[-1] == f"S: AUTH PLAIN {b64(b'u4711' + bytes(1) + b'l7lb' + bytes(1) + b'secret').decode()}|"


def test_the_clients_address_goes_to_servers_that_take_it() -> None:
    made = bench(pool={"client_address": {"pop3": "xclient"}})
    made.client(b"USER a\r\nPASS b\r\n").connect().server(b"+OK [XCLIENT] hi\r\n+OK\r\n")
    assert made.seen()[-1] == "S: XCLIENT ADDR=192.0.2.1 PORT=4711 TTL=5|USER a|"
    made.open().client(b"USER a\r\nPASS b\r\n").connect().server(b"+OK hi\r\n")
    assert made.seen()[-1] == "S: USER a|"


def test_a_trusted_proxy_tells_of_its_client() -> None:
    made = Bench(SPEC, trusted=["192.0.2.0/24"], pool={"client_address": {"pop3": "xclient"}})
    assert made.seen() == ["C: +OK [XCLIENT] l7lb ready.|"]
    made.client(b"XCLIENT ADDR=nonsense\r\nXCLIENT ADDR=2001:db8::7 PORT=99 TTL=2 SESSION=x\r\nUSER a\r\nPASS b\r\n")
    assert made.seen() == ["C: -ERR This is no address.|+OK Updated.|+OK|", "need a@example.com"]
    assert made.facts is not None
    assert made.facts.source == "2001:db8::7"
    made.connect().server(b"+OK [XCLIENT]\r\n")
    assert made.seen()[-1] == "S: XCLIENT ADDR=2001:db8::7 PORT=99 TTL=1 SESSION=x|"


def test_nobody_else_tells_of_anybody() -> None:
    made = bench().client(b"XCLIENT ADDR=198.51.100.1\r\n")
    assert made.seen() == ["C: -ERR Unknown command.|"]


def test_proxies_that_lead_to_one_another() -> None:
    made = Bench(SPEC, trusted=["192.0.2.1"])
    made.client(b"XCLIENT ADDR=192.0.2.1 TTL=0\r\nUSER a\r\nPASS b\r\n").connect()
    assert made.seen()[-1] == "C: " + UNAVAILABLE


def test_capabilities_are_learned_from_servers() -> None:
    made = Bench(SPEC)
    for name, lines in (("mx1", b"TOP\r\nUIDL\r\nEXPIRE NEVER\r\n"), ("mx2", b"UIDL\r\nTOP\r\nEXPIRE 30\r\n")):
        made.open().client(b"USER a\r\nPASS b\r\n").connect(name)
        made.server(b"+OK\r\n+OK\r\n" + lines + b".\r\n+OK\r\n+OK\r\n")
        assert made.seen()[-4:] == ["need a@example.com", "S: CAPA|USER a|PASS b|", "C: +OK Logged in.|", "Tunnel"]
    assert made.open().client(b"CAPA\r\n").seen()[0].split("|")[1:4] == ["+OK Capability list follows", "TOP", "UIDL"]
    made.open().client(b"USER a\r\nPASS b\r\n").connect("mx1").server(b"+OK\r\n")
    assert made.seen()[-1] == "S: USER a|"


# --- faults at every step ---------------------------------------------------------------------------------------


def in_state(state: int) -> Bench:
    made = bench("starttls")
    if state == SECURING:
        made.client(b"STLS\r\n")
    elif state == RESPONSES:
        made.client(b"AUTH PLAIN\r\n")
    elif state == EXCUSE:
        made.client(b"AUTH XOAUTH2 " + b64(b"user=a\x01auth=Bearer t\x01\x01") + b"\r\n").failed(Failure.NO_MAILBOX)
    elif state == CLOSED:
        made.client(b"QUIT\r\n")
    elif state != COMMANDS:
        made.client(b"USER a\r\nPASS b\r\n")
        if state == SECURED:
            made.server_tls = "starttls"
        if state != ROUTING:
            made.connect()
        if state == SECURED:
            made.server(b"+OK\r\n+OK\r\n")
        if state == TUNNEL:
            made.server(b"+OK\r\n+OK\r\n+OK\r\n")
    assert made.session.state == state
    made.seen()
    return made


EVENTS: dict[str, Callable[[Bench], object]] = {
    "client ends": lambda made: made.ended("client"),
    "client resets": lambda made: made.ended("client", True),
    "server ends": lambda made: made.ended("server"),
    "server resets": lambda made: made.ended("server", True),
    "time": lambda made: made.late(),
    "dismissed": lambda made: made.dismissed("The mailbox\r\nmoves."),
    "drain": lambda made: made.draining(),
    "patient drain": lambda made: made.draining(patient=True),
    "refused": lambda made: made.failed(Failure.CONNECT_TIMEOUT),
}
GONE = "client-closed"
TIMED = ["C: -ERR Timed out.|", "finished client-timeout@login", "close"]
MOVED = "C: -ERR [SYS/TEMP] The mailboxmoves.|"
DOWN = ["C: -ERR [SYS/TEMP] Shutting down.|", "finished shutdown@login", "close"]
TALKING_TABLE: dict[str, tuple[int, list[str]]] = {
    "client ends": (CLOSED, [f"finished {GONE}@login", "close"]),
    "client resets": (CLOSED, [f"finished {GONE}@login", "close"]),
    "time": (CLOSED, TIMED),
    "dismissed": (CLOSED, [MOVED, "finished ended-here@login", "close"]),
    "drain": (CLOSED, DOWN),
}
TABLE: dict[int, dict[str, tuple[int, list[str]]]] = {
    COMMANDS: TALKING_TABLE | {"patient drain": (COMMANDS, [])},
    RESPONSES: TALKING_TABLE | {"patient drain": (RESPONSES, [])},
    EXCUSE: TALKING_TABLE | {"patient drain": (EXCUSE, [])},
    SECURING: {
        "client ends": (CLOSED, [f"finished {GONE}@tls", "close"]),
        "time": (CLOSED, ["finished client-timeout@tls", "close"]),
        "drain": (SECURING, []),
    },
    ROUTING: {
        "client ends": (ROUTING, []),
        "client resets": (CLOSED, [f"finished {GONE}@queue", "release", "close"]),
        "time": (ROUTING, []),
        "dismissed": (CLOSED, [MOVED, "finished ended-here@queue", "release", "close"]),
        "drain": (ROUTING, []),
        "refused": (COMMANDS, ["release", "C: " + UNAVAILABLE]),
    },
    DIALOGUE: {
        "client ends": (DIALOGUE, []),
        "client resets": (CLOSED, [f"finished {GONE}@server-login", "release", "close"]),
        "server ends": (COMMANDS, ["release server-closed", "C: " + UNAVAILABLE]),
        "server resets": (COMMANDS, ["release server-closed", "C: " + UNAVAILABLE]),
        "time": (COMMANDS, ["release server-timeout", "C: " + UNAVAILABLE]),
        "dismissed": (CLOSED, [MOVED, "finished ended-here@server-login", "release", "close"]),
        "drain": (DIALOGUE, []),
    },
    SECURED: {
        "client resets": (CLOSED, [f"finished {GONE}@server-tls", "release", "close"]),
        "server ends": (COMMANDS, ["release server-closed", "C: " + UNAVAILABLE]),
        "time": (COMMANDS, ["release server-timeout", "C: " + UNAVAILABLE]),
        "drain": (SECURED, []),
    },
    TUNNEL: {
        "client ends": (CLOSED, ["finished ok", "release", "close"]),
        "server ends": (CLOSED, ["finished ok", "release", "close"]),
        "client resets": (CLOSED, [f"finished {GONE}@tunnel", "release reset", "abort"]),
        "server resets": (
            CLOSED,
            ["finished server-closed-inside@tunnel", "release reset server-closed-inside", "abort"],
        ),
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


@pytest.mark.parametrize("heard", [b"", b"+OK\r\n", b"+OK\r\n+OK\r\n"])
@pytest.mark.parametrize("fault", ["ended", "late", "garbage", "endless"])
def test_a_server_that_fails_at_any_step_is_no_fault_of_the_client(heard: bytes, fault: str) -> None:
    made = bench().client(b"USER a\r\nPASS b\r\nNOOP\r\n").connect()
    if heard:
        made.server(heard)
    made.seen()
    if fault == "ended":
        made.ended("server")
    elif fault == "late":
        made.late()
    else:
        made.server(b"\xff\r\n" if fault == "garbage" else b"+OK" * 2000)
    label = {"ended": "server-closed", "late": "server-timeout"}.get(fault, "server-protocol")
    assert made.seen() == [f"release {label}", f"C: {UNAVAILABLE}+OK|"]


def test_a_client_that_has_said_all_before_it_is_logged_in() -> None:
    made = bench().client(b"USER a\r\nPASS b\r\nQUIT\r\n").ended("client").connect().server(b"+OK\r\n+OK\r\n+OK\r\n")
    assert made.seen()[-3:] == ["C: +OK Logged in.|", "S: QUIT|", "Tunnel"]


def test_read_ahead_is_bounded() -> None:
    made = bench().client(b"USER a\r\nPASS b\r\n")
    assert made.session.wants_client
    made.client(b"x" * 16_384)
    assert not made.session.wants_client
    made.connect().server(b"+OK\r\n+OK\r\n+OK\r\n")
    assert made.session.wants_client


def test_the_record() -> None:
    made = bench().run(*LOGIN).ended("server")
    record = made.finished[0].subject.record("ok", 1.5)
    assert (record.protocol, record.mailbox, record.user, record.mechanism) == (
        "pop3",
        "anna@example.com",
        "Anna+x",
        "login",
    )
    assert (record.pool, record.server, record.closed_by) == ("mail", "mx1", "server")
