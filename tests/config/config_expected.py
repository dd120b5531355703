"""What ``web.yaml`` compiles to, written out."""

from pathlib import Path

from l7lb.core.snapshot import (
    AccessLog,
    Address,
    Balance,
    FactName,
    HeaderKey,
    Health,
    InsertedCookie,
    LearnedCookie,
    Listener,
    Match,
    Outliers,
    Pool,
    PoolTimeouts,
    Redirect,
    Respond,
    Retries,
    Rewrite,
    Route,
    Server,
    Snapshot,
    SourceKey,
    Tables,
    ToPool,
    ToSplit,
)


def routes(file: str, lines: list[int]) -> tuple[Route, ...]:
    where = [f"{file}:{line}" for line in lines]
    return (
        Route(
            number=1,
            where=where[0],
            match=Match(host=("*.shop.example", "shop.example"), path=("/basket/*",), method=("POST",)),
            action=ToPool("shop"),
            set_headers=(("x-basket", "yes"),),
            remove_headers=("cookie2",),
            set_response_headers=(("cache-control", "no-store"),),
            remove_response_headers=("server",),
        ),
        Route(
            number=2,
            where=where[1],
            match=Match(
                path_regex=("^/item/[0-9]+$",),
                header=(("x-kind", ("a*", "b")),),
                cookie=(("beta", ("yes",)),),
                query=(("q", ("*",)),),
            ),
            action=ToSplit((("shop", 3), ("spare", 1))),
        ),
        Route(
            number=3,
            where=where[2],
            match=Match(
                path=("/moved/*/to/*",),
                not_=Match(source=("192.0.2.0/24", "2001:db8::1"), method=("GET", "HEAD")),
            ),
            action=Redirect("https://{host}/{path.2}?from={path.1}", 301),
        ),
        Route(
            number=4,
            where=where[3],
            match=Match(path=("/inner/*",)),
            action=ToPool("shop"),
            rewrite=Rewrite("/{path.1}", "inner.example"),
        ),
        Route(
            number=5,
            where=where[4],
            match=None,
            action=Respond(404, "nothing here\n", "text/plain", (("retry-after", "5"),)),
        ),
    )


def shop(key: str) -> Pool:
    return Pool(
        name="shop",
        servers=(
            Server(name="shop1", address=Address("192.0.2.11", 80), weight=5, max_connections=9),
            Server(name="shop2", address=Address("2001:db8::12", 80), backup=True),
            Server(name="shop3", address=Address("shop.internal", 8080)),
        ),
        balance=Balance("hash", FactName("cookie", "user"), 1.5),
        persistence=(
            InsertedCookie(
                name="SHOP",
                max_age=7200.0,
                http_only=False,
                same_site="strict",
                path="/basket",
                domain="shop.example",
                secure="always",
                key=key,
            ),
            LearnedCookie("session", 600.0),
            HeaderKey("x-user", 300.0),
            SourceKey(),
        ),
        health=Health(
            kind="http",
            interval=0.75,
            timeout=0.25,
            rise=1,
            fall=4,
            settings={
                "path": "/up",
                "expect": [[200, 200], [300, 399]],
                "method": "GET",
                "host": "shop.example",
                "headers": {"x-probe": "1"},
            },
            port=8000,
        ),
        outliers=Outliers(7, 60.0, 0.25),
        retries=Retries(
            3,
            frozenset({"connect-failure", "reset-before-response", "response-timeout"}),
            frozenset({502, 503}),
        ),
        timeouts=PoolTimeouts(connect=0.5, queue=2.0, response_header=7.0, response_body=8.0, idle=9.0),
        queue=10,
        slow_start=60.0,
        idle_connections=5,
    )


def snapshot(base: Path, file: str, lines: list[int], key: str) -> Snapshot:
    """``lines`` are those where the five rules begin."""
    return Snapshot(
        node="edge",
        version=0,
        workers=3,
        drain=12.0,
        file=str(base / file),
        access_log=AccessLog(str(base / "log/access.log"), "{time} {client} {status} {{}} {total_ms}"),
        tables=Tables(5000),
        listeners=(
            Listener(
                name="public",
                protocol="http",
                bind=(Address("*", 8080), Address("::1", 8081), Address(path=str(base / "sockets/public.sock"))),
                routes=routes(file, lines),
                connections=100,
                backlog=64,
                exact_case=True,
                settings={
                    "trust": ["10.0.0.0/8", "::1/128"],
                    "send": ["x-forwarded-for", "via"],
                    "timeouts": {"request_header": 5.0, "request_body": 60.0, "keep_alive": 20.0, "tunnel": 7200.0},
                    "upgrades": ["websocket"],
                    "http2": {
                        "prior_knowledge": True,
                        "max_concurrent_streams": 100,
                        "stream_window": 65536,
                        "connection_window": 1048576,
                        "frame_bytes": 16384,
                        "resets": 200,
                        "control_frames": 2000,
                    },
                    "header_bytes": 16384,
                    "headers": 50,
                    "body_bytes": 1073741824,
                    "pipeline_bytes": 32768,
                },
            ),
        ),
        pools=(
            shop(key),
            Pool(
                name="spare",
                servers=(Server(name="spare1", address=Address(path=str(base / "sockets/spare.sock"))),),
                balance=Balance("random-of-two"),
                persistence=(SourceKey(3600.0, 24, 56),),
                health=Health(kind="protocol", protocol="http"),
            ),
        ),
    )
