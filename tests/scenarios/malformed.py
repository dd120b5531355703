"""Requests and answers that no two parsers need agree on, or that nobody should send: each must be refused.

The requests are what request smuggling is made of, and what fills memory: ambiguous framing, line ends that some
accept, names and values that some repair, targets that mean two things, and sizes beyond every limit.
"""

from __future__ import annotations

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


def request(*lines: bytes, body: bytes = b"", start: bytes = b"POST / HTTP/1.1", host: bytes = b"Host: a") -> bytes:
    """A request of these header lines."""
    head = [start, *([host] if host else []), *lines]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def get(target: bytes, *lines: bytes, host: bytes = b"Host: a") -> bytes:
    """A GET request."""
    return request(*lines, start=b"GET " + target + b" HTTP/1.1", host=host)


CHUNKED = b"Transfer-Encoding: chunked"
LONG = b"a" * 40_000

REQUESTS: dict[str, bytes] = {
    # Content-Length
    "two lengths": request(b"Content-Length: 3", b"Content-Length: 40", body=b"abc" + SMUGGLED),
    "two equal lengths": request(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"),
    "a list of lengths": request(b"Content-Length: 3, 3", body=b"abc"),
    "a list of two lengths": request(b"Content-Length: 3,40", body=b"abc" + SMUGGLED),
    "a signed length": request(b"Content-Length: +3", body=b"abc"),
    "a negative length": request(b"Content-Length: -3", body=b"abc"),
    "a length in hexadecimal": request(b"Content-Length: 0x3", body=b"abc"),
    "a length with an underscore": request(b"Content-Length: 1_0", body=b"abcdefghij"),
    "a length with a space": request(b"Content-Length: 1 0", body=b"abcdefghij"),
    "a length in quotes": request(b'Content-Length: "3"', body=b"abc"),
    "a fractional length": request(b"Content-Length: 3.0", body=b"abc"),
    "a length with an exponent": request(b"Content-Length: 3e0", body=b"abc"),
    "an empty length": request(b"Content-Length:", body=b"abc"),
    "a word for a length": request(b"Content-Length: three", body=b"abc"),
    "a length in other digits": request("Content-Length: \u0663".encode(), body=b"abc"),
    "a length in superscript": request(b"Content-Length: \xb2", body=b"ab"),
    "a length behind a no-break space": request(b"Content-Length: \xa03", body=b"abc"),
    "a length behind a next-line character": request(b"Content-Length: 3\x85", body=b"abc"),
    "a length behind a form feed": request(b"Content-Length:\x0c3", body=b"abc"),
    "a length of twenty digits": request(b"Content-Length: 99999999999999999999", body=b"abc"),
    "a length that overflows 64 bits": request(b"Content-Length: 18446744073709551619", body=b"abc"),
    # Transfer-Encoding
    "length and chunked": request(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n" + SMUGGLED),
    "chunked and length": request(CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n" + SMUGGLED),
    "chunked twice": request(CHUNKED, CHUNKED, body=b"0\r\n\r\n"),
    "chunked twice in a list": request(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"),
    "chunked not last": request(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"),
    "chunked not last in two lines": request(CHUNKED, b"Transfer-Encoding: identity", body=b"0\r\n\r\n"),
    "identity": request(b"Transfer-Encoding: identity", b"Content-Length: 3", body=b"abc"),
    "an unknown coding": request(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "gzip before chunked": request(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "gzip alone": request(b"Transfer-Encoding: gzip", body=b"abc"),
    "chunked behind a vertical tab": request(b"Transfer-Encoding:\x0bchunked", body=b"0\r\n\r\n"),
    "chunked behind a no-break space": request(b"Transfer-Encoding: \xa0chunked", body=b"0\r\n\r\n"),
    "chunked in quotes": request(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n"),
    "chunked with a parameter": request(b"Transfer-Encoding: chunked;q=1", body=b"0\r\n\r\n"),
    "an empty coding": request(b"Transfer-Encoding:", b"Content-Length: 3", body=b"abc"),
    "an empty element before chunked": request(b"Transfer-Encoding: ,chunked", b"Content-Length: 3", body=b"0\r\n\r\n"),
    "chunked with a NUL": request(b"Transfer-Encoding: chunked\x00", body=b"0\r\n\r\n"),
    "chunked in HTTP/1.0": request(CHUNKED, start=b"POST / HTTP/1.0", body=b"0\r\n\r\n"),
    # names
    "a space before the colon of a length": request(b"Content-Length : 3", body=b"abc"),
    "a space before the colon of a coding": request(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n"),
    "a tab before a colon": request(b"X-Tab\t: 1", body=b""),
    "a space inside a name": request(b"X Space: 1"),
    "a name in quotes": request(b'"X": 1'),
    "a name beyond ASCII": request(b"X-\xe4: 1"),
    "a name with a NUL": request(b"X-\x00: 1"),
    "an empty name": request(b": 1"),
    "no colon": request(b"Transfer-Encoding chunked"),
    # folding and line ends
    "a folded line": request(b"X-Folded: a\r\n b"),
    "a folded coding": request(b"Transfer-Encoding:\r\n chunked", body=b"0\r\n\r\n"),
    "a first line that is folded": request(b" X: 1", host=b""),
    "a tab for a folded line": request(b"X-Folded: a\r\n\tb"),
    "a bare LF in the header": b"GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n",
    "only bare LF": b"GET / HTTP/1.1\nHost: a\n\n",
    "a bare LF behind the request line": b"GET / HTTP/1.1\nHost: a\r\n\r\n",
    "a bare LF at the end of the header": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\n" + SMUGGLED,
    "a bare CR in a value": request(b"X: a\rContent-Length: 3"),
    "a bare CR in front of a name": request(b"\rContent-Length: 3", body=b"abc"),
    "a bare CR for a line end": b"GET / HTTP/1.1\rHost: a\r\r",
    "CR CR LF": b"GET / HTTP/1.1\r\nHost: a\r\r\nX: 1\r\n\r\n",
    "a NUL in a value": request(b"X: a\x00b"),
    "a control character in a value": request(b"X: a\x08b"),
    "a DEL in a value": request(b"X: a\x7fb"),
    # chunks
    "a chunk's size in decimal with a sign": request(CHUNKED, body=b"+3\r\nabc\r\n0\r\n\r\n"),
    "a negative chunk": request(CHUNKED, body=b"-3\r\nabc\r\n0\r\n\r\n"),
    "a chunk's size with 0x": request(CHUNKED, body=b"0x3\r\nabc\r\n0\r\n\r\n"),
    "a chunk's size with an underscore": request(CHUNKED, body=b"1_0\r\nabcdefghijklmnop\r\n0\r\n\r\n"),
    "a chunk's size behind a space": request(CHUNKED, body=b" 3\r\nabc\r\n0\r\n\r\n"),
    "a chunk's size and a space": request(CHUNKED, body=b"3 \r\nabc\r\n0\r\n\r\n"),
    "no size": request(CHUNKED, body=b"\r\nabc\r\n0\r\n\r\n"),
    "only an extension": request(CHUNKED, body=b";a=b\r\nabc\r\n0\r\n\r\n"),
    "a size that overflows": request(CHUNKED, body=b"10000000000000003\r\nabc\r\n0\r\n\r\n"),
    "a size of many zeros": request(CHUNKED, body=b"0" * 300 + b"3\r\nabc\r\n0\r\n\r\n"),
    "a long extension": request(CHUNKED, body=b"3;" + b"x" * 5000 + b"\r\nabc\r\n0\r\n\r\n"),
    "a chunk longer than its size": request(CHUNKED, body=b"3\r\nabcd\r\n0\r\n\r\n"),
    "a chunk that ends in LF": request(CHUNKED, body=b"3\r\nabc\n0\r\n\r\n"),
    "a size that ends in LF": request(CHUNKED, body=b"3\nabc\r\n0\r\n\r\n"),
    "a size that ends in CR": request(CHUNKED, body=b"3\rabc\r\n0\r\n\r\n"),
    "an extension with a bare LF": request(CHUNKED, body=b"3;\nx\r\nabc\r\n0\r\n\r\n"),
    "an extension with a NUL": request(CHUNKED, body=b"3;\x00\r\nabc\r\n0\r\n\r\n"),
    "a last chunk that ends in LF": request(CHUNKED, body=b"3\r\nabc\r\n0\n\n"),
    "a trailer without a colon": request(CHUNKED, body=b"0\r\nTrailer\r\n\r\n"),
    "a trailer with a space before the colon": request(CHUNKED, body=b"0\r\nX : 1\r\n\r\n"),
    "a trailer with a bare LF": request(CHUNKED, body=b"0\r\nX: 1\n\r\n"),
    "too many trailers": request(CHUNKED, body=b"0\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(200)) + b"\r\n"),
    "trailers without end": request(CHUNKED, body=b"0\r\nX: " + LONG + b"\r\n\r\n"),
    # Host
    "no Host": request(host=b""),
    "two Hosts": request(b"Host: b"),
    "two equal Hosts": request(b"Host: a"),
    "an empty Host": get(b"/", host=b"Host:"),
    "an empty Host in HTTP/1.0": request(start=b"GET / HTTP/1.0", host=b"Host: "),
    "an empty Host beside a target's": get(b"http://a/", host=b"Host:"),
    "a Host of a port": get(b"/", host=b"Host: :80"),
    "a Host of a dot": get(b"/", host=b"Host: ."),
    "a list of Hosts": get(b"/", host=b"Host: a, b"),
    "two Hosts in HTTP/1.0": request(b"Host: b", start=b"GET / HTTP/1.0"),
    "CONNECT": request(start=b"CONNECT a:80 HTTP/1.1"),
    "a Host with a path": get(b"/", host=b"Host: a/b"),
    "a Host with user data": get(b"/", host=b"Host: user@a"),
    "a Host with a space": get(b"/", host=b"Host: a b"),
    "a Host with a word for a port": get(b"/", host=b"Host: a:http"),
    "a Host with a port out of range": get(b"/", host=b"Host: a:99999"),
    "a Host with an open bracket": get(b"/", host=b"Host: [::1"),
    "another Host than the target's": get(b"http://b/"),
    "a target with user data": get(b"http://user@a/"),
    # the request line
    "no target": b"GET HTTP/1.1\r\nHost: a\r\n\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a tab for a space": b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "a space in the target": b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "a space behind the version": b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
    "a space before the method": b" GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a NUL in the target": b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a byte beyond ASCII in the target": b"GET /\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a fragment in the target": b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
    "a backslash in the target": b"GET /a\\..\\b HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target that is no path": b"GET a HTTP/1.1\r\nHost: a\r\n\r\n",
    "another scheme": b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "an asterisk for GET": b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target that climbs out": b"GET /../../etc HTTP/9.9\r\nHost: a\r\n\r\n",
    "a method with a colon": b"GE:T / HTTP/1.1\r\nHost: a\r\n\r\n",
    "an endless method": b"G" * 300 + b" / HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "http in lower case": b"GET / http/1.1\r\nHost: a\r\n\r\n",
    "a version of two digits": b"GET / HTTP/1.10\r\nHost: a\r\n\r\n",
    "a version without a minor one": b"GET / HTTP/1\r\nHost: a\r\n\r\n",
    "another protocol": b"EHLO mail.example.org\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40,
    # sizes
    "an endless target": b"GET /" + LONG + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "an endless value": request(b"X: " + LONG),
    "an endless name": request(LONG + b": 1"),
    "too many fields": request(*(b"X-%d: 1" % number for number in range(200))),
    "a body beyond the limit": request(b"Content-Length: 999999999999", body=b"abc"),
}

REFUSALS = {400, 413, 414, 417, 431, 501, 505}

ANSWERS: dict[str, bytes] = {
    "no status line": b"hello\r\n\r\n",
    "another protocol": b"220 mail.example.org ESMTP\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
    "a status out of range": b"HTTP/1.1 999 OK\r\nContent-Length: 0\r\n\r\n",
    "a status with a sign": b"HTTP/1.1 +20 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "a control character in the reason": b"HTTP/1.1 200 O\x00K\r\nContent-Length: 0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "a list of lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 3, 3\r\n\r\nabc",
    "a signed length": b"HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc",
    "length and chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "an unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a folded line": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "a bare LF": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "a bare CR in a value": b"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n",
    "a NUL in a value": b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
    "a space before a colon": b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
    "no colon": b"HTTP/1.1 200 OK\r\nhello\r\nContent-Length: 0\r\n\r\n",
    "too many fields": b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 200 + b"\r\n",
    "an endless value": b"HTTP/1.1 200 OK\r\nX: " + LONG + b"\r\nContent-Length: 0\r\n\r\n",
    "a switch that nobody asked for": b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    "interim answers without end": b"HTTP/1.1 102 Processing\r\n\r\n" * 100,
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
}
