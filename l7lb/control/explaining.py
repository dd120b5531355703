"""Why a request goes where it goes: rule by rule, then the pool, then the server.

Everything is asked of the very parts that the proxy uses, over the same facts, so that an explanation can't differ from
what happens. Without a node the servers are as configured; with one, as it sees them now: health, ejections, operators'
words, sessions in progress.
"""

from __future__ import annotations

import asyncio
import time

import msgspec

from l7lb.config.limits import describe_limit
from l7lb.control.explaining_mail import Heard, Told, ask, judge, kept, mail_facts, refusal
from l7lb.control.names import suggestion
from l7lb.control.node import NodeState
from l7lb.core.contracts import Choice, Explanation, Stickiness
from l7lb.core.errors import Failure, L7lbError, UnknownName
from l7lb.core.facts import Facts
from l7lb.core.keys import address_key
from l7lb.core.mailbox import MAIL_PROTOCOLS
from l7lb.core.servers import PoolState, ServerState
from l7lb.core.snapshot import Directory, Listener, Pool, Redirect, Respond, Snapshot
from l7lb.persistence import Tables, make_stickiness
from l7lb.proxy.counts import ACTIVE
from l7lb.routing import Router
from l7lb.routing.balance import make_balancer
from l7lb.routing.explain import explain_pool
from l7lb.routing.templates import compile_template

HEADERS = 100
ADDRESS = 512  # characters of an address
KNOWN = ("http", *sorted(MAIL_PROTOCOLS), "tls-passthrough", "tcp")
NOTHING_HEARD = Heard()
UNIX = "unix:"  # the source of clients of a Unix socket


class Question(msgspec.Struct, forbid_unknown_fields=True):
    """A request to explain; ``headers`` are pairs of name and value, ``listener`` "" means the only one there is.

    ``sni`` and ``alpn`` are what a client of tls-passthrough shows, ``address`` is mail's login or recipient.
    """

    protocol: str
    method: str = "GET"
    url: str = "/"
    headers: list[tuple[str, str]] = []
    sni: str = ""
    alpn: list[str] = []
    address: str = ""
    source: str = "127.0.0.1"
    listener: str = ""


class Explained(msgspec.Struct):
    """The answer: the facts, what each rule said, and where the request goes and why."""

    listener: str
    facts: dict[str, str]
    rules: list[Explanation]
    outcome: str
    pool: str = ""
    server: str = ""
    address: str = ""
    why: str = ""
    servers: list[str] = []  # the pool's, a line each
    limits: list[str] = []  # that count this one, a line each
    directories: list[str] = []  # that are asked, in this order
    directory: str = ""  # what they say


def explain(snapshot: Snapshot, question: Question, node: NodeState | None = None) -> Explained:
    """Explain one request. Raises UnknownName, or L7lbError where the request itself would be refused.

    The sticky tables are those of the node's processes, and not asked here: an admin does it between the two steps.
    """
    explained, pool, facts = explain_rules(snapshot, question)
    if pool is not None:
        heard = NOTHING_HEARD
        if explained.directories:
            listener, directories = asked(snapshot, explained)
            heard = Heard(asyncio.run(ask(directories, listener, facts)))
        explain_server(explained, pool, facts, make_stickiness(pool, Tables(snapshot.tables)), node, heard)
    return explained


def asked(snapshot: Snapshot, explained: Explained) -> tuple[Listener, list[Directory]]:
    """The listener, and the directories that the matched rule asks."""
    known = {directory.name: directory for directory in snapshot.directories}
    listener = next(one for one in snapshot.listeners if one.name == explained.listener)
    return listener, [known[name] for name in explained.directories]


def explain_rules(snapshot: Snapshot, question: Question) -> tuple[Explained, Pool | None, Facts]:
    """What the rules say, with the pool that they lead to, if any, and the facts. Raises as :func:`explain`."""
    listener = choose_listener(snapshot, question.protocol, question.listener)
    facts = facts_of(listener, question)
    router = Router(listener)
    rules = router.explain(facts)
    choice = router.route(facts)
    explained = Explained(
        listener=listener.name,
        facts=_shown(question.protocol, facts),
        rules=rules,
        outcome=f"no rule matches: {_refusal(question.protocol, facts, Failure.NO_ROUTE)}",
    )
    explained.limits = limits_of(listener, choice, facts)
    if choice is None:
        return explained, None, facts
    if choice.pool is None:
        explained.outcome = _answer_text(choice, facts)
        return explained, None, facts
    if facts.mailbox:
        explained.directories = list(choice.route.directory)
    return explained, next(pool for pool in snapshot.pools if pool.name == choice.pool), facts


