"""How a user stays on the server that served before."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from typing import ClassVar, Literal

from pydantic import Field, PrivateAttr

from l7lb.config.document import Path
from l7lb.config.fields import CookieAttribute, CookieName, FilePath, HeaderName, OneOrMore
from l7lb.config.section import Reading, Section, Shorthand
from l7lb.config.units import Duration
from l7lb.config.wording import choice, wrong
from l7lb.core import snapshot

KEY_BYTES = (16, 65536)  # of a key file, least and most


class Key(Section):
    """A persistence key of any kind."""

    then: Persistence | None = Field(default=None, description="The key that is tried where this one says nothing.")

    @abstractmethod
    def compiled(self) -> snapshot.PersistenceKey:
        """The key for the data path."""


class CookieKey(Key):
    """l7lb sets a cookie that names the server, opaquely. No table is needed."""

    name: CookieName = Field(description="The cookie's name.")
    max_age: Duration | None = Field(
        default=None, description="How long browsers keep it; without it, until they close."
    )
    http_only: bool = Field(default=True, description="Hide it from scripts.")
    same_site: Literal["lax", "strict", "none"] = Field(default="lax", description="lax, strict or none.")
    path: CookieAttribute = Field(default="/", description="The path it is for.")
    domain: CookieAttribute | None = Field(default=None, description="The domain it is for; without it, the host only.")
    secure: Literal["auto", "always", "never"] = Field(
        default="auto", description="Over TLS only: auto (where the client came over TLS), always or never."
    )
    key_file: FilePath | None = Field(
        default=None, description="A file of secret bytes that keys the value; the same on every node."
    )

    _key: str = PrivateAttr(default="")

    def check(self, reading: Reading) -> None:
        if self.same_site == "none" and self.secure == "never":
            self.complain(reading, "browsers refuse same_site: none without Secure: write auto or always", "secure")
        if not self.path.startswith("/"):
            self.complain(reading, "a cookie's path begins with /", "path")
        if self.name.startswith("__Host-") and (self.domain or self.path != "/"):
            self.complain(reading, 'browsers refuse a "__Host-" cookie with a domain or a path other than /', "name")
        if self.key_file is not None:
            try:
                self._key = _read_key(os.path.join(reading.base, self.key_file))
            except ValueError as error:
                self.complain(reading, str(error), "key_file")

    def compiled(self) -> snapshot.InsertedCookie:
        return snapshot.InsertedCookie(
            name=self.name,
            max_age=self.max_age or 0.0,
            http_only=self.http_only,
            same_site=self.same_site,
            path=self.path,
            domain=self.domain or "",
            secure=self.secure,
            key=self._key,
        )


def _read_key(path: str) -> str:
    """The hash of a key file, in hex. Raises ValueError."""
    least, most = KEY_BYTES
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            secret = file.read(most + 1) or b""
    except OSError as error:
        raise ValueError(f"the key file can't be read: {error.strerror}") from None
    if not least <= len(secret.strip()) or len(secret) > most:
        raise ValueError(f"the key file must hold {least} to {most} bytes")
    return hashlib.sha256(b"l7lb cookie key\0" + secret.strip()).hexdigest()


class ApplicationCookieKey(Key):
    """The application sets the cookie; l7lb learns which server did."""

    name: CookieName = Field(description="The cookie's name.")
    expire: Duration = Field(default=1800.0, description="Forgotten when it was not used for so long.")

    def compiled(self) -> snapshot.LearnedCookie:
        return snapshot.LearnedCookie(self.name, self.expire)


class HeaderKey(Key):
    """A request header's value keeps its server."""

    name: HeaderName = Field(description="The header's name.")
    expire: Duration = Field(default=1800.0, description="Forgotten when it was not used for so long.")

    def compiled(self) -> snapshot.HeaderKey:
        return snapshot.HeaderKey(self.name, self.expire)


class SourceKey(Key):
    """The client's address keeps its server."""

    expire: Duration = Field(default=1800.0, description="Forgotten when it was not used for so long.")
    prefix4: int = Field(default=32, ge=1, le=32, description="Bits of an IPv4 address that count.")
    prefix6: int = Field(default=64, ge=1, le=128, description="Bits of an IPv6 address that count.")

    def compiled(self) -> snapshot.SourceKey:
        return snapshot.SourceKey(self.expire, self.prefix4, self.prefix6)


