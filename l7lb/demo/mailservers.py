"""Real mail servers on this machine: Dovecot, Postfix and slapd as private instances with one shared mail store.

They need root, as Dovecot and Postfix do, and Debian's packages (`missing` says which are not there). Their files are
in a directory of their own below the system's for temporary files, since their processes run as users that must reach
it. A cluster that is closed, also by ^C or SIGTERM, ends them all. Where its process is killed, Postfix's masters stay:
the kernel forgets their leash as they change their effective user.
"""

from __future__ import annotations

import base64
import contextlib
import grp
import hashlib
import hmac
import json
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from l7lb.demo import mailconf
from l7lb.demo.cluster import Unexpected, wait_for
from l7lb.demo.mailconf import Person, Place

SYSTEM = "/usr/local/sbin:/usr/sbin:/sbin:/usr/lib/postfix/sbin:/usr/lib/dovecot"
# What must be there, and the Debian package that has it.
PROGRAMS = {
    "imap-login": "dovecot-imapd",
    "pop3-login": "dovecot-pop3d",
    "lmtp": "dovecot-lmtpd",
    "submission-login": "dovecot-submissiond",
    "managesieve-login": "dovecot-managesieved",
    "sievec": "dovecot-sieve",
    "postfix": "postfix",
    "slapd": "slapd",
}
MAIL_PROTOCOLS = ("imap4", "pop3", "managesieve", "submission", "smtp", "lmtp")
# 1795537059 imap-login: Info: Login: user=<alice>, method=PLAIN, rip=127.0.0.1, ..., session=<mvqWDAhh8rN/AAAB>
LOGIN = re.compile(
    r"(?m)^(\d+) (imap|pop3|managesieve|submission)-login: Info: Login: user=<([^>]*)>, method=(\w+), "
    r"rip=([^,]+), .*session=<([^>]+)>"
)
# 1795537059 imap(alice)<29747><mvqWDAhh8rN/AAAB>: Info: Disconnected: ...
LOGOUT = re.compile(
    r"(?m)^(\d+) (?:imap|pop3|managesieve|submission)\([^)]*\)<\d+><([^>]+)>: Info: "
    r"(?:Disconnected|Logged out|Connection closed)"
)
# 1795537059 lmtp(alice)<29749><yZYlC6O4BWs1dAAAg+zDdQ>: Info: sieve: msgid=<1@x>: stored mail into mailbox 'INBOX'
DELIVERY = re.compile(r"(?m)^(\d+) lmtp\(([^)]*)\)<\d+><[^>]+>: Info: (?:sieve: )?msgid=(\S*): (?:stored|saved) mail")
# postfix/lmtp[2323]: B9B0721E097: to=<...>, ..., status=deferred (lost connection with ... while sending end of data
IN_DOUBT = re.compile(r"/lmtp\[\d+\]: (\w+): .*status=deferred \(.*(?:end of data|end of DATA|DATA content)")
ACTIVE = re.compile(r"/qmgr\[(\d+)\]: (\w+): from=.*\(queue active\)")
QUEUED = re.compile(r"/cleanup\[\d+\]: (\w+): message-id=(\S+)")


class Served(NamedTuple):
    """A session that a server had, by its own log: ``end`` is None while it lasts, or where the server was killed."""

    protocol: str
    user: str
    mechanism: str
    client: str
    begin: int  # seconds since the epoch, rounded down
    end: int | None


class Delivered(NamedTuple):
    """A message that a server put into a mailbox, by its own log."""

    user: str
    message_id: str
    at: int


def find(program: str) -> str | None:
    """A program's path; the system's folders are looked at too."""
    return shutil.which(program) or shutil.which(program, path=SYSTEM)


def missing() -> str:
    """Why the mail servers can't run here, in words; empty where they can."""
    if os.geteuid() != 0:
        return "Dovecot and Postfix start as root only"
    packages = sorted({package for program, package in PROGRAMS.items() if find(program) is None})
    return f"not installed: {', '.join(packages)}" if packages else ""


