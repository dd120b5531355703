"""The ClientHello: what it shows, in any split; and what can't be taken."""

from __future__ import annotations

import itertools
import ssl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tls_samples import GREASE, TLS12, TLS13, alpn, message, real, records, sni, vector, versions

from l7lb.protocols.tls import alerts
from l7lb.protocols.tls.hello import ClientHello, HelloFault, HelloReader, read_hello

LIMIT = 16 * 1024
SHOWN = ("version", "session_id", "sni", "alpn", "ticket", "psk", "ech", "tls12", "tls13")
FULL = [
    (GREASE, b""),
    sni(b"WWW.Example.com"),
    alpn(b"\x1a\x1a", b"h2", b"http/1.1"),
    (35, b"a ticket"),
    versions(GREASE, TLS13, TLS12),
    (0xFE0D, b"\0" * 40),
    (51, b"k" * 1300),
    (41, b"psk"),
]


def read(data: bytes, cuts: list[int] | None = None, limit: int = LIMIT) -> ClientHello | None:
    """Feed it in these pieces."""
    reader = HelloReader(limit)
    edges = [0, *sorted(cuts or ()), len(data)]
    for start, end in itertools.pairwise(edges):
        if start < end and (hello := reader.feed(data[start:end])) is not None:
            return hello
    return None


def verdict(data: bytes, cuts: list[int] | None = None, limit: int = LIMIT) -> object:
    """What is made of it, as something to compare."""
    try:
        hello = read(data, cuts, limit)
    except HelloFault as fault:
        return fault.code, fault.detail, fault.reason, fault.answer
    return None if hello is None else {name: getattr(hello, name) for name in SHOWN}


def test_everything_that_it_shows() -> None:
    assert verdict(records(message(FULL, b"s" * 32))) == {
        "version": TLS12,
        "session_id": b"s" * 32,
        "sni": b"www.example.com",
        "alpn": (b"h2", b"http/1.1"),
        "ticket": b"a ticket",
        "psk": True,
        "ech": True,
        "tls12": True,
        "tls13": True,
    }


def test_an_old_one_without_extensions() -> None:
    hello = read(records(message(None, version=0x0301)))
    assert hello is not None
    assert (hello.sni, hello.alpn, hello.ticket, hello.tls12, hello.tls13) == (b"", (), b"", True, False)


def test_only_tls_13_is_offered() -> None:
    hello = read(records(message([versions(GREASE, TLS13)])))
    assert hello is not None
    assert (hello.tls12, hello.tls13) == (False, True)


def test_every_split_in_two() -> None:
    data = records(message(FULL), [1, 3, 700])
    whole = verdict(data)
    assert isinstance(whole, dict)
    for at in range(len(data)):
        assert verdict(data, [at]) == whole


def test_byte_by_byte_in_records_of_one_byte() -> None:
    data = records(message(FULL), [1] * 3000)
    assert len(data) > 6 * 1400
    assert verdict(data, list(range(len(data)))) == verdict(records(message(FULL)))


def test_bytes_behind_it_are_left_for_the_server() -> None:
    reader = HelloReader(LIMIT)
    data = records(message(FULL)) + b"\x14\x03\x03\x00\x01\x01" + b"early data"
    assert reader.feed(data) is not None
    assert bytes(reader.raw) == data


@pytest.mark.parametrize("name", ["www.example.com", "a" * 63 + ".example", "xn--bcher-kva.example", None])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_those_of_openssl(name: str | None, version: ssl.TLSVersion) -> None:
    hello = read(real(name, ["h2", "http/1.1"], maximum_version=version))
    assert hello is not None
    assert hello.sni == (name or "").encode()
    assert hello.alpn == (b"h2", b"http/1.1")
    assert hello.tls13 is (version is ssl.TLSVersion.TLSv1_3)
    assert hello.tls12
    assert not hello.ticket


def test_the_limit_is_the_messages() -> None:
    data = message([(GREASE, b"x" * 5000)])
    for sizes in ([], [100] * 60):
        assert isinstance(verdict(records(data, sizes), limit=len(data)), dict)
        assert verdict(records(data, sizes), limit=len(data) - 1) == (
            alerts.HANDSHAKE_FAILURE,
            f"a ClientHello of {len(data)} bytes, more than {len(data) - 1}",
            "refused",
            b"\x15\x03\x03\x00\x02\x02\x28",
        )


def test_what_waits_is_bounded() -> None:
    reader = HelloReader(LIMIT)
    data = records(message([(GREASE, b"x" * (LIMIT - 60))]), [1] * LIMIT)
    assert reader.feed(data[:-1]) is None
    assert len(reader.raw) <= 6 * (LIMIT + 4)


