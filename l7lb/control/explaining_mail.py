"""`l7lb explain` for mail: what a login or a recipient is taken for, and what directories say of it.

A running node's directories are asked as its workers ask them, with what they remember; without a node they are asked
here, once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from l7lb.core.directory import FAILED, FOUND, MISSING, REFUSED, Answer, Question, named_server
from l7lb.core.errors import Failure
from l7lb.core.facts import Facts
from l7lb.core.mailbox import canonical, short_name
from l7lb.core.servers import PoolState, ServerState
from l7lb.core.snapshot import Directory, Listener
from l7lb.persistence.mailbox_messages import MailboxRow
from l7lb.protocols.mail.esmtp_replies import speaks_for
from l7lb.protocols.mail.facts import MailFacts
from l7lb.protocols.mail.failures import permanent

# How a login is refused for now, and for good; a recipient is by the reply itself.
REFUSALS: Final = {
    "imap4": ("NO [UNAVAILABLE]", "NO [AUTHENTICATIONFAILED]"),
    "pop3": ("-ERR [SYS/TEMP]", "-ERR [AUTH]"),
    "managesieve": ("NO (TRYLATER)", "NO"),
    "submission": ("454", "535"),
}
LIBRARIES = "l7lb.directories"  # whose log says again what the explanation says


@dataclass(frozen=True)
class Heard:
    """What others say of a mailbox: the directories' answer, and the state process' word on where it is."""

    answer: Answer | None = None
    pinned: MailboxRow | None = None


def mail_facts(listener: Listener, typed: str, source: str) -> MailFacts:
    """What the proxy would know of a login or a recipient of that name."""
    facts = MailFacts(listener.protocol, listener.name, source)
    facts.user = typed.encode()
    facts.address = facts.mailbox = canonical(facts.user, listener.addresses)
    return facts


def refusal(protocol: str, failure: Failure) -> str:
    """What the client is told."""
    if protocol in REFUSALS:
        return REFUSALS[protocol][permanent(failure)]
    return str(speaks_for(failure).code)


def question_of(listener: Listener, facts: Facts) -> Question:
    """What directories are asked; without a password, since nobody knows it here."""
    user = short_name(facts.address, listener.addresses)
    return Question(facts.address, user, getattr(facts, "user", b""), facts.protocol, facts.source)


async def ask(directories: Sequence[Directory], listener: Listener, facts: Facts) -> Answer:
    """What the directories, in this order, say of these facts: asked once, without a node."""
    from l7lb.routing.directory.lookup import Lookup, chain_find, make_source

    log = logging.getLogger(LIBRARIES)
    level = log.level
    log.setLevel(logging.CRITICAL)
    chain: list[Lookup] = []
    try:
        chain.extend(Lookup(directory, make_source(directory)) for directory in directories)
        result, name = await chain_find(chain, question_of(listener, facts))
    except (ValueError, OSError) as error:
        return Answer(FAILED, why=str(error))
    finally:
        await asyncio.gather(*(lookup.close() for lookup in chain))
        log.setLevel(level)
    answer = Answer(result.status, result.entry, result.why)
    answer.directory = name
    policy = next((directory for directory in directories if directory.name == name), directories[-1])
    answer.missing, answer.unknown_server = policy.missing, policy.unknown_server
    answer.server_down = policy.server_down
    return answer


def kept(row: MailboxRow, named: ServerState | None, facts: Facts, pool: PoolState) -> tuple[ServerState | None, str]:
    """What a mailbox's pin comes to: its server, if new sessions get that, and the words for it.

    ``named`` is the server that a directory names, which the mailbox moves to where it is on another one.
    """
    sessions = {0: "without a session", 1: "with 1 session"}.get(row.sessions, f"with {row.sessions} sessions")
    text = f"the mailbox is on {row.server}, {sessions}"
    if row.moving:
        return None, f"{text}, and is being moved: logins wait"
    if named is not None:
        return None, text if named.name == row.server else f"{text}, and moves from there"
    server = pool.by_name.get(row.server)
    if server is None or not server.alive_for(facts.protocol):
        return None, f"{text}, which is not in use: it moves"
    return server, text


class Told:
    """What an answer comes to: a server that must be it, or a refusal; ``text`` says so in words."""

    def __init__(self, text: str, server: ServerState | None = None, failure: Failure | None = None) -> None:
        self.text = text
        self.server = server
        self.failure = failure


def judge(answer: Answer, facts: Facts, pool: PoolState) -> Told:
    """The same as the proxy makes of it; the facts get the entry's mailbox."""
    name = f"directory {answer.directory}" if answer.directory else "the directory"
    if answer.status == FAILED:
        return Told(f"{name} can't answer: {answer.why}", failure=Failure.DIRECTORY)
    if answer.status == REFUSED:
        return Told(f"{name} refuses the login: {answer.why}", failure=Failure.LOGIN_REFUSED)
    if answer.status == MISSING and answer.missing != "pool":
        return Told(f"{name} has no entry for it, which is refused", failure=Failure.NO_MAILBOX)
    entry = answer.entry
    if answer.status != FOUND or entry is None:
        return Told(f"{name} has no entry for it")
    if entry.mailbox:
        facts.mailbox = entry.mailbox
    text = f"{name}: mailbox {facts.mailbox.decode('utf-8', 'backslashreplace')}"
    if not entry.server:
        return Told(text)
    text += f", server {entry.server}"
    config = named_server(entry.server, [server.config for server in pool.servers], facts.protocol)
    if config is None:
        if answer.unknown_server == "pool":
            return Told(f"{text}, which is none of pool {pool.name}")
        return Told(f"{text}, which is none of pool {pool.name}, and refused", failure=Failure.MAILBOX_SERVER)
    server = pool.by_name[config.name]
    if server.alive_for(facts.protocol):
        return Told(text, server)
    if answer.server_down == "pool":
        return Told(f"{text}, which is not in use")
    return Told(f"{text}, which is not in use, and refused", failure=Failure.MAILBOX_SERVER)
