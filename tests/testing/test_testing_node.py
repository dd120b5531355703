from pathlib import Path

import pytest

from l7lb.core.errors import ConfigurationError
from l7lb.testing import Answer, Node, Rules, Unexpected, Wire

CONFIG = Path(__file__).with_name("rules.yaml")
TEXT = CONFIG.read_text()


def test_requests_go_where_the_rules_say(run) -> None:
    async def scene() -> None:
        async with Node(CONFIG) as node:
            answer = await node.get("http://shop.example.org/api/users?q=1")
            assert (answer.status, answer.pool, answer.server) == (200, "api", "api1")
            assert answer.seen.target == "/api/users?q=1"
            assert answer.seen.headers["x-l7lb-route"] == "api"
            answer = await node.get("/old/page")
            assert (answer.status, answer.headers["location"], answer.server) == (308, "/new/page", "")
            with pytest.raises(AssertionError, match="answered 308 itself"):
                answer.seen  # noqa: B018

    run(scene())


def test_the_source_address_and_the_listener_can_be_chosen(run) -> None:
    async def scene() -> None:
        async with Node(CONFIG) as node:
            assert (await node.get("/admin/x")).status == 403
            assert (await node.get("/admin/x", source="127.0.0.2")).pool == "web"
            assert (await node.get("/admin/x", listener="inside")).pool == "api"
            trusted = await node.get("/", {"X-Forwarded-For": "203.0.113.1"}, source="127.0.0.9")
            assert trusted.seen.headers["x-forwarded-for"].startswith("203.0.113.1")

    run(scene())


def test_unix_sockets_are_replaced_too(run) -> None:
    async def scene() -> None:
        async with Node(CONFIG) as node:
            address = node.snapshot.listeners[0].bind[1]
            assert address.path
            async with await Wire.connect(address) as wire:
                await wire.send_lines("GET /old/a HTTP/1.1", "Host: a", "")
                await wire.expect_lines("HTTP/1.1 308 *")

    run(scene())


def test_a_browser_keeps_its_server_through_a_drain_and_loses_it_by_death(run) -> None:
    async def scene() -> None:
        async with Node(CONFIG) as node, node.browser() as browser:
            first = (await browser.get("/")).server
            other = {"web1": "web2", "web2": "web1"}[first]
            node.drain(first)
            assert {(await browser.get("/")).server for _ in range(4)} == {first}
            assert {(await node.get("/")).server for _ in range(4)} == {other}
            node.down(first)
            assert {(await browser.get("/")).server for _ in range(4)} == {other}
            node.up(first)
            node.enable(first)
            assert {(await node.get("/")).server for _ in range(4)} == {first, other}

    run(scene())


def test_servers_say_what_the_test_wants(run) -> None:
    async def scene() -> None:
        async with Node(CONFIG) as node:
            node.server("api1").answer = Answer(status=503, body=b"no", headers=[("X-Why", "tired")])
            answer = await node.post("http://a.example.org/api/x", b"body")
            assert (answer.status, answer.body, answer.headers["x-why"], answer.seen.body) == (
                503,
                b"no",
                "tired",
                b"body",
            )
            node.server("api1").answer = lambda request: Answer(body=request.method.encode(), chunked=(b"a", b"bc"))
            assert (await node.get("http://a.example.org/api/x")).body == b"abc"
            node.server("web/web1").refuse()
            assert {(await node.get("/")).server for _ in range(3)} == {"web2"}
            with pytest.raises(KeyError, match="no server 'web3': there are api/api1, web/web1, web/web2"):
                node.server("web3")

    run(scene())


def test_access_records_are_collected(run) -> None:
    async def scene() -> None:
        async with Node(CONFIG) as node:
            await node.get("http://a.example.org/api/x")
            record = await node.record()
            assert (record.listener, record.pool, record.server, record.status, record.route) == (
                "web",
                "api",
                "api1",
                200,
                1,
            )

    run(scene())


def test_a_reload_keeps_ports_and_servers(run) -> None:
    async def scene() -> None:
        async with Node(TEXT) as node, node.browser() as browser:
            before = node.address()
            assert (await browser.get("/")).pool == "web"
            await node.reload(TEXT.replace("- pool: web", "- pool: api"))
            assert (await browser.get("/")).pool == "api"
            assert node.address() == before
            with pytest.raises(ConfigurationError):
                await node.reload(TEXT.replace("pool: api", "pool: apo"))
            assert (await browser.get("/")).pool == "api"

    run(scene())


def test_a_wrong_configuration_names_every_problem() -> None:
    with pytest.raises(ConfigurationError, match=r"(?s)apo.*webb"):
        Rules(TEXT.replace("- pool: web", "- pool: webb").replace("pool: api", "pool: apo", 1))


def test_rules_need_no_coroutine() -> None:
    with Rules(
        {
            "listeners": [{"name": "web", "protocol": "http", "bind": ["127.0.0.1:80"], "routes": [{"pool": "a"}]}],
            "pools": {"a": {"servers": [{"name": "a1", "address": "127.0.0.1:81"}]}},
        }
    ) as rules:
        assert rules.get("/").server == "a1"
        assert rules.post("/", b"x").seen.body == b"x"
        assert rules.record().status == 200


def test_patience_ends(run) -> None:
    async def scene() -> None:
        async with Node(CONFIG, patience=0.05) as node:
            with pytest.raises(Unexpected, match="did not come true"):
                await node.until(lambda: False)
            node.server("api1").hang()
            with pytest.raises(Unexpected, match="waited"):
                await node.get("http://a.example.org/api/x")

    run(scene())
