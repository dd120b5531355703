"""Certificates that are renewed on the disk or about to expire, by a simulated clock."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import trustme
from structlog.testing import capture_logs

from l7lb import config
from l7lb.control import certificates
from l7lb.control.certificates import REMIND, SOON, Certificates, expiries
from l7lb.control.node import NodeState
from l7lb.proxy import counts as columns
from l7lb.proxy.counts import Counts

ECDSA = trustme.KeyType.ECDSA
TEXT = """
listeners:
  - name: https
    protocol: http
    bind: ["127.0.0.1:8443"]
    tls: {certificates: [{cert: one.pem, key: one.key}]}
    routes: [{respond: {status: 200}}]
"""


def write(folder: Path, leaf: trustme.LeafCert) -> None:
    (folder / "one.key").write_bytes(leaf.private_key_pem.bytes())
    (folder / "one.pem").write_bytes(b"".join(part.bytes() for part in leaf.cert_chain_pems))


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA(key_type=ECDSA)


@pytest.fixture
def node(tmp_path: Path, authority: trustme.CA) -> NodeState:
    ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=30)
    write(tmp_path, authority.issue_cert("one.example", key_type=ECDSA, not_after=ends))
    (tmp_path / "l7lb.yaml").write_text(TEXT)
    return NodeState(config.load(tmp_path / "l7lb.yaml").snapshot, counts=Counts(columns.create()))


def presented(node: NodeState) -> bytes:
    tls = node.effective().listeners[0].tls
    assert tls is not None
    return tls.certificates[0].certificate


def warnings(watch: Certificates) -> list[str]:
    with capture_logs() as lines:
        watch.turn()
    return [line["event"] for line in lines if line["log_level"] == "warning"]


def test_the_end_is_told_every_day_from_two_weeks_before(node: NodeState, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = expiries(node.configured)
    assert (one.listener, one.name) == ("https", "one.example")
    now = one.expires - SOON - 10
    monkeypatch.setattr(certificates.time, "time", lambda: now)
    watch = Certificates(node)
    assert warnings(watch) == []
    now += 20
    assert warnings(watch) == ["the certificate for one.example expires in 14 days"]
    now += REMIND - 10
    assert warnings(watch) == []
    now += 20
    assert warnings(watch) == ["the certificate for one.example expires in 13 days"]
    now = one.expires - 3600
    assert warnings(watch) == ["the certificate for one.example expires today"]
    now = one.expires + REMIND
    assert warnings(watch) == ["the certificate for one.example has expired"]


def test_a_renewed_pair_is_taken_when_it_has_settled(node: NodeState, tmp_path: Path, authority: trustme.CA) -> None:
    watch = Certificates(node)
    before = presented(node)
    watch.turn()
    write(tmp_path, authority.issue_cert("one.example", key_type=ECDSA))
    watch.turn()
    assert presented(node) == before  # it may be half written
    watch.turn()
    assert presented(node) == (tmp_path / "one.pem").read_bytes()


@pytest.mark.parametrize("broken", ["another key", "no certificate", "gone"])
def test_a_broken_pair_is_refused_and_the_old_one_goes_on(
    node: NodeState, tmp_path: Path, authority: trustme.CA, broken: str
) -> None:
    watch = Certificates(node)
    before = presented(node)
    watch.turn()
    if broken == "another key":
        (tmp_path / "one.key").write_bytes(authority.issue_cert("a", key_type=ECDSA).private_key_pem.bytes())
    elif broken == "no certificate":
        (tmp_path / "one.pem").write_text("nothing\n")
    else:
        (tmp_path / "one.pem").unlink()
    with capture_logs() as lines:
        for _ in range(4):
            watch.turn()
    errors = [line for line in lines if line["log_level"] == "error"]
    assert len(errors) == 1  # once, not every second
    assert errors[0]["file"] == str(tmp_path / ("one.key" if broken == "another key" else "one.pem"))
    assert presented(node) == before
    write(tmp_path, authority.issue_cert("one.example", key_type=ECDSA))
    watch.turn()
    watch.turn()
    assert presented(node) == (tmp_path / "one.pem").read_bytes()
