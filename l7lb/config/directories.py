"""Directories: where it is written which mailbox an address means, and which server holds it."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PrivateAttr

from l7lb.config.certificates import Unusable
from l7lb.config.fields import FilePath, SetHeaders, Text
from l7lb.config.files import Unreadable, check_file, read_secret
from l7lb.config.section import Reading, Section
from l7lb.config.tls import about, take_ca
from l7lb.config.units import Duration, DurationOrZero
from l7lb.config.wording import choice, quoted, wrong
from l7lb.core import snapshot

COLUMNS = ("address", "mailbox", "server", "user", "password", "master_user", "master_password")
IGNORED = "-"
PLACES = ("address", "user")

_PLACE = re.compile(r"\{([^{}]*)\}")
_ATTRIBUTE = re.compile(r"(?:[A-Za-z][A-Za-z0-9-]*|[0-9]+(?:\.[0-9]+)+)(?:;[A-Za-z0-9-]+)*\Z")  # RFC 4512, section 2.5


def _url(value: str, schemes: tuple[str, ...], example: str) -> str:
    """A URL of one of these schemes with a host and without credentials."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as error:
        raise wrong(f"{quoted(value)} is not a URL: {error}") from None
    if parts.scheme not in schemes or not parts.hostname or port == 0 or not re.fullmatch(r"[\x21-\x7e]+", value):
        raise wrong(f"{quoted(value)} is not a URL of a server: write one such as {example}")
    if "@" in parts.netloc:
        raise wrong("has a user name or a password, which a URL here can't have")
    return value


def _ldap_url(value: str) -> str:
    _url(value, ("ldap", "ldaps", "ldapi"), "ldap://192.0.2.1:389 or ldaps://ldap.example.com")
    if urlsplit(value).path not in ("", "/") or "?" in value:
        raise wrong(f"{quoted(value)}: what is searched for is said by base and filter; write scheme, host and port")
    return value.rstrip("/")


def _http_url(value: str) -> str:
    return _url(value, ("http", "https"), "http://127.0.0.1:8080/auth")


def _attribute(value: str) -> str:
    if not _ATTRIBUTE.match(value):
        raise wrong(f"{quoted(value)} is not the name of an attribute, such as mail or mailHost")
    return value


def _filter(value: str) -> str:
    """An LDAP filter (RFC 4515) with the places for what is looked for."""
    for name in _PLACE.findall(value):
        if name not in PLACES:
            raise wrong(choice("the place", f"{{{name}}}", [f"{{{place}}}" for place in PLACES]))
    if not _PLACE.search(value):
        raise wrong(f"{quoted(value)} has no place for the address, and finds the same for all: write {{address}}")
    problem = _unbalanced(_PLACE.sub("x", value))
    if problem:
        raise wrong(f"{quoted(value)} is not a filter: {problem}")
    return value


def _unbalanced(text: str) -> str:
    """What is wrong with a filter's brackets and operators, or nothing."""
    if not text.startswith("(") or not text.endswith(")"):
        return "it begins and ends with brackets, such as (mail={address})"
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth < 0 or (depth == 0 and place < len(text) - 1):
            return "a bracket is closed too early"
    if depth:
        return "a bracket is not closed"
    if re.search(r"\((?![&|!]\(|[^()=]*[^()=<>~:]\s*(?:[~<>]|:[^()=]*:|:)?=)[^()]*", text):
        return "each pair of brackets holds a comparison such as mail={address}, or &, | or ! and filters"
    return ""


