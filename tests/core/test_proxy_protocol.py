"""PROXY headers: read at every split, refused for every broken form, and written so that they read back the same."""

from __future__ import annotations

import random
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7lb.core import proxy_protocol as pp
from l7lb.core.contracts import ClientCertificate, Front, Handshake, Peer
from l7lb.core.proxy_protocol import begins_header, crc32c
from l7lb.core.proxy_protocol.reading import Header, HeaderFault, HeaderReader
from l7lb.core.proxy_protocol.writing import UNKNOWN, write, write_local, write_own

LIMIT = 4096
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OWN = Peer("127.0.0.2", 4711, "127.0.0.1", 80)
TCP4 = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"
TCP6 = b"PROXY TCP6 2001:db8::1 2001:DB8::2 1 65535\r\n"
INET = socket.inet_aton("192.0.2.1") + socket.inet_aton("198.51.100.2") + struct.pack("!HH", 56324, 443)
INET6 = b"".join(socket.inet_pton(socket.AF_INET6, text) for text in ("2001:db8::1", "2001:db8::2"))
INET6 += struct.pack("!HH", 1, 65535)


def block(command: int = 1, family: int = 0x11, addresses: bytes = INET, tlvs: bytes = b"", length: int = -1) -> bytes:
    """A version 2 header, right or wrong."""
    body = addresses + tlvs
    return pp.SIGNATURE + struct.pack("!BBH", 0x20 | command, family, len(body) if length < 0 else length) + body


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def with_checksum(header: bytes, damage: int = 0) -> bytes:
    """The header with a checksum as its last TLV."""
    size = struct.pack("!H", len(header) - 16 + 7)
    data = header[:14] + size + header[16:] + tlv(pp.CRC32C, bytes(4))
    return data[:-4] + struct.pack("!I", crc32c(data) ^ damage)


