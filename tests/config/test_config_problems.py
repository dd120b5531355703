"""Every mistake is told at its line and column, in words that say what would be right."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest
from config_marking import check, check_warnings, listener, node, pool, routes

from l7lb.config import load

NODE = [
    (
        "▸nodee: a",
        '"nodee" is not known here; did you mean "node"? known: access_log, addresses, admin, directories, group',
    ),
    ("▸pool: {}", 'did you mean "pools"?'),
    ("▸1: 2", '"1" is not known here; known: '),
    ("node: ▸1", 'must be text, not the number 1: write it in quotes, "1"'),
    ("node: ▸true", 'must be text, not true: write it in quotes, "true"'),
    ("node: ▸a b", '"a b" is not a name'),
    ("node: ▸[a]", "must be text, not a list"),
    ('node: ▸""', '"" is not a name'),
    (f"node: ▸{'a' * 65}", "a name has at most 64 characters, this one has 65"),
    ("workers: ▸0", "0 is not between 1 and 64"),
    ("workers: ▸65", "65 is not between 1 and 64"),
    ("workers: ▸all", 'must be auto or a number of workers, not "all"'),
    ("workers: ▸1.5", "must be auto or a number of workers, not the number 1.5"),
    ("state: ▸[a]", "must be text, not a list"),
    ('state: ▸""', "is not a file's path"),
    ("shutdown: ▸10s", 'must be a mapping, not "10s"; its keys: drain, without_supervisor'),
    ("▸shutdown:", "must be a mapping, not nothing"),
    ("shutdown: {drain: ▸10}", "10 has no unit: write 10s, 10ms ..."),
    ("shutdown: {drain: ▸10sec}", "sec is not a unit of time: write 10s"),
    ("shutdown: {drain: ▸10S}", "S is not a unit of time: write 10s"),
    ("shutdown: {drain: ▸10y}", "y is not a unit of time: the units are ms, s, m, h and d"),
    ("shutdown: {drain: ▸soon}", '"soon", which is not a time: write a number with its unit, such as 10s or 500ms'),
    ("shutdown: {drain: ▸-1s}", '"-1s", which is not a time'),
    ("shutdown: {drain: ▸400d}", "400d is more than a year"),
    ("shutdown: {without_supervisor: ▸0s}", "0s is not more than nothing"),
    ("admin: {sockt: 1}".replace("sockt", "▸sockt"), 'did you mean "socket"? known: metrics, socket'),
    ("admin: {metrics: ▸9400}", 'must be text, not the number 9400: write it in quotes, "9400"'),
    ('admin: {metrics: ▸"9400"}', '"9400" has no port: write host:port, such as 127.0.0.1:8080'),
    ('admin: {metrics: ▸"unix:x"}', "metrics are read over TCP"),
    ("log: {level: ▸verbose}", '"verbose" is not known; known: debug, info, warning, error'),
    ("log: {level: ▸warn}", '"warn" is not known; did you mean "warning"? known: debug, info, warning, error'),
    ("log: {level: ▸3}", "must be one of debug, info, warning, error, not the number 3"),
    ("access_log: ▸{format: json}", '"path" is missing: the file, or "-" for standard output'),
    ('access_log: {path: "-", format: ▸"{sattus}"}', 'the field "sattus" is not known; did you mean "status"? known: '),
    ('access_log: {path: "-", format: ▸"{status"}', "is not a format: expected '}' before end of string"),
    ('access_log: {path: "-", format: ▸"{status!r}"}', "a field is its name alone, such as {status}"),
    ('access_log: {path: "-", format: ▸"{status:>3}"}', "a field is its name alone"),
    ('access_log: {path: "-", format: ▸"{}"}', 'the field "" is not known'),
    ('access_log: {path: "-", format: ▸"{status}\\n"}', "has a control character; a record is one line"),
    ('access_log: {path: "-", format: ▸Json}', "has no field: write json, or fields in braces"),
    ("tables: {size: ▸10}", "the number 10 is too small: at least 1000"),
    ("tables: {size: ▸1e9}", "must be a whole number, not the number 1000000000.0"),
    ("tables: {size: ▸1000000000}", "is too large: at most 10000000"),
    ("pools: ▸[a]", "must be a mapping of keys and values, not a list"),
    ("pools: {▸a b: {servers: [{name: a, address: 'a:1'}]}}", '"a b" is not a name'),
    ("pools: {a: ▸{}}", '"servers" is missing: the servers'),
]


@pytest.mark.parametrize(("keys", "message"), NODE, ids=[keys[:40] for keys, _ in NODE])
def test_the_nodes_own_keys(keys: str, message: str) -> None:
    check(node(keys), message)


LISTENERS = [
    ("▸- 5", "must be a mapping, not the number 5; its keys: name, protocol, bind, routes"),
    (
        "▸- {}",
        '"name" is missing: the listener\'s name',
        '"protocol" is missing: what clients speak there',
        '"bind" is missing',
        '"routes" is missing',
    ),
    ("- {name: a, protocol: ▸gopher, bind: []}", 'the protocol "gopher" is not known; known: http'),
    ("- {name: a, protocol: ▸htp, bind: []}", 'the protocol "htp" is not known; did you mean "http"? known: http'),
    ("- {name: a, protocol: ▸[http]}", "must be the name of a protocol, not a list; known: http"),
    (
        '- {name: a, protocol: http, bind: ▸":80", routes: [{respond: {status: 200}}]}',
        'must be a list, not ":80": write it in [ ]',
    ),
    (
        "- {name: a, protocol: http, bind: ▸[], routes: ▸[]}",
        "is empty: give at least one",
        "is empty: give at least one",
    ),
    ("- {name: a, protocol: http, bind: [▸80], routes: [{respond: {status: 200}}]}", "must be text, not the number 80"),
]


@pytest.mark.parametrize("case", LISTENERS, ids=[case[0][:40] for case in LISTENERS])
def test_listeners(case: tuple[str, ...]) -> None:
    text = case[0]
    if text.startswith("▸-"):
        text = "- ▸" + text[3:]
    check(f"listeners:\n  {text.replace('▸{}', '▸▸▸▸{}')}\n", *case[1:])


def test_a_node_without_listeners() -> None:
    check("▸node: a\n", '"listeners" is missing: where clients come in')
    check("listeners: ▸[]\n", "is empty: give at least one")
    check("listeners: ▸{}\n", "must be a list, not a mapping: write it in [ ]")


BINDS = [
    ("127.0.0.1", '"127.0.0.1" has no port: write host:port, such as 127.0.0.1:8080'),
    ("127.0.0.1:", "has no port"),
    ("127.0.0.1:x", '"x" is not a port: ports are 1 to 65535'),
    ("127.0.0.1:65536", '"65536" is not a port'),
    ("127.0.0.1:-1", '"-1" is not a port'),
    ("127.0.0.1:8_0", '"8_0" is not a port'),
    ("127.0.0.256:80", '"127.0.0.256" is not an IP address, which a listener needs: write 127.0.0.1:80 or *:80'),
    ("localhost:80", '"localhost" is not an IP address, which a listener needs'),
    ("::1:80", "write an IPv6 address in brackets and with a port, such as [::1]:8080"),
    ("[::1]", "write an IPv6 address in brackets and with a port"),
    ("[127.0.0.1]:80", '"127.0.0.1" is not an IPv6 address, which is what brackets are for'),
    ("unix:", "the socket's path is missing: write unix:run/name.sock"),
    ("http://127.0.0.1:80", "write an IPv6 address in brackets"),
]


@pytest.mark.parametrize(("bind", "message"), BINDS)
def test_binds(bind: str, message: str) -> None:
    check(
        f'listeners: [{{name: a, protocol: http, bind: [▸"{bind}"], routes: [{{respond: {{status: 200}}}}]}}]', message
    )


HTTP = [
    (
        "forwarded: {trust: [▸10.0.0.1/8]}",
        '"10.0.0.1/8" has bits set behind its prefix: write 10.0.0.0/8, or the address',
    ),
    ("forwarded: {trust: [▸all]}", '"all" is not a network: write an address or a prefix, such as 192.0.2.0/24'),
    ("forwarded: {trust: [▸10.0.0.0/33]}", "is not a network"),
    ("forwarded: {trust: ▸10.0.0.0/8}", "must be a list"),
    ("timeouts: {▸request: 1s}", '"request" is not known here; did you mean'),
    ("timeouts: {keep_alive: ▸0s}", "0s is not more than nothing"),
    ("timeouts: {handshake: ▸10}", "10 has no unit: write 10s, 10ms ..."),
    ("limit: {key: source, rate: ▸100}", "100 does not say in which time: write 100/s, 100/m ..."),
    ("limit: {key: source, rate: ▸100/sec}", "sec is not a time: write 100/s"),
    ("limit: {key: source, rate: ▸0/s}", "0/s is not more than nothing"),
    ("limit: {key: source, rate: ▸fast}", 'is "fast", which is not a rate: write how many in which time'),
    ("limit: {key: source, rate: 1/s, burst: ▸0}", "the number 0 is too small: at least 1"),
    ("limit: ▸{rate: 1/s}", '"key" is missing: what is limited'),
    ("limit: {key: ▸sauce, rate: 1/s}", 'the fact "sauce" is not known; did you mean "source"?'),
    ("limit: {key: {▸headers: a}, rate: 1/s}", '"headers" is not known here; did you mean "header"?'),
    ("limit: {key: ▸{}, rate: 1/s}", "must name one fact, such as {header: x-user}"),
    ("limit: {key: ▸{header: null}, rate: 1/s}", "must name one fact"),
    ("limit: {key: ▸header, rate: 1/s}", "which header? write {header: its name}"),
    ("limit: {key: ▸sni, rate: 1/s}", "the sni is not known of http requests: source, host, path"),
    (
        "limit: {key: ▸{header: x-key}, of: connections, rate: 1/s}",
        "the header is not known of http connections: source",
    ),
    ("limit: {key: source, of: ▸logins, rate: 1/s}", "http has no logins that could be limited here: requests"),
    ("limit: {key: host, prefix4: ▸24, rate: 1/s}", "has no effect: it counts the bits of key: source"),
    (
        "limit: [{key: source, rate: 1/s}, ▸{key: source, rate: 9/h}]",
        "has a limit of the same key already: give both a",
    ),
    ("limits: {header_bytes: ▸32768}", "32768 has no unit: write 32768B, 32768KiB ..."),
    ("limits: {header_bytes: ▸32KB}", "KB is not a unit of size: write 32KiB"),
    ("limits: {header_bytes: ▸32k}", "k is not a unit of size: write 32KiB"),
    ("limits: {header_bytes: ▸10B}", "10B is not between 256B and 1MiB"),
    ("limits: {header_bytes: ▸2MiB}", "2MiB is not between 256B and 1MiB"),
    ("limits: {body_bytes: ▸0.3B}", "0.3B is not a whole number of bytes"),
    ("limits: {body_bytes: ▸5000TiB}", "5000TiB is too large"),
    ("limits: {body_bytes: ▸0KiB}", "0KiB is not more than nothing"),
    ("limits: {body_bytes: ▸lots}", '"lots", which is not a size'),
    ("limits: {headers: ▸0}", "the number 0 is too small: at least 1"),
    ('limits: {headers: ▸"5"}', 'must be a whole number, not "5"'),
    ("limits: {connections: ▸-1}", "the number -1 is too small: at least 1"),
    (
        "forwarded: {send: [via, ▸x-forwarded-from]}",
        '"x-forwarded-from" is not known; did you mean "x-forwarded-f',
    ),
    ("forwarded: {send: [▸true]}", "must be one of x-forwarded-for, x-forwarded-proto"),
    ("forwarded: {send: ▸via}", "must be a list"),
    ("http2: {prior_knowledge: ▸1}", "must be true or false, not the number 1"),
    ("http2: {max_concurrent_streams: ▸0}", "0 is too small: at least 1"),
    ("http2: {stream_window: ▸1KiB}", "1KiB is not between 64KiB and 16MiB"),
    ("http2: {connection_window: ▸1GiB}", "1GiB is not between 64KiB and 64MiB"),
    ("http2: {frame_bytes: ▸2MiB}", "2MiB is not between 16KiB and 1MiB"),
    ("http2: {resets: ▸0}", "0 is too small: at least 1"),
    ("http2: {control_frames: ▸5}", "5 is too small: at least 10"),
    ("upgrades: ▸some", '"some" is not known: write any, none or a list, such as [websocket]'),
    ("upgrades: ▸[]", "is empty: write none"),
    ("upgrades: ▸[h2c]", '"h2c" would hide requests from the rules, and is never passed on'),
    ("upgrades: ▸[HTTP/2.0]", '"http/2.0" would hide requests'),
    ('upgrades: ▸["a b"]', '"a b" is not the name of a protocol'),
    ("upgrades: ▸true", "must be any, none or a list of names, not true"),
    ("path_case: ▸lower", '"lower" is not known; known: ignore, exact'),
    ("proxy_protocol: ▸{}", '"from" is missing: '),
    ("proxy_protocol: {from: ▸[]}", "is empty: give at least one"),
    ("proxy_protocol: {from: ▸all}", "must be a list, not"),
    ("proxy_protocol: {from: [▸127.0.0.1/8]}", "has bits set behind its prefix"),
    ("proxy_protocol: {from: [127.0.0.1], ▸form: [127.0.0.2]}", '"form" is not known here; did you mean "from"?'),
    ('proxy_protocol: {from: ["unix:"], header_bytes: ▸100B}', "100B is not between 536B and"),
    ("tls: ▸{}", '"certificates" is missing: '),
    ("tls: {certificates: ▸[]}", "is empty"),
    ("tls: {certificates: [{cert: ▸none.pem, key: none.key}]}", "none.pem: there is no such file"),
    ("tls: {certificates: [{cert: ▸sub/none.pem, key: none.key}]}", "sub/none.pem: there is no such file (/"),
    ("tls: {certificates: [{cert: ▸/no/none.pem, key: none.key}]}", "/no/none.pem: there is no such file"),
    ("tls: {min_version: ▸1.2, certificates: [{cert: ▸a, key: b}]}", 'write it in quotes, "1.2"'),
    ("tls: {certificates: [▸{cert: none.pem, ocsp: none.der}]}", '"key" is missing'),
    ("tls: {certificates: [{cert: ▸none.pem, key: none.key}], min_version: '1.2', max_version: '1.3'}", "no such file"),
    ("tls: {certificates: [{cert: ▸none.pem, key: none.key}], alpn: [http/1.1]}", "none.pem: there is no such file"),
    ("tls: {certificates: [{cert: ▸none.pem, key: none.key}], session_tickets: off}", "there is no such file"),
    ("tls: {session_tickets: ▸maybe, certificates: [{cert: ▸a, key: b}]}", '"maybe" is not known; known: shared, off'),
    ("tls: {client_certificate: ▸never, certificates: [{cert: ▸a, key: b}]}", '"never" is not known; known: required'),
    ("tls: {client_ca: ▸[], certificates: [{cert: ▸a, key: b}]}", "must be text"),
    ("tls: {ciphers: ▸AES, certificates: [{cert: ▸a, key: b}]}", "must be a list"),
    ("tls: {alpn: [▸'h 2'], certificates: [{cert: ▸a, key: b}]}", '"h 2" is not the name of a protocol'),
]


@pytest.mark.parametrize(("keys", "message"), HTTP, ids=[keys[:40] for keys, _ in HTTP])
def test_http_listeners(keys: str, message: str) -> None:
    check(listener(keys), message, *["there is no such file"] * keys.count("cert: ▸a"))


RULES = [
    ("▸{}", "says nothing to do: give one of pool, split, respond, redirect"),
    ("▸{match: {path: /a}}", "says nothing to do"),
    ("{pool: web, redirect: ▸{location: /a}}", "redirect and pool exclude one another: keep one"),
    ("{pool: web, limit: {key: source, of: ▸connections, rate: 1/s}}", "http has no connections that could be limited"),
    ("{pool: ▸wbe}", 'the pool "wbe" is not known; did you mean "web"? known: web, api, spare'),
    ("{pool: ▸other}", 'the pool "other" is not known; known: web, api, spare'),
    ("{split: ▸[]}", "is empty: give at least one"),
    ("{split: [{pool: ▸wb}]}", 'the pool "wb" is not known; did you mean "web"?'),
    ("{split: ▸[{pool: web, weight: 0}]}", "all weights are 0: give one of them more"),
    ("{split: [{pool: web, weight: ▸-1}]}", "the number -1 is too small: at least 0"),
    ("{split: [{pool: web, weight: ▸50%}]}", 'must be a whole number, not "50%"'),
    ("{respond: {status: ▸100}}", "100 is not the status of an answer: those are 200 to 599"),
    ("{respond: {status: ▸600}}", "600 is not the status"),
    ("{respond: {status: ▸OK}}", 'must be a whole number, not "OK"'),
    ("{respond: ▸{body: a}}", '"status" is missing: the status, 200 to 599'),
    ("{respond: {status: 204, body: ▸a}}", "an answer with status 204 has no body"),
    (f"{{respond: {{status: 200, body: ▸{'a' * 70000}}}}}", "at most 65536 bytes"),
    ('{respond: {status: 200, headers: {x: ▸"a\\r\\nb: c"}}}', "only printable ASCII, no line ends"),
    ("{respond: {status: 200, headers: {▸a b: c}}}", '"a b" is not a header name'),
    ("{respond: {status: 200, headers: {▸Content-Length: '5'}}}", "content-length belongs to the connection"),
    ("{respond: {status: 200, headers: ▸{Content-Type: a}}}", "the body's type is set by content_type, not here"),
    ('{respond: {status: 200, content_type: ▸"a\\nb"}}', "a character that a header can't have"),
    ("{redirect: {location: /a, status: ▸200}}", "200 is not a redirection: write one of 301, 302, 303, 307, 308"),
    ("{redirect: {status: 301}}".replace("{status", "▸{status"), '"location" is missing: where to, a template'),
    ('{redirect: {location: ▸"/{pth}"}}', "there is no {pth}; {path} may be meant"),
    ('{redirect: {location: ▸"/{path"}}', "without its partner"),
    ('{redirect: {location: ▸"/a\\r\\nb"}}', "can't hold control characters"),
    ('{redirect: {location: ▸"/{path.1}"}}', "{path.1} stands for nothing: the rule's path has no *"),
    ('{match: {path: "/a/*"}, redirect: {location: ▸"/{path.2}"}}', "the rule's path has only 1 *"),
    ('{match: {path: ["/a/*", /b]}, rewrite: {path: ▸"/{path.1}"}, pool: web}', "the rule's path has no *"),
    ('{match: {path_regex: "^/(a)(b)"}, rewrite: {path: ▸"/{path.3}"}, pool: web}', "{path.3} stands for nothing"),
    ('{match: {path_regex: "^/a"}, rewrite: {path: ▸"/{path.1}"}, pool: web}', "{path.1} stands for nothing"),
    ('{rewrite: {host: ▸"{path.1}"}, pool: web}', "{path.1} stands for nothing"),
    ('{rewrite: {host: ▸"{hst}"}, pool: web}', "there is no {hst}"),
    ("{rewrite: {path: ▸a}, pool: web}", '"a" must begin with /: write "/a"'),
    ("{rewrite: ▸{}, pool: web}", "is empty: give path or host"),
    ("{rewrite: ▸{path: /a}, respond: {status: 200}}", "has no effect: with respond, no server gets the request"),
    ("{set_headers: ▸{a: b}, redirect: {location: /a}}", "has no effect: with redirect"),
    ("{set_headers: {a: ▸1}, pool: web}", 'must be text, not the number 1: write it in quotes, "1"'),
    ("{set_headers: {▸'a:': b}, pool: web}", '"a:" is not a header name'),
    ("{set_headers: ▸{host: b}, pool: web}", "the Host is set by rewrite: {host: ...}"),
    ("{set_headers: ▸{a: b, A: c}, pool: web}", 'the header "a" is there twice, in different case: keep one'),
    ("{set_headers: {a: ▸' b'}, pool: web}", "begins or ends with a space"),
    ("{set_headers: {a: ▸é}, pool: web}", "only printable ASCII"),
    ("{remove_headers: [▸transfer-encoding], pool: web}", "transfer-encoding belongs to the connection"),
    ("{remove_headers: ▸a, pool: web}", "must be a list"),
    ("{set_headers: {a: b}, remove_headers: ▸[A], pool: web}", "a is set as well: keep one of both"),
    ("{set_response_headers: {a: b}, remove_response_headers: ▸[a], pool: web}", "a is set as well"),
    ("{match: ▸{}, pool: web}", "is empty: give a condition, or leave match out for a rule that takes everything"),
    ("{match: {not: ▸{}}, pool: web}", "is empty: give a condition"),
    ("{match: ▸/a, pool: web}", 'must be a mapping, not "/a"; its keys: host, path, path_regex, method'),
    ("{match: {▸pathh: /a}, pool: web}", 'did you mean "path"?'),
    ("{match: {host: ▸[]}, pool: web}", "is empty: give at least one"),
    ("{match: {host: ▸'example.org:80'}, pool: web}", "port"),
    ("{match: {host: [a, ▸http://a/]}, pool: web}", "URL"),
    ("{match: {path: ▸api}, pool: web}", "begins"),
    ("{match: {path: ▸/a?b=c}, pool: web}", "query:"),
    ("{match: {path: ▸/a/../b}, pool: web}", "dot segments"),
    ("{match: {path: ▸/a//b}, pool: web}", "empty or dot segments"),
    ("{match: {path: ▸/a/**}, pool: web}", "write it once"),
    ('{match: {path_regex: ▸"["}, pool: web}', "unterminated character set at position 0"),
    ('{match: {path_regex: ▸"/[[a]"}, pool: web}', "possible nested set at position 2; put a backslash"),
    ('{match: {path_regex: [/a, ▸"(a+)+$"]}, pool: web}', "could take very long"),
    ("{match: {method: ▸get}, pool: web}", "methods are upper case: write GET"),
    ("{match: {method: [GET, ▸'A B']}, pool: web}", "is not a method"),
    ("{match: {header: ▸{}}, pool: web}", "is empty: give a name and its value"),
    ("{match: {header: {▸'a b': c}}, pool: web}", "is not a header name"),
    ("{match: {header: {a: ▸1}}, pool: web}", 'must be text, not the number 1: write it in quotes, "1"'),
    ("{match: {header: ▸a}, pool: web}", "must be a mapping of keys and values"),
    ("{match: {cookie: {▸'a;b': c}}, pool: web}", "is not a cookie name"),
    ("{match: {query: {a: ▸'b**'}}, pool: web}", "write it once"),
    ("{match: {source: ▸10.0.0.1/8}, pool: web}", "10.0.0.0/8"),
    ("{match: {source: [▸nowhere]}, pool: web}", "address or network"),
    ("{match: {not: {not: {host: ▸''}}}, pool: web}", "missing"),
]


@pytest.mark.parametrize(("rule", "message"), RULES, ids=[rule[:50] for rule, _ in RULES])
def test_rules(rule: str, message: str) -> None:
    problems = check(routes(rule), message)
    assert problems[0].path.startswith("listeners[0].routes[0]")


def test_rules_behind_one_that_takes_everything() -> None:
    text = routes(
        "{match: {host: a.example}, pool: web}", "{pool: api}", "▸{match: {path: /x}, pool: web}", "▸{pool: web}"
    )
    check(text, "is never reached: the rule in line 7 takes everything; put that last", "is never reached")


def test_each_listener_has_its_own_order() -> None:
    text = node("pools: {a: {servers: [{name: a, address: 'a:1'}]}}").replace(
        "listeners: [", "listeners: [{name: x, protocol: http, bind: [':81'], routes: [{pool: a}]}, "
    )
    assert load("x.yaml", text=text).warnings == []


def test_a_file_without_pools() -> None:
    text = 'listeners: [{name: web, protocol: http, bind: [":80"], routes: [{pool: ▸web}]}]'
    check(text, 'the pool "web" is not known: there are none')


# Listeners that pass connections through, a line in front of the rules.
STREAMS = [
    ("tcp", "{match: {▸sni: a}, pool: a}", "a rule for tcp can't see this, since nothing of the connection is read"),
    ("tcp", "{match: {not: {▸path: /}}, pool: a}", "a rule for tcp can't see this"),
    (
        "tls-passthrough",
        "{match: {▸host: a}, pool: a}",
        "can't see this, since what is inside TLS is not decrypted; it ",
    ),
    ("tls-passthrough", "{▸respond: {status: 403}}", "a rule for tls-passthrough can't do this"),
    ("tls-passthrough", "{pool: a, ▸rewrite: {path: /}}", "can't do this, since what is inside TLS is not decrypted"),
    ("tls-passthrough", "{pool: a, ▸set_headers: {x: a}}", "it has pool or split"),
    ("tls-passthrough", "{match: {alpn: ▸'h 2'}, pool: a}", '"h 2" is not the name of a protocol, such as h2'),
    ("http", "{match: {▸alpn: h2}, pool: a}", "a rule for http can't see this, which belongs to TLS that is passed"),
]


@pytest.mark.parametrize(("protocol", "route", "message"), STREAMS, ids=[f"{case[0]} {case[1]}" for case in STREAMS])
def test_rules_of_connections_that_are_passed_through(protocol: str, route: str, message: str) -> None:
    text = f"listeners: [{{name: a, protocol: {protocol}, bind: [':80'], routes: [{route}]}}]\n"
    if "pool: a" in route:
        text += "pools: {a: {servers: [{name: b, address: 'b:1'}]}}\n"
    check(text, message)


def test_the_longest_client_hello() -> None:
    listener = "name: a, protocol: tls-passthrough, bind: [':80'], routes: [{pool: a}]"
    pools = "pools: {a: {servers: [{name: b, address: 'b:1'}]}}\n"
    text = f"listeners: [{{{listener}, limits: {{client_hello_bytes: ▸1MiB}}}}]\n"
    check(text + pools, "1MiB is not between 1KiB and 256KiB")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            "persistence: {tls_session: {then: ▸{cookie: {name: a}}}}",
            "tls-passthrough, the protocol of this pool, shows no",
        ),
        ("balance: ▸{hash: path}", "tls-passthrough, the protocol of this pool, shows no path: hash something else"),
    ],
)
def test_what_a_pool_of_connections_can_be_known_by(keys: str, message: str) -> None:
    text = "listeners: [{name: a, protocol: tls-passthrough, bind: [':80'], routes: [{pool: a}]}]\n"
    place = keys.replace("▸{cookie: {", "{cookie: ▸{")
    check(text + f"pools: {{a: {{{place}, servers: [{{name: b, address: 'b:1'}}]}}}}\n", message)


POOLS = [
    ('http_version: ▸"3"', '"3" is not known; known: 1.1, 2'),
    ("http_version: ▸2", "must be one of 1.1, 2, not the number 2"),
    ("balance: ▸robin", 'the algorithm "robin" is not known; did you mean "round-robin"? known: round-robin, '),
    ("balance: ▸least_connections", 'did you mean "least-connections"?'),
    ("balance: ▸hash", "hash needs to know what is hashed: write {hash: path}"),
    ("balance: ▸[first]", "must be a mapping, not a list; its keys: hash, bounded_load"),
    ("balance: ▸{bounded_load: 2}", "a mapping is for hash: give hash, or write the algorithm's name alone"),
    ("balance: {▸first: {}}", '"first" is not known here; known: bounded_load, hash'),
    (
        "balance: {hash: ▸uri}",
        'the fact "uri" is not known; did you mean "url"? known: path, source, host, url, sni, alpn, mailbox, header',
    ),
    ("balance: {hash: ▸header}", "which header? write {header: its name}"),
    ("balance: {hash: ▸{header: a, cookie: b}}", "must name one fact, such as {header: x-user}"),
    ("balance: {hash: ▸{}}", "must name one fact"),
    ("balance: {hash: {header: ▸'a b'}}", "is not a header name"),
    ("balance: {hash: path, bounded_load: ▸0.9}", "the number 0.9 is too small: at least 1"),
    ("balance: {hash: path, bounded_load: ▸.nan}", "must be a number, not the number nan"),
    ("balance: {hash: path, bounded_load: ▸125%}", 'must be a number, not "125%"'),
    ("balance: {hash: path, ▸word: path}", '"word" is not known here'),
    ("persistence: ▸cookie", "cookie needs a name: write {cookie: {name: ...}}"),
    ("persistence: ▸mailbox", "http, the protocol of this pool, shows no mailbox: use source"),
    (
        "persistence: ▸inbox",
        'the persistence key "inbox" is not known; did you mean "mailbox"? known: mailbox, cookie, application_cookie',
    ),
    (
        "persistence: ▸{}",
        "says nothing to keep users by: give one of mailbox, cookie, application_cookie, header, tls_session",
    ),
    ("persistence: ▸tls_session", "http, the protocol of this pool, shows no tls_session: use source"),
    ("balance: ▸{hash: sni}", "http, the protocol of this pool, shows no sni: hash something else, such as source"),
    ("persistence: ▸[]", "is empty: give at least one"),
    ("persistence: ▸[{header: {name: a}}, source, source]", "source is given twice"),
    ("persistence: {cookie: {name: a}, source: ▸{}}", "source and cookie are two keys: write a list of them"),
    ("persistence: {cookie: ▸{}}", '"name" is missing: the cookie\'s name'),
    (
        "persistence: {cookie: {name: ▸'a=b'}}",
        '"a=b" is not a cookie name: letters, digits, - and _, no spaces, = or ;',
    ),
    ("persistence: {cookie: {name: a, max_age: ▸0s}}", "0s is not more than nothing"),
    ("persistence: {cookie: {name: a, http_only: ▸yes}}", 'must be true or false, not "yes"'),
    ("persistence: {cookie: {name: a, same_site: ▸Lax}}", '"Lax" is not known; did you mean "lax"?'),
    ("persistence: {cookie: {name: a, same_site: none, secure: ▸never}}", "browsers refuse same_site: none"),
    ("persistence: {cookie: {name: a, path: ▸'/;x'}}", "a character that a cookie's attribute can't have"),
    ("persistence: {cookie: {name: a, path: ▸a}}", "a cookie's path begins with /"),
    ("persistence: {cookie: {name: a, domain: ▸'a b'}}", "a character that a cookie's attribute can't have"),
    ("persistence: {cookie: {name: ▸__Host-a, domain: b}}", "browsers refuse"),
    ("persistence: {cookie: {name: a, key_file: ▸no.key}}", "the key file can't be read: No such file or directory"),
    ("persistence: {cookie: {name: a, key_file: ▸/}}", "the key file can't be read"),
    ("persistence: {cookie: {name: a, key_file: ▸/dev/null}}", "the key file must hold 16 to 65536 bytes"),
    ("persistence: {cookie: {name: a, key_file: ▸/dev/zero}}", "the key file must hold 16 to 65536 bytes"),
    (
        "persistence: ▸[{cookie: {name: a}}, {cookie: {name: b}}]",
        "l7lb sets one cookie for a pool: keep one cookie key",
    ),
    ("persistence: {application_cookie: {name: a, expire: ▸1}}", "1 has no unit"),
    (
        "persistence: {header: {name: a, then: ▸sorce}}",
        'the persistence key "sorce" is not known; did you mean "source"?',
    ),
    ("persistence: {source: {prefix4: ▸33}}", "the number 33 is too large: at most 32"),
    ("persistence: {source: {prefix6: ▸0}}", "the number 0 is too small: at least 1"),
    ("persistence: [source, ▸5]", "must be a mapping, not the number 5"),
    ("health: ▸{}", "says nothing to check: give one of http, tcp, ping, protocol, such as tcp: {}"),
    ("health: ▸tcp", 'must be a mapping, not "tcp"; its keys: http, tcp, ping, protocol, interval'),
    ("health: {http: {}, tcp: ▸{}}", "tcp and http exclude one another: keep one"),
    ("health: {tcp: {▸path: /a}}", '"path" is not known here'),
    ("health: {http: {path: ▸up}}", '"up" must begin with /: write "/up"'),
    ("health: {http: {path: ▸/a b}}", "a character that a URL can't have"),
    ("health: {http: {expect: ▸200-}}", '"200-" is not a status or a range of them: write 200 or 200-299'),
    ("health: {http: {expect: ▸299-200}}", "is upside down: write 200-299"),
    ("health: {http: {expect: ▸[200, 700]}}", "700 is not a status: those end at 599"),
    ("health: {http: {expect: ▸[]}}", "is empty: write the expected status"),
    ("health: {http: {expect: ▸2xx}}", "is not a status or a range"),
    ("health: {http: {method: ▸head}}", "write HEAD"),
    ("health: {http: {host: ▸'a b'}}", "is not a host name"),
    ("health: {http: {headers: ▸{Host: a}}}", "the Host is set by host, not here"),
    ("health: {tcp: {}, interval: ▸0s}", "0s is not more than nothing"),
    ("health: {tcp: {}, rise: ▸0}", "too small: at least 1"),
    ("health: {tcp: {}, port: ▸70000}", "the number 70000 is too large: at most 65535"),
    ("health: {ping: {}, port: ▸70}", "a ping has no port"),
    ("outliers: {max_ejected: ▸0.5}", "0.5 has no unit: write a percentage, such as 50%"),
    ("outliers: {max_ejected: ▸150%}", "150% is more than 100%"),
    ("outliers: {max_ejected: ▸half}", '"half", which is not a percentage'),
    ("outliers: {consecutive_errors: ▸0}", "too small"),
    ("outliers: {eject_for: ▸0s}", "0s is not more than nothing"),
    ("retries: {attempts: ▸-1}", "too small: at least 0"),
    (
        "retries: {when: [▸conect-failure]}",
        'the outcome "conect-failure" is not known; did you mean "connect-failure"?',
    ),
    ("retries: {when: [503, ▸404]}", "404 can't be retried: only statuses 500 to 599 can"),
    ("retries: {when: [▸'503']}", '"503" is text: write the status without quotes'),
    ("retries: {when: [▸true]}", "not true"),
    ("retries: {when: ▸connect-failure}", "must be a list"),
    ("timeouts: {connect: ▸0ms}", "0ms is not more than nothing"),
    ("timeouts: {▸conect: 1s}", 'did you mean "connect"?'),
    ("queue: ▸-1", "too small: at least 0"),
    ("queue: ▸1k", 'must be a whole number, not "1k"'),
    ("slow_start: ▸5", "5 has no unit: write 5s"),
    ("idle_connections: ▸-5", "too small"),
]


@pytest.mark.parametrize("case", POOLS, ids=[case[0][:60] for case in POOLS])
def test_pools(case: tuple[str, ...]) -> None:
    check(pool(case[0]), *case[1:])


SERVERS = [
    ("{name: a, address: 'a:1', tls: ▸true}", "must be a mapping, not true; its keys: ca, server_name, verify"),
    ("{name: a, address: 'a:1', tls: {ca: ▸sub/none.pem}}", "sub/none.pem: there is no such file (/"),
    ("{name: a, address: 'a:1', tls: {server_name: ▸'a b'}}", '"a b" is not a host name'),
    ("{name: a, address: 'a:1', tls: {verify: ▸'no'}}", 'must be true or false, not "no"'),
    ("{name: a, address: 'a:1', tls: {certificate: ▸{cert: a}}}", '"key" is missing'),
    ("▸", "is empty: give at least one"),
    ("▸5", "must be a mapping, not the number 5; its keys: name, address, host, ports, weight"),
    ('▸{address: "192.0.2.1:80"}', '"name" is missing: the server\'s name'),
    ("▸{name: a}", '"address" is missing: where it is'),
    ("{name: a, address: ▸192.0.2.1}", "has no port: write host:port, such as 192.0.2.1:8080"),
    ("{name: a, address: ▸'192.0.2.1:0'}", '"0" is not a port: ports are 1 to 65535'),
    ("{name: a, address: ▸'192.0.2.1.5:80'}", '"192.0.2.1.5" is not an IP address'),
    ("{name: a, address: ▸':80'}", "the host is missing: write host:port"),
    ("{name: a, address: ▸'-a.example:80'}", '"-a.example" is not a host name'),
    ("{name: a, address: ▸'bücher.example:80'}", "is not a host name: write its xn-- form"),
    ("{name: a, address: ▸'2001:db8::1'}", "in brackets"),
    ("{name: a, address: ▸'http://a:80'}", "in brackets"),
    ("{name: a, address: ▸8080}", "must be text"),
    ("{name: a/b, address: 'a:1'}".replace("a/b", "▸a/b"), '"a/b" is not a name'),
    ("{name: a, address: 'a:1', weight: ▸-1}", "too small: at least 0"),
    ("{name: a, address: 'a:1', weight: ▸1001}", "too large: at most 1000"),
    ("{name: a, address: 'a:1', weight: ▸1.5}", "must be a whole number"),
    ("{name: a, address: 'a:1', max_connections: ▸0}", "too small: at least 1"),
    ("{name: a, address: 'a:1', send_proxy: ▸true}", "must be one of v1, v2, not true"),
    ("{name: a, address: 'a:1', send_proxy: ▸V2}", '"V2" is not known; did you mean "v2"?'),
    ("{name: a, address: 'a:1', backup: ▸1}", "must be true or false, not the number 1"),
    ("{name: a, address: 'a:1', ▸wieght: 1}", 'did you mean "weight"?'),
    ("{name: a, address: 'a:1'}, {name: ▸a, address: 'b:1'}", 'a server of this pool in line 3 is named "a" already'),
]


@pytest.mark.parametrize(("servers", "message"), SERVERS, ids=[servers[:50] for servers, _ in SERVERS])
def test_servers(servers: str, message: str) -> None:
    text = pool("queue: 1", servers)
    check(text.replace("[▸]", "▸[]"), message)


def test_weights_that_leave_no_server() -> None:
    text = pool("queue: 1", "{name: a, address: 'a:1', weight: 0}, {name: b, address: 'b:1', weight: 0}")
    check(
        text.replace("servers: [", "servers: ▸["), "all weights are 0, so that no server is used: give one of them more"
    )


def test_names_and_binds_used_twice() -> None:
    rule = "routes: [{respond: {status: 200}}]"
    check(
        f"""\
