"""The proxies under comparison and the servers behind them, configured to do the same work.

What is the same for all: one process or thread of work; a route by host, a route by host and path, and one for the
rest; a pool of four servers in rotation; a cookie that keeps a user on a server, taken out of the request and inserted
where it is missing; X-Forwarded-For; connections to servers that are kept and used again; no access log; no health
checks; the same limits of time. HAProxy reuses connections in its default mode, ``http-reuse safe``. nginx has no
sticky cookie in its free version: a map from the cookie to the server stands for it.

Headers differ by default: l7lb adds X-Forwarded-Proto, -Port and -Host, Forwarded, X-Request-ID and Via to
X-Forwarded-For, which is all that HAProxy and nginx add here. So small requests are compared on equal work twice:
``l7lb-plain``, told to send X-Forwarded-For alone, beside the two as they are; and ``l7lb`` as it is beside
``haproxy-headers`` and ``nginx-headers``, told to set the same headers. The limits hold for these pairs. l7lb as it is
beside the two as they are is printed as well, for information.

Small requests ask for 10,000 distinct URLs in random order, all peers for the same ones in the same order, so that
nobody lives on what it remembers of the last ones: see :mod:`benchmarks.urls`.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import urls
from benchmarks.processes import BenchmarkError, Cores, Group, free_port

SERVERS = 4
SMALL = 120  # bytes of a small answer's body
LARGE = 10_000_000  # bytes of a large one
IDLE_SECONDS = 600


@dataclass(frozen=True)
class Site:
    """Where everything is."""

    folder: Path
    cores: Cores
    servers: tuple[int, ...]  # ports
    urls: Path  # a file of those that small requests ask for


def find(program: str) -> str:
    """A program's path, system folders included. Raises BenchmarkError where it is not installed."""
    path = shutil.which(program) or shutil.which(program, path="/usr/local/sbin:/usr/sbin:/sbin")
    if path is None:
        raise BenchmarkError(f"{program} is not installed")
    return path


def servers(folder: Path, cores: Cores) -> tuple[Site, Group]:
    """nginx as the servers of the pool: a small fixed answer everywhere, a large file below /large."""
    ports = tuple(free_port() for _ in range(SERVERS))
    root = folder / "root"
    root.mkdir(exist_ok=True)
    with (root / "large").open("wb") as large:
        large.truncate(LARGE)
    body = "x" * SMALL
    blocks = "\n".join(
        f"""
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{ default_type text/plain; return 200 "{body}"; }}
        location /large {{ root {root}; }}
    }}"""
        for port in ports
    )
    text = nginx_text(folder / "servers", "sendfile on; tcp_nopush on;", blocks)
    group = Group("servers", nginx_command(folder / "servers", text), cores.servers, folder, ports[0])
    return Site(folder, cores, ports, urls.write(folder)), group


def haproxy(site: Site, name: str = "haproxy", options: str = "", headers: str = "") -> Group:
    """HAProxy with one thread; ``options`` are further lines of its defaults, ``headers`` of its frontend."""
    port = free_port()
    lines = "\n".join(
        f"    server web{number} 127.0.0.1:{server} cookie web{number}" for number, server in enumerate(site.servers)
    )
    text = f"""
global
    nbthread 1
    maxconn 12000
    no strict-limits
defaults
    mode http
    timeout connect 5s
    timeout client {IDLE_SECONDS}s
    timeout server 60s
    timeout http-request 10s
    timeout http-keep-alive {IDLE_SECONDS}s
    option forwardfor
    {options}
frontend web
    bind 127.0.0.1:{port} backlog 4096
    acl host_static hdr(host) -i static.example.com
    acl host_org hdr_end(host) -i .example.org
    acl path_api path_beg /api/
    {headers}
    use_backend static if host_static
    use_backend api if host_org path_api
    default_backend web
backend web
    balance roundrobin
    cookie L7LB insert indirect nocache
{lines}
backend api
    server api1 127.0.0.1:{site.servers[0]}
backend static
    server static1 127.0.0.1:{site.servers[1]}
"""
    path = site.folder / f"{name}.cfg"
    path.write_text(text)
    return Group(name, [find("haproxy"), "-db", "-f", str(path)], site.cores.measured, site.folder, port)


PLAIN = "{send: [x-forwarded-for]}"  # l7lb's word for what the others add by themselves
# What l7lb sets beside X-Forwarded-For, in the others' words.
HAPROXY_HEADERS = """
    http-request set-header X-Forwarded-Proto http
    http-request set-header X-Forwarded-Port %[dst_port]
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    http-request set-header Forwarded for=%[src];host="%[req.hdr(host)]";proto=http
    http-request set-header X-Request-ID %[uuid()]
    http-request add-header Via "1.1 haproxy"
    http-response add-header Via "1.1 haproxy"
"""
NGINX_HEADERS = """
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header X-Forwarded-Port $server_port;
    proxy_set_header X-Forwarded-Host $http_host;
    proxy_set_header Forwarded 'for=$remote_addr;host="$http_host";proto=$scheme';
    proxy_set_header X-Request-ID $request_id;
    proxy_set_header Via "1.1 nginx";
    add_header Via "1.1 nginx";
"""