SSL = bytes([pp.CLIENT_SSL | pp.CLIENT_CERT_CONN]) + bytes(4)
SSL += (
    tlv(pp.SSL_VERSION, b"TLSv1.3") + tlv(pp.SSL_CN, b"someone") + tlv(pp.SSL_CIPHER, b"AES") + tlv(0x24, b"RSA-SHA256")
)
ALL_TLVS = (
    tlv(pp.NOOP, bytes(3)) * 2
    + tlv(pp.AUTHORITY, b"www.example.com")
    + tlv(pp.ALPN, b"h2")
    + tlv(pp.UNIQUE_ID, b"\0id")
    + tlv(pp.SSL, SSL)
    + tlv(0xE0, b"one's own")
    + tlv(0x30, b"netns")
)
GOOD = {
    "v1 IPv4": TCP4,
    "v1 IPv6": TCP6,
    "v1 mapped": b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:c633:6402 0 9\r\n",
    "v1 unknown": b"PROXY UNKNOWN\r\n",
    "v1 unknown with addresses": b"PROXY UNKNOWN " + b"ffff:" * 7 + b"ffff " + b"ffff:" * 7 + b"ffff 65535 65535\r\n",
    "v2 IPv4": block(),
    "v2 IPv6": block(family=0x21, addresses=INET6),
    "v2 unix": block(family=0x31, addresses=b"/run/x.sock".ljust(108, b"\0") * 2),
    "v2 unspec": block(family=0, addresses=b"", tlvs=ALL_TLVS),
    "v2 datagram": block(family=0x12),
    "v2 local": block(0, 0, b""),
    "v2 local with addresses": block(0, 0x11),
    "v2 local with anything": block(0, 0xFF, b"\xff" * 99),
    "v2 TLVs": block(tlvs=ALL_TLVS),
    "v2 checksum": with_checksum(block(tlvs=ALL_TLVS)),
    "v2 local with checksum": with_checksum(block(0, 0, b"")),
    "v2 largest": block(tlvs=tlv(0xE1, bytes(LIMIT - 16 - 12 - 3))),
}
BAD = {
    "a request": (REQUEST, "no PROXY header"),
    "lower case": (b"proxy TCP4", "no PROXY header"),
    "PROXIED": (b"PROXIED TCP4", "no PROXY header"),
    "another signature": (pp.SIGNATURE[:-1] + b"X", "no PROXY header"),
    "no CR": (TCP4.replace(b"\r", b""), "malformed"),
    "CR alone": (TCP4.replace(b"\r\n", b"\r \r\n"), "malformed"),
    "two spaces": (TCP4.replace(b"TCP4 ", b"TCP4  "), "malformed"),
    "space at the end": (TCP4.replace(b"\r\n", b" \r\n"), "malformed"),
    "tabs": (TCP4.replace(b" ", b"\t").replace(b"PROXY\t", b"PROXY "), "malformed"),
    "UDP4": (TCP4.replace(b"TCP4", b"UDP4"), "malformed"),
    "IPv6 in TCP4": (TCP6.replace(b"TCP6", b"TCP4"), "malformed"),
    "IPv4 in TCP6": (TCP4.replace(b"TCP4", b"TCP6"), "address"),
    "mixed families": (b"PROXY TCP6 2001:db8::1 192.0.2.1 1 1\r\n", "address"),
    "leading zero": (TCP4.replace(b"192.0.2.1", b"192.0.02.1"), "address"),
    "three numbers": (TCP4.replace(b"192.0.2.1", b"192.0.2"), "address"),
    "256": (TCP4.replace(b"192.0.2.1", b"256.0.2.1"), "address"),
    "a name": (TCP4.replace(b"192.0.2.1", b"localhost"), "malformed"),
    "a zone": (b"PROXY TCP6 fe80::1%lo fe80::1 1 1\r\n", "malformed"),
    "nine groups": (b"PROXY TCP6 1:2:3:4:5:6:7:8:9 ::1 1 1\r\n", "address"),
    "port 65536": (TCP4.replace(b"443", b"65536"), "port"),
    "port 0443": (TCP4.replace(b"443", b"0443"), "malformed"),
    "port +1": (TCP4.replace(b"443", b"+1"), "malformed"),
    "no ports": (b"PROXY TCP4 192.0.2.1 192.0.2.2\r\n", "malformed"),
    "UNKNOWNX": (b"PROXY UNKNOWNX\r\n", "malformed"),
    "108 bytes": (b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n", "no end"),
    "no end": (b"PROXY UNKNOWN " + b"x" * 200, "no end"),
    "version 1 in binary": (pp.SIGNATURE + b"\x11\x11\0\0", "command 0x11"),
    "command 2": (block(2), "command 0x22"),
    "family 4": (block(family=0x41), "family and transport"),
    "transport 3": (block(family=0x13), "family and transport"),
    "too short": (block(addresses=INET[:-1]), "too short"),
    "too short for IPv6": (block(family=0x21), "too short"),
    "over the limit": (block(tlvs=tlv(0xE1, bytes(LIMIT - 16 - 12 - 2))), "4097 bytes"),
    "64 KiB": (block(length=65535), "65551 bytes"),
    "TLV beyond the end": (block(tlvs=tlv(0xE0, b"abc")[:-1]), "longer"),
    "TLV without length": (block(tlvs=b"\xe0\0"), "longer"),
    "wrong checksum": (with_checksum(block(), damage=1), "checksum is wrong"),
    "wrong checksum of local": (with_checksum(block(0, 0, b""), damage=1), "checksum is wrong"),
    "checksum of 3 bytes": (block(tlvs=tlv(pp.CRC32C, bytes(3))), "not 4 bytes"),
    "two checksums": (with_checksum(with_checksum(block())), "twice"),
    "two authorities": (block(tlvs=tlv(pp.AUTHORITY, b"a") * 2), "twice"),
    "authority of spaces": (block(tlvs=tlv(pp.AUTHORITY, b"a b")), "authority"),
    "authority of lines": (block(tlvs=tlv(pp.AUTHORITY, b"a\r\nb")), "authority"),
    "authority not UTF-8": (block(tlvs=tlv(pp.AUTHORITY, b"\xff")), "authority"),
    "authority too long": (block(tlvs=tlv(pp.AUTHORITY, b"a" * 256)), "authority"),
    "ALPN too long": (block(tlvs=tlv(pp.ALPN, b"a" * 256)), "protocol"),
    "unique id too long": (block(tlvs=tlv(pp.UNIQUE_ID, b"a" * 129)), "128"),
    "TLS facts too short": (block(tlvs=tlv(pp.SSL, b"\1\0\0\0")), "too short"),
    "TLS facts cut": (block(tlvs=tlv(pp.SSL, SSL[:-1])), "longer"),
}


def read(data: bytes, cuts: tuple[int, ...] = ()) -> tuple[Header | None, int]:
    """The header, and how many bytes it took; what comes behind it must not be touched."""
    reader = HeaderReader(LIMIT)
    taken = 0
    for start, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
        piece = data[start:end]
        count = reader.feed(piece)
        assert 0 <= count <= len(piece)
        if reader.header is None:
            assert count == len(piece)
        taken += count
    return reader.header, taken


def shown(header: Header | None) -> object:
    """Everything that a header says, to compare."""
    if header is None:
        return None
    facts = {name: getattr(header, name) for name in Header.__slots__}
    if (handshake := facts.pop("handshake")) is not None:
        facts |= {name: getattr(handshake, name) for name in ("sni", "alpn", "version", "cipher")}
        if (certificate := handshake.certificate) is not None:
            facts |= {name: getattr(certificate, name) for name in ("common_name", "subject", "verified")}
    return facts


@pytest.mark.parametrize("name", GOOD)
def test_a_header_is_read_at_every_split_and_nothing_behind_it(name: str) -> None:
    data = GOOD[name]
    header, taken = read(data + REQUEST)
    assert taken == len(data)
    whole = shown(header)
    positions = range(1, len(data)) if len(data) < 500 else (1, 12, 15, 16, 17, 28, 1000, len(data) - 1)
    for cut in positions:
        again, taken = read(data + REQUEST, (cut,))
        assert (shown(again), taken) == (whole, len(data))
        assert read(data[:cut])[0] is None
    if len(data) < 500:
        again, taken = read(data + REQUEST, tuple(range(1, len(data) + 1)))
        assert (shown(again), taken) == (whole, len(data))


@pytest.mark.parametrize("name", BAD)
def test_a_broken_header_is_refused_for_the_same_reason_at_every_split(name: str) -> None:
    data, reason = BAD[name]
    with pytest.raises(HeaderFault, match=reason) as first:
        read(data)
    for cut in range(1, min(len(data), 300)):
        with pytest.raises(HeaderFault) as again:
            read(data, (cut,))
        assert str(again.value) == str(first.value)


def test_what_version_1_tells() -> None:
    peer = read(TCP4)[0].peer(OWN)
    assert (peer.client, peer.client_port, peer.local, peer.local_port) == ("192.0.2.1", 56324, "198.51.100.2", 443)
    assert (peer.front.address, peer.tls, peer.handshake) == ("127.0.0.2", False, None)
    peer = read(TCP6)[0].peer(OWN)
    assert (peer.client, peer.client_port, peer.local, peer.local_port) == ("2001:db8::1", 1, "2001:db8::2", 65535)
    peer = read(GOOD["v1 mapped"])[0].peer(OWN)
    assert (peer.client, peer.local) == ("192.0.2.1", "198.51.100.2")


@pytest.mark.parametrize("name", ["v1 unknown", "v1 unknown with addresses", "v2 datagram"])
def test_unknown_addresses_leave_the_connection_its_own(name: str) -> None:
    peer = read(GOOD[name])[0].peer(OWN)
    assert (peer.client, peer.client_port, peer.local, peer.local_port) == ("127.0.0.2", 4711, "127.0.0.1", 80)
    assert peer.front.address == "127.0.0.2"


@pytest.mark.parametrize("name", [name for name in GOOD if "local" in name])
def test_local_leaves_the_connection_as_it_is(name: str) -> None:
    header = read(GOOD[name])[0]
    assert header.local
    assert header.peer(OWN) is OWN


@pytest.mark.parametrize("name", ["v2 TLVs", "v2 checksum", "v2 unspec"])
def test_what_tlvs_tell(name: str) -> None:
    peer = read(GOOD[name])[0].peer(OWN)
    assert peer.client == ("127.0.0.2" if "unspec" in name else "192.0.2.1")
    assert peer.tls
    assert (peer.handshake.sni, peer.handshake.alpn) == (b"www.example.com", b"h2")
    assert (peer.handshake.version, peer.handshake.cipher) == ("TLSv1.3", "AES")
    assert peer.front.unique_id == b"\0id"
    certificate = peer.handshake.certificate
    assert (certificate.common_name, certificate.subject, certificate.verified) == ("someone", "CN=someone", True)


def test_tls_facts_say_who_was_not_verified_and_who_had_no_tls() -> None:
    unverified = bytes([pp.CLIENT_SSL | pp.CLIENT_CERT_SESS]) + b"\0\0\0\2"
    peer = read(block(tlvs=tlv(pp.SSL, unverified)))[0].peer(OWN)
    assert peer.tls
    assert not peer.handshake.certificate.verified
    anonymous = bytes([pp.CLIENT_SSL]) + b"\0\0\0\1"
    assert read(block(tlvs=tlv(pp.SSL, anonymous)))[0].peer(OWN).handshake.certificate is None
    assert not read(block(tlvs=tlv(pp.SSL, bytes(5))))[0].peer(OWN).tls


def test_a_common_name_passes_for_no_more_than_that() -> None:
    facts = bytes([pp.CLIENT_SSL | pp.CLIENT_CERT_CONN]) + bytes(4) + tlv(pp.SSL_CN, "a,OU=admin\r\n\u00e9".encode())
    certificate = read(block(tlvs=tlv(pp.SSL, facts)))[0].peer(OWN).handshake.certificate
    assert certificate.subject == r"CN=a\,OU\=admin\0D\0A\C3\A9"


def test_unix_clients_have_no_address() -> None:
    peer = read(GOOD["v2 unix"])[0].peer(OWN)
    assert (peer.client, peer.client_port, peer.local, peer.local_port) == ("unix:", 0, "unix:", 0)


def test_the_checksum_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4
    damaged = bytearray(with_checksum(block(tlvs=ALL_TLVS)))
    for position in range(16, len(damaged) - 7):
        damaged[position] ^= 0x10
        with pytest.raises(HeaderFault):
            read(bytes(damaged))
        damaged[position] ^= 0x10


def test_which_bytes_begin_a_header() -> None:
    for start in (b"PROXY ", pp.SIGNATURE):
        assert begins_header(start + b"x") is True
        assert [begins_header(start[:count]) for count in range(len(start))] == [None] * len(start)
    for start in (b"GET ", b"PROPFIND", b"PROXYS", b"\r\n\r\nG", b"\n", b"\x16\x03\x01"):
        assert begins_header(start) is False


def test_no_mutation_raises_anything_but_a_fault() -> None:
    chance = random.Random(1)
    seeds = [*GOOD.values(), *(data for data, _ in BAD.values())]
    outcomes = set()
    for _ in range(20_000):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 4)):
            position = chance.randrange(len(data) + 1)
            change = chance.randrange(4)
            if change == 0 and position < len(data):
                data[position] = chance.randrange(256)
            elif change == 1:
                data[position:position] = chance.randbytes(chance.randint(1, 3))
            elif change == 2:
                del data[position : position + chance.randint(1, 5)]
            elif position < len(data):
                data[position] = chance.choice((0, 1, 0x20, 0x21, 0xFF, 10, 13, 32))
        cut = chance.randrange(len(data) + 1)
        results = []
        for cuts in ((), (cut,)):
            try:
                results.append(str(shown(read(bytes(data), cuts)[0])))
            except HeaderFault as fault:
                results.append(str(fault))
        assert results[0] == results[1]
        outcomes.add(results[0][:12])
    assert len(outcomes) > 10