listeners:
  - {{name: a, protocol: http, bind: [":80", "[::1]:81", ▸"*:80"], {rule}}}
  - {{name: ▸a, protocol: http, bind: [▸"[0:0::1]:81", "unix:x/y"], {rule}}}
  - {{name: b, protocol: http, bind: [▸"unix:x/y", "127.0.0.1:0", "127.0.0.1:0"], {rule}}}
""",
        "*:80 is bound in line 2 already: give it once",
        'a listener in line 2 is named "a" already: names differ',
        "[0:0::1]:81 is bound in line 2 already",
        "unix:x/y is bound in line 3 already",
    )


def test_binds_of_the_node_itself() -> None:
    check(
        node('admin: {metrics: "127.0.0.1:80", socket: x/y}').replace(
            '"127.0.0.1:80"],', '▸"127.0.0.1:80", ▸"unix:x/y"],'
        ),
        "127.0.0.1:80 is bound in line 2 already",
        "unix:x/y is bound in line 2 already",
    )


def test_a_health_check_whose_protocol_is_unknown() -> None:
    text = node("pools: {a: {servers: [{name: a, address: 'a:1'}], health: {▸protocol: {}}}}")
    check(text, "no rule leads to this pool, so that the protocol to check is not known: use http or tcp")


def test_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    check(node("user: ▸no-such-user\ngroup: ▸no-such-group"), "this system has no user", "this system has no group")
    check(node('user: ▸""'), "has no visible character")
    check(node('user: ▸"a\\0b"'), "one that can't be shown")
    check_warnings(node("user: root\ngroup: root"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    text = node("user: ▸▸no-such-user\ngroup: ▸no-such-group")
    check_warnings(text, "this system has no user", "only root can", "this system has no group")
    check_warnings(node("group: ▸root"), "has no effect without user")
    monkeypatch.setattr(os, "geteuid", lambda: pwd.getpwnam("nobody").pw_uid)
    check_warnings(node("user: nobody"))  # a node that has changed user reads its file again


def test_one_mistake_does_not_hide_another() -> None:
    problems = check(
        """\
