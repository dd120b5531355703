"""A listener's rules: what they match, and what is done then."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, WithJsonSchema

from l7lb.config.document import Path
from l7lb.config.fields import (
    DISTINCT,
    AlpnName,
    CookieName,
    HeaderName,
    HeaderValue,
    HostGlob,
    Method,
    Name,
    OneOrMore,
    PathGlob,
    Regex,
    SetHeaders,
    SettableHeader,
    Source,
    ValueGlob,
)
from l7lb.config.limits import Limits
from l7lb.config.mailboxes import AddressGlob
from l7lb.config.section import Reading, Section
from l7lb.config.wording import quoted, wrong
from l7lb.core import snapshot
from l7lb.routing.globs import path_glob
from l7lb.routing.templates import check_template

LONGEST_BODY = 64 * 1024
REDIRECTIONS = (301, 302, 303, 307, 308)
ACTIONS = ("pool", "split", "respond", "redirect")
WITHOUT_BODY = (204, 205, 304)
# What a rule can do with requests of HTTP only.
HTTP_ONLY = (
    "respond",
    "redirect",
    "rewrite",
    "set_headers",
    "remove_headers",
    "set_response_headers",
    "remove_response_headers",
)

ValueGlobs = OneOrMore[ValueGlob]


def _status(value: int) -> int:
    if not 200 <= value <= 599:
        raise wrong(f"{value} is not the status of an answer: those are 200 to 599")
    return value


def _redirection(value: int) -> int:
    if value not in REDIRECTIONS:
        raise wrong(f"{value} is not a redirection: write one of {', '.join(map(str, REDIRECTIONS))}")
    return value


def _template(value: str) -> str:
    problem = check_template(value)
    if problem:
        raise wrong(problem)
    return value


def _host_template(value: str) -> str:
    problem = check_template(value, host=True)
    if problem:
        raise wrong(problem)
    return value


def _body(value: str) -> str:
    if len(value.encode()) > LONGEST_BODY:
        raise wrong(f"a body given here has at most {LONGEST_BODY} bytes")
    return value


def _local_path(value: str) -> str:
    if not value.startswith(("/", "{path}")):
        raise wrong(f"{quoted(value)} must begin with /: write {quoted('/' + value)}")
    return value


Status = Annotated[int, AfterValidator(_status), WithJsonSchema({"type": "integer", "minimum": 200, "maximum": 599})]
Redirection = Annotated[int, AfterValidator(_redirection), WithJsonSchema({"enum": list(REDIRECTIONS)})]
Template = Annotated[str, AfterValidator(_template)]
HostTemplate = Annotated[str, AfterValidator(_host_template)]


class Match(Section):
    """A rule's conditions: all that are given must hold; of a list, any one suffices."""

    host: OneOrMore[HostGlob] | None = Field(
        default=None, description='Globs of the host, without port. "*.example.org" does not match example.org.'
    )
    path: OneOrMore[PathGlob] | None = Field(
        default=None, description='Globs of the normalised path. "*" also matches "/".'
    )
    path_regex: OneOrMore[Regex] | None = Field(
        default=None, description="Regular expressions that are searched in the normalised path; tie them with ^ and $."
    )
    method: OneOrMore[Method] | None = Field(default=None, description="Methods, in upper case.")
    header: Annotated[dict[HeaderName, ValueGlobs], DISTINCT] | None = Field(
        default=None, description='Headers and globs of their values; "*": the header is there.'
    )
    cookie: dict[CookieName, ValueGlobs] | None = Field(default=None, description="Cookies and globs of their values.")
    query: dict[str, ValueGlobs] | None = Field(
        default=None, description="Parameters of the URL's query and globs of their decoded values."
    )
    sni: OneOrMore[HostGlob] | None = Field(
        default=None, description='Globs of the name that a client asks for in TLS. "*" alone: it asks for one.'
    )
    alpn: OneOrMore[AlpnName] | None = Field(
        default=None, description="Protocols, such as h2, of which a client offers one in TLS."
    )
    source: OneOrMore[Source] | None = Field(default=None, description="Networks or addresses that the client is in.")
    address: OneOrMore[AddressGlob] | None = Field(
        default=None, description="Of mail: globs of the canonical address, such as *@example.com, in any case."
    )
    not_: Match | None = Field(default=None, alias="not", description="Conditions that must not hold all together.")

    def check(self, reading: Reading) -> None:
        if self.silent and not any(getattr(self, name) is not None for name in type(self).model_fields):
            self.complain(reading, "is empty: give a condition, or leave match out for a rule that takes everything")
        for name in ("header", "cookie", "query"):
            if getattr(self, name) == {}:
                self.complain(reading, "is empty: give a name and its value", name)

    def given(self) -> list[Path]:
        """The places of its conditions, those below ``not`` included, in this section."""
        found: list[Path] = [(name,) for name in type(self).model_fields if name != "not_" and getattr(self, name)]
        return found + [("not", *place) for place in (self.not_.given() if self.not_ else ())]

    def compiled(self) -> snapshot.Match:
        return snapshot.Match(
            host=tuple(self.host or ()),
            path=tuple(self.path or ()),
            path_regex=tuple(self.path_regex or ()),
            method=tuple(self.method or ()),
            header=_pairs(self.header),
            cookie=_pairs(self.cookie),
            query=_pairs(self.query),
            sni=tuple(self.sni or ()),
            alpn=tuple(self.alpn or ()),
            source=tuple(self.source or ()),
            address=tuple(self.address or ()),
            not_=self.not_.compiled() if self.not_ else None,
        )


