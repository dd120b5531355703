from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_helpers import in_network

from l7lb.routing.networks import REMEMBERED, Networks, check_network

fours = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
    lambda pair: ipaddress.IPv4Network(pair, strict=False)
)
sixes = st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)).map(
    lambda pair: ipaddress.IPv6Network(pair, strict=False)
)


def outside_mapped(network: ipaddress.IPv6Network) -> bool:
    return not network.overlaps(ipaddress.IPv6Network("::ffff:0:0/96"))


@given(st.lists(st.one_of(fours, sixes.filter(outside_mapped)), max_size=5), st.data())
def test_membership_is_that_of_the_standard_library(networks: list[ipaddress.IPv4Network], data: st.DataObject) -> None:
    inside = [st.integers(int(one[0]), int(one[-1])).map(type(one[0])) for one in networks]
    address = str(data.draw(st.one_of(st.ip_addresses(), *inside)))
    texts = [str(network) for network in networks]
    table = Networks(texts)
    for _ in range(2):
        assert (address in table) == any(in_network(text, address) for text in texts)


@pytest.mark.parametrize(
    ("network", "source", "expected"),
    [
        ("127.0.0.0/8", "::ffff:127.0.0.1", True),
        ("::ffff:127.0.0.0/104", "127.3.4.5", True),
        ("::/0", "127.0.0.1", False),
        ("0.0.0.0/0", "::1", False),
        ("fe80::/10", "fe80::1%eth0", True),
        ("::1", "::1", True),
        ("127.0.0.0/8", "unix:", False),
        ("unix:", "unix:", True),
        ("unix:", "127.0.0.1", False),
        ("0.0.0.0/0", "", False),
        ("0.0.0.0/0", "not an address", False),
        ("0.0.0.0/0", "1.2.3.4\0", False),
    ],
)
def test_addresses_of_all_kinds(network: str, source: str, expected: bool) -> None:
    assert (source in Networks([network])) is expected


def test_answers_are_remembered_within_a_bound() -> None:
    table = Networks(["10.0.0.0/8"])
    for number in range(3 * REMEMBERED):
        assert (str(ipaddress.IPv4Address(number)) in table) is False
    assert len(table._known) <= REMEMBERED


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("10.0.0.0/8", None),
        ("::1", None),
        ("unix:", None),
        ("10.0.0.1/8", '"10.0.0.1/8" has bits set behind its prefix; 10.0.0.0/8 may be meant'),
        ("10.0.0/8", '"10.0.0/8" is no address or network, such as 192.0.2.0/24 or 2001:db8::/32'),
    ],
)
def test_what_is_wrong_with_a_network(text: str, problem: str | None) -> None:
    assert check_network(text) == problem
