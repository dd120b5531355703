"""What the scenarios run: a node as its operator runs it, real servers behind it, real clients in front."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from node_process import NodeProcess, free_port, wait_for

__all__ = ["free_port", "wait_for", "Node", "Nginx", "Wrk", "find", "resident", "l7lb", "l7lb_command"]


def find(program: str) -> str | None:
    """A program's path; system folders are looked at too."""
    return shutil.which(program) or shutil.which(program, path="/usr/local/sbin:/usr/sbin:/sbin")


def l7lb(node: Node, *words: str) -> str:
    """One of the commands, as an operator types it."""
    return l7lb_command(*words, "--admin", str(node.directory / "run" / "admin.sock"))


def l7lb_command(*words: str) -> str:
    """The same with the options that it needs."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "l7lb.cli", *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def resident(pids: set[int]) -> int:
    """Bytes of memory that these processes hold alone or share among all processes, by their parts (PSS)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(re.findall(r"(?m)^Pss: +(\d+)", text)[0]) * 1024
    return total


class Node(NodeProcess):
    """`l7lb serve` with the listeners and pools of a scenario. ``PORT`` in the text is its port."""

    def __init__(self, directory: Path, text: str, workers: int = 2, drain: str = "5s", **values: Any) -> None:
        self.text = text
        super().__init__(directory, workers=workers, drain=drain, **values)

    def write(self, **values: Any) -> None:
        """Write the configuration; ``text`` replaces the listeners and pools."""
        self.text = values.pop("text", self.text)
        self.values.update(values)
        head = f"node: scenario\nworkers: {self.values['workers']}\nshutdown: {{drain: {self.values['drain']}}}\n"
        self.file.write_text(head + "admin: {socket: run/admin.sock}\n" + self.text.replace("PORT", str(self.port)))

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def servers(self) -> dict[str, dict[str, Any]]:
        """What `l7lb servers` says, by the server's name."""
        return {row["name"]: row for row in self.admin.get("servers")}


class Nginx:
    """A real server: says its name, takes bodies, gives files, and can be killed."""

    def __init__(self, folder: Path, name: str, port: int = 0) -> None:
        self.name = name
        self.port = port or free_port()
        self.folder = folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        (self.folder / "root").mkdir(exist_ok=True)
        self.process: subprocess.Popen[bytes] | None = None
        temporary = "\n".join(
            f"{kind}_temp_path {self.folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (self.folder / "nginx.conf").write_text(f"""
daemon off;
worker_processes 1;
pid {self.folder}/pid;
error_log stderr crit;
user {_user()};
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000;
    client_max_body_size 0;
    {temporary}
    server {{
        listen 127.0.0.1:{self.port} backlog=4096;
        add_header X-Server {name} always;
        location / {{ default_type text/plain; return 200 "{name}\\n"; }}
        location /health {{ return 200 "fine\\n"; }}
        location /empty {{ return 204; }}
        location /unchanged {{ return 304; }}
        location /error {{ return 503 "{name} is tired\\n"; }}
        location /file/ {{ alias {self.folder}/root/; }}
        location /echo {{ proxy_pass http://127.0.0.1:{self.port}/; proxy_request_buffering off; }}
    }}
}}
""")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        program = find("nginx")
        assert program
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [program, "-e", "stderr", "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        wait_for(lambda: _answers(self.port), f"{self.name} to answer:\n{(self.folder / 'log').read_text()}")

    def kill(self) -> None:
        """Kill it and its workers with -9."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def file(self, name: str, size: int) -> str:
        """Make a file of that size that it gives away; returns its SHA-256."""
        digest = hashlib.sha256()
        block = hashlib.sha256(name.encode()).digest() * 32_768  # 1 MiB that no sparse file has
        with (self.folder / "root" / name).open("wb") as file:
            left = size
            while left > 0:
                piece = block[:left]
                file.write(piece)
                digest.update(piece)
                left -= len(piece)
        return digest.hexdigest()


def _user() -> str:
    import grp
    import pwd

    return f"{pwd.getpwuid(os.getuid()).pw_name} {grp.getgrgid(os.getgid()).gr_name}"


def _answers(port: int) -> bool:
    import socket

    try:
        with socket.create_connection(("127.0.0.1", port), 1.0) as sock:
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            return sock.recv(100).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


@dataclass
class Done:
    """What wrk counted."""

    requests: int
    lost: int  # connections that were lost: connect, read and write errors
    late: int  # requests without an answer in time
    bad: int  # answers other than 2xx and 3xx

    @property
    def failed(self) -> int:
        """All that went wrong."""
        return self.lost + self.late + self.bad


class Wrk:
    """wrk in the background. ``end`` waits for its time to be over and counts."""

    def __init__(
        self, url: str, seconds: int, connections: int = 20, script: Path | None = None, *headers: str
    ) -> None:
        program = find("wrk")
        assert program
        words = [program, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"]
        words += ["-s", str(script)] if script else []
        words += [word for header in headers for word in ("-H", header)]
        self.process = subprocess.Popen(
            [*words, url], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.seconds = seconds

    def __enter__(self) -> Self:
        time.sleep(0.3)  # its connections are open and busy when what is to be survived begins
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def end(self) -> Done:
        """Its count."""
        text, _ = self.process.communicate(timeout=self.seconds + 30)
        total = re.search(r"(\d+) requests in", text)
        assert self.process.returncode == 0, text
        assert total, text
        errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
        connect, read, write, late = (int(value) for value in errors.groups()) if errors else (0, 0, 0, 0)
        bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
        return Done(int(total[1]), connect + read + write, late, int(bad[1]) if bad else 0)


@contextlib.contextmanager
def curl(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """curl in the background."""
    program = find("curl")
    assert program
    with subprocess.Popen(
        [program, "--silent", "--show-error", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        yield process
        if process.poll() is None:
            process.kill()
