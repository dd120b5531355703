"""Field types with their checks: names, headers, cookies, globs, patterns, networks and addresses.

Whatever goes into a header, a cookie or a path is checked here for characters that would end it, so that no
configuration can split a response.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from l7lb.config.addresses import parse_bind, parse_host, parse_network, parse_server
from l7lb.config.wording import quoted, wrong
from l7lb.routing.globs import check_host, check_path
from l7lb.routing.networks import check_network
from l7lb.routing.regex import check_regex

LONGEST_NAME = 64
LONGEST_TEXT = 4096

TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")  # RFC 9110, section 5.6.2
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*\Z")
_COOKIE_ATTRIBUTE = re.compile(r"[\x21-\x3a\x3c-\x7e]*\Z")

# Headers that l7lb sets itself: the framing of messages and what belongs to one connection only.
OWN_HEADERS = frozenset(
    {"connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)


def _checked(check: Callable[[str], str]) -> AfterValidator:
    """A check that raises ValueError, as a validator."""

    def validate(value: str) -> str:
        try:
            return check(value)
        except ValueError as error:
            raise wrong(str(error)) from None

    return AfterValidator(validate)


def _name(value: str) -> str:
    if len(value) > LONGEST_NAME:
        raise ValueError(f"a name has at most {LONGEST_NAME} characters, this one has {len(value)}")
    if not _NAME.match(value):
        raise ValueError(f"{quoted(value)} is not a name: letters, digits, _, . and - after a letter or digit")
    return value


def header_name(value: str) -> str:
    """A header's name in lower case. Raises ValueError."""
    if not TOKEN.match(value) or len(value) > 256:
        raise ValueError(f"{quoted(value)} is not a header name: letters, digits and -, no spaces or colons")
    return value.lower()


def header_value(value: str) -> str:
    """A header's value, which can't end the header. Raises ValueError."""
    if not _HEADER_VALUE.match(value):
        raise ValueError(
            f"{quoted(value)} has a character that a header can't have: only printable ASCII, no line ends"
        )
    if value != value.strip(" \t"):
        raise ValueError(f"{quoted(value)} begins or ends with a space, which a header's value can't")
    if len(value) > LONGEST_TEXT:
        raise ValueError(f"a header's value has at most {LONGEST_TEXT} characters")
    return value


def settable_header(value: str) -> str:
    """The name of a header that a route may set or remove. Raises ValueError."""
    name = header_name(value)
    if name in OWN_HEADERS:
        raise ValueError(f"{name} belongs to the connection and is set by l7lb alone")
    return name


def _cookie_name(value: str) -> str:
    if not TOKEN.match(value) or len(value) > 128:
        raise ValueError(f"{quoted(value)} is not a cookie name: letters, digits, - and _, no spaces, = or ;")
    return value


def _cookie_attribute(value: str) -> str:
    if not _COOKIE_ATTRIBUTE.match(value):
        raise ValueError(f"{quoted(value)} has a character that a cookie's attribute can't have")
    return value


def _judged(judge: Callable[[str], str | None]) -> AfterValidator:
    """A check of the router's, which says in words what is wrong, as a validator."""

    def check(value: str) -> str:
        problem = judge(value)
        if problem:
            raise ValueError(problem)
        return value

    return _checked(check)


def _glob(judge: Callable[[str], str | None]) -> AfterValidator:
    def check(value: str) -> str | None:
        if "**" in value:
            return f'{quoted(value)}: one * matches any run of characters, "/" too; write it once'
        return judge(value)

    return _judged(check)


def _regex(value: str) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return check_regex(value)
    except Warning as doubt:  # of a pattern that Python's next version may read in another way
        return f"{quoted(value)}: {str(doubt).lower()}; put a backslash before what stands for itself"


def _value_glob(value: str) -> str:
    if len(value) > LONGEST_TEXT:
        raise ValueError(f"is longer than {LONGEST_TEXT} characters")
    if "**" in value:
        raise ValueError(f"{quoted(value)}: one * matches any run of characters; write it once")
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise ValueError(f"{quoted(value)} has a control character and would never match")
    return value


