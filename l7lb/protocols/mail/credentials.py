"""With which name and proof a server is logged in to."""

from __future__ import annotations

from l7lb.core.contracts import Assignment
from l7lb.protocols.mail.facts import MailFacts
from l7lb.protocols.mail.sasl import TOKENS, Identity, SaslFault, first_response


class Credentials:
    """What a server gets. ``mechanism`` is ``plain`` or one of tokens; where :attr:`simple`, a protocol's own command
    with name and password does as well.
    """

    __slots__ = ("authorization", "mechanism", "password", "user")

    def __init__(self, user: bytes, password: bytes, mechanism: str = "plain", authorization: bytes = b"") -> None:
        self.user = user
        self.password = password
        self.mechanism = mechanism
        self.authorization = authorization

    @property
    def simple(self) -> bool:
        """Whether a name and a password say it all."""
        return self.mechanism == "plain" and not self.authorization

    def response(self) -> bytes:
        """The mechanism's first and only response, not yet in base64."""
        identity = Identity(self.user, self.password, self.authorization)
        return first_response(self.mechanism, identity, self.user)


def server_credentials(facts: MailFacts, assignment: Assignment) -> Credentials | None:
    """What this server gets for these facts; None where there is nothing that it would believe.

    The name that says which mailbox is meant is what was typed, or the mailbox's, as the pool's ``login_as`` has it;
    that is the authorization identity where the client gave one. A directory's entry goes before: its user and its
    password, or its master user, who logs in on behalf of that name. With the directory's passwords the server can't
    judge the client's, so they are for clients that have proved already who they are (see ``Entry``).
    """
    entry = assignment.entry
    user, authorization = facts.user, facts.authorization
    if assignment.pool.config.login_as == "mailbox" and facts.mailbox:
        if authorization:
            authorization = facts.mailbox
        else:
            user = facts.mailbox
    mechanism = facts.mechanism if facts.mechanism in TOKENS else "plain"
    password = facts.password
    if entry is not None:
        if entry.user:
            user, authorization = entry.user, b""
        # Who asks to act for another has proved its own name at most: only the server can judge the rest.
        proven = (entry.proven or facts.mechanism == "external") and not facts.authorization
        if entry.password and proven:
            password, mechanism = entry.password, "plain"
        if entry.master_user and proven:
            return _usable(Credentials(entry.master_user, entry.master_password, "plain", authorization or user))
    if not password:
        return None  # a certificate proved the name here, but not to the server
    return _usable(Credentials(user, password, mechanism, authorization))


def _usable(credentials: Credentials) -> Credentials | None:
    """A directory's words are no client's, but end a line all the same."""
    try:
        Identity(credentials.user, credentials.password, credentials.authorization)
    except SaslFault:
        return None
    return credentials