def _pairs(values: dict[str, list[str]] | None) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((name, tuple(globs)) for name, globs in (values or {}).items())


class Share(Section):
    """A pool's part of a split."""

    pool: Name = Field(description="The pool's name.")
    weight: int = Field(default=1, ge=0, le=1_000_000, description="Its part, in relation to the others' weights.")


class Respond(Section):
    """An answer from l7lb itself."""

    status: Status = Field(description="The status, 200 to 599.")
    body: Annotated[str, AfterValidator(_body)] = Field(default="", description="The body, at most 64 KiB.")
    content_type: HeaderValue = Field(default="text/plain; charset=utf-8", description="The body's Content-Type.")
    headers: SetHeaders = Field(default={}, description="Further headers of the answer.")

    def check(self, reading: Reading) -> None:
        if self.body and self.status in WITHOUT_BODY:
            self.complain(reading, f"an answer with status {self.status} has no body", "body")
        if "content-type" in self.headers:
            self.complain(reading, "the body's type is set by content_type, not here", "headers")


class Redirect(Section):
    """An answer that sends the client elsewhere; the query is kept where the template has none."""

    location: Template = Field(
        description='Where to, a template: {host}, {path}, {query}, {scheme}; {path.1} is what the first "*" matched.'
    )
    status: Redirection = Field(default=302, description="The status, which says for how long and with which method.")


class Rewrite(Section):
    """What the server gets in place of the client's path or host."""

    path: Annotated[Template, AfterValidator(_local_path)] | None = Field(
        default=None, description='The path for the server, a template; {path.1} is what the first "*" matched.'
    )
    host: HostTemplate | None = Field(default=None, description="The Host for the server, a template.")

    def check(self, reading: Reading) -> None:
        if self.path is None and self.host is None and self.silent:
            self.complain(reading, "is empty: give path or host")