def explain_server(
    explained: Explained,
    pool: Pool,
    facts: Facts,
    stickiness: Stickiness | None,
    node: NodeState | None,
    heard: Heard = NOTHING_HEARD,
) -> None:
    """Add which server of the pool it is, and why. ``heard`` is what others say of the mailbox, if there is one.

    Where directories refuse it, the outcome says so; the server is then the one that it would have without them.
    """
    explained.pool = pool.name
    state = pool_state(pool, node)
    told = judge(heard.answer, facts, state) if heard.answer is not None else Told("")
    explained.directory = told.text
    if facts.mailbox:
        explained.facts["mailbox"] = _text(facts.mailbox)
    server, explained.why, explained.servers = choose_server(pool, facts, stickiness, node)
    if told.server is not None:
        server, explained.why = told.server, f"{told.server.name}: the directory says so"
    if heard.pinned is not None and heard.pinned.server:
        there, words = kept(heard.pinned, told.server, facts, state)
        server = there or server
        explained.why = words if there is not None else f"{words}; {explained.why}"
    explained.outcome = f"to pool {pool.name}"
    if server is None:
        refused = _refusal(facts.protocol, facts, Failure.NO_SERVER)
        explained.outcome += f", which has no server for it: {refused}"
    else:
        explained.server, explained.address = server.name, str(server.config.address_for(facts.protocol))
        explained.outcome += f", server {server.name} at {explained.address}"
    if told.failure is not None:
        refused = _refusal(facts.protocol, facts, told.failure)
        explained.outcome = f"refused: {refused}; without the directory, {explained.outcome}"


def limits_of(listener: Listener, choice: Choice | None, facts: Facts) -> list[str]:
    """The rate limits that these facts meet, in words."""
    found = []
    for limit in (*listener.limits, *(choice.route.limits if choice is not None else ())):
        line = f"limit {limit.name}: {describe_limit(limit)}"
        if limit.key.kind not in ("source", "listener") and facts.text(limit.key.kind, limit.key.name) is None:
            line += f"; has no {limit.key}, so that it is not counted"
        found.append(line)
    return found


def choose_listener(snapshot: Snapshot, protocol: str, name: str) -> Listener:
    """The listener of that name, or the only one of the protocol. Raises UnknownName."""
    listeners = {listener.name: listener for listener in snapshot.listeners if listener.protocol == protocol}
    if name:
        if name not in listeners:
            raise UnknownName(f"no {protocol} listener {name}: {suggestion(name, listeners)}")
        return listeners[name]
    if len(listeners) > 1 and _alike(list(listeners.values())):
        return next(iter(listeners.values()))
    if len(listeners) != 1:
        which = f"say which listener: {', '.join(listeners)}" if listeners else f"there is no {protocol} listener"
        raise UnknownName(which)
    return next(iter(listeners.values()))


def _alike(listeners: list[Listener]) -> bool:
    """Whether one explanation is as good as another's: mail has listeners that differ in when TLS begins alone."""
    first = listeners[0]
    if first.protocol not in MAIL_PROTOCOLS:
        return False
    rules = [[(one.match, one.action, one.directory, one.limits) for one in each.routes] for each in listeners]
    return all(one == rules[0] for one in rules) and not any(each.limits for each in listeners)


