"""Templates: text with facts in braces, for redirects and rewritten paths and hosts.

``{host}``, ``{path}``, ``{query}``, ``{method}``, ``{scheme}`` and ``{source}`` are facts, ``{path.1}`` is what the
first ``*`` of the rule's path stood for; ``{{`` and ``}}`` are braces. What a client sent can't become more than the
value that it replaces:

- control characters, spaces and other bytes that end a header or a request line are percent-encoded, and so are
  ``?``, ``#`` and backslashes in what comes from the path;
- where a template makes a path, the result has one leading slash, no empty segments and no dot segments:
  ``/{path.1}`` must become neither ``//evil.example``, which browsers take for another host, nor ``/../secret``;
- in a URL, what stands between ``//`` and the next ``/`` is text or ``{host}``; nothing else may name a host;
- a template for a host (``host=True``) gives nothing that a host can't have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches

from l7lb.core.facts import Facts
from l7lb.core.paths import plain_path

Captures = Sequence[bytes]
Part = Callable[[Facts, Captures], bytes]

TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
CAPTURE = re.compile(r"path\.([1-9][0-9]{0,2})")
URL = re.compile(r"(?:https?|\{scheme\})://", re.IGNORECASE)
UNSAFE = re.compile(rb"[\x00-\x20\x7f-\xff]")
UNSAFE_IN_PATH = re.compile(rb'[\x00-\x20\x7f-\xff?#\\"<>^`]')
UNSAFE_IN_HOST = re.compile(rb"[^A-Za-z0-9._~:\[\]%-]")
UNSAFE_IN_QUERY = re.compile(rb'[\x00-\x20\x7f-\xff#"<>]')
MAX_TEMPLATE = 4096


def _encode(match: re.Match[bytes]) -> bytes:
    return b"%%%02X" % match[0][0]


def _query(facts: Facts, _captures: Captures) -> bytes:
    url = facts.text("url", "") or b""
    return UNSAFE_IN_QUERY.sub(_encode, url.partition(b"?")[2])


PARTS: dict[str, Part] = {
    "host": lambda facts, _captures: UNSAFE_IN_HOST.sub(_encode, facts.host),
    "path": lambda facts, _captures: UNSAFE_IN_PATH.sub(_encode, facts.path),
    "query": _query,
    "method": lambda facts, _captures: UNSAFE.sub(_encode, facts.method),
    "scheme": lambda facts, _captures: UNSAFE_IN_HOST.sub(_encode, facts.scheme),
    "source": lambda facts, _captures: UNSAFE_IN_HOST.sub(_encode, facts.source.encode()),
}


def _capture(number: int) -> Part:
    def part(_facts: Facts, captures: Captures) -> bytes:
        return UNSAFE_IN_PATH.sub(_encode, captures[number - 1]) if number <= len(captures) else b""

    return part


class Template:
    """A compiled template. Called with facts and captures it gives the text.

    ``captures`` is the greatest number of a ``{path.N}`` in it. ``has_query`` tells whether it says itself what the
    query is, so that the client's is not to be appended.
    """

    __slots__ = ("_is_host", "_is_path", "_parts", "captures", "has_query", "text")

    def __init__(self, text: str, host: bool = False) -> None:
        self.text = text
        self.captures = 0
        pieces = _pieces(text)
        self._parts: list[bytes | Part] = []
        for literal, name in pieces:
            if name is None:
                self._parts.append(literal.encode())
            elif name in PARTS:
                self._parts.append(PARTS[name])
            else:
                number = int(name.removeprefix("path."))
                self.captures = max(self.captures, number)
                self._parts.append(_capture(number))
        self.has_query = any(name == "query" or "?" in literal for literal, name in pieces)
        self._is_host = host
        self._is_path = not host and text.startswith(("/", "{path}", "{path."))
        if host:
            _check_host(pieces)
        elif URL.match(text):
            _check_authority(pieces)
        else:
            _check_beginning(text, pieces)

    def __call__(self, facts: Facts, captures: Captures) -> bytes:
        """The text for these facts; what is missing is empty."""
        result = b"".join([part if isinstance(part, bytes) else part(facts, captures) for part in self._parts])
        if self._is_path:
            return tidy_path(result)
        return UNSAFE_IN_HOST.sub(_encode, result) if self._is_host else result


def compile_template(text: str, captures: int | None = None, host: bool = False) -> Template:
    """The compiled template. Raises ValueError, in words for the operator.

    ``captures`` is how many ``*`` the rule's path has, where that is known: a ``{path.N}`` beyond it is an error.
    ``host``: it makes a host, not a path or URL.
    """
    template = Template(text, host)
    if captures is not None and template.captures > captures:
        has = "no *" if captures == 0 else f"only {captures} *"
        raise ValueError(f"{{path.{template.captures}}} stands for nothing: the rule's path has {has}")
    return template


def check_template(text: str, captures: int | None = None, host: bool = False) -> str | None:
    """What is wrong with a template, or None; the arguments are those of :func:`compile_template`."""
    try:
        compile_template(text, captures, host)
    except ValueError as problem:
        return str(problem)
    return None


def expand(text: str, facts: Facts, captures: Captures = ()) -> bytes:
    """Compile and expand in one step, for what happens once."""
    return compile_template(text)(facts, captures)


def _pieces(text: str) -> list[tuple[str, str | None]]:
    """The template as literals (text, None) and names ("", name)."""
    if len(text) > MAX_TEMPLATE:
        raise ValueError(f"a template has at most {MAX_TEMPLATE} characters")
    if any(character < " " or character == "\x7f" for character in text):
        raise ValueError("a template can't hold control characters")
    pieces: list[tuple[str, str | None]] = []
    position = 0
    literal = ""
    for token in TOKEN.finditer(text):
        literal += text[position : token.start()]
        position = token.end()
        if token[0] in ("{{", "}}"):
            literal += token[0][0]
            continue
        if token[1] is None:
            raise ValueError(f'a "{token[0]}" without its partner; a brace itself is written "{token[0] * 2}"')
        if literal:
            pieces.append((literal, None))
        literal = ""
        pieces.append(("", _known_name(token[1])))
    literal += text[position:]
    if literal:
        pieces.append((literal, None))
    return pieces


def _known_name(name: str) -> str:
    if name in PARTS or CAPTURE.fullmatch(name):
        return name
    if name.startswith("path."):
        raise ValueError(f"{{{name}}}: what a * stood for is written {{path.1}}, {{path.2}} ...")
    near = get_close_matches(name, PARTS, 1)
    meant = f"; {{{near[0]}}} may be meant" if near else ""
    raise ValueError(
        f"there is no {{{name}}}{meant} (known: {', '.join(f'{{{known}}}' for known in PARTS)}, {{path.1}})"
    )


def _check_host(pieces: list[tuple[str, str | None]]) -> None:
    for literal, _ in pieces:
        wrong = UNSAFE_IN_HOST.search(literal.encode())
        if wrong:
            raise ValueError(f'a host can\'t have "{wrong[0].decode("latin-1")}"')


def _check_beginning(text: str, pieces: list[tuple[str, str | None]]) -> None:
    """Refuse what would let a client name the host, or the scheme, of what is no URL yet."""
    if text.startswith("//"):
        raise ValueError('begins with "//": write the scheme as well, such as https://, or a single slash')
    name = pieces[0][1] if pieces else None
    if name in ("query", "method", "source", "scheme"):
        raise ValueError(f"begins with {{{name}}}: write what comes before it, such as / or https://{{host}}/")


def _check_authority(pieces: list[tuple[str, str | None]]) -> None:
    """Refuse a URL whose host a client could choose by more than its Host field."""
    before = ""
    for literal, name in pieces:
        if name is not None:
            authority = before.partition("://")[2]
            inside = "://" in before and not set("/?#") & set(authority)
            if inside and name == "path" and authority:
                continue  # a path begins with a slash
            if inside and name != "host":
                raise ValueError(f'{{{name}}} would be part of the host; write a "/" before it')
            before += "host" if name == "host" else "value"
        before += literal


def tidy_path(path: bytes) -> bytes:
    """A path (its query behind it) with one leading slash, and without empty and dot segments."""
    path, mark, query = path.partition(b"?")
    path = b"/" + path.lstrip(b"/\\")
    return plain_path(path.replace(b"\\", b"/")) + mark + query