class Program:
    """A server's process with its children. ``start`` after ``kill`` starts it anew."""

    def __init__(self, *command: str, log: Path) -> None:
        self._command = command
        self._log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, in a session of its own, on the leash of this process."""
        leash = [sys.executable, "-m", "l7lb.demo.leash", str(os.getpid())]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*leash, *self._command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def check(self) -> None:
        """Raises Unexpected where it has ended by itself."""
        if self.process is not None and self.process.poll() is not None:
            lines = self._log.read_text(errors="replace").splitlines()[-3:]
            raise Unexpected(f"{self._command[0]} ended with {self.process.returncode}: {' | '.join(lines)}")

    def kill(self) -> int:
        """Kill it and all its children with -9; returns the number of its process."""
        process, self.process = self.process, None
        if process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return process.pid

    def ask_to_end(self) -> None:
        """Send it SIGTERM."""
        if self.process is not None:
            self.process.terminate()

    def terminate(self) -> None:
        """End it in order, as far as it wants to."""
        if self.process is not None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
            self.kill()


class Site:
    """What all servers share: the mail store, passwords, certificates. ``close`` removes it.

    ``certificate`` and ``key`` are PEM for the servers' TLS, ``deliver`` is HOST:PORT of the LMTP server to which the
    Postfixes hand what arrives: the node's, so that deliveries too meet on the mailbox's server.
    """

    def __init__(self, people: Iterable[Person], deliver: str, certificate: bytes, key: bytes) -> None:
        self.people = tuple(people)
        self.deliver = deliver
        self.folder = Path(tempfile.mkdtemp(prefix="l7lb-mail-"))
        self.folder.chmod(0o755)
        self.mail = self.folder / "mail"
        self.mail.mkdir()
        nobody = pwd.getpwnam("nobody")
        os.chown(self.mail, nobody.pw_uid, grp.getgrnam("nogroup").gr_gid)
        (self.folder / "passwords").write_text(mailconf.passwords(self.people, self.mail))
        (self.folder / "servers.pem").write_bytes(certificate)
        (self.folder / "servers.key").write_bytes(key)
        (self.folder / "oauth2.conf").write_text(mailconf.OAUTH2.format(site=self.folder))
        keys = self.folder / "keys" / "default" / "HS256"
        keys.mkdir(parents=True)
        (keys / "default").write_bytes(base64.b64encode(mailconf.TOKEN_KEY))

    def stored(self, person: str) -> list[bytes]:
        """The messages in somebody's store, whichever server put them there."""
        found = []
        for folder in ("new", "cur"):
            for path in sorted((self.mail / person / "Maildir").glob(f"**/{folder}/*")):
                with contextlib.suppress(FileNotFoundError):  # a client's session has moved it from new to cur
                    found.append(path.read_bytes())
        return found

    def message_ids(self, person: str) -> list[str]:
        """Their Message-IDs, each as often as it is there."""
        ids = (re.search(rb"(?im)^message-id: *(\S+)", text) for text in self.stored(person))
        return [found[1].decode() if found else "" for found in ids]

    def close(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)


class MailServer:
    """A Dovecot for the mailboxes and a Postfix before it, which live and die together. ``ports`` are those of
    `MAIL_PROTOCOLS`; with ``http`` there is a web server as well.

    ``trusting``: it believes what l7lb says of its clients. Otherwise it wants TLS before any password.
    """

    def __init__(self, site: Site, name: str, ports: Mapping[str, int], trusting: bool = True) -> None:
        self.site = site
        self.name = name
        self.ports = dict(ports)
        self.own = site.folder / name
        self.own.mkdir()
        place = Place(site.folder, self.own)
        (self.own / "dovecot.conf").write_text(mailconf.dovecot(name, place, self.ports, trusting))
        self._make_postfix(place)
        log = self.own / "output"
        self._programs = [
            Program(str(find("dovecot")), "-F", "-c", str(self.own / "dovecot.conf"), log=log),
            Program(str(find("master")), "-s", "-c", str(self.own / "postfix"), log=log),
        ]
        if "http" in self.ports:
            web = (sys.executable, "-m", "l7lb.demo.webserver", name, str(self.ports["http"]))
            self._programs.append(Program(*web, log=log))

    def _make_postfix(self, place: Place) -> None:
        conf = self.own / "postfix"
        conf.mkdir()
        texts = mailconf.postfix(self.name, place, self.ports["smtp"], self.site.deliver, self.site.people)
        for name, text in zip(("main.cf", "master.cf"), texts, strict=True):
            (conf / name).write_text(text)
        owner, drop = pwd.getpwnam("postfix").pw_uid, grp.getgrnam("postdrop").gr_gid
        (self.own / "data").mkdir()
        os.chown(self.own / "data", owner, -1)
        queue = self.own / "queue"
        (queue / "pid").mkdir(parents=True)
        names = "active bounce corrupt defer deferred flush hold incoming private saved trace"
        for name in (*names.split(), "maildrop", "public"):
            (queue / name).mkdir(mode=0o700)
            os.chown(queue / name, owner, -1)
        for name, mode in (("maildrop", 0o730), ("public", 0o710)):
            os.chown(queue / name, owner, drop)
            (queue / name).chmod(mode)

    def start(self) -> None:
        """Start both; `until_listening` waits for them."""
        self._forget()
        for program in self._programs:
            program.start()

    def _forget(self) -> None:
        # A Dovecot that was killed leaves its number behind, which may be another process' by now.
        (self.own / "run" / "master.pid").unlink(missing_ok=True)

    def until_listening(self) -> None:
        """Wait until every port answers. Raises Unexpected."""
        for port in self.ports.values():
            wait_for(lambda: self._answers(port), f"{self.name} to listen at port {port}")  # noqa: B023

    def _answers(self, port: int) -> bool:
        for program in self._programs:
            program.check()
        return answers(port)

    @property
    def pid(self) -> int:
        """The number of Dovecot's process; 0 where it doesn't run."""
        process = self._programs[0].process
        return process.pid if process is not None else 0

    def kill_dovecot(self) -> int:
        """Kill the half that has the mailboxes with -9, and start it again; returns the number of its process."""
        number = self._programs[0].kill()
        self._forget()
        self._programs[0].start()
        return number

    def kill(self) -> int:
        """Kill all of it with -9; returns the number of Dovecot's process."""
        numbers = [program.kill() for program in self._programs]
        return numbers[0]

    def terminate(self) -> None:
        """End it in order."""
        self.ask_to_end()
        for program in self._programs:
            program.terminate()

    def ask_to_end(self) -> None:
        """Send all of it SIGTERM."""
        for program in self._programs:
            program.ask_to_end()

    def log(self) -> str:
        """What Dovecot has logged since its first start."""
        path = self.own / "dovecot.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def relay_log(self) -> str:
        """What Postfix has logged."""
        path = self.own / "postfix.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def served(self, user: str = "") -> list[Served]:
        """The sessions that it had, in the order of their logins; of one user, or of all."""
        text = self.log()
        ends = {session: int(at) for at, session in LOGOUT.findall(text)}
        return [
            Served("imap4" if kind == "imap" else kind, name, mechanism, client, int(at), ends.get(session))
            for at, kind, name, mechanism, client, session in LOGIN.findall(text)
            if user in ("", name)
        ]

    def delivered(self, user: str = "") -> list[Delivered]:
        """The messages that came to it by LMTP."""
        found = (Delivered(name, message_id, int(at)) for at, name, message_id in DELIVERY.findall(self.log()))
        return [one for one in found if user in ("", one.user)]

    def in_doubt(self) -> set[str]:
        """The Message-IDs that its Postfix has handed on without learning what became of them: the answer to the end of
        their data was lost, or Postfix itself was killed meanwhile. It has to send them again, so that they may be
        stored twice (RFC 1047).
        """
        text = self.relay_log()
        unsure = set(IN_DOUBT.findall(text))
        managers: dict[str, set[str]] = {}
        for manager, queue_id in ACTIVE.findall(text):
            managers.setdefault(queue_id, set()).add(manager)
        unsure |= {queue_id for queue_id, seen in managers.items() if len(seen) > 1}
        return {message_id for queue_id, message_id in QUEUED.findall(text) if queue_id in unsure}

    def flush(self) -> None:
        """Have Postfix try at once what it has queued."""
        subprocess.run(
            [str(find("postqueue")), "-c", str(self.own / "postfix"), "-f"],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=30,
        )

    def queued(self) -> int:
        """The messages that its Postfix has answered for and not yet handed on."""
        found = 0
        for name in ("incoming", "active", "deferred", "maildrop"):
            for path in (self.own / "queue" / name).rglob("*"):
                with contextlib.suppress(FileNotFoundError):
                    mode = path.stat().st_mode
                    # What has no execute bit was never complete: Postfix had not answered for it as it was killed.
                    found += stat.S_ISREG(mode) and bool(mode & stat.S_IXUSR)
        return found


