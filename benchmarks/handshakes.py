"""A client that makes one connection after another, each with a handshake, a small request and its answer.

``python benchmarks/handshakes.py PORT SECONDS full|resumed`` prints how many there were, how many resumed and how long
it took, as JSON. It takes one core, so that what it loads can have the other; the server's CPU is what is measured.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import time

REQUEST = b"GET / HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n"
NAME = "localhost"


def main(port: int, seconds: float, resume: bool) -> dict[str, float]:
    """Connect for so long. Raises OSError or ssl.SSLError where a connection fails."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    session: ssl.SSLSession | None = None
    count = resumed = 0
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with context.wrap_socket(sock, server_hostname=NAME, session=session) as secure:
                secure.sendall(REQUEST)
                answer = b""
                while piece := secure.recv(16384):
                    answer += piece
                if not answer.startswith(b"HTTP/1.1 200 "):
                    raise OSError(f"a bad answer: {answer[:100]!r}")
                count += 1
                resumed += bool(secure.session_reused)
                if resume and secure.session is not None:
                    session = secure.session
    return {"count": count, "resumed": resumed, "seconds": time.monotonic() - began}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "resumed")))