class Route(Section):
    """One rule. The first that matches decides; one without a match takes everything."""

    match: Match | None = Field(default=None, description="What it applies to; without it, to everything.")
    pool: Name | None = Field(default=None, description="Send it to a server of this pool.")
    split: Annotated[list[Share], Field(min_length=1)] | None = Field(
        default=None, description="Send it to one of several pools, by weight."
    )
    respond: Respond | None = Field(default=None, description="Answer here.")
    redirect: Redirect | None = Field(default=None, description="Answer with a redirection.")
    limit: Limits | None = Field(
        default=None, description="How often what matches may come, one limit or several, beside the listener's."
    )
    directory: OneOrMore[Name] | None = Field(
        default=None,
        description="Of mail: the directories that are asked which server has the mailbox, in their order, until one "
        "knows it.",
    )
    rewrite: Rewrite | None = Field(default=None, description="Another path or host for the server.")
    set_headers: SetHeaders = Field(
        default={}, description="Headers of the request, set for the server in place of the client's."
    )
    remove_headers: list[SettableHeader] = Field(
        default=[], description="Headers of the request that the server does not get."
    )
    set_response_headers: SetHeaders = Field(
        default={}, description="Headers of the answer, set in place of the server's."
    )
    remove_response_headers: list[SettableHeader] = Field(
        default=[], description="Headers of the answer that the client does not get."
    )

    def check(self, reading: Reading) -> None:
        given = [name for name in ACTIONS if getattr(self, name) is not None]
        if not given and self.silent:
            self.complain(reading, "says nothing to do: give one of pool, split, respond, redirect")
        for name in given[1:]:
            self.complain(reading, f"{name} and {given[0]} exclude one another: keep one", name)
        if given and given[0] in ("respond", "redirect"):
            for name in ("rewrite", "set_headers", "remove_headers", "directory"):
                if getattr(self, name):
                    self.complain(reading, f"has no effect: with {given[0]}, no server gets the request", name)
        if self.split is not None and not any(share.weight for share in self.split):
            self.complain(reading, "all weights are 0: give one of them more", "split")
        for header in ("set_headers", "remove_headers"):
            if "host" in getattr(self, header):
                self.complain(reading, "the Host is set by rewrite: {host: ...}", header)
        for name in ("", "response_"):
            both = set(getattr(self, f"set_{name}headers")) & set(getattr(self, f"remove_{name}headers"))
            for header in sorted(both):
                self.complain(reading, f"{header} is set as well: keep one of both", f"remove_{name}headers")
        self._check_templates(reading)
        self._check_loop(reading)

    def _check_templates(self, reading: Reading) -> None:
        """What ``{path.1}`` refers to must be there in each of the path globs."""
        globs = self.match.path if self.match and self.match.path else []
        stars = min((glob.count("*") for glob in globs), default=self._groups())
        templates = [("redirect", "location", self.redirect.location if self.redirect else None)]
        if self.rewrite:
            templates += [("rewrite", "path", self.rewrite.path), ("rewrite", "host", self.rewrite.host)]
        for section, key, template in templates:
            problem = check_template(template, stars, key == "host") if template else None
            if problem:
                self.complain(reading, problem, section, key)

    def _groups(self) -> int:
        """How many groups each of the regular expressions has; they stand in for a glob's ``*``."""
        expressions = self.match.path_regex if self.match and self.match.path_regex else []
        return min((re.compile(text).groups for text in expressions), default=0)

    def _check_loop(self, reading: Reading) -> None:
        """Warn of a redirection that leads to the rule that sent it."""
        location = self.redirect.location if self.redirect else ""
        globs = self.match.path if self.match else None
        if self.match and self.match.model_fields_set - {"host", "path"}:
            return  # the next request may differ in what else is asked for
        if location == "{path}" or (location.startswith("/") and "{" not in location and _leads_back(location, globs)):
            reading.warning(
                (*self.place, "redirect", "location"), "leads back to this rule: clients will run in circles"
            )

    def action(self) -> snapshot.ToPool | snapshot.ToSplit | snapshot.Respond | snapshot.Redirect:
        """The compiled action; the checks have seen that there is exactly one."""
        if self.respond:
            answer = self.respond
            return snapshot.Respond(answer.status, answer.body, answer.content_type, tuple(answer.headers.items()))
        if self.redirect:
            return snapshot.Redirect(self.redirect.location, self.redirect.status)
        if self.split:
            return snapshot.ToSplit(tuple((share.pool, share.weight) for share in self.split))
        assert self.pool is not None
        return snapshot.ToPool(self.pool)

    def compiled(self, number: int, where: str) -> snapshot.Route:
        """The rule for the router; ``number`` counts from 1, ``where`` is file and line."""
        rewrite = self.rewrite
        return snapshot.Route(
            number=number,
            where=where,
            match=self.match.compiled() if self.match else None,
            action=self.action(),
            rewrite=snapshot.Rewrite(rewrite.path or "", rewrite.host or "") if rewrite else None,
            set_headers=tuple(self.set_headers.items()),
            remove_headers=tuple(self.remove_headers),
            set_response_headers=tuple(self.set_response_headers.items()),
            remove_response_headers=tuple(self.remove_response_headers),
            directory=tuple(self.directory or ()),
        )


def _leads_back(location: str, globs: list[str] | None) -> bool:
    """Whether a path matches one of the globs; None: there is no condition on the path."""
    path = location.partition("?")[0].lower()
    return globs is None or any(path_glob(glob).matches(path.encode()) for glob in globs)
