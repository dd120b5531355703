from __future__ import annotations

import pytest

from l7lb.core.mailbox import canonical, short_name
from l7lb.core.snapshot import Addresses

RULES = Addresses(recipient_delimiter="+", default_domain="example.com")


@pytest.mark.parametrize(
    ("typed", "address"),
    [
        (b"Anna", b"anna@example.com"),
        (b"anna+lists@EXAMPLE.com.", b"anna@example.com"),
        (b"+anna@x.org", b"+anna@x.org"),
        (b"a@b@X.org", b"a@b@x.org"),
        (b"", b"@example.com"),
    ],
)
def test_one_name_for_what_was_typed(typed: bytes, address: bytes) -> None:
    assert canonical(typed, RULES) == address
    assert canonical(address, RULES) == address


def test_the_case_of_a_local_part_may_count() -> None:
    assert canonical(b"Anna@X.org", Addresses(lower_case=False)) == b"Anna@x.org"


def test_the_default_domain_is_left_out_of_the_short_name() -> None:
    assert short_name(b"anna@example.com", RULES) == b"anna"
    assert short_name(b"anna@x.org", RULES) == b"anna@x.org"
    assert short_name(b"anna", Addresses()) == b"anna"
