"""POP3 before its login, with anything said by either side, at any split."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from login_bench import Bench, Step

from l7lb.core.errors import Failure
from l7lb.protocols.mail.login import CLOSED, DIALOGUE, ROUTING, SECURED, SECURING, TUNNEL
from l7lb.protocols.pop3.spec import SPEC

WORDS = st.sampled_from(
    [
        b"USER a",
        b"PASS b",
        b"CAPA",
        b"STLS",
        b"AUTH",
        b"AUTH PLAIN",
        b"AUTH PLAIN AGEAYg==",
        b"AGEAYg==",
        b"*",
        b"QUIT",
        b"NOOP",
        b"",
        b"XCLIENT ADDR=1.2.3.4",
        b"\xff\x00",
        b"AUTH LOGIN",
        b"YQ==",
        b"=",
        b"PASS  ",
        b"GET / HTTP/1.1",
    ]
)
REPLIES = st.sampled_from(
    [b"+OK", b"-ERR", b"-ERR [IN-USE]", b"+ ", b"+ e30=", b".", b"TOP", b"", b"+OK [XCLIENT]", b"\xfe"]
)
EOLS = st.sampled_from([b"\r\n", b"\n", b""])
ANYTHING = st.lists(
    st.one_of(
        st.tuples(st.just("client"), st.builds(bytes.__add__, WORDS, EOLS)),
        st.tuples(st.just("server"), st.builds(bytes.__add__, REPLIES, EOLS)),
        st.tuples(st.sampled_from(["connect", "secured", "server_secured", "late", "draining"])),
        st.tuples(st.just("ended"), st.sampled_from(["client", "server"])),
        st.tuples(st.just("failed"), st.sampled_from([Failure.NO_SERVER, Failure.NO_MAILBOX])),
    ),
    max_size=30,
)


@given(ANYTHING, st.booleans())
def test_any_conversation(steps: list[Step], tls: bool) -> None:
    made = Bench(SPEC, "starttls")
    made.server_tls = "starttls" if tls else ""
    waiting = {"connect": ROUTING, "secured": SECURING, "server_secured": SECURED, "failed": ROUTING}
    for step in steps:
        state = made.session.state
        if (
            waiting.get(step[0], state) != state
            or state == TUNNEL
            or (step[0] == "client" and not made.session.wants_client)
        ):
            continue  # the proxy would not
        if step[0] == "server" and state not in (DIALOGUE, SECURED):
            continue
        made.run(step)
        assert len(made.session.buffer) <= 32_768
    assert len(made.finished) == (made.session.state == CLOSED)
    assert made.did.count("close") + made.did.count("abort") == (made.session.state == CLOSED)


@given(
    st.lists(st.builds(bytes.__add__, WORDS, EOLS), max_size=12),
    st.lists(st.integers(1, 300), max_size=6),
    st.booleans(),
)
def test_any_commands_at_any_split(commands: list[bytes], cuts: list[int], trusted: bool) -> None:
    data = b"".join(commands)
    options = {"trusted": ["192.0.2.1"]} if trusted else {}
    whole = Bench(SPEC, **options).client(data).seen()
    again = Bench(SPEC, **options)
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    for start, end in pairwise(edges):
        if start < end:
            again.client(data[start:end])
    assert again.seen() == whole
