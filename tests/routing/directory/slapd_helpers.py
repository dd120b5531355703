"""A private slapd for tests: an ordinary process with its files in a folder of its own."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

from node_process import free_port

SLAPD = shutil.which("slapd", path="/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin")
SLAPADD = shutil.which("slapadd", path="/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin")
BASE = "dc=example,dc=com"
READER, PASSWORD = f"cn=reader,{BASE}", b"reader's secret"

CONFIGURATION = """
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
attributetype ( 1.3.6.1.4.1.55555.1 NAME 'mailHost' EQUALITY caseIgnoreMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 )
attributetype ( 1.3.6.1.4.1.55555.2 NAME 'mailAlternateAddress' EQUALITY caseIgnoreMatch
    SUBSTR caseIgnoreSubstringsMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 )
objectclass ( 1.3.6.1.4.1.55555.3 NAME 'mailUser' SUP top AUXILIARY MAY ( mailHost $ mailAlternateAddress ) )
pidfile {folder}/slapd.pid
modulepath /usr/lib/ldap
moduleload back_mdb
{tls}
database mdb
suffix "{base}"
rootdn "cn=admin,{base}"
rootpw admin
directory {folder}/data
maxsize 16777216
access to attrs=userPassword by anonymous auth by * none
access to * by dn.exact="{reader}" read by * {others}
"""


def person(name: str, *lines: str) -> str:
    head = f"dn: uid={name},ou=people,{BASE}\nobjectClass: inetOrgPerson\nobjectClass: mailUser\nuid: {name}\n"
    return head + f"cn: {name}\nsn: {name}\n" + "".join(f"{line}\n" for line in lines) + "\n"


TREE = (
    f"dn: {BASE}\nobjectClass: dcObject\nobjectClass: organization\no: example\ndc: example\n\n"
    f"dn: ou=people,{BASE}\nobjectClass: organizationalUnit\nou: people\n\n"
    f"dn: {READER}\nobjectClass: organizationalRole\nobjectClass: simpleSecurityObject\ncn: reader\n"
    f"userPassword: {PASSWORD.decode()}\n\n"
)
PEOPLE = (
    person("anna", "mail: anna@example.com", "mailAlternateAddress: a.b@example.org", "mailHost: mx1")
    + person("bert", "mail: bert@example.com", "mailHost: mx2")
    + person("nohost", "mail: nohost@example.com")
    + person("twice1", "mail: twice@example.com")
    + person("twice2", "mail: twice@example.com")
    + person("star*", "mail: star@example.com", "mailHost: mx9")
)


class Slapd:
    """One server; ``tls`` names the files of a CA, a certificate and a key."""

    def __init__(
        self, folder: Path, people: str = PEOPLE, tls: tuple[Path, Path, Path] | None = None, anonymous: bool = False
    ) -> None:
        assert SLAPD is not None
        assert SLAPADD is not None
        self.folder = folder
        (folder / "data").mkdir(parents=True)
        lines = ""
        if tls is not None:
            lines = "TLSCACertificateFile {}\nTLSCertificateFile {}\nTLSCertificateKeyFile {}".format(*tls)
        text = CONFIGURATION.format(
            folder=folder, tls=lines, base=BASE, reader=READER, others="read" if anonymous else "none"
        )
        self.configuration = folder / "slapd.conf"
        self.configuration.write_text(text)
        subprocess.run(
            [SLAPADD, "-q", "-f", str(self.configuration)], input=(TREE + people).encode(), check=True, timeout=30
        )
        self.secure = tls is not None
        self.port = free_port()
        self.secure_port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"ldap://127.0.0.1:{self.port}"

    @property
    def secure_url(self) -> str:
        return f"ldaps://127.0.0.1:{self.secure_port}"

    @property
    def unix_url(self) -> str:
        return f"ldapi://{str(self.folder / 'sock').replace('/', '%2F')}"

    def start(self) -> None:
        assert SLAPD is not None
        urls = f"{self.url}/ {self.unix_url}" + (f" {self.secure_url}/" if self.secure else "")
        command = [SLAPD, "-d", "0", "-f", str(self.configuration), "-h", urls]
        log = (self.folder / "log").open("ab")
        with log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log)
        deadline = time.monotonic() + 15.0
        while True:
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "log").read_text())
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
