"""Streams of requests and answers, from harmless to hostile: seeds for fuzzers, and strategies for hypothesis."""

from __future__ import annotations

import random

from hypothesis import strategies as st

REQUESTS = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /a/../b?x=1 HTTP/1.1\r\nHost: A.example.org:80\r\nAccept: */*\r\nCookie: a=1; b=2\r\n\r\n",
    b"POST /f HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /f HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\nabc\r\n0\r\nT: v\r\n\r\n",
    b"PUT /f HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nok",
    b"HEAD /h HTTP/1.1\r\nHost: a\r\nConnection: x-drop\r\nX-Drop: 1\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://a/abs HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
    b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"DELETE /d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
]

ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nT: v\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 1\r\n\r\nx",
    b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 302 Found\r\nLocation: /x\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"z" * 100_000,
]

# What a mutation puts in: where parsers are known to disagree.
TOKENS = [
    *(
        bytes([byte])
        for byte in (0, 9, 10, 11, 12, 13, 32, 34, 35, 44, 45, 46, 47, 48, 58, 59, 92, 95, 127, 128, 160, 255)
    ),
    b"\r\n",
    b"\r\n\r\n",
    b"\n\n",
    b"\r\n ",
    b"\r\nContent-Length: 5",
    b"\r\nContent-Length: 6",
    b"\r\nContent-Length: +5",
    b"\r\nContent-Length: 5, 5",
    b"\r\nContent-Length: 0x5",
    b"\r\nContent-Length: 1_0",
    b"\r\nTransfer-Encoding: chunked",
    b"\r\nTransfer-Encoding : chunked",
    b"\r\nTransfer-Encoding: xchunked",
    b"\r\nTransfer-Encoding: chunked, identity",
    b"\r\nTransfer-Encoding:\x0bchunked",
    b"\r\nTransfer-Encoding:\n chunked",
    b"\r\nHost: b",
    b"\r\nConnection: close",
    b"\r\nConnection: keep-alive, content-length",
    b"\r\nConnection: upgrade\r\nUpgrade: h2c",
    b"0\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b"-1\r\n",
    b"5 ;\r\n",
    b"HTTP/1.1",
    b"HTTP/2.0",
    b"CONNECT a:1",
    b"GET /s HTTP/1.1\r\nHost: s\r\n\r\n",
    b"%2e%2e/",
    b"//",
]


def mutated(source: random.Random, seeds: list[bytes]) -> bytes:
    """Some seeds one behind the other, damaged in a few places."""
    data = bytearray(b"".join(source.choice(seeds) for _ in range(source.randint(1, 3))))
    for _ in range(source.choice((0, 1, 1, 1, 2, 3, 6))):
        at = source.randrange(len(data) + 1)
        kind = source.randrange(5)
        if kind == 0:
            data[at:at] = source.choice(TOKENS)
        elif kind == 1 and data:
            data[min(at, len(data) - 1)] = source.randrange(256)
        elif kind == 2:
            del data[at : at + source.choice((1, 1, 2, 5, 20))]
        elif kind == 3:
            data[at:at] = data[at : at + source.choice((1, 2, 10, 40))]
        else:
            data[at : at + source.choice((1, 2))] = source.choice(TOKENS)
    return bytes(data)


def positions(source: random.Random, size: int) -> list[int]:
    """Where to cut: nowhere, everywhere, or at some places."""
    kind = source.randrange(4)
    if kind == 0:
        return []
    if kind == 1 and size < 2000:
        return list(range(size))
    return [source.randrange(size + 1) for _ in range(source.randint(1, 6))]


FIELDS = st.sampled_from(
    [
        b"Accept: */*",
        b"X-Empty:",
        b"X-Spaces: \t a  b \t",
        b"X-Latin: \xe4\xf6",
        b"Cookie: a=1",
        b"Connection: keep-alive",
        b"Connection: close",
        b"Connection: X-One",
        b"X-One: 1",
        b"TE: trailers",
        b"Upgrade: websocket",
        b"Expect: 100-continue",
        b"X-Forwarded-For: 9.9.9.9",
        b"Via: 1.1 other",
        b"X-Request-ID: abc",
        b"Keep-Alive: timeout=5",
        b"Proxy-Connection: keep-alive",
    ]
)
BAD_FIELDS = st.sampled_from(
    [
        b"Host: other",
        b"Content-Length: 3",
        b"content-length: 03",
        b"Content-Length: 3 3",
        b"Content-Length:",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: \xa0chunked",
        b"X Y: 1",
        b"X: a\rb",
        b"X: a\x00b",
        b" folded",
        b"NoColon",
        b": empty",
        b"Content_Length: 5",
    ]
)


@st.composite
def chunked_bodies(draw: st.DrawFn) -> bytes:
    """A chunked body, sometimes with extensions, trailers or a fault."""
    out = []
    for data in draw(st.lists(st.binary(min_size=1, max_size=40), max_size=4)):
        size = draw(st.sampled_from([b"%x", b"%X", b"0%x", b"%x;a=b", b'%x; a="b"'])) % len(data)
        out.append(size + b"\r\n" + data + draw(st.sampled_from([b"\r\n"] * 9 + [b"\n", b"\r", b""])))
    trailers = draw(st.sampled_from([b"", b"", b"T: v\r\n", b"T: v\r\nU:\r\n", b"Content-Length: 5\r\n", b"bad\r\n"]))
    return (
        b"".join(out)
        + draw(st.sampled_from([b"0\r\n", b"0\r\n", b"000\r\n", b"0;e\r\n", b"\r\n"]))
        + trailers
        + b"\r\n"
    )


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One request, well formed more often than not."""
    method = draw(
        st.sampled_from([b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"PATCH", b"PURGE", b"get"])
    )
    target = draw(
        st.sampled_from([b"/", b"/a/b?c=d", b"/%2e%2e/x", b"/a//b/./c", b"http://a/p", b"/a%2Fb", b"/a b", b"*"])
    )
    version = draw(st.sampled_from([b"HTTP/1.1"] * 6 + [b"HTTP/1.0", b"HTTP/1.2", b"http/1.1"]))
    lines = draw(st.lists(FIELDS, max_size=5)) + draw(st.sampled_from([[], [], [], [draw(BAD_FIELDS)]]))
    body = draw(st.binary(max_size=60))
    framing = draw(st.sampled_from(["none", "length", "length", "wrong", "chunked", "chunked", "both"]))
    if framing == "none":
        body = b""
    elif framing == "length":
        lines.append(b"Content-Length: %d" % len(body))
    elif framing == "wrong":
        lines.append(b"Content-Length: %d" % draw(st.integers(0, 80)))
    else:
        body = draw(chunked_bodies())
        lines.append(b"Transfer-Encoding: chunked")
        if framing == "both":
            lines.append(b"Content-Length: %d" % len(body))
    lines.insert(
        draw(st.integers(0, len(lines))), draw(st.sampled_from([b"Host: a"] * 8 + [b"Host: a.b:80", b"Host:", b"X: y"]))
    )
    head = b"\r\n".join([b" ".join([method, target, version]), *lines])
    return head + b"\r\n\r\n" + body


streams = st.lists(requests(), min_size=1, max_size=3).map(b"".join)