class Slapd:
    """An LDAP server with the people, which `mailconf.READER` may read."""

    def __init__(self, site: Site, name: str, port: int) -> None:
        self.port = port
        self.own = site.folder / name
        (self.own / "data").mkdir(parents=True)
        (self.own / "slapd.conf").write_text(mailconf.slapd(self.own))
        (self.own / "people.ldif").write_text(mailconf.ldif(one for one in site.people if one.listed))
        conf = str(self.own / "slapd.conf")
        add = [str(find("slapadd")), "-q", "-f", conf, "-l", str(self.own / "people.ldif")]
        done = subprocess.run(add, check=False, capture_output=True, text=True, timeout=30)
        if done.returncode:
            raise Unexpected(f"slapadd failed: {done.stderr.strip()}")
        url = f"ldap://127.0.0.1:{port}"
        self._program = Program(str(find("slapd")), "-h", url, "-f", conf, "-d", "0", log=self.own / "output")

    def start(self) -> None:
        """Start it."""
        self._program.start()

    def until_listening(self) -> None:
        """Wait until it answers. Raises Unexpected."""

        def listening() -> bool:
            self._program.check()
            return answers(self.port)

        wait_for(listening, "slapd to listen")

    def kill(self) -> int:
        """Kill it with -9; returns the number of its process."""
        return self._program.kill()

    def ask_to_end(self) -> None:
        """Send it SIGTERM."""
        self._program.ask_to_end()

    def terminate(self) -> None:
        """End it in order."""
        self._program.terminate()


def answers(port: int) -> bool:
    """Whether something listens at that port of this machine."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def token(person: str, seconds: float = 3600.0) -> str:
    """A bearer token of that person for XOAUTH2 and OAUTHBEARER, a signed JWT (RFC 7519), good for so long."""
    now = int(time.time())
    parts: list[dict[str, object]] = [
        {"alg": "HS256", "typ": "JWT"},
        {"sub": person, "iat": now - 5, "exp": now + int(seconds)},
    ]
    text = b".".join(_base64url(json.dumps(part).encode()) for part in parts)
    return (text + b"." + _base64url(hmac.digest(mailconf.TOKEN_KEY, text, hashlib.sha256))).decode()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