BODY = message(FULL)[4:]
BAD = {
    "garbage": (b"\x00\x01\x02\x03garbage", 0, "malformed"),
    "TLS 4": (b"\x16\x04\x00\x00\x05hello", alerts.PROTOCOL_VERSION, "unsupported"),
    "SSL 2": (b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10" + bytes(40), alerts.PROTOCOL_VERSION, "unsupported"),
    "a record type in between": (
        records(message(FULL), [10])[:15] + b"\x17\x03\x03\x00\x01x",
        alerts.UNEXPECTED_MESSAGE,
        "malformed",
    ),
    "an alert": (b"\x15\x03\x01\x00\x02\x02\x00", 0, "closed"),
    "an empty record": (b"\x16\x03\x01\x00\x00", alerts.UNEXPECTED_MESSAGE, "malformed"),
    "a long record": (b"\x16\x03\x01\x40\x01\x01", alerts.RECORD_OVERFLOW, "malformed"),
    "another message": (records(b"\x02" + vector(3, BODY)), alerts.UNEXPECTED_MESSAGE, "malformed"),
    "a message behind": (records(message(FULL) + b"\x01"), alerts.UNEXPECTED_MESSAGE, "malformed"),
    "64 KiB": (records(message([(GREASE, b"x" * 65_400)]), [16384] * 4), alerts.HANDSHAKE_FAILURE, "refused"),
    "short": (records(b"\x01" + vector(3, BODY[:-1])), alerts.DECODE_ERROR, "malformed"),
    "long": (records(b"\x01" + vector(3, BODY + b"x")), alerts.DECODE_ERROR, "malformed"),
    "a long identifier": (records(message((), b"x" * 33)), alerts.DECODE_ERROR, "malformed"),
    "two names": (records(message([sni(b"a.example", b"b.example")])), alerts.ILLEGAL_PARAMETER, "malformed"),
    "two extensions": (records(message([sni(b"a.example"), sni(b"a.example")])), alerts.ILLEGAL_PARAMETER, "malformed"),
    "no name": (records(message([(0, b"\0\0")])), alerts.DECODE_ERROR, "malformed"),
    "an empty name": (records(message([sni(b"")])), alerts.ILLEGAL_PARAMETER, "malformed"),
    "a name with a zero": (records(message([sni(b"a.example\0.b")])), alerts.ILLEGAL_PARAMETER, "malformed"),
    "a long name": (records(message([sni(b"a." * 129)])), alerts.ILLEGAL_PARAMETER, "malformed"),
    "a name with a slash": (records(message([sni(b"a/b")])), alerts.ILLEGAL_PARAMETER, "malformed"),
    "an empty protocol": (records(message([alpn(b"h2", b"")])), alerts.DECODE_ERROR, "malformed"),
    "no versions": (records(message([(43, b"\0")])), alerts.DECODE_ERROR, "malformed"),
    "SSL 2 inside": (records(message((), version=0x0200)), alerts.PROTOCOL_VERSION, "unsupported"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case: str) -> None:
    data, code, reason = BAD[case]
    found = verdict(data)
    assert isinstance(found, tuple)
    assert (found[0], found[2]) == (code, reason)
    assert found[3] == (alerts.alert(code) if code else b"")
    step = max(1, len(data) // 200)
    for at in range(0, len(data), step):
        assert verdict(data, [at]) == found
    assert verdict(data, list(range(0, len(data), step))) == found


@pytest.mark.parametrize("asked", [b"GET / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n", b"OPTIONS * HTTP/1.1\r\n"])
def test_plain_http_gets_a_400(asked: bytes) -> None:
    found = verdict(asked)
    assert isinstance(found, tuple)
    assert found[3].startswith(b"HTTP/1.1 400 Bad Request\r\n")
    for at in range(len(asked)):
        assert verdict(asked, [at]) == found
    assert verdict(asked[:3]) is None


@pytest.mark.parametrize(
    ("name", "seen"),
    [(b"a.example.", b"a.example"), (b"A", b"a"), (b"192.0.2.1", b"192.0.2.1"), (b"_x.a-b", b"_x.a-b")],
)
def test_names(name: bytes, seen: bytes) -> None:
    hello = read(records(message([sni(name)])))
    assert hello is not None
    assert hello.sni == seen


extensions = st.lists(
    st.one_of(
        st.builds(sni, st.from_regex(rb"[A-Za-z0-9_-]{1,20}(\.[a-z0-9]{1,9}){0,4}", fullmatch=True)),
        st.builds(lambda names: alpn(*names), st.lists(st.binary(min_size=1, max_size=8), min_size=1, max_size=5)),
        st.builds(lambda data: (35, data), st.binary(max_size=300)),
        st.builds(lambda numbers: versions(*numbers), st.lists(st.integers(0, 65535), min_size=1, max_size=9)),
        st.tuples(st.integers(0x0A0A, 0xFFFF), st.binary(max_size=1500)),
    ),
    max_size=8,
    unique_by=lambda pair: pair[0],
)


@given(extensions, st.binary(max_size=32), st.lists(st.integers(1, 900), max_size=30), st.data())
@settings(max_examples=150)
def test_any_hello_in_any_records_and_segments(
    found: list[tuple[int, bytes]], session_id: bytes, sizes: list[int], data: st.DataObject
) -> None:
    plain = message(found, session_id)
    wire = records(plain, sizes)
    cuts = data.draw(st.lists(st.integers(0, len(wire)), max_size=12))
    assert verdict(wire, cuts) == verdict(records(plain))


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=8))
@settings(max_examples=300)
def test_anything_at_all(data: bytes, cuts: list[int]) -> None:
    assert verdict(data, [cut for cut in cuts if cut <= len(data)]) == verdict(data)


@given(st.data())
@settings(max_examples=300)
def test_a_hello_with_a_bit_turned(data: st.DataObject) -> None:
    wire = bytearray(records(message(FULL, b"s" * 32), [200]))
    for _ in range(data.draw(st.integers(1, 4))):
        wire[data.draw(st.integers(0, len(wire) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    at = data.draw(st.integers(0, len(wire)))
    assert verdict(bytes(wire), [at]) == verdict(bytes(wire))


@given(st.binary(max_size=600))
@settings(max_examples=300)
def test_any_body(body: bytes) -> None:
    try:
        hello = read_hello(body)
    except HelloFault:
        return
    assert len(hello.session_id) <= 32
