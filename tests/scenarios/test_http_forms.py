"""The forms that HTTP/1 takes, as playbooks: interim answers, answers without a body, old clients, upgrades."""

from __future__ import annotations

import pytest

from l7lb.testing import Node, Playbook, pieces

CONFIG = """
listeners:
  - name: web
    protocol: http
    bind: ["127.0.0.1:80"]
    routes:
      - pool: web
pools:
  web:
    retries: {attempts: 0}
    servers: [{name: web, address: "127.0.0.1:1"}]
"""

PLAYBOOKS = {
    "100-continue": """
        client connects
        client> POST / HTTP/1.1
        client> Host: a
        client> Expect: 100-continue
        client> Content-Length: 5
        client>
        web accepts
        web< POST / HTTP/1.1
        web< ...
        web< Expect: 100-continue
        web< ...
        web<
        web> HTTP/1.1 100 Continue
        web>
        client< HTTP/1.1 100 Continue
        client< ...
        client<
        client> hello\\
        web< hello\\
        web> HTTP/1.1 201 Created
        web> Content-Length: 0
        web>
        client< HTTP/1.1 201 Created
        client< ...
        client<
    """,
    "a refusal instead of 100-continue": """
        client connects
        client> POST / HTTP/1.1
        client> Host: a
        client> Expect: 100-continue
        client> Content-Length: 5
        client>
        web accepts
        web< POST / HTTP/1.1
        web< ...
        web<
        web> HTTP/1.1 401 Unauthorized
        web> Content-Length: 0
        web>
        client< HTTP/1.1 401 Unauthorized
        client< ...
        client< Connection: close
        client< ...
        client<
        client sees end
        web sees end
    """,
    "early hints": """
        client connects
        client> GET / HTTP/1.1
        client> Host: a
        client>
        web accepts
        web< GET / HTTP/1.1
        web< ...
        web<
        web> HTTP/1.1 103 Early Hints
        web> Link: </style.css>
        web>
        client< HTTP/1.1 103 Early Hints
        client< Link: </style.css>
        client< ...
        client<
        web> HTTP/1.1 200 OK
        web> Content-Length: 2
        web>
        web> ok\\
        client< HTTP/1.1 200 OK
        client< ...
        client<
        client< ok\\
    """,
    "no interim answers for HTTP/1.0": """
        client connects
        client> GET / HTTP/1.0
        client> Host: a
        client>
        web accepts
        web< GET / HTTP/1.1
        web< ...
        web<
        web> HTTP/1.1 103 Early Hints
        web>
        web> HTTP/1.1 200 OK
        web> Transfer-Encoding: chunked
        web>
        web> 5
        web> hello
        web> 0
        web>
        client< HTTP/1.* 200 OK
        client< ...
        client<
        client< hello\\
        client sees end
    """,
    "HTTP/1.0 keep-alive": """
        client connects
        client> GET /one HTTP/1.0
        client> Connection: keep-alive
        client>
        web accepts
        web< GET /one HTTP/1.1
        web< ...
        web<
        web> HTTP/1.1 200 OK
        web> Content-Length: 1
        web>
        web> 1\\
        client< HTTP/1.* 200 OK
        client< ...
        client< Connection: keep-alive
        client< ...
        client<
        client< 1\\
        client> GET /two HTTP/1.0
        client>
        web< GET /two HTTP/1.1
        web< ...
        web<
        web> HTTP/1.1 200 OK
        web> Content-Length: 1
        web>
        web> 2\\
        client< HTTP/1.* 200 OK
        client< ...
        client<
        client< 2\\
        client sees end
    """,
    "HEAD has a length and no body": """
        client connects
        client> HEAD / HTTP/1.1
        client> Host: a
        client>
        web accepts
        web< HEAD / HTTP/1.1
        web< ...
        web<
        web> HTTP/1.1 200 OK
        web> Content-Length: 1000
        web>
        client< HTTP/1.1 200 OK
        client< Content-Length: 1000
        client< ...
        client<
        client> GET /next HTTP/1.1
        client> Host: a
        client>
        web< GET /next HTTP/1.1
        web< ...
        web<
        web> HTTP/1.1 304 Not Modified
        web> Content-Length: 1000
        web>
        client< HTTP/1.1 304 Not Modified
        client< ...
        client<
        client> GET /last HTTP/1.1
        client> Host: a
        client>
        web< GET /last HTTP/1.1
        web< ...
        web<
        web> HTTP/1.1 204 No Content
        web>
        client< HTTP/1.1 204 No Content
        client< ...
        client<
    """,
    "chunks and trailers both ways": """
        client connects
        client> POST / HTTP/1.1
        client> Host: a
        client> Transfer-Encoding: chunked
        client>
        client> 5;name=value
        client> hello
        client> 0
        client> X-Checksum: 1
        client>
        web accepts
        web< POST / HTTP/1.1
        web< ...
        web< Transfer-Encoding: chunked
        web< ...
        web<
        web< 5
        web< hello
        web< 0
        web< X-Checksum: 1
        web<
        web> HTTP/1.1 200 OK
        web> Transfer-Encoding: chunked
        web>
        web> 3
        web> one
        web> 0
        web> X-Checksum: 2
        web>
        client< HTTP/1.1 200 OK
        client< ...
        client<
        client< 3
        client< one
        client< 0
        client< X-Checksum: 2
        client<
    """,
    "a body that ends with its connection": """
        client connects
        client> GET / HTTP/1.1
        client> Host: a
        client>
        web accepts
        web< GET / HTTP/1.1
        web< ...
        web<
        web> HTTP/1.1 200 OK
        web>
        web> until the end\\
        web half-closes
        client< HTTP/1.1 200 OK
        client< ...
        client< Connection: close
        client< ...
        client<
        client< until the end\\
        client sees end
    """,
    "hop-by-hop fields end here": """
        client connects
        client> GET / HTTP/1.1
        client> Connection: X-Mine, keep-alive
        client> X-Mine: secret
        client> Keep-Alive: timeout=5
        client> Proxy-Connection: keep-alive
        client> TE: trailers
        client> Host: a
        client>
        web accepts
        web< GET / HTTP/1.1
        web< Host: a
        web< X-Forwarded-For: *
        web< ...
        web<
        web> HTTP/1.1 200 OK
        web> Connection: X-Theirs
        web> X-Theirs: secret
        web> Content-Length: 0
        web>
        client< HTTP/1.1 200 OK
        client< Date: *
        client< Content-Length: 0
        client< Via: *
        client<
    """,
    "an absolute target": """
        client connects
        client> GET http://A.example.org:80/x/../y?z HTTP/1.1
        client> Host: a.example.org:80
        client>
        web accepts
        web< GET /y?z HTTP/1.1
        web< Host: a.example.org:80
        web< ...
        web<
        web> HTTP/1.1 204 No Content
        web>
        client< HTTP/1.1 204 No Content
    """,
    "an upgrade to what was asked for": """
        client connects
        client> GET /chat HTTP/1.1
        client> Host: a
        client> Connection: Upgrade
        client> Upgrade: websocket
        client> Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==
        client>
        web accepts
        web< GET /chat HTTP/1.1
        web< ...
        web< Upgrade: websocket
        web< ...
        web<
        web> HTTP/1.1 101 Switching Protocols
        web> Connection: Upgrade
        web> Upgrade: websocket
        web>
        web> \\x81\\x02hi\\
        client< HTTP/1.1 101 Switching Protocols
        client< ...
        client<
        client< \\x81\\x02hi\\
        client> \\x88\\x00\\
        web< \\x88\\x00\\
        web closes
        client sees closed
    """,
    "h2c is never passed on": """
        client connects
        client> GET / HTTP/1.1
        client> Host: a
        client> Connection: Upgrade, HTTP2-Settings
        client> Upgrade: h2c
        client> HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA
        client>
        web accepts
        web< GET / HTTP/1.1
        web< Host: a
        web< X-Forwarded-For: *
        web< ...
        web<
        web> HTTP/1.1 204 No Content
        web>
        client< HTTP/1.1 204 No Content
    """,
    "an empty line before a request": """
        client connects
        client>
        client> GET / HTTP/1.1
        client> Host: a
        client>
        web accepts
        web< GET / HTTP/1.1
        web< ...
        web<
        web> HTTP/1.1 204 No Content
        web>
        client< HTTP/1.1 204 No Content
    """,
}


@pytest.mark.asyncio
@pytest.mark.parametrize("name", PLAYBOOKS)
async def test_a_form_in_any_pieces(name: str) -> None:
    playbook = Playbook(PLAYBOOKS[name])
    async with Node(CONFIG, patience=3.0) as node:
        await node.play(playbook)
        if "chunks" not in name:  # they are cut anew where the pieces are
            for split in [pieces(1), *list(playbook.splits())[::7]]:
                await node.play(playbook, split)


@pytest.mark.asyncio
async def test_connect_is_not_for_a_load_balancer() -> None:
    async with Node(CONFIG) as node:
        answer = await node.request("CONNECT", "/", {"Host": "a:443"})
        assert answer.status == 501
        assert not answer.server