def facts_of(listener: Listener, question: Question) -> Facts:
    """The facts that the proxy would have. Raises L7lbError."""
    if question.source not in ("", UNIX) and address_key(question.source, 32, 128) is None:
        raise L7lbError(f"{question.source} is not an address")
    if question.protocol == "tcp":
        return Facts("tcp", listener.name, question.source)
    if question.protocol == "tls-passthrough":
        from l7lb.protocols.tls.facts import explain_tls

        try:
            return explain_tls(listener, question.sni, question.alpn, question.source)
        except ValueError as problem:
            raise L7lbError(str(problem)) from None
    if question.protocol in MAIL_PROTOCOLS:
        if not question.address or len(question.address) > ADDRESS or not question.address.isprintable():
            raise L7lbError(f"{question.protocol} needs an address or a login, such as user@example.com")
        return mail_facts(listener, question.address, question.source)
    if question.protocol != "http":
        raise UnknownName(f"no protocol {question.protocol} to explain: known: {', '.join(KNOWN)}")
    if len(question.headers) > HEADERS:
        raise L7lbError(f"{len(question.headers)} headers are more than {HEADERS}")
    texts = [question.method, question.url, *(text for header in question.headers for text in header)]
    if any(mark in text for text in texts for mark in "\r\n"):
        raise L7lbError("a method, URL or header can't hold the end of a line")
    from l7lb.protocols.http.facts import explain_facts
    from l7lb.protocols.http.syntax import SyntaxFault

    try:
        return explain_facts(listener, question.method, question.url, question.headers, question.source)
    except SyntaxFault as fault:
        raise L7lbError(f"the listener answers this request itself: {fault.status}, {fault.reason}") from None


def _shown(protocol: str, facts: Facts) -> dict[str, str]:
    """The facts that rules of this protocol can see, as an operator reads them."""
    shown = {"source": facts.source}
    if protocol == "tls-passthrough":
        shown |= {"sni": facts.host.decode("latin-1"), "alpn": b", ".join(facts.alpn()).decode("latin-1")}
    elif protocol in MAIL_PROTOCOLS:
        shown |= {"address": _text(facts.address), "mailbox": _text(facts.mailbox)}
    elif protocol != "tcp":
        for name, value in (("host", facts.host), ("path", facts.path), ("method", facts.method)):
            shown[name] = value.decode("latin-1")
    return shown


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def _refusal(protocol: str, facts: Facts, failure: Failure) -> str:
    """What the client is told where there is no server for it."""
    if protocol == "tcp":
        return "a reset"
    if protocol in MAIL_PROTOCOLS:
        return refusal(protocol, failure)
    if protocol == "tls-passthrough":
        from l7lb.protocols.tls import alerts

        code = alerts.no_server(failure, bool(facts.host), tls13=True)
        return f"the alert {alerts.NAMES[code]} ({code})"
    from l7lb.protocols.http.answers import STATUS

    return str(STATUS[failure])


def choose_server(
    pool: Pool, facts: Facts, stickiness: Stickiness | None, node: NodeState | None
) -> tuple[ServerState | None, str, list[str]]:
    """The server that this request would get now, why, and a line on each of the pool's servers."""
    state = pool_state(pool, node)
    now = time.monotonic()
    explanation = explain_pool(state, facts, now)
    chosen = make_balancer(state, 0).choose(facts, now, state.down_for(facts.protocol))
    sticky = stickiness.find(facts, now) if stickiness is not None else None
    why = explanation.why
    if sticky is not None:
        name, kind = sticky
        server = state.by_name.get(name)
        if server is not None and server.alive_for(facts.protocol):
            return server, f"the {kind} keeps this user on {name}", explanation.details
        why = f"the {kind} names {name}, which is {'unknown' if server is None else 'not in use'}; {why}"
    return chosen, why, explanation.details


def pool_state(pool: Pool, node: NodeState | None) -> PoolState:
    """A pool's servers as a worker would see them, by what the supervisor knows."""
    servers = []
    for config in pool.servers:
        server = ServerState(pool.name, config)
        if node is not None:
            server.healthy = node.healthy(pool.name, config.name)
            server.down = frozenset(node.down(pool.name, config.name))
            server.ejected = node.ejection(pool.name, config.name) is not None
            server.up_since = node.since(pool.name, config.name)
            server.others = node.count(config.slot, ACTIVE)
        servers.append(server)
    return PoolState(pool, servers)


def _answer_text(choice: Choice, facts: Facts) -> str:
    action = choice.answer
    if isinstance(action, Redirect):
        location = compile_template(action.location)(facts, choice.captures).decode("latin-1")
        return f"answered here: {action.status}, go to {location}"
    assert isinstance(action, Respond)
    return f"answered here: {action.status}"