class TlsSessionKey(Key):
    """The TLS session that a client resumes keeps the server that issued it."""

    expire: Duration = Field(default=1800.0, description="Forgotten when it was not used for so long.")

    def compiled(self) -> snapshot.TlsSessionKey:
        return snapshot.TlsSessionKey(self.expire)


class MailboxKey(Key):
    """All sessions of a mailbox, in every protocol, are on one server."""

    expire: Duration = Field(
        default=900.0, description="Forgotten so long after the end of the mailbox's last session, on any node."
    )

    def compiled(self) -> snapshot.MailboxKey:
        return snapshot.MailboxKey(self.expire)


class Persistence(Shorthand):
    """One key; ``source``, ``tls_session`` or ``mailbox`` alone, as a word, stands for ``{source: {}}`` ..."""

    WORDS: ClassVar[tuple[str, ...]] = ("source", "tls_session", "mailbox")
    KINDS: ClassVar[tuple[str, ...]] = ("mailbox", "cookie", "application_cookie", "header", "tls_session", "source")
    BY_WORD: ClassVar[dict[str, type[Key]]] = {"source": SourceKey, "tls_session": TlsSessionKey, "mailbox": MailboxKey}

    mailbox: MailboxKey | None = Field(
        default=None, description="The mailbox: all its sessions, in every protocol, are on one server at a time."
    )

    cookie: CookieKey | None = Field(
        default=None, description="A cookie that l7lb sets, which names the server opaquely."
    )
    application_cookie: ApplicationCookieKey | None = Field(
        default=None, description="A cookie that the application sets; l7lb learns which server did."
    )
    header: HeaderKey | None = Field(default=None, description="A header of the request.")
    tls_session: TlsSessionKey | None = Field(
        default=None,
        description="The session that a client of TLS 1.2 resumes, where TLS is passed through; TLS 1.3 hides it.",
    )
    source: SourceKey | None = Field(default=None, description="The client's address.")

    @classmethod
    def read_word(cls, word: str) -> str:
        if word in cls.KINDS and word not in cls.WORDS:
            raise wrong(f"{word} needs a name: write {{{word}: {{name: ...}}}}")
        if word not in cls.WORDS:
            raise wrong(choice("the persistence key", word, cls.KINDS))
        return word

    def check(self, reading: Reading) -> None:
        given = [kind for kind in self.KINDS if getattr(self, kind) is not None]
        if not given and self.silent:
            self.complain(reading, f"says nothing to keep users by: give one of {', '.join(self.KINDS)}")
        for kind in given[1:]:
            self.complain(reading, f"{kind} and {given[0]} are two keys: write a list of them, in their order", kind)

    def chain(self) -> list[Key]:
        """The key and those that come after it."""
        if self.word:
            return [self.BY_WORD[self.word]()]
        keys = [key for kind in self.KINDS if isinstance(key := getattr(self, kind), Key)]
        return keys + (keys[0].then.chain() if keys and keys[0].then else [])


def check_order(keys: list[Key], place: Path, reading: Reading) -> None:
    """Report what can't work in a pool's keys, in the order in which they are tried."""
    if sum(isinstance(key, CookieKey) for key in keys) > 1:
        reading.problem(place, "l7lb sets one cookie for a pool: keep one cookie key")
    if any(isinstance(key, MailboxKey) for key in keys[1:]):
        reading.problem(place, "a mailbox's server is its only one, whatever other keys say: put mailbox first")
    for kind, name in ((TlsSessionKey, "tls_session"), (SourceKey, "source")):
        if sum(isinstance(key, kind) for key in keys) > 1:
            reading.problem(place, f"{name} is given twice: what the first one doesn't know the second doesn't either")
    for key in keys[:-1]:
        if isinstance(key, SourceKey):
            reading.warning(
                place,
                "all but clients of a unix socket have a source address, so that keys after source are hardly tried",
            )
            return


PersistenceKeys = OneOrMore[Persistence]

for _model in (CookieKey, ApplicationCookieKey, HeaderKey, TlsSessionKey, SourceKey, MailboxKey):
    _model.model_rebuild()