def _method(value: str) -> str:
    if not TOKEN.match(value):
        raise ValueError(f"{quoted(value)} is not a method: write GET, POST ...")
    if value != value.upper():
        raise ValueError(f"{quoted(value)} would never match, methods are upper case: write {value.upper()}")
    return value


def _alpn(value: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", value) or len(value) > 255 or "," in value:
        raise ValueError(f"{quoted(value)} is not the name of a protocol, such as h2 or http/1.1")
    return value


def _path(value: str) -> str:
    if not value or not value.isprintable():
        raise ValueError(f"{quoted(value)} is not a file's path")
    return value


def _request_path(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError(f"{quoted(value)} must begin with /: write {quoted('/' + value)}")
    if not re.fullmatch(r"[\x21-\x7e]+", value) or "#" in value:
        raise ValueError(f"{quoted(value)} has a character that a URL can't have: write it percent-encoded")
    return value


def _bind(value: str) -> str:
    parse_bind(value)
    return value


def _server(value: str) -> str:
    parse_server(value)
    return value


def _authority(value: str) -> str:
    host, separator, port = value.rpartition(":")
    if separator and port.isascii() and port.isdigit() and int(port[:6]) <= 65535:
        return f"{parse_host(host.removeprefix('[').removesuffix(']'))}:{port}" if ":" not in host else value
    return value if value.startswith("[") else parse_host(value)


def _text(value: str) -> str:
    if not value.isprintable() or not value:
        raise ValueError(f"{quoted(value)} has no visible character, or one that can't be shown")
    return value


def _protocol_name(value: str) -> str:
    if not 1 <= len(value) <= 255 or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError(f"{quoted(value)} is not the name of a protocol, such as h2 or http/1.1")
    return value


Text = Annotated[str, _checked(_text)]
ProtocolName = Annotated[str, _checked(_protocol_name)]
TlsName = Annotated[str, _checked(parse_host)]
Name = Annotated[str, _checked(_name)]
HeaderName = Annotated[str, _checked(header_name)]
HeaderValue = Annotated[str, _checked(header_value)]
SettableHeader = Annotated[str, _checked(settable_header)]
CookieName = Annotated[str, _checked(_cookie_name)]
CookieAttribute = Annotated[str, _checked(_cookie_attribute)]
AlpnName = Annotated[str, _checked(_alpn)]
HostGlob = Annotated[str, _glob(check_host)]
PathGlob = Annotated[str, _glob(check_path)]
ValueGlob = Annotated[str, _checked(_value_glob)]
Regex = Annotated[str, _judged(_regex)]
Source = Annotated[str, _judged(check_network)]
Method = Annotated[str, _checked(_method)]
TrustedNetwork = Annotated[str, _checked(parse_network)]
Bind = Annotated[str, _checked(_bind)]
ServerAddress = Annotated[str, _checked(_server)]
Authority = Annotated[str, _checked(_authority)]
FilePath = Annotated[str, _checked(_path)]
RequestPath = Annotated[str, _checked(_request_path)]
Port = Annotated[int, Field(ge=1, le=65535)]


def _distinct(value: Any) -> Any:
    """Header names are the same in any case, so one that is there twice would be lost."""
    if isinstance(value, dict):
        seen: set[str] = set()
        for name in value:
            lowered = str(name).lower()
            if lowered in seen:
                raise wrong(f"the header {quoted(lowered)} is there twice, in different case: keep one")
            seen.add(lowered)
    return value


DISTINCT = BeforeValidator(_distinct)
SetHeaders = Annotated[dict[SettableHeader, HeaderValue], DISTINCT]

T = TypeVar("T")


class OneOrList:
    """Marks a list that may also be written as its one item."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_as_list, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        many = handler.resolve_ref_schema(handler(schema))
        return {"anyOf": [many.get("items", {}), many]}


def _as_list(value: Any) -> Any:
    return value if value is None or isinstance(value, list) else [value]


# One value, or a list of which any may hold. In the models it is always a list.
OneOrMore = Annotated[list[T], Field(min_length=1), OneOrList()]
