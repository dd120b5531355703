"""`l7lb explain`: why a request goes where it goes, in plain words. Nothing is changed by asking."""

from __future__ import annotations

from l7lb.core.contracts import Explanation
from l7lb.core.facts import Facts
from l7lb.core.servers import PoolState, ServerState
from l7lb.core.snapshot import Redirect, Respond, Route, ToPool
from l7lb.routing.balance import make_balancer
from l7lb.routing.balance.hash import HashBalancer
from l7lb.routing.matchers import PathTooLong, conditions_of, show
from l7lb.routing.templates import compile_template

ALGORITHM = {
    "round-robin": "servers take turns by weight; in a running node each worker keeps its own turn",
    "least-connections": "the server with the least in progress for its weight",
    "random-of-two": "of two servers drawn by weight the one with less in progress",
    "latency": "of two servers drawn by weight the one that is likely to answer sooner",
    "first": "the first server that has room",
}


def explain_route(route: Route, facts: Facts, path: bytes, exact_case: bool) -> Explanation:
    """Whether this rule matches, and why or why not; raises PathTooLong. ``path`` is folded as the listener wants."""
    details: list[str] = []
    for condition in conditions_of(route.match, exact_case):
        if not condition.holds(facts, path):
            return Explanation(route.where, route.number, False, condition.why_not(facts), details)
        details.append(condition.why(facts))
    why = "all its conditions hold" if details else "it has no conditions"
    return Explanation(route.where, route.number, True, why, details)


def explain_too_long(route: Route, problem: PathTooLong, facts: Facts) -> Explanation:
    """The rule at which a long path ends the search."""
    why = f"the path has {len(facts.path)} bytes and {problem}; no rule matches such a request"
    return Explanation(route.where, route.number, False, why)


def explain_action(route: Route, facts: Facts, captures: tuple[bytes, ...]) -> list[str]:
    """What a matched rule does, one line a thing."""
    action = route.action
    lines = [f"* number {number} stands for {show(value)}" for number, value in enumerate(captures, 1)]
    if isinstance(action, Respond):
        lines.append(f"answers {action.status}")
    elif isinstance(action, Redirect):
        location = compile_template(action.location)(facts, captures)
        lines.append(f"answers {action.status}, go to {show(location)}")
    elif isinstance(action, ToPool):
        lines.append(f"goes to pool {action.pool}")
    else:
        total = sum(weight for _, weight in action.shares)
        shares = ", ".join(f"{pool} {weight / total:.0%}" for pool, weight in action.shares)
        lines.append(f"goes to one of the pools {shares}")
    if route.directory:
        lines.append(f"asks {', then '.join(route.directory)}")
    if route.rewrite is not None:
        for what, template in (("path", route.rewrite.path), ("host", route.rewrite.host)):
            if template:
                value = compile_template(template, host=what == "host")(facts, captures)
                lines.append(f"the server gets the {what} {show(value)}")
    return lines


def explain_pool(pool: PoolState, facts: Facts, now: float = 0.0, seed: int = 0) -> Explanation:
    """Which server the pool's balancer gives a new user with these facts, and why.

    ``matched`` is False where no server is open. ``details`` has a line for each server. Persistence is not asked.
    """
    balancer = make_balancer(pool, seed)
    chosen = balancer.choose(facts, now, pool.down_for(facts.protocol))
    settings = pool.config.balance
    if chosen is None:
        why = "no server is open"
    elif isinstance(balancer, HashBalancer):
        why = f"{chosen.name}: {balancer.explain(facts, now)}"
    else:
        why = f"{chosen.name}: {settings.algorithm}, {ALGORITHM[settings.algorithm]}"
    if chosen is not None and chosen.config.backup:
        why += "; it is a backup, and no other server is open"
    if chosen is not None and chosen.full:
        why += "; all open servers are at their connection limit, so that the request waits"
    details = [_describe(server, pool, facts.protocol, now) for server in pool.servers]
    return Explanation(f"pool {pool.name}", 0, chosen is not None, why, details)


def _describe(server: ServerState, pool: PoolState, protocol: str, now: float) -> str:
    config = server.config
    parts = []
    if not server.healthy:
        parts.append("down")
    elif protocol in server.down:
        parts.append(f"down for {protocol}")
    elif server.ejected:
        parts.append("ejected after errors")
    elif config.state != "enabled":
        parts.append(config.state)
    elif config.weight <= 0:
        parts.append("weight 0: takes no new users")
    else:
        parts.append("open")
    weight = server.weight(now, pool.config.slow_start)
    parts.append(f"weight {config.weight}" if weight == config.weight else f"weight {weight:.2g} of {config.weight}")
    limit = f" of {config.max_connections}" if config.max_connections else ""
    parts.append(f"{server.load}{limit} in progress")
    if server.latency > 0:
        parts.append(f"answers in {server.latency * 1000:.1f} ms")
    if config.backup:
        parts.append("backup")
    return f"{server.name} ({config.address_for(protocol)}): {', '.join(parts)}"