def nginx(site: Site, name: str = "nginx", headers: str = "") -> Group:
    """nginx with one worker, as a proxy; ``headers`` are further lines of its http block."""
    port = free_port()
    every = "\n".join(f"        server 127.0.0.1:{server};" for server in site.servers)
    single = "\n".join(
        f"    upstream web{number} {{ server 127.0.0.1:{server}; keepalive 64; }}"
        for number, server in enumerate(site.servers)
    )
    cookies = "\n".join(f"        web{number} web{number};" for number in range(len(site.servers)))
    via = 'add_header Via "1.1 nginx";' if headers else ""  # a block that adds one header loses those from outside
    blocks = f"""
    upstream web {{
{every}
        keepalive 64;
    }}
{single}
    upstream api {{ server 127.0.0.1:{site.servers[0]}; keepalive 64; }}
    upstream static {{ server 127.0.0.1:{site.servers[1]}; keepalive 64; }}
    map $cookie_L7LB $sticky {{
        default web;
{cookies}
    }}
    map $cookie_L7LB $new_cookie {{ default ""; "" "L7LB=web0; path=/"; }}
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    {headers}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        server_name static.example.com;
        location / {{ proxy_pass http://static; }}
    }}
    server {{
        listen 127.0.0.1:{port};
        server_name *.example.org;
        location /api/ {{ proxy_pass http://api; }}
        location / {{ proxy_pass http://web; }}
    }}
    server {{
        listen 127.0.0.1:{port} default_server;
        location / {{ proxy_pass http://$sticky; add_header Set-Cookie $new_cookie; {via} }}
    }}
"""
    text = nginx_text(site.folder / name, "", blocks)
    return Group(name, nginx_command(site.folder / name, text), site.cores.measured, site.folder, port)


def l7lb(
    site: Site, name: str = "l7lb", workers: int = 1, rules: int = 0, bare: bool = False, forwarded: str = "{}"
) -> Group:
    """l7lb; ``rules`` adds so many of hosts and paths, ``bare`` runs the data path alone in one process, ``forwarded``
    is the listener's section of that name.
    """
    port = free_port()
    folder = site.folder / name
    folder.mkdir(exist_ok=True)
    more = "".join(
        f'      - {{match: {{host: "h{number}.example.net", path: "/p{number}/*"}}, pool: api}}\n'
        for number in range(rules)
    )
    lines = "".join(
        f'      - {{name: web{number}, address: "127.0.0.1:{server}"}}\n' for number, server in enumerate(site.servers)
    )
    path = folder / "l7lb.yaml"
    path.write_text(f"""
node: benchmark
workers: {workers}
admin: {{socket: run/admin.sock}}
listeners:
  - name: web
    protocol: http
    bind: ["127.0.0.1:{port}"]
    forwarded: {forwarded}
    timeouts: {{request_header: 10s, keep_alive: {IDLE_SECONDS}s}}
    limits: {{connections: 20000}}
    routes:
{more}
      - match: {{host: "static.example.com"}}
        pool: static
      - match: {{host: "*.example.org", path: "/api/*"}}
        pool: api
      - pool: web
pools:
  web:
    balance: round-robin
    persistence: {{cookie: {{name: L7LB}}}}
    servers:
{lines}
  api:
    servers: [{{name: api1, address: "127.0.0.1:{site.servers[0]}"}}]
  static:
    servers: [{{name: static1, address: "127.0.0.1:{site.servers[1]}"}}]
""")
    # -P: the installed package, compiled where it is, and not the sources in the folder this was started from.
    bare_program = str(Path(__file__).with_name("bare.py"))
    program = [bare_program, str(path)] if bare else ["-m", "l7lb.cli", "serve", "--config", str(path)]
    return Group(name, [sys.executable, "-P", *program], site.cores.measured, folder, port)


def nginx_text(folder: Path, options: str, blocks: str) -> str:
    """A whole configuration of nginx that needs no folder but its own and no root."""
    temporary = "\n".join(
        f"    {kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {folder}/pid;
error_log stderr crit;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    keepalive_timeout {IDLE_SECONDS}s;
    keepalive_requests 1000000000;
    {options}
{temporary}
{blocks}
}}
"""


def nginx_command(folder: Path, text: str) -> list[str]:
    folder.mkdir(exist_ok=True)
    path = folder / "nginx.conf"
    path.write_text(text)
    return [find("nginx"), "-e", "stderr", "-p", str(folder), "-c", str(path)]