listeners:
  - name: web
    protocol: http
    bind: [▸80]
    limits: {headers: ▸none}
    routes:
      - {match: {host: ▸[]}, pool: ▸wbe}
      - {pool: web}
      - ▸{match: {path: ▸x}, pool: ▸api}
▸pols:
  web: {servers: []}
pools:
  web:
    balance: ▸fist
    servers: [{name: a, address: "a:1"}, {name: ▸a, address: ▸1}, ▸▸{}]
""",
        "must be text",
        "must be a whole number",
        "is empty",
        'the pool "wbe" is not known',
        "is never reached",
        "begins neither",
        'the pool "api" is not known',
        'did you mean "pools"?',
        'did you mean "first"?',
        'named "a" already',
        "must be text",
        '"name" is missing',
        '"address" is missing',
    )
    assert problems[0].path == "listeners[0].bind[0]"
    assert problems[-1].path == "pools.web.servers[2]"


def test_a_mistake_behind_an_alias_is_told_once_at_its_place() -> None:
    check(
        """\
x-rules: &rules
  - {pool: ▸wbe}
listeners:
  - {name: a, protocol: http, bind: [":80"], routes: *rules}
  - {name: b, protocol: http, bind: [":81"], routes: *rules}
pools: {web: {servers: [{name: a, address: "a:1"}]}}
""",
        'did you mean "web"?',
    )


WARNINGS = [
    (routes("{match: {path: /a}, pool: web}", "▸{match: {path: /a}, pool: api}", "{pool: spare}"), "is never reached"),
    (node('pools: {▸a: {servers: [{name: a, address: "a:1"}]}}'), "no rule leads to this pool"),
    (
        pool("queue: 1", "{name: a, address: 'a:1'}, {name: b, address: ▸'a:1'}"),
        "a:1 is also the address of a in line 3",
    ),
    (pool("queue: 0").replace("192.0.2.1:80'}]", ""), ""),
    (pool("persistence: ▸[source, {cookie: {name: a}}]"), "keys after source are hardly tried"),
    (pool("health: {tcp: {}, port: 8}", "{name: a, address: ▸'unix:a'}"), "a unix socket has no port"),
    (
        pool("queue: 1", "{name: a, address: 'a:1', backup: true}").replace("servers: [", "servers: ▸["),
        "all servers are",
    ),
    (node("").replace("respond: {status: 200}", "redirect: {location: ▸'{path}'}"), "leads back to this rule"),
    (node("").replace("respond: {status: 200}", "redirect: {location: ▸/a?b}"), "leads back to this rule"),
    (
        routes(
            "{match: {path: '/A/*'}, redirect: {location: ▸/a/b}}", "{match: {path: /b}, redirect: {location: /c}}"
        ).partition("pools:")[0],
        "leads back to this rule",
    ),
    (node("").replace('"127.0.0.1:80"', '▸"127.0.0.1:0"'), "port 0 lets the kernel choose"),
]


@pytest.mark.parametrize(("text", "message"), WARNINGS)
def test_warnings(text: str, message: str) -> None:
    check_warnings(text, *([message] if message else []))


@pytest.mark.parametrize(
    "rule",
    [
        "redirect: {location: 'https://{host}{path}'}",
        "match: {path: /a}, redirect: {location: /b}",
        "match: {path: /a, method: POST}, redirect: {location: /a, status: 303}",
        "match: {path_regex: '^/a'}, redirect: {location: /b}",
    ],
)
def test_redirections_that_are_no_circle(rule: str) -> None:
    assert load("x.yaml", text=node("").replace("respond: {status: 200}", rule)).warnings == []


def test_a_key_file_is_found_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(b"x" * 16 + b"\n")
    first = load(tmp_path / "x.yaml", text=pool("persistence: {cookie: {name: a, key_file: k}}"))
    (tmp_path / "k").write_bytes(b"y" * 16)
    second = load(tmp_path / "x.yaml", text=pool("persistence: {cookie: {name: a, key_file: k}}"))
    keys = {str(loaded.snapshot.pools[0].persistence[0]) for loaded in (first, second)}
    assert len(keys) == 2
    assert "xxxx" not in str(keys)


@pytest.mark.parametrize("ending", ["json", "toml"])
def test_places_in_other_formats(ending: str) -> None:
    texts = {
        "json": """\
{
  "listeners": [{"name": "web", "protocol": "http", "bind": [▸"x"],
                 "routes": [{"pool": ▸"wbe"}]}],
  "pools": {"web": {"servers": [{"name": "a", "address": "a:1", ▸"wight": 2}], "queue": ▸"5"}}
}
""",
        "toml": """\
[[listeners]]
name = "web"
protocol = "http"
bind = [▸"x"] # comment
[[listeners.routes]]
pool = ▸"wbe"
[pools.web]
servers = [{name = "a", address = "a:1", ▸wight = 2}]
queue = ▸"5"
""",
    }
    messages = ["has no port", 'did you mean "web"?', 'did you mean "weight"?', "must be a whole number"]
    check(texts[ending], *messages, ending=ending)