LdapUrl = Annotated[str, AfterValidator(_ldap_url)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
Attribute = Annotated[str, AfterValidator(_attribute)]
Filter = Annotated[str, AfterValidator(_filter)]


def is_local(host: str) -> bool:
    """Whether a host is this one, as far as its name tells."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Attributes(Section):
    """Which attribute of an entry holds what."""

    mailbox: Attribute | None = Field(
        default=None, description="The mailbox's one name; without it, the address that was looked for."
    )
    server: Attribute | None = Field(
        default=None, description="The name of its server in the pool, or the host of that server's address."
    )
    user: Attribute | None = Field(default=None, description="The name to log in with at the server.")
    password: Attribute | None = Field(default=None, description="The password to log in with at the server.")
    master_user: Attribute | None = Field(
        default=None, description="Who logs in at the server on the user's behalf (SASL's authentication identity)."
    )
    master_password: Attribute | None = Field(default=None, description="That master user's password.")

    def check(self, reading: Reading) -> None:
        given = self.given()
        if not given and self.silent:
            self.complain(reading, "is empty: give at least mailbox or server")
        _check_master(self, tuple(given), reading)

    def given(self) -> dict[str, str]:
        """The attributes that are there, by what they hold."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in found.items() if value is not None}


def _check_master(section: Section, given: tuple[str, ...], reading: Reading, *below: str) -> None:
    """A master user has a password, and the other way round; and neither opens a mailbox to who has proved nothing."""
    for one, other in (("master_user", "master_password"), ("master_password", "master_user")):
        if one in given and other not in given:
            section.complain(reading, f"{one} does nothing without {other}", *(below or (one,)))
            return
    for name in ("password", "master_password"):
        if name in given:
            message = (
                f"{name} serves clients with a certificate (external); passwords are not checked by this directory"
            )
            reading.warning((*section.place, *(below or (name,))), f"{message}, so that servers have to judge them")
            return


class Ldap(Section):
    """LDAP servers."""

    urls: Annotated[list[LdapUrl], Field(min_length=1, max_length=16)] = Field(
        description="The servers, tried in their order: ldap://HOST:PORT, ldaps:// for TLS from the first byte, "
        "or ldapi:// with the escaped path of a unix socket."
    )
    base: Text = Field(description="Below which entry is searched, such as ou=people,dc=example,dc=com.")
    filter: Filter = Field(
        description="What is searched for (RFC 4515). {address} stands for the canonical address, {user} for the same "
        "without the domain where that is the default domain; both are escaped."
    )
    attributes: Attributes = Field(description="Which attribute of an entry holds what.")
    start_tls: bool = Field(default=False, description="Change to TLS before anything else is said.")
    ca: FilePath | None = Field(
        default=None, description="The servers' certificates must be issued by these (PEM); default: the system's."
    )
    verify: bool = Field(default=True, description="Whether the servers' certificates and names are verified.")
    bind_dn: Text | None = Field(default=None, description="Who asks; without it, anybody.")
    bind_password_file: FilePath | None = Field(default=None, description="The file with that one's password.")
    timeout: Duration = Field(default=2.0, description="For a server's answer, and for connecting to it.")
    connections: int = Field(default=8, ge=1, le=256, description="To one server at the same time.")

    _ca: bytes = PrivateAttr(default=b"")
    _password: bytes = PrivateAttr(default=b"")

    def check(self, reading: Reading) -> None:
        self._check_account(reading)
        plain = [url for url in self.urls if url.startswith("ldap://")]
        implicit = any(url.startswith("ldaps://") for url in self.urls)
        encrypted = self.start_tls or implicit
        if self.start_tls and implicit:
            self.complain(reading, "ldaps:// is TLS already: use ldap:// with start_tls, or leave it out", "start_tls")
        if self.ca is not None:
            self._ca = take_ca(self, self.ca, "ca", reading)
        for key, given in (("ca", self.ca is not None), ("verify", not self.verify)):
            if given and not encrypted:
                reading.warning((*self.place, key), "has no effect without TLS: use start_tls or ldaps://")
        if not self.verify and encrypted:
            reading.warning((*self.place, "verify"), "anybody who is in between can read and change what is said")
        for number, url in enumerate(self.urls):
            if url in plain and not self.start_tls and self._password and not is_local(urlsplit(url).hostname or ""):
                message = "the password and all answers travel in the clear: use start_tls or ldaps://"
                reading.warning((*self.place, "urls", number), message)

    def _check_account(self, reading: Reading) -> None:
        if self.bind_dn is not None and self.bind_password_file is None:
            message = "a name without a password is no login at all (RFC 4513, 5.1.2): give bind_password_file"
            self.complain(reading, message, "bind_dn")
        if self.bind_password_file is None:
            return
        if self.bind_dn is None:
            self.complain(reading, "whose password is it? give bind_dn", "bind_password_file")
        file = str(reading.base / self.bind_password_file)
        try:
            self._password = read_secret(file)
        except ValueError as error:
            self.complain(reading, about(self.bind_password_file, Unusable(file, str(error))), "bind_password_file")

    def compiled(self, base: Path) -> snapshot.LdapSource:
        return snapshot.LdapSource(
            urls=tuple(self.urls),
            base=self.base,
            filter=self.filter,
            attributes=self.attributes.given(),
            start_tls=self.start_tls,
            ca=self._ca,
            verify=self.verify,
            bind_dn=self.bind_dn or "",
            bind_password=self._password,
            timeout=self.timeout,
            connections=self.connections,
        )


def _separator(value: str) -> str:
    if len(value) != 1 or value in "\n\r\0#":
        raise wrong(f"{quoted(value)} is not a separator: write one character, such as : or ,")
    return value


def _columns(value: list[str]) -> list[str]:
    for name in value:
        if name != IGNORED and name not in COLUMNS:
            raise wrong(choice("the column", name, (*COLUMNS, IGNORED)))
        if name != IGNORED and value.count(name) > 1:
            raise wrong(f"{name} is there twice")
    if "address" not in value:
        raise wrong("lacks address, by which a line is found")
    if set(value) <= {"address", IGNORED}:
        raise wrong("says nothing of an address: add mailbox or server")
    return value


class File(Section):
    """A text file, a line an address."""

    path: FilePath = Field(description="The file; it is read again when it changes.")
    columns: Annotated[list[str], Field(min_length=1, max_length=32), AfterValidator(_columns)] = Field(
        description="What stands in a line, in order: address, mailbox, server, user, password, master_user, "
        'master_password, or "-" for what is of no interest. Lines that begin with # are comments.'
    )
    separator: Annotated[str, AfterValidator(_separator)] | None = Field(
        default=None, description="What stands between columns; without it, white space."
    )

    def check(self, reading: Reading) -> None:
        _check_master(self, tuple(self.columns), reading, "columns")
        file = reading.base / self.path
        try:
            check_file(str(file))
        except Unreadable as problem:
            self.complain(reading, about(self.path, Unusable(str(file), str(problem))), "path")

    def compiled(self, base: Path) -> snapshot.FileSource:
        return snapshot.FileSource(
            path=str(base / self.path), columns=tuple(self.columns), separator=self.separator or ""
        )


class Http(Section):
    """A program that is asked over HTTP."""

    url: HttpUrl = Field(description="Where it is asked, in the words of nginx's auth_http: http:// or https://.")
    headers: SetHeaders = Field(default={}, description="Further headers of each question, such as a shared secret.")
    ca: FilePath | None = Field(
        default=None, description="Its certificate must be issued by these (PEM); default: the system's."
    )
    verify: bool = Field(default=True, description="Whether its certificate and name are verified.")
    timeout: Duration = Field(default=2.0, description="For an answer.")
    connections: int = Field(default=32, ge=1, le=1024, description="At the same time.")

    _ca: bytes = PrivateAttr(default=b"")

    def check(self, reading: Reading) -> None:
        encrypted = self.url.startswith("https:")
        if self.ca is not None:
            self._ca = take_ca(self, self.ca, "ca", reading)
        for key, given in (("ca", self.ca is not None), ("verify", not self.verify)):
            if given and not encrypted:
                reading.warning((*self.place, key), "has no effect: the URL is not https://")
        if not self.verify and encrypted:
            reading.warning((*self.place, "verify"), "anybody who is in between can read and change what is said")
        if not encrypted and not is_local(urlsplit(self.url).hostname or ""):
            message = "users' passwords travel to it in the clear: use https://"
            reading.warning((*self.place, "url"), message)

    def compiled(self, base: Path) -> snapshot.HttpSource:
        return snapshot.HttpSource(
            url=self.url,
            headers=tuple(self.headers.items()),
            ca=self._ca,
            verify=self.verify,
            timeout=self.timeout,
            connections=self.connections,
        )


class Cache(Section):
    """Answers that are remembered."""

    ttl: DurationOrZero = Field(default=300.0, description="How long an entry is; 0s: it is asked for at each login.")
    negative_ttl: DurationOrZero = Field(default=30.0, description="How long it is that there is no entry.")
    size: int = Field(default=1_000_000, ge=0, le=100_000_000, description="How many answers; the oldest make room.")


class Directory(Section):
    """Where it is written which mailbox an address means and which server holds it."""

    KINDS: ClassVar[tuple[str, ...]] = ("ldap", "file", "http")

    ldap: Ldap | None = Field(default=None, description="LDAP servers.")
    file: File | None = Field(default=None, description="A text file, a line an address.")
    http: Http | None = Field(
        default=None, description="A program that is asked over HTTP, as nginx's auth_http asks and is answered."
    )
    cache: Cache = Field(default=Cache(), description="How long answers are remembered, and how many.")
    missing: Literal["pool", "refuse"] = Field(
        default="pool",
        description="Without an entry: pool (the address chooses the server) or refuse (there is no such mailbox). "
        "Several entries, or no answer, are a temporary error always.",
    )
    unknown_server: Literal["pool", "refuse"] = Field(
        default="refuse",
        description="An entry names no server of the pool: refuse (a temporary error), or pool (as if it named none).",
    )
    server_down: Literal["pool", "refuse"] = Field(
        default="refuse",
        description="An entry's server is down: refuse (a temporary error), or pool (another server takes it).",
    )

    def given(self) -> list[str]:
        """The kinds that are there."""
        return [kind for kind in self.KINDS if getattr(self, kind) is not None]

    def check(self, reading: Reading) -> None:
        given = self.given()
        if not given and self.silent:
            self.complain(reading, f"says nothing to ask: give one of {', '.join(self.KINDS)}")
        for kind in given[1:]:
            self.complain(reading, f"{kind} and {given[0]} are two directories: give each a name of its own", kind)

    def source(self) -> Ldap | File | Http:
        """What is asked; the checks have seen that there is exactly one."""
        return next(found for found in (self.ldap, self.file, self.http) if found is not None)

    def compiled(self, name: str, base: Path) -> snapshot.Directory:
        """The directory for the data path."""
        return snapshot.Directory(
            name=name,
            source=self.source().compiled(base),
            ttl=self.cache.ttl,
            negative_ttl=self.cache.negative_ttl,
            size=self.cache.size,
            missing=self.missing,
            unknown_server=self.unknown_server,
            server_down=self.server_down,
        )
