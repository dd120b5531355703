"""SASL's server half: who a client says it is, and what it can't say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7lb.protocols.mail.sasl import NAMES, Exchange, Identity, SaslFault, decoded, encoded, first_response


def said(identity: Identity | None) -> tuple[bytes, bytes, bytes, bool]:
    assert identity is not None
    return identity.user, identity.password, identity.authorization, identity.token


def test_plain() -> None:
    assert said(Exchange("plain").step(b"\0anna\0se cret")) == (b"anna", b"se cret", b"", False)
    assert said(Exchange("plain").step(b"bert\0anna\0secret")) == (b"anna", b"secret", b"bert", False)
    assert said(Exchange("plain").step(b"anna\0anna\0secret")) == (b"anna", b"secret", b"", False)


def test_login_asks_twice() -> None:
    exchange = Exchange("login")
    assert exchange.challenge == b"Username:"
    assert exchange.step(b"anna") is None
    assert exchange.challenge == b"Password:"
    assert said(exchange.step(b"secret")) == (b"anna", b"secret", b"", False)


def test_tokens() -> None:
    google = b"user=anna@x.org\x01auth=Bearer ya29.a0-_~+/==\x01\x01"
    assert said(Exchange("xoauth2").step(google)) == (b"anna@x.org", b"ya29.a0-_~+/==", b"", True)
    standard = b"n,a=an=2Cn=3Da@x.org,\x01host=imap.x.org\x01port=143\x01auth=Bearer abc\x01\x01"
    assert said(Exchange("oauthbearer").step(standard)) == (b"an,n=a@x.org", b"abc", b"", True)


def test_external_is_what_the_certificate_proves() -> None:
    assert said(Exchange("external", b"anna").step(b"")) == (b"anna", b"", b"", False)
    assert said(Exchange("external", b"anna").step(b"bert")) == (b"anna", b"", b"bert", False)
    with pytest.raises(SaslFault):
        Exchange("external").step(b"anna")


@pytest.mark.parametrize(
    ("mechanism", "response"),
    [
        ("plain", b""),
        ("plain", b"anna\0secret"),
        ("plain", b"\0anna\0"),
        ("plain", b"\0\0secret"),
        ("plain", b"\0anna\0sec\0ret"),
        ("plain", b"\0an\r\nna\0secret"),
        ("plain", b"\0anna\0sec\r\nret"),
        ("plain", b"be\nrt\0anna\0secret"),
        ("xoauth2", b"user=anna\x01auth=Bearer abc\x01"),
        ("xoauth2", b"user=anna\x01auth=Basic abc\x01\x01"),
        ("xoauth2", b"auth=Bearer abc\x01\x01"),
        ("xoauth2", b"user=a\x01user=b\x01auth=Bearer abc\x01\x01"),
        ("xoauth2", b"user=a\x01auth=Bearer a b\x01\x01"),
        ("oauthbearer", b"n,,\x01auth=Bearer abc\x01\x01"),
        ("oauthbearer", b"p=tls-unique,a=anna,\x01auth=Bearer abc\x01\x01"),
        ("oauthbearer", b"n,a=anna,\x01auth=Bearer \x01\x01"),
        ("oauthbearer", b"\x01"),
    ],
)
def test_what_is_no_response(mechanism: str, response: bytes) -> None:
    with pytest.raises(SaslFault):
        Exchange(mechanism).step(response)


@pytest.mark.parametrize("text", [b"YQ", b"YQ=", b"Y Q==", b"YQ==YQ==", b"=", b"*", b"YQ==\r", b"\xff\xff\xff\xff"])
def test_base64_is_strict(text: bytes) -> None:
    with pytest.raises(SaslFault):
        decoded(text)


NAME = st.binary(min_size=1).filter(lambda name: not any(byte < 32 or byte == 127 for byte in name))
TOKEN = st.from_regex(rb"[A-Za-z0-9._~+/-]+=*", fullmatch=True)


@given(st.sampled_from(("plain", "xoauth2", "oauthbearer")), NAME, TOKEN)
def test_what_a_client_says_is_understood(mechanism: str, user: bytes, proof: bytes) -> None:
    token = mechanism != "plain"
    response = first_response(mechanism, Identity(user, proof, token=token), user)
    assert said(Exchange(mechanism).step(decoded(encoded(response)))) == (user, proof, b"", token)


@given(st.sampled_from(NAMES), st.lists(st.binary(), max_size=3))
def test_nothing_but_its_own_fault_escapes(mechanism: str, responses: list[bytes]) -> None:
    exchange = Exchange(mechanism, b"anna")
    for response in responses:
        try:
            identity = exchange.step(response)
        except SaslFault:
            return
        if identity is not None:
            assert identity.user
            assert not any(byte in identity.user + identity.password for byte in b"\r\n\0")
            return