ADDRESSES = st.one_of(
    st.tuples(st.ip_addresses(v=4).map(str), st.ip_addresses(v=4).map(str)),
    st.tuples(st.ip_addresses(v=6).map(str), st.ip_addresses(v=6).map(str)),
)
PORTS = st.integers(0, 65535)
NAMES = st.text(st.characters(codec="ascii", categories=("L", "N", "P")), max_size=255).map(str.encode)


def canonical(text: str) -> str:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    return socket.inet_ntop(family, socket.inet_pton(family, text)).removeprefix("::ffff:")


@given(ADDRESSES, PORTS, PORTS, st.sampled_from(["v1", "v2"]))
def test_addresses_that_are_written_read_back(addresses, client_port: int, local_port: int, version: str) -> None:
    data = write(version, Peer(addresses[0], client_port, addresses[1], local_port))
    header, taken = read(data + REQUEST)
    assert taken == len(data)
    peer = header.peer(OWN)
    assert (peer.client, peer.local) == (canonical(addresses[0]), canonical(addresses[1]))
    assert (peer.client_port, peer.local_port) == (client_port, local_port)


@given(NAMES, st.binary(max_size=255), st.binary(max_size=128), st.text(max_size=100), st.booleans(), st.booleans())
def test_facts_that_are_written_read_back(sni, alpn, unique_id, common_name, verified, tls) -> None:
    peer = Peer("192.0.2.1", 1, "192.0.2.2", 2, tls)
    peer.handshake = Handshake(sni, alpn, "TLSv1.2" if tls else "", "AES" if tls else "")
    peer.front = Front("127.0.0.9", unique_id)
    if tls:
        peer.handshake.certificate = ClientCertificate(common_name, "", verified, b"der")
    again = read(write("v2", peer))[0].peer(OWN)
    assert again.tls is tls
    assert again.front.unique_id == unique_id
    if not (sni or alpn or tls):
        assert again.handshake is None
        return
    assert (again.handshake.sni, again.handshake.alpn) == (sni, alpn)
    assert again.handshake.version == peer.handshake.version
    if tls:
        assert again.handshake.certificate.common_name == common_name.encode("utf-8", "replace").decode()
        assert again.handshake.certificate.verified is verified


