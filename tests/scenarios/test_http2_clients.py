"""HTTP/2 as real clients speak it: curl, nghttp and h2load, without TLS and over TLS, to nginx behind a node."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from scenario_node import Nginx, Node

pytestmark = [pytest.mark.scenario, pytest.mark.needs("nginx", "curl", "nghttp", "h2load")]

SIZE = 3_000_000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Path]]:
    directory = tmp_path_factory.mktemp("http2")
    directory.parent.parent.chmod(0o755)
    directory.parent.chmod(0o755)
    directory.chmod(0o755)
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    certificate.private_key_pem.write_to_path(str(directory / "key.pem"))
    (directory / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    with Nginx(directory, "one") as one, Nginx(directory, "two") as two:
        (one.folder / "root" / "large").write_bytes(b"x" * SIZE)
        (two.folder / "root" / "large").write_bytes(b"x" * SIZE)
        text = f"""
access_log: {{path: access.log}}
listeners:
  - name: plain
    protocol: http
    bind: ["127.0.0.1:PORT", "unix:plain.sock"]
    routes: [{{pool: web}}]
  - name: secure
    protocol: http
    bind: ["unix:secure.sock"]
    tls: {{certificates: [{{cert: cert.pem, key: key.pem}}]}}
    routes: [{{pool: web}}]
pools:
  web:
    persistence: [{{cookie: {{name: SRV}}}}]
    servers:
      - {{name: one, address: "127.0.0.1:{one.port}"}}
      - {{name: two, address: "127.0.0.1:{two.port}"}}
"""
        with Node(directory, text, workers=2) as node:
            yield node, directory


def run(*command: str) -> str:
    """A client's output; it must end well."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("way", ["plain", "tls"])
def test_curl(place: tuple[Node, Path], way: str) -> None:
    node, directory = place
    say = "%{http_version} %{http_code} %{size_download}\n"
    common = ["curl", "-s", "-o", "/dev/null", "-w", say]
    if way == "plain":
        common += ["--http2-prior-knowledge"]
        url = node.url
    else:
        common += ["--http2", "--cacert", str(directory / "ca.pem"), "--unix-socket", str(directory / "secure.sock")]
        url = "https://localhost"
    assert run(*common, url + "/") == "2 200 4\n"
    assert run(*common, url + "/file/large") == f"2 200 {SIZE}\n"
    assert run(*common, "-I", url + "/file/large") == "2 200 0\n"
    assert run(*common, url + "/empty") == "2 204 0\n"
    body = directory / f"body-{way}"
    body.write_bytes(b"y" * 30_000)  # sent before nginx answers, which does not read it
    assert run(*common, "--data-binary", f"@{body}", url + "/echo").startswith("2 200 ")
    assert run(*common, "-T", str(body), "-X", "POST", "-H", "content-length:", url + "/echo").startswith("2 200 ")


def test_a_sticky_cookie(place: tuple[Node, Path]) -> None:
    node, directory = place
    jar = str(directory / "jar")
    command = ["curl", "-s", "--http2-prior-knowledge", "-c", jar, "-b", jar, node.url + "/"]
    assert len({run(*command) for _ in range(6)}) == 1


def test_nghttp(place: tuple[Node, Path]) -> None:
    node, _ = place
    output = run("nghttp", "-nv", *[f"{node.url}/?{number}" for number in range(20)])
    assert output.count(":status: 200") == 20
    assert "GOAWAY" in output


def test_h2load(place: tuple[Node, Path]) -> None:
    node, directory = place
    before = (directory / "access.log").read_text().count("\n") if (directory / "access.log").exists() else 0
    output = run("h2load", "-n", "3000", "-c", "5", "-m", "100", node.url + "/")
    assert "3000 succeeded, 0 failed, 0 errored, 0 timeout" in output
    records = [json.loads(line) for line in (directory / "access.log").read_text().splitlines()[before:]]
    assert {record["version"] for record in records if record["status"] == 200} <= {"2"}
    assert re.search(r"space savings \d+", output)
