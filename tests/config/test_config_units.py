"""Units and addresses: what is taken, what is refused, and that writing them back loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7lb.config.addresses import ANY, parse_bind, parse_host, parse_network, parse_server, resolve
from l7lb.config.units import (
    format_duration,
    format_share,
    format_size,
    parse_duration,
    parse_share,
    parse_size,
)
from l7lb.core.snapshot import Address


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("0ms", 0),
        ("10s", 10),
        ("1.5s", 1.5),
        ("5m", 300),
        ("2h", 7200),
        ("1d", 86400),
        ("0.1ms", 0.0001),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "10", "10 s", "1h30m", "1e3s", "-5s", "+5s", "٣s", "5s\n", "1.s", ".5s", "1_0s"]
)
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="not a time"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"), [("0B", 0), ("100B", 100), ("32KiB", 32768), ("1.5MiB", 1572864), ("10GiB", 10 * 1024**3)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(("text", "share"), [("0%", 0), ("50%", 0.5), ("100%", 1), ("12.5%", 0.125)])
def test_shares(text: str, share: float) -> None:
    assert parse_share(text) == share


@pytest.mark.parametrize("parse", [parse_duration, parse_size, parse_share])
@pytest.mark.parametrize("value", [None, True, 5, 5.5, [], {}, "", "x", "5x", "9" * 400 + "s", "5٪"])
def test_what_has_no_unit_is_refused_in_words(parse: object, value: object) -> None:
    with pytest.raises(ValueError, match=r"unit|not a|more than"):
        parse(value)  # type: ignore[operator]


@given(st.integers(0, 366 * 86400 * 1000))
def test_durations_are_written_as_they_are_read(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-6)


@given(st.integers(0, 1024**5))
def test_sizes_are_written_as_they_are_read(size: int) -> None:
    try:
        assert parse_size(format_size(size)) == size
    except ValueError:
        assert len(str(size)) > 15


@given(st.integers(0, 10_000))
def test_shares_are_written_as_they_are_read(hundredths: int) -> None:
    assert parse_share(format_share(hundredths / 10_000)) == pytest.approx(hundredths / 10_000)


@given(st.text(max_size=20))
def test_any_text_is_a_value_or_a_value_error(text: str) -> None:
    for parse in (parse_duration, parse_size, parse_share, parse_bind, parse_server, parse_host, parse_network):
        try:
            parse(text)
        except ValueError as error:
            message = str(error)
        else:
            continue
        assert message


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", Address("127.0.0.1", 80)),
        ("[::1]:80", Address("::1", 80)),
        ("[0:0:0:0:0:0:0:1]:80", Address("::1", 80)),
        ("*:80", Address(ANY, 80)),
        (":80", Address(ANY, 80)),
        ("0.0.0.0:0", Address("0.0.0.0", 0)),
        ("unix:run/x.sock", Address(path="run/x.sock")),
        ("unix:/run/a b", Address(path="/run/a b")),
    ],
)
def test_binds(text: str, address: Address) -> None:
    assert parse_bind(text) == address


def test_a_bind_is_shown_as_it_is_written() -> None:
    for text in ("127.0.0.1:80", "[::1]:80", "*:80", "unix:/run/x.sock"):
        assert str(parse_bind(text)) == text


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1:80", Address("192.0.2.1", 80)),
        ("[2001:DB8::1]:65535", Address("2001:db8::1", 65535)),
        ("[fe80::1%eth0]:80", Address("fe80::1%eth0", 80)),
        ("App.Internal.:80", Address("app.internal", 80)),
        ("app_1:80", Address("app_1", 80)),
        ("xn--bcher-kva.example:80", Address("xn--bcher-kva.example", 80)),
        ("unix:app.sock", Address(path="app.sock")),
    ],
)
def test_servers(text: str, address: Address) -> None:
    assert parse_server(text) == address


def test_unix_paths_start_from_the_configuration() -> None:
    assert resolve(Address(path="a/b"), Path("/etc/l7lb")) == Address(path="/etc/l7lb/a/b")
    assert resolve(Address(path="/a/b"), Path("/etc/l7lb")) == Address(path="/a/b")
    assert resolve(Address("a", 1), Path("/etc/l7lb")) == Address("a", 1)


@pytest.mark.parametrize(
    ("text", "network"),
    [("10.0.0.0/8", "10.0.0.0/8"), ("::1", "::1/128"), ("2001:DB8::/32", "2001:db8::/32"), ("0.0.0.0/0", "0.0.0.0/0")],
)
def test_networks(text: str, network: str) -> None:
    assert parse_network(text) == network