def test_addresses_of_two_families_are_both_told_as_ipv6() -> None:
    mixed = Peer("192.0.2.1", 5, "2001:db8::2", 6)
    assert write("v1", mixed) == b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 5 6\r\n"
    for version in ("v1", "v2"):
        peer = read(write(version, mixed))[0].peer(OWN)
        assert (peer.client, peer.local) == ("192.0.2.1", "2001:db8::2")
    assert write("v1", Peer("fe80::1%eth0", 5, "fe80::2%eth0", 6)) == b"PROXY TCP6 fe80::1 fe80::2 5 6\r\n"


def test_clients_without_an_address() -> None:
    for peer in (Peer("unix:", 0, "unix:", 0), Peer("unix:", 0, "192.0.2.1", 80)):
        assert write("v1", peer) == UNKNOWN
        assert read(write("v2", peer))[0].peer(OWN).client == "unix:"
    strange = Peer("unknown", 0, "192.0.2.1", 80)
    assert write("v1", strange) == UNKNOWN
    assert read(write("v2", strange))[0].peer(OWN).client == OWN.client


def test_facts_that_are_too_long_are_left_out() -> None:
    peer = Peer("192.0.2.1", 1, "192.0.2.2", 2, tls=True)
    peer.handshake = Handshake(b"a" * 256, b"h2", "TLSv1.3")
    peer.handshake.certificate = ClientCertificate("x" * 100_000, "", verified=True)
    data = write("v2", peer)
    assert len(data) < 600
    again = read(data)[0].peer(OWN)
    assert (again.handshake.sni, again.handshake.alpn) == (b"", b"h2")
    assert again.handshake.certificate.common_name == ""
    assert again.handshake.certificate.verified


def test_the_header_of_a_connection_of_our_own() -> None:
    assert write_own("v2", ("127.0.0.1", 5), ("127.0.0.2", 80)) == write_local()
    assert read(write_local())[0].local
    assert write_own("v1", ("127.0.0.1", 5), ("127.0.0.2", 80)) == b"PROXY TCP4 127.0.0.1 127.0.0.2 5 80\r\n"
    assert write_own("v1", ("::1", 5, 0, 0), ("::1", 80, 0, 0)) == b"PROXY TCP6 ::1 ::1 5 80\r\n"
    assert write_own("v1", "", "/run/app.sock") == UNKNOWN
