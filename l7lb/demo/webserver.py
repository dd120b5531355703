"""The web server of the demo and the examples: small, real, and it says who it is.

python -m l7lb.demo.webserver NAME PORT [CERTIFICATE KEY]      (with TLS)

/health             200
/upload             POST or PUT: how many bytes came, and their SHA-256
/slow?lines=&every= a line every so many seconds, as they come
/live               a WebSocket that gives back what it gets, behind its name
anything else       its name, and the request as it came here
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
import sys

from aiohttp import WSMsgType, web

BODY = 2 * 1024**3  # bytes of an upload
LINES, EVERY = 600, 10.0  # of a slow answer, at most
SHOWN = ("host", "x-forwarded-for", "x-forwarded-proto", "x-request-id", "via", "x-l7lb-route")
NAME = web.AppKey("name", str)


async def health(_: web.Request) -> web.Response:
    """For health checks."""
    return web.Response(text="good\n")


async def upload(request: web.Request) -> web.Response:
    """Take a body of any size, and say what came."""
    seen, size = hashlib.sha256(), 0
    async for part in request.content.iter_chunked(256 * 1024):
        seen.update(part)
        size += len(part)
    return web.Response(text=f"{request.app[NAME]} got {size} bytes, SHA-256 {seen.hexdigest()}\n")


async def slow(request: web.Request) -> web.StreamResponse:
    """A line every so many seconds."""
    try:
        lines = min(int(request.query.get("lines", "10")), LINES)
        every = min(max(float(request.query.get("every", "0.5")), 0.0), EVERY)
    except ValueError:
        return web.Response(status=400, text="lines and every are numbers\n")
    response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8", "X-Server": request.app[NAME]})
    await response.prepare(request)
    for number in range(1, lines + 1):
        await response.write(f"line {number} of {lines} from {request.app[NAME]}\n".encode())
        if number < lines:
            await asyncio.sleep(every)
    return response


async def live(request: web.Request) -> web.WebSocketResponse:
    """Give back each message behind our name."""
    socket = web.WebSocketResponse(heartbeat=20.0)
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(f"{request.app[NAME]} {message.data}")
    return socket


async def anything(request: web.Request) -> web.Response:
    """Who we are, and what came."""
    await request.read()
    name = request.app[NAME]
    lines = [name, f"{request.method} {request.raw_path}"]
    lines += [f"{header}: {value}" for header in SHOWN for value in request.headers.getall(header, ())]
    return web.Response(text="".join(f"{line}\n" for line in lines), headers={"X-Server": name})


def application(name: str) -> web.Application:
    """The server's application."""
    app = web.Application(client_max_size=BODY)
    app[NAME] = name
    app.router.add_get("/health", health)
    app.router.add_route("POST", "/upload", upload)
    app.router.add_route("PUT", "/upload", upload)
    app.router.add_get("/slow", slow)
    app.router.add_get("/live", live)
    app.router.add_route("*", "/{path:.*}", anything)
    return app


def main(words: list[str]) -> int:
    """Serve until told to end; returns the exit code."""
    if len(words) not in (2, 4) or not words[1].isdecimal():
        sys.stderr.write("usage: python -m l7lb.demo.webserver NAME PORT [CERTIFICATE KEY]\n")
        return 2
    name, port = words[0], int(words[1])
    context: ssl.SSLContext | None = None
    if len(words) == 4:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(words[2], words[3])

    def say(_: str) -> None:
        sys.stdout.write(f"{name} listens at 127.0.0.1:{port}\n")
        sys.stdout.flush()

    try:
        web.run_app(
            application(name),
            host="127.0.0.1",
            port=port,
            ssl_context=context,
            access_log=None,
            shutdown_timeout=1.0,
            print=say,
            reuse_address=True,
        )
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        sys.stderr.write(f"{name} can't listen at 127.0.0.1:{port}: {reason}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
