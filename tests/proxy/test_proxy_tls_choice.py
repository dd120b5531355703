"""What a handshake decides: the certificate, the protocol, whether a session goes on, who the client is."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from proxy_scene import GET, config, quiet
from tls_scene import client_context, dial, issued, tls_config, write, write_ca

from l7lb.control.ticket_secrets import PERIOD
from l7lb.core.snapshot import TicketSecret
from l7lb.proxy import counts as columns
from l7lb.proxy import openssl, tls
from l7lb.proxy.tls_contexts import Terminator
from l7lb.testing import Node
from l7lb.testing.tls import TlsWire

Run = Callable[[Coroutine[Any, Any, None]], None]


def shown(wire: TlsWire) -> x509.Certificate:
    der = wire.tls.getpeercert(True)
    assert der
    return x509.load_der_x509_certificate(der)


def names(wire: TlsWire) -> list[str]:
    found = shown(wire).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return found.get_values_for_type(x509.DNSName)


def several(folder: Path) -> dict[str, Any]:
    certificates = [
        write(folder, "first", issued("first.example")),
        write(folder, "wild", issued("*.example.org")),
        write(folder, "www", issued("www.example.org", rsa=True)),
        write(folder, "both-rsa", issued("both.example", rsa=True)),
        write(folder, "both-ecdsa", issued("both.example")),
    ]
    return tls_config(folder, {"certificates": certificates})


def lenient(version: str = "", ciphers: str = "") -> ssl.SSLContext:
    context = client_context(version=version)
    context.check_hostname = False
    if ciphers:
        context.set_ciphers(ciphers)
    return context


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("first.example", ["first.example"]),
        ("WWW.example.org", ["www.example.org"]),
        ("other.example.org", ["*.example.org"]),
        ("a.b.example.org", ["first.example"]),
        ("example.org", ["first.example"]),
        ("nobody.test", ["first.example"]),
        (None, ["first.example"]),
    ],
)
def test_the_name_picks_the_certificate(run: Run, tmp_path: Path, asked: str | None, expected: list[str]) -> None:
    async def scene() -> None:
        async with Node(several(tmp_path)) as node:
            client = await dial(node, asked, context=lenient())  # type: ignore[arg-type]
            assert names(client) == expected
            client.close()

    run(scene())


@pytest.mark.parametrize(
    ("ciphers", "kind"), [("ECDHE-ECDSA-AES128-GCM-SHA256", "ec"), ("ECDHE-RSA-AES128-GCM-SHA256", "rsa")]
)
def test_two_kinds_of_key_for_one_name(run: Run, tmp_path: Path, ciphers: str, kind: str) -> None:
    async def scene() -> None:
        async with Node(several(tmp_path)) as node:
            client = await dial(node, "both.example", context=lenient("1.2", ciphers))
            assert kind in type(shown(client).public_key()).__name__.lower()
            client.close()

    run(scene())


def test_the_protocol(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        async with Node(tls_config(tmp_path, {"alpn": ["http/1.1"]})) as node:
            context = client_context()
            context.set_alpn_protocols(["http/1.1", "spdy/3"])
            client = await dial(node, context=context)
            assert client.tls.selected_alpn_protocol() == "http/1.1"
            (connection,) = node.runtime.listeners["web"].connections
            await node.until(lambda: connection.peer.handshake)  # the client is through before the node is
            assert connection.peer.handshake is not None
            assert connection.peer.handshake.alpn == b"http/1.1"
            assert connection.peer.handshake.sni == b"example.com"
            client.close()

    run(scene())


def test_the_record(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        async with Node(tls_config(tmp_path)) as node:
            client = await dial(node, context=client_context(version="1.3"))
            await client.send(GET)
            await client.until(b"\r\n\r\n")
            record = await node.record()
            assert (record.scheme, record.tls_version, record.tls_resumed) == ("https", "TLSv1.3", False)
            assert record.tls_cipher.startswith("TLS_")
            client.close()

    run(scene())


def test_the_cookie_is_secure_and_servers_hear_of_it(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        async with Node(tls_config(tmp_path, persistence={"cookie": {"name": "L"}})) as node:
            answer = await node.get("https://example.com/")
            assert "Secure" in answer.headers["set-cookie"]
            assert answer.seen.headers["x-forwarded-proto"] == "https"

    run(scene())


def test_a_redirect_from_http_and_the_scheme_in_templates(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        values = tls_config(tmp_path)
        location = {"redirect": {"location": "https://{host}{path}", "status": 301}}
        values["listeners"][0]["routes"].insert(0, {"match": {"path": "/s"}, "redirect": {"location": "{scheme}://x/"}})
        plain = {"name": "plain", "protocol": "http", "bind": ["127.0.0.1:0"], "routes": [location]}
        values["listeners"].append(plain)
        async with Node(values) as node:
            answer = await node.get("http://example.com/a?b=c", listener="plain")
            assert (answer.status, answer.headers["location"]) == (301, "https://example.com/a?b=c")
            assert (await node.get("https://example.com/s", listener="web")).headers["location"] == "https://x/"

    run(scene())


# --- sessions -----------------------------------------------------------------------------------------------------


async def session(node: Node, context: ssl.SSLContext, old: ssl.SSLSession | None = None, listener: str = "") -> Any:
    """A request over a connection that may resume; returns whether it did, and the new session."""
    client = await dial(node, context=context, session=old, listener=listener)
    await client.send(GET)
    await client.until(b"\r\n\r\n")
    await client.close_notify()
    resumed, new = client.tls.session_reused, client.tls.session
    client.close()
    return resumed, new


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_another_process_resumes(run: Run, tmp_path: Path, version: str) -> None:
    """Two nodes with the same secrets stand for two workers."""

    async def scene() -> None:
        values = tls_config(tmp_path)
        async with Node(values) as one, Node(values) as two:
            two.state.ticket_secrets.learn(one.state.ticket_secrets.secrets)
            one.state.ticket_secrets.learn(two.state.ticket_secrets.secrets)
            for node in (one, two):
                node.state.changed()
            context = client_context(version=version)
            resumed, ticket = await session(one, context)
            assert not resumed
            resumed, ticket = await session(two, context, ticket)
            assert resumed
            resumed, ticket = await session(one, context, ticket)
            assert resumed
            slot = two.snapshot.listeners[0].slot
            assert two.counts.total(slot, columns.RESUMED) == 1
            assert two.counts.total(slot, columns.HANDSHAKES) == 0

    run(scene())


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_new_key_costs_no_handshake(run: Run, tmp_path: Path, version: str) -> None:
    async def scene() -> None:
        async with Node(tls_config(tmp_path)) as node:
            context = client_context(version=version)
            _, ticket = await session(node, context)
            now = node.state.ticket_secrets.secrets[0].since
            for step, expected in ((1, True), (2, False)):
                node.state.ticket_secrets.learn([TicketSecret(now + step * PERIOD, bytes([step]) * 32)])
                assert node.state.changed()
                resumed, _ = await session(node, context, ticket)
                assert resumed is expected

    run(scene())


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_ticket_is_for_its_listener(run: Run, tmp_path: Path, version: str) -> None:
    """CVE-2025-23419: what an open listener gave must not pass for a certificate elsewhere."""

    async def scene() -> None:
        values = tls_config(tmp_path)
        strict = {**values["listeners"][0], "name": "strict"}
        strict["tls"] = {**strict["tls"], "client_ca": write_ca(tmp_path), "client_certificate": "optional"}
        values["listeners"].append(strict)
        async with Node(values) as node:
            context = client_context(version=version)
            _, ticket = await session(node, context, listener="web")
            resumed, _ = await session(node, context, ticket, listener="web")
            assert resumed
            resumed, _ = await session(node, context, ticket, listener="strict")
            assert not resumed
            record = await node.record()
            assert record.listener == "strict"

    run(scene())


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_without_tickets(run: Run, tmp_path: Path, version: str) -> None:
    async def scene() -> None:
        async with Node(tls_config(tmp_path, {"session_tickets": "off"})) as node:
            context = client_context(version=version)
            _, ticket = await session(node, context)
            if ticket is not None:
                resumed, _ = await session(node, context, ticket)
                assert not resumed
            assert node.snapshot.ticket_secrets == ()

    run(scene())


# --- certificates of clients --------------------------------------------------------------------------------------


def mutual(folder: Path, **more: Any) -> dict[str, Any]:
    return tls_config(folder, {"client_ca": write_ca(folder), **more})


async def refusal(node: Node, context: ssl.SSLContext) -> str:
    """What the node says against a client, which in TLS 1.3 believes at first that all is well."""
    client = await dial(node, context=context)
    await client.send(GET)
    await client.sees_closed()
    client.close()
    return client.alert


FORGED = (
    b"GET / HTTP/1.1\r\nHost: a\r\nX-SSL-Client-Verify: SUCCESS\r\nx_ssl_client_subject: CN=root\r\n"
    b"X-SSL-Client-Fingerprint: 00\r\nX-Kept: yes\r\n\r\n"
)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_servers_hear_who_the_client_is(run: Run, tmp_path: Path, version: str) -> None:
    async def scene() -> None:
        leaf = issued("alice.example")
        async with Node(mutual(tmp_path)) as node:
            context = client_context(version=version, certificate=leaf)
            ticket = None
            for _ in range(2):
                client = await dial(node, context=context, session=ticket)
                await client.send(FORGED)
                await client.until(b"\r\n\r\n")
                assert client.tls.session_reused is (ticket is not None)
                ticket = client.tls.session
                client.close()
                seen = node.server("web1").requests[-1].headers
                certificate = x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes())
                der = ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())
                assert seen["x-ssl-client-verify"] == "SUCCESS"
                assert seen["x-ssl-client-subject"].startswith("CN=alice.example,")
                assert "Authority one" in seen["x-ssl-client-issuer"]
                assert int(seen["x-ssl-client-serial"], 16) == certificate.serial_number
                assert seen["x-ssl-client-fingerprint"] == hashlib.sha256(der).hexdigest()
                assert seen["x-kept"] == "yes"
                assert "x_ssl_client_subject" not in seen
            await quiet(node)

    run(scene())


def test_a_client_without_a_certificate(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        async with Node(mutual(tmp_path)) as node:
            assert "certificate required" in await refusal(node, client_context(version="1.3"))
            slot = node.snapshot.listeners[0].slot
            await node.until(lambda: not node.runtime.connections)
            assert node.counts.total(slot, columns.opening_failure("tls", "certificate")) == 1
        async with Node(mutual(tmp_path, client_certificate="optional")) as node:
            client = await dial(node)
            await client.send(FORGED)
            await client.until(b"\r\n\r\n")
            seen = node.server("web1").requests[-1].headers
            assert seen["x-ssl-client-verify"] == "NONE"
            assert "x-ssl-client-subject" not in seen
            assert "x-ssl-client-fingerprint" not in seen
            client.close()

    run(scene())


def test_a_certificate_of_somebody_else(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        async with Node(mutual(tmp_path, client_certificate="optional")) as node:
            strange = client_context(version="1.3", certificate=issued("eve.example", ca="two"))
            assert "unknown ca" in await refusal(node, strange)
            slot = node.snapshot.listeners[0].slot
            await node.until(lambda: not node.runtime.connections)
            assert node.counts.total(slot, columns.opening_failure("tls", "certificate")) == 1

    run(scene())


def test_nobody_forges_these_headers_without_tls_either(run: Run) -> None:
    async def scene() -> None:
        async with Node(config()) as node:
            client = await node.connect()
            await client.send(FORGED)
            await client.until(b"\r\n\r\n")
            client.close()
            seen = node.server("web1").requests[-1].headers
            assert [name for name in seen if "ssl" in name] == []

    run(scene())


# --- renewal, and what the Python build may lack ------------------------------------------------------------------


def test_a_renewed_certificate(run: Run, tmp_path: Path) -> None:
    """The next handshake gets it; who is connected goes on."""
    from l7lb.control.certificates import Certificates

    async def scene() -> None:
        async with Node(tls_config(tmp_path)) as node:
            looking = Certificates(node.state)
            looking.turn()
            before = await dial(node)
            serial = shown(before).serial_number
            renewed = issued("example.com", "renewed.example")
            write(tmp_path, "example.com", renewed)
            looking.turn()
            looking.turn()
            after = await dial(node)
            assert shown(after).serial_number != serial
            assert "renewed.example" in names(after)
            (tmp_path / "example.com.key").write_bytes(issued("other.example").private_key_pem.bytes())
            looking.turn()
            looking.turn()
            again = await dial(node)
            assert shown(again).serial_number == shown(after).serial_number
            await before.send(GET)
            await before.until(b"\r\n\r\n")
            for client in (before, after, again):
                client.close()

    run(scene())


def test_a_python_without_the_private_function(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def public(context: Any, sock: Any, owner: Any, server_side: bool = False, **values: Any) -> Any:
        hostname, session = values.get("server_hostname"), values.get("session")
        return tls.wrap_publicly(context, sock, owner, server_side, hostname, session)

    async def scene() -> None:
        monkeypatch.setattr(tls, "wrap", public)
        async with Node(several(tmp_path)) as node:
            client = await dial(node, "www.example.org")
            assert names(client) == ["www.example.org"]
            await client.send(GET)
            await client.until(b"\r\n\r\n")
            client.close()
            await quiet(node)

    run(scene())


def test_an_openssl_that_can_not_be_reached(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        monkeypatch.setattr(openssl, "_library", None)
        async with Node(tls_config(tmp_path)) as node:
            assert not node.runtime._terminators["web"].shares_tickets
            client = await dial(node)
            await client.send(b"GET /here HTTP/1.0\r\n\r\n")
            await client.sees_closed()
            assert not client.truncated
            client.close()

    run(scene())


def test_a_key_stays_out_of_logs(tmp_path: Path) -> None:
    from l7lb.testing.node import load

    tls_part = load(tls_config(tmp_path)).listeners[0].tls
    assert tls_part is not None
    assert "PRIVATE" not in repr(tls_part)
    assert "PRIVATE" not in repr(Terminator(msgspec.structs.replace(tls_part, ticket_keys=(b"k" * 80,))))
